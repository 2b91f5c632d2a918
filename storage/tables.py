"""The tables: what is known of feedback, versions, deployments, jobs, events, mails and API keys."""

from datetime import datetime, timezone
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    TypeDecorator,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Figures = dict[str, Any]
"""Numbers and short texts by name, as JSON."""


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time; SQLite, which keeps no time zone, gets and gives UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To UTC; without a time zone where the database has none."""
        if value is None:
            return None
        utc = value.astimezone(timezone.utc)
        return utc if dialect.name == "postgresql" else utc.replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Always with the time zone UTC."""
        if value is None:
            return None
        return value.astimezone(timezone.utc) if value.tzinfo else value.replace(tzinfo=timezone.utc)


class Table(DeclarativeBase):
    """Base of all tables."""

    type_annotation_map = {datetime: UtcDateTime, Figures: JSON}  # noqa: RUF012


_Id = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows by itself only in a column INTEGER


class Feedback(Table):
    """A text and its right label, as somebody told them. Rows are only ever added; the newest of a text counts."""

    __tablename__ = "feedback"

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    text: Mapped[str] = mapped_column(Text)
    text_hash: Mapped[str] = mapped_column(String(64), index=True)
    label: Mapped[str] = mapped_column(Text)
    held_out: Mapped[bool]
    """Whether models are judged by it, and never learn from it."""
    source: Mapped[str] = mapped_column(Text)
    """`api`, `console`, or the name of an imported file."""
    received_at: Mapped[datetime] = mapped_column(index=True)


class IdempotencyKey(Table):
    """A client's name for one of its requests, so that one which it sends again is not taken twice."""

    __tablename__ = "idempotency_keys"

    key: Mapped[str] = mapped_column(String(200), primary_key=True)
    content_hash: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime]


class Event(Table):
    """Something that the loop did, and why. Rows are only ever added."""

    __tablename__ = "events"

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    at: Mapped[datetime] = mapped_column(index=True)
    kind: Mapped[str] = mapped_column(String(40), index=True)
    message: Mapped[str] = mapped_column(Text)
    figures: Mapped[Figures]
    version: Mapped[int | None]
    job_id: Mapped[int | None] = mapped_column(ForeignKey("jobs.id"))


class Mail(Table):
    """The outbox: what is to be told of an event, until it has been."""

    __tablename__ = "outbox"

    event_id: Mapped[int] = mapped_column(ForeignKey("events.id"), primary_key=True)
    """One mail an event, so that nothing is told twice."""
    subject: Mapped[str] = mapped_column(Text)
    body: Mapped[str] = mapped_column(Text)
    delivered: Mapped[list[str]] = mapped_column(JSON, default=list)
    """The ways by which it has been told already."""
    attempts: Mapped[int] = mapped_column(default=0)
    next_attempt_at: Mapped[datetime]
    sent_at: Mapped[datetime | None] = mapped_column(index=True)
    last_error: Mapped[str] = mapped_column(Text, default="")


class Job(Table):
    """A check or a retraining, from the request for it to its end."""

    __tablename__ = "jobs"

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    kind: Mapped[str] = mapped_column(String(20))
    state: Mapped[str] = mapped_column(String(20), index=True)
    reason: Mapped[str] = mapped_column(Text)
    """Who or what asked for it."""
    step: Mapped[str] = mapped_column(Text, default="")
    attempts: Mapped[int] = mapped_column(default=0)
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    fingerprint: Mapped[str] = mapped_column(String(64), default="")
    """Of the data and settings of a retraining, so that the same is not tried again."""
    result: Mapped[Figures] = mapped_column(default=dict)
    error: Mapped[str] = mapped_column(Text, default="")


class Lease(Table):
    """The right of one process, on whatever host, to do something that only one may do at a time."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    holder: Mapped[str] = mapped_column(Text)
    expires_at: Mapped[datetime]


class Version(Table):
    """A version that was published, also after its directory has been removed."""

    __tablename__ = "versions"

    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    bundle: Mapped[Figures]
    """What `bundle.json` says."""
    added_at: Mapped[datetime]
    removed_at: Mapped[datetime | None]


class Verdict(Table):
    """What a gate found of a version."""

    __tablename__ = "verdicts"
    __table_args__ = (Index("ix_verdicts_version", "version"),)

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    version: Mapped[int]
    gate: Mapped[str] = mapped_column(String(40))
    passed: Mapped[bool]
    message: Mapped[str] = mapped_column(Text)
    figures: Mapped[Figures]
    at: Mapped[datetime]


class Deployment(Table):
    """A time during which a version served, or the intention that it should."""

    __tablename__ = "deployments"

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    version: Mapped[int]
    previous: Mapped[int | None]
    """What served until then, and is gone back to."""
    state: Mapped[str] = mapped_column(String(20), index=True)
    reason: Mapped[str] = mapped_column(Text)
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    bakes_until: Mapped[datetime | None]
    """Until then, errors, latency or a failed check take it back by themselves."""
    alias_set: Mapped[bool] = mapped_column(default=False)
    """Whether MLflow's alias is known to name the version."""


class Release(Table):
    """A version that is tried on live texts beside the one that serves, from the beginning to what came of it."""

    __tablename__ = "releases"
    __table_args__ = (
        Index(
            "ix_releases_running",
            "state",
            unique=True,
            sqlite_where=text("state = 'running'"),
            postgresql_where=text("state = 'running'"),
        ),
    )

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    version: Mapped[int]
    champion: Mapped[int]
    """What serves meanwhile."""
    mode: Mapped[str] = mapped_column(String(20))
    state: Mapped[str] = mapped_column(String(20))
    """One at most is running."""
    reason: Mapped[str] = mapped_column(Text)
    """Who or what asked for it."""
    outcome: Mapped[str] = mapped_column(Text, default="")
    """Why it ended."""
    steps: Mapped[list[float]] = mapped_column(JSON)
    """Shares of live texts that the version answers, one after another; none in the shadow."""
    step: Mapped[int] = mapped_column(default=0)
    figures: Mapped[Figures] = mapped_column(default=dict)
    """Sums of what all gateways counted."""
    started_at: Mapped[datetime]
    step_started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]


class Difference(Table):
    """A live text to which the two versions of a release give different labels; the newest are kept."""

    __tablename__ = "differences"

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    release_id: Mapped[int] = mapped_column(ForeignKey("releases.id"), index=True)
    at: Mapped[datetime]
    text: Mapped[str | None] = mapped_column(Text)
    """As that of a sampled prediction."""
    text_hash: Mapped[str] = mapped_column(String(64))
    champion_label: Mapped[str] = mapped_column(Text)
    champion_score: Mapped[float]
    challenger_label: Mapped[str] = mapped_column(Text)
    challenger_score: Mapped[float]


class ApiKey(Table):
    """A key with which somebody may ask; the key itself is nowhere, only its hash. Rows are only ever added."""

    __tablename__ = "api_keys"
    __table_args__ = (
        Index(
            "ix_api_keys_valid_name",
            "name",
            unique=True,
            sqlite_where=text("revoked_at IS NULL"),
            postgresql_where=text("revoked_at IS NULL"),
        ),
    )

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    name: Mapped[str] = mapped_column(String(60))
    """Who has it; the name of a revoked key may be given again."""
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[list[str]] = mapped_column(JSON)
    created_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]


class SampledPrediction(Table):
    """A text that was asked, and the answer: one of a sample, kept for some time."""

    __tablename__ = "sampled_predictions"

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    at: Mapped[datetime] = mapped_column(index=True)
    version: Mapped[int]
    label: Mapped[str] = mapped_column(Text)
    probabilities: Mapped[list[float]] = mapped_column(JSON)
    """Calibrated, in the order of the version's labels."""
    text: Mapped[str | None] = mapped_column(Text)
    """Of a very long one the beginning; none where texts are not to be kept."""
    text_hash: Mapped[str] = mapped_column(String(64))
    """As that of feedback."""
    characters: Mapped[int]
    words: Mapped[int]
    truncated: Mapped[bool]
    """Whether the text was longer than the model reads, and was cut."""
