"""How often the mail server refused recipients of a mail for good."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Apply."""
    op.add_column("outbox", sa.Column("refusals", sa.Integer(), server_default="0", nullable=False))
