"""The tables for feedback, versions, deployments, jobs, events, mails, API keys and the rest."""

from datetime import UTC, datetime
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
"""Numbers and short texts by name, stored as JSON."""


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time. SQLite stores no time zone, so it stores UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert to UTC, without a time zone if the database has none."""
        if value is None:
            return None
        utc = value.astimezone(UTC)
        return utc if dialect.name == "postgresql" else utc.replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Return the time with the time zone UTC."""
        if value is None:
            return None
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


class StorableText(TypeDecorator[str]):
    """Text without characters that a database refuses, which are replaced. Otherwise one would lose a whole batch.

    PostgreSQL refuses the character NUL; no database takes lone surrogates.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        """Return the text as it is stored."""
        return None if value is None else value.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


class Table(DeclarativeBase):
    """Base class of all tables."""

    type_annotation_map = {datetime: UtcDateTime, Figures: JSON}  # noqa: RUF012

    def as_json(self, *columns: str) -> Figures:
        """Return some columns in the format of the API and the commands: points in time in ISO 8601, to the second."""
        values = {name: getattr(self, name) for name in columns}
        return {
            name: value.isoformat(timespec="seconds") if isinstance(value, datetime) else value
            for name, value in values.items()
        }


_Id = BigInteger().with_variant(Integer, "sqlite")  # SQLite generates ids only in a column of type INTEGER


class Feedback(Table):
    """A text and its correct label from a source. `storage/feedback.py` defines which row of a text counts."""

    __tablename__ = "feedback"

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    text: Mapped[str] = mapped_column(StorableText)
    text_hash: Mapped[str] = mapped_column(String(64), index=True)
    label: Mapped[str] = mapped_column(StorableText)
    held_out: Mapped[bool]
    """True if the row is only used for evaluation, never for training."""
    source: Mapped[str] = mapped_column(StorableText, index=True)
    """Sender of the row: the name of a `FeedbackSource`."""
    received_at: Mapped[datetime] = mapped_column(index=True)
    withdrawn_at: Mapped[datetime | None]
    """Time since which the row is not used to train or evaluate models."""


class FeedbackSource(Table):
    """A sender of feedback, with counters of its stored rows and its quarantine."""

    __tablename__ = "feedback_sources"

    name: Mapped[str] = mapped_column(StorableText, primary_key=True)
    """`key:NAME`, `admin`, `console:NAME`, `import:FILE`, `anonymous`, or `legacy:NAME` for rows of older releases."""
    rows: Mapped[int] = mapped_column(default=0)
    """Number of its rows that are not withdrawn."""
    bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    """Size of its stored rows. Withdrawn ones count until their texts are erased."""
    day: Mapped[datetime]
    """Start of the day of `rows_of_day`."""
    rows_of_day: Mapped[int] = mapped_column(default=0)
    quarantined_at: Mapped[datetime | None]
    """Time since which no row of the source is used to train or evaluate models."""
    reason: Mapped[str] = mapped_column(StorableText, default="")
    """Reason of the last quarantine or release."""
    examined_up_to: Mapped[int] = mapped_column(BigInteger, default=0)
    """Id of the newest row at the last release. Only newer rows can put the source into quarantine again."""


class IdempotencyKey(Table):
    """A client's key for a request. A repeated request with the same key is stored once."""

    __tablename__ = "idempotency_keys"

    caller: Mapped[str] = mapped_column(String(200), primary_key=True)
    """Caller of the request; empty for keys from releases that did not store it."""
    key: Mapped[str] = mapped_column(String(200), primary_key=True)
    content_hash: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(index=True)


class Event(Table):
    """An action of the pipeline and its reason. Rows are only added."""

    __tablename__ = "events"

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    at: Mapped[datetime] = mapped_column(index=True)
    kind: Mapped[str] = mapped_column(String(40), index=True)
    message: Mapped[str] = mapped_column(StorableText)
    figures: Mapped[Figures]
    version: Mapped[int | None]
    job_id: Mapped[int | None] = mapped_column(ForeignKey("jobs.id"))


class Mail(Table):
    """The outbox: mails about events, until they are sent."""

    __tablename__ = "outbox"

    event_id: Mapped[int] = mapped_column(ForeignKey("events.id"), primary_key=True)
    """One mail per event, so that nothing is sent twice."""
    subject: Mapped[str] = mapped_column(StorableText)
    body: Mapped[str] = mapped_column(StorableText)
    delivered: Mapped[list[str]] = mapped_column(JSON, default=list)
    """Channels through which the mail was already sent."""
    attempts: Mapped[int] = mapped_column(default=0)
    refusals: Mapped[int] = mapped_column(default=0, server_default="0")
    """Attempts in which the mail server refused all remaining recipients for good."""
    next_attempt_at: Mapped[datetime]
    sent_at: Mapped[datetime | None] = mapped_column(index=True)
    last_error: Mapped[str] = mapped_column(StorableText, default="")


class Job(Table):
    """A check or a retraining, from the request to its end."""

    __tablename__ = "jobs"

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    kind: Mapped[str] = mapped_column(String(20))
    state: Mapped[str] = mapped_column(String(20), index=True)
    reason: Mapped[str] = mapped_column(StorableText)
    """Who or what requested it."""
    step: Mapped[str] = mapped_column(StorableText, default="")
    attempts: Mapped[int] = mapped_column(default=0)
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    fingerprint: Mapped[str] = mapped_column(String(64), default="")
    """Hash of the data and settings of a retraining, so that it is not repeated."""
    result: Mapped[Figures] = mapped_column(default=dict)
    error: Mapped[str] = mapped_column(StorableText, default="")


class Lease(Table):
    """An exclusive right of one process on any host; see `storage.leases`."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    holder: Mapped[str] = mapped_column(StorableText)
    expires_at: Mapped[datetime]


class Version(Table):
    """A published version, also after its directory is deleted."""

    __tablename__ = "versions"

    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    bundle: Mapped[Figures]
    """The content of `bundle.json`."""
    added_at: Mapped[datetime]
    removed_at: Mapped[datetime | None]


class Verdict(Table):
    """The result of a gate for a version."""

    __tablename__ = "verdicts"
    __table_args__ = (Index("ix_verdicts_version", "version"),)

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    version: Mapped[int]
    gate: Mapped[str] = mapped_column(String(40))
    passed: Mapped[bool]
    message: Mapped[str] = mapped_column(StorableText)
    figures: Mapped[Figures]
    at: Mapped[datetime]


class Deployment(Table):
    """A time during which a version was deployed, or the intention to deploy it."""

    __tablename__ = "deployments"

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    version: Mapped[int]
    previous: Mapped[int | None]
    """The version deployed before, the target of a rollback."""
    state: Mapped[str] = mapped_column(String(20), index=True)
    reason: Mapped[str] = mapped_column(StorableText)
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    monitored_until: Mapped[datetime | None] = mapped_column("bakes_until")
    """End of the monitoring window, in which the version is rolled back on a fault."""
    alias_set: Mapped[bool] = mapped_column(default=False)
    """True if MLflow's alias points to the version."""


class Release(Table):
    """A shadow or canary release, from its start to its outcome."""

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
    """The deployed version during the release."""
    mode: Mapped[str] = mapped_column(String(20))
    state: Mapped[str] = mapped_column(String(20))
    """State of the release; at most one release is running."""
    reason: Mapped[str] = mapped_column(StorableText)
    """Who or what requested it."""
    outcome: Mapped[str] = mapped_column(StorableText, default="")
    """Reason of its end."""
    steps: Mapped[list[float]] = mapped_column(JSON)
    """Share of live texts that clients get the candidate's predictions for, at each step; empty for a shadow."""
    step: Mapped[int] = mapped_column(default=0)
    figures: Mapped[Figures] = mapped_column(default=dict)
    """Counts, summed over all gateways."""
    started_at: Mapped[datetime]
    step_started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]


class Difference(Table):
    """A live text that the two versions of a release label differently; the newest are kept."""

    __tablename__ = "differences"

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    release_id: Mapped[int] = mapped_column(ForeignKey("releases.id"), index=True)
    at: Mapped[datetime]
    text: Mapped[str | None] = mapped_column(StorableText)
    """The text; null if texts are not stored."""
    text_hash: Mapped[str] = mapped_column(String(64))
    champion_label: Mapped[str] = mapped_column(StorableText)
    champion_score: Mapped[float]
    challenger_label: Mapped[str] = mapped_column(StorableText)
    challenger_score: Mapped[float]


class ApiKey(Table):
    """An API key, of which only the hash is stored. Rows are only added."""

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
    """Name of the key; the name of a revoked key may be used again."""
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[list[str]] = mapped_column(JSON)
    created_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]


class SampledPrediction(Table):
    """A sampled live text and its prediction, stored for some time."""

    __tablename__ = "sampled_predictions"

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    at: Mapped[datetime] = mapped_column(index=True)
    version: Mapped[int]
    label: Mapped[str] = mapped_column(StorableText)
    probabilities: Mapped[list[float]] = mapped_column(JSON)
    """Calibrated probabilities in the order of the version's labels."""
    text: Mapped[str | None] = mapped_column(StorableText)
    """The text, or the beginning of a very long one; null if texts are not stored."""
    text_hash: Mapped[str] = mapped_column(String(64))
    """Hash of the text, as in the table `feedback`."""
    characters: Mapped[int]
    words: Mapped[int]
    truncated: Mapped[bool]
    """True if the text was truncated because it is longer than the model reads."""


class EndedSession(Table):
    """A session of the console that was signed out."""

    __tablename__ = "ended_sessions"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    ends_at: Mapped[datetime]
    """Time at which the session would have expired; the row is not needed after that."""


class Traffic(Table):
    """Predictions over HTTP and gRPC in one hour, summed over all gateways."""

    __tablename__ = "traffic"

    hour: Mapped[datetime] = mapped_column(primary_key=True)
    """When the hour begins."""
    requests: Mapped[int] = mapped_column(BigInteger)
    failed: Mapped[int] = mapped_column(BigInteger)
    """Responses with an HTTP status of 500 or more, or a gRPC status that means the same."""
    texts: Mapped[int] = mapped_column(BigInteger)


class LabelDraw(Table):
    """A live text that was drawn at random for people to label. All rows are of one series."""

    __tablename__ = "label_draws"

    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """Place in the random order of the series, from 0 on."""
    version: Mapped[int]
    drawn_at: Mapped[datetime]
    """When the series began."""
    at: Mapped[datetime]
    """When the text was classified."""
    text: Mapped[str] = mapped_column(StorableText)
    text_hash: Mapped[str] = mapped_column(String(64), index=True)
    """Hash of the text, as in the table `feedback`, where its label is."""
    predicted: Mapped[str] = mapped_column(StorableText)
    holder: Mapped[str] = mapped_column(StorableText, default="", server_default="")
    """Who got the text last, to label it."""
    held_until: Mapped[datetime | None]
    """Until when nobody else gets it."""
    skipped_at: Mapped[datetime | None]
    """When somebody could not tell the label; the text is left out of the series."""
