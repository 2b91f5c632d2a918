"""Sources of feedback with quotas and quarantine, withdrawn rows, and idempotency keys per client."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_BYTES_OF_ROW = 400
"""Bytes of a row besides its text, as in `storage.feedback_sources`."""


def upgrade() -> None:
    """Apply."""
    op.add_column("feedback", sa.Column("withdrawn_at", sa.DateTime(timezone=True), nullable=True))
    # The API key that sent a row is not known. All rows counted until now, so they stay trusted: an update must not
    # change the weight of a stored label. Removing `legacy` from `SENTIMENT_TRUSTED_SOURCES` ends that trust.
    op.execute(
        "UPDATE feedback SET source = CASE source WHEN 'api' THEN 'legacy:api' WHEN 'console' THEN 'console:legacy' "
        "ELSE 'import:' || source END"
    )
    op.create_index(op.f("ix_feedback_source"), "feedback", ["source"], unique=False)
    op.create_table(
        "feedback_sources",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("day", sa.DateTime(timezone=True), nullable=False),
        sa.Column("rows_of_day", sa.Integer(), nullable=False),
        sa.Column("quarantined_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("examined_up_to", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.execute(
        "INSERT INTO feedback_sources (name, rows, bytes, day, rows_of_day, reason, examined_up_to) "
        f"SELECT source, COUNT(*), SUM(LENGTH(text) + {_BYTES_OF_ROW}), MAX(received_at), 0, '', 0 "
        "FROM feedback GROUP BY source"
    )
    op.rename_table("idempotency_keys", "idempotency_keys_of_all")
    op.create_table(
        "idempotency_keys",
        sa.Column("caller", sa.String(length=200), nullable=False),
        sa.Column("key", sa.String(length=200), nullable=False),
        sa.Column("content_hash", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("caller", "key", name="idempotency_keys_by_caller_pkey"),
    )
    op.execute(
        "INSERT INTO idempotency_keys (caller, key, content_hash, created_at) "
        "SELECT '', key, content_hash, created_at FROM idempotency_keys_of_all"
    )
    op.drop_table("idempotency_keys_of_all")
    op.create_index(op.f("ix_idempotency_keys_created_at"), "idempotency_keys", ["created_at"], unique=False)
