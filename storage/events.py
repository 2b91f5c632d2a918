"""Events, which record each action of the pipeline and its reason, and the outbox of the mails about them."""

from collections.abc import Collection
from datetime import datetime, timedelta
from enum import StrEnum

from sqlalchemy import delete, func, or_, select
from sqlalchemy.orm import Session

from storage.database import Database, now
from storage.tables import Event, Figures, Mail

FIRST_PAUSE_S = 10.0
LONGEST_PAUSE_S = 3_600.0
"""Maximum seconds between attempts to send a mail; the pause doubles after each failure."""


class EventKind(StrEnum):
    """The kinds of events."""

    CHECKED = "checked"
    STALE = "stale"
    ESTIMATED_LOW = "estimated-low"
    LABELS_DECIDED = "labels-decided"
    """Labels of random live texts have decided whether the accuracy is under the threshold."""
    DRIFT = "drift"
    FIRST_STAGE_OFF = "first-stage-off"
    """The full model decides all texts, because the first stage changed too many labels."""
    FIRST_STAGE_ON = "first-stage-on"
    DATA_UNFIT = "data-unfit"
    """The data files cannot be used; checks go on with the data of the deployed version."""
    DATA_FIT = "data-fit"
    RETRAINING_STARTED = "retraining-started"
    RETRAINING_SKIPPED = "retraining-skipped"
    REJECTED = "candidate-rejected"
    UPDATE_REJECTED = "update-rejected"
    """The gates rejected an update of the deployed model; a full training follows, which decides what is mailed."""
    DEPLOYED = "deployed"
    """A version is deployed that no promotion has recorded, such as the first one."""
    PROMOTED = "promoted"
    PROMOTION_FAILED = "promotion-failed"
    MONITORED = "monitored"
    """A version passed its monitoring window; older releases stored `baked`."""
    SUSPECTED = "suspected"
    """Live calls raised a suspicion that the pipeline's own probes did not confirm."""
    ROLLED_BACK = "rolled-back"
    RECONCILED = "reconciled"
    JOB_FAILED = "job-failed"
    JOB_CANCELLED = "job-cancelled"
    JOB_RESUMED = "job-resumed"
    FEEDBACK_IMPORTED = "feedback-imported"
    FEEDBACK_WITHDRAWN = "feedback-withdrawn"
    SOURCE_QUARANTINED = "source-quarantined"
    SOURCE_RELEASED = "source-released"
    SHADOW_STARTED = "shadow-started"
    CANARY_STARTED = "canary-started"
    CANARY_STEP = "canary-step"
    RELEASE_HELD = "release-held"
    """Figures that clients can influence raise doubts about the candidate; an administrator decides."""
    TAKEN_BACK = "taken-back"
    RELEASE_STOPPED = "release-stopped"
    VERSION_REMOVED = "version-removed"
    KEY_ADDED = "key-added"
    KEY_REVOKED = "key-revoked"
    KEYS_GUESSED = "keys-guessed"
    DIGEST = "digest"


MAILED = {
    EventKind.STALE,
    EventKind.ESTIMATED_LOW,
    EventKind.DRIFT,
    EventKind.DATA_UNFIT,
    EventKind.RETRAINING_STARTED,
    EventKind.REJECTED,
    EventKind.PROMOTED,
    EventKind.PROMOTION_FAILED,
    EventKind.SUSPECTED,
    EventKind.ROLLED_BACK,
    EventKind.CANARY_STARTED,
    EventKind.RELEASE_HELD,
    EventKind.TAKEN_BACK,
    EventKind.JOB_FAILED,
    EventKind.SOURCE_QUARANTINED,
    EventKind.DIGEST,
}


def record(
    session: Session,
    kind: EventKind,
    message: str,
    figures: Figures | None = None,
    *,
    version: int | None = None,
    job_id: int | None = None,
) -> Event:
    """Add an event and its mail, in the same transaction as the change that it describes.

    The message's first line is the mail's subject. Texts in the figures (`examples`) are in the mail, and not in the
    event, which callers may read who may not read texts.
    """
    time, all_figures = now(session), figures or {}
    told = without_texts(all_figures)
    event = Event(at=time, kind=kind.value, message=message, figures=told, version=version, job_id=job_id)
    session.add(event)
    session.flush()
    if kind in MAILED:
        subject = message.partition("\n")[0]
        session.add(Mail(event_id=event.id, subject=subject, body=_body(event, all_figures), next_attempt_at=time))
    return event


def without_texts(figures: Figures) -> Figures:
    """Return a copy of figures without the texts in them, under the name `examples` wherever that is."""
    return {
        name: without_texts(value) if isinstance(value, dict) else value
        for name, value in figures.items()
        if name != "examples"
    }


def _body(event: Event, figures: Figures) -> str:
    lines = [event.message, "", f"When: {event.at:%Y-%m-%d %H:%M:%S} UTC"]
    if event.version is not None:
        lines.append(f"Version: {event.version}")
    if event.job_id is not None:
        lines.append(f"Job: {event.job_id}")
    return "\n".join([*lines, *(f"{name}: {_format_figure(value)}" for name, value in figures.items())])


def _format_figure(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value > 1 and value.is_integer() else f"{value:,.4f}"  # a count may be a float
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_format_figure(item)}" for name, item in value.items())
    if isinstance(value, list):
        return "; ".join(map(_format_figure, value))
    return str(value)


def newest(
    database: Database, limit: int, kind: str | None = None, before: int | None = None, words: str = ""
) -> list[Event]:
    """Return the newest events, latest first.

    With `before`, only events with smaller ids; with `words`, only events whose message contains them, in any case.
    """
    query = select(Event).order_by(Event.id.desc()).limit(limit)
    if kind is not None:
        query = query.where(Event.kind == kind)
    if before is not None:
        query = query.where(Event.id < before)
    if words:
        query = query.where(Event.message.icontains(words, autoescape=True))
    with database.reading() as session:
        return list(session.scalars(query))


def newest_of(database: Database, kinds: Collection[EventKind], limit: int) -> list[Event]:
    """Return the newest events of the given kinds, latest first."""
    query = select(Event).where(Event.kind.in_([kind.value for kind in kinds])).order_by(Event.id.desc()).limit(limit)
    with database.reading() as session:
        return list(session.scalars(query))


def of_kinds_since(database: Database, since: datetime, kinds: Collection[EventKind]) -> list[Event]:
    """Return the events of the given kinds since a time, oldest first."""
    chosen = Event.kind.in_([kind.value for kind in kinds]), Event.at >= since
    with database.reading() as session:
        return list(session.scalars(select(Event).where(*chosen).order_by(Event.id)))


def last_checks(session: Session) -> dict[int, Event]:
    """Return, for each version that was checked, the event of its last check.

    The first line of the message says how the version stands; the figures are by part of the evaluation data.
    """
    last = select(func.max(Event.id)).where(Event.kind == EventKind.CHECKED.value).group_by(Event.version)
    found = session.scalars(select(Event).where(Event.id.in_(last)))
    return {event.version: event for event in found if event.version is not None}


def data_unfit(database: Database) -> Event | None:
    """Return the event that says why the data files cannot be used; None if the last check could use them."""
    last = next(iter(newest_of(database, (EventKind.DATA_UNFIT, EventKind.DATA_FIT), 1)), None)
    return last if last is not None and last.kind == EventKind.DATA_UNFIT.value else None


def as_json(event: Event) -> Figures:
    """Return an event in the format of the API and the commands."""
    return event.as_json("id", "at", "kind", "message", "figures", "version", "job_id")


def due_mails(database: Database) -> list[Mail]:
    """Return the unsent mails that are due, oldest first."""
    with database.reading() as session:
        time = now(session)
        # Mails are planned too far ahead only if the clock was set back since.
        too_far = time + timedelta(seconds=LONGEST_PAUSE_S + 60)
        is_due = or_(Mail.next_attempt_at <= time, Mail.next_attempt_at > too_far)
        query = select(Mail).where(Mail.sent_at.is_(None), is_due)
        return list(session.scalars(query.order_by(Mail.event_id)))


def mark_delivered(database: Database, event_id: int, ways: Collection[str]) -> None:
    """Record that a mail was sent through some channels."""
    with database.transaction() as session:
        mail = session.get_one(Mail, event_id)
        mail.delivered = [*mail.delivered, *ways]


def mark_sent(database: Database, event_id: int) -> None:
    """Record that a mail was sent through all channels."""
    with database.transaction() as session:
        mail = session.get_one(Mail, event_id)
        mail.sent_at = now(session)
        mail.attempts += 1


def mark_unsent(database: Database, event_id: int, error: str, is_refused: bool = False) -> float:
    """Record a failed attempt to send a mail, and return the seconds until the next one.

    `is_refused` says that the attempt failed only because all remaining recipients were refused for good.
    """
    with database.transaction() as session:
        mail = session.get_one(Mail, event_id)
        pause = min(FIRST_PAUSE_S * 2.0 ** min(mail.attempts, 16), LONGEST_PAUSE_S)
        mail.attempts += 1
        mail.refusals += is_refused
        mail.last_error = error
        mail.next_attempt_at = now(session) + timedelta(seconds=pause)
        return pause


def drop_mails(database: Database) -> None:
    """Delete all unsent mails; for a pipeline without recipients."""
    with database.transaction() as session:
        session.execute(delete(Mail).where(Mail.sent_at.is_(None)))
