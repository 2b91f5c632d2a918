"""The week in plain words: how the deployed version stands, what happened, and what to do next."""

from collections import Counter
from datetime import UTC, timedelta

from sqlalchemy import func, select

from common.wording import counted
from storage import deployments, events, jobs
from storage.database import Database, now
from storage.events import EventKind
from storage.tables import Event, Feedback, Figures
from storage.traffic import Counts, traffic_since

WEEK = timedelta(days=7)
_TOLD = (
    EventKind.RETRAINING_STARTED,
    EventKind.REJECTED,
    EventKind.PROMOTED,
    EventKind.PROMOTION_FAILED,
    EventKind.ROLLED_BACK,
    EventKind.RELEASE_HELD,
    EventKind.TAKEN_BACK,
    EventKind.SOURCE_QUARANTINED,
    EventKind.DATA_UNFIT,
    EventKind.JOB_FAILED,
)
"""What happened that people should know; its first line is enough."""
_MANY_FAILURES = 0.01
_UNCHECKED = "No check has judged the deployed version yet."


def due(database: Database) -> bool:
    """Return whether a digest should be sent: each Monday from 8:00 UTC on, once something has been recorded before."""
    with database.reading() as session:
        time = now(session)
        monday = time.replace(hour=8, minute=0, second=0, microsecond=0) - timedelta(days=time.weekday())
        begun = session.scalar(select(func.min(Event.at)))
    last = next(iter(events.newest_of(database, (EventKind.DIGEST,), 1)), None)
    return begun is not None and begun < monday <= time and (last is None or last.at < monday)


def digest(database: Database) -> str:
    """Return the digest of the last seven days; its first line is the subject of the mail."""
    with database.reading() as session:
        until = now(session)
        since = until - WEEK
        deployed = deployments.serving(session)
        check = jobs.last_ended_in(session, jobs.CHECK)
        told = select(func.count()).select_from(Feedback).where(Feedback.received_at >= since)
        feedback = session.scalar(told) or 0
    result = check.result if check and deployed and check.result["version"] == deployed.version else {}
    stands = result.get("summary", _UNCHECKED)
    happened = events.of_kinds_since(database, since, _TOLD)
    checked = events.of_kinds_since(database, since, (EventKind.CHECKED, EventKind.STALE))
    kinds = Counter(event.kind for event in checked)
    traffic = traffic_since(database, since)
    lines = [
        f"Week to {until.astimezone(UTC):%d %B}: {stands.partition(';')[0].removesuffix('.')}.",
        "",
        "How it stands",
        f"  {stands}",
        "",
        "The week",
        f"  {_told_traffic(traffic)}",
        f"  {counted(feedback, 'text')} of feedback came in.",
        f"  {counted(kinds[EventKind.CHECKED], 'check')}; {counted(kinds[EventKind.STALE], 'alarm')} of low quality.",
        *(f"  {event.at.astimezone(UTC):%a %d %b %H:%M}  {event.message.partition(chr(10))[0]}" for event in happened),
        *([] if happened else ["  No retraining, promotion or rollback."]),
        "",
        "What to do next",
        *(f"  {advice}" for advice in _advice(database, traffic, result, happened)),
    ]
    return "\n".join(lines)


def send_digest(database: Database) -> None:
    """Record the digest, which also sends it by mail, if it is due."""
    if due(database):
        message = digest(database)
        with database.transaction() as session:
            events.record(session, EventKind.DIGEST, message)


def _told_traffic(counts: Counts | None) -> str:
    if counts is None:
        return "No requests for predictions."
    share = counts.failed / max(counts.requests, 1)
    failed = f"{counts.failed:,} failed ({share:.2%})" if counts.failed else "none failed"
    return f"{counts.requests:,} requests for predictions, with {counts.texts:,} texts; {failed}."


def _advice(database: Database, counts: Counts | None, result: Figures, happened: list[Event]) -> list[str]:
    """Return what people should do, most urgent first."""
    kinds = {event.kind for event in happened}
    advice = []
    if events.data_unfit(database):
        advice.append("Correct the data files; `python app.py data` says what is wrong. Until then nothing is trained.")
    if counts and counts.failed > _MANY_FAILURES * counts.requests:
        advice.append("More than 1% of the requests failed: look at the page Health and at the gateway's log.")
    if EventKind.JOB_FAILED in kinds:
        advice.append("A job failed: `python app.py events --kind job-failed` says why.")
    if EventKind.RELEASE_HELD in kinds:
        advice.append("A canary may wait for your decision: `python app.py release` shows it.")
    if result.get("problems"):
        advice.append("The version is under a threshold: add right labels, as feedback or on the console's page Label.")
    elif result.get("drift", {}).get("texts", {}).get("alarm") or result.get("live", {}).get("problems"):
        advice.append("Live texts may be classified worse than known ones: label about a hundred on the page Label.")
    return advice or ["Nothing."]
