"""Releases: which version is tried on live texts beside the one that serves, what was found, and what came of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.orm import Session, aliased

from storage import events
from storage.database import Database, now
from storage.events import EventKind
from storage.feedback import text_hash
from storage.sampled_predictions import MOST_CHARACTERS
from storage.tables import Difference, Feedback, Figures, Release

Mode = Literal["shadow", "canary"]
SHADOW: Mode = "shadow"
"""The version answers nobody; a share of the live texts is put to it too."""
CANARY: Mode = "canary"
"""It answers a share of the live texts, which grows."""

RUNNING = "running"
PROMOTED = "promoted"
"""It serves, by itself or because somebody has promoted it."""
STOPPED = "stopped"
TAKEN_BACK = "taken-back"
"""There was an alarm."""

ALL = "all"
"""Among the parts of the figures, that of texts of all lengths."""
MOST_DIFFERENCES = 1_000
"""That are kept of a release, the newest; also those from which feedback tells which version is right."""


@dataclass(frozen=True, slots=True)
class DifferingText:
    """A text on which two versions differ, each with its label and score."""

    text: str
    champion: tuple[str, float]
    challenger: tuple[str, float]


def begin(session: Session, version: int, champion: int, mode: Mode, steps: Sequence[float], reason: str) -> Release:
    """Write down that `version` is tried; fails where another is, whoever asked for that.

    Raises:
        IntegrityError: another is being tried.
    """
    time = now(session)
    release = Release(
        version=version,
        champion=champion,
        mode=mode,
        state=RUNNING,
        reason=reason,
        steps=list(steps),
        started_at=time,
        step_started_at=time,
        figures={},
    )
    session.add(release)
    session.flush()
    return release


def running(session: Session) -> Release | None:
    """What is being tried now."""
    return session.scalars(select(Release).where(Release.state == RUNNING)).first()


def last_of(session: Session, version: int) -> Release | None:
    """When a version was tried last."""
    return session.scalars(select(Release).where(Release.version == version).order_by(Release.id.desc())).first()


def last(session: Session) -> Release | None:
    """What is being tried, or was last."""
    return session.scalars(select(Release).order_by(Release.id.desc())).first()


def locked(session: Session, release_id: int) -> Release | None:
    """A release that still runs, which nobody else changes until the end of the transaction."""
    query = select(Release).where(Release.id == release_id, Release.state == RUNNING)
    return session.scalars(query.with_for_update()).first()


def end(session: Session, release: Release, state: str, outcome: str) -> None:
    """The version is not tried any more."""
    release.state, release.outcome, release.ended_at = state, outcome, now(session)


def follow(session: Session, deployed: int) -> None:
    """End what is being tried where another version serves than it was tried beside, in whatever way that came."""
    found = running(session)
    release = None if found is None else locked(session, found.id)
    if release is None or deployed == release.champion:
        return
    if deployed == release.version:
        end(session, release, PROMOTED, "it was promoted")
        return
    end(session, release, STOPPED, f"version {deployed} serves now, instead of {release.champion}")
    message = f"The {release.mode} of version {release.version} ended: {release.outcome}."
    events.record(session, EventKind.RELEASE_STOPPED, message, version=release.version)


def share_of(release: Release) -> float:
    """Of live texts, those that the version answers now, 0 to 1."""
    return release.steps[release.step] if release.state == RUNNING and release.mode == CANARY else 0.0


def add_findings(
    database: Database, release_id: int, figures: Figures, differing: Sequence[DifferingText], keeps_texts: bool
) -> None:
    """Add what a gateway counted to the sums, and keep texts that differ, without the texts where they are not wanted.

    What comes after the end of the release is passed over.
    """
    with database.transaction() as session:
        release = locked(session, release_id)
        if release is None:
            return
        release.figures = summed(release.figures, figures)
        if not differing:
            return
        time = now(session)
        session.execute(
            insert(Difference),
            [
                {
                    "release_id": release_id,
                    "at": time,
                    "text": item.text[:MOST_CHARACTERS] if keeps_texts else None,
                    "text_hash": text_hash(item.text),
                    "champion_label": item.champion[0],
                    "champion_score": round(item.champion[1], 4),
                    "challenger_label": item.challenger[0],
                    "challenger_score": round(item.challenger[1], 4),
                }
                for item in differing
            ],
        )
        kept = select(Difference.id).where(Difference.release_id == release_id).order_by(Difference.id.desc())
        oldest = session.scalar(kept.offset(MOST_DIFFERENCES).limit(1))
        if oldest is not None:
            session.execute(delete(Difference).where(Difference.release_id == release_id, Difference.id <= oldest))


def differences(database: Database, release_id: int, limit: int) -> list[Difference]:
    """The texts on which a release's versions differ, the newest first."""
    query = select(Difference).where(Difference.release_id == release_id).order_by(Difference.id.desc()).limit(limit)
    with database.reading() as session:
        return list(session.scalars(query))


def differences_of(database: Database, version: int, limit: int) -> list[Difference] | None:
    """The same of when a version was tried last; none where it never was."""
    with database.reading() as session:
        tried = last_of(session, version)
    return None if tried is None else differences(database, tried.id, limit)


def told_by_feedback(session: Session, release_id: int) -> tuple[int, int]:
    """Of the texts that differ and have feedback: on how many the champion is right, and on how many the challenger."""
    of_text = aliased(Feedback)
    newest = select(func.max(of_text.id)).where(of_text.text_hash == Difference.text_hash).scalar_subquery()
    query = (
        select(Difference.text_hash, Difference.champion_label, Difference.challenger_label, Feedback.label)
        .join(Feedback, Feedback.id == newest)
        .where(Difference.release_id == release_id)
        .distinct()
    )
    champion = challenger = 0
    for _, champion_label, challenger_label, told in session.execute(query):
        champion += told == champion_label
        challenger += told == challenger_label
    return champion, challenger


def purge_differences(database: Database, days: float, keeps_texts: bool) -> None:
    """Remove what is older than `days`, and texts where they are not to be kept."""
    with database.transaction() as session:
        session.execute(delete(Difference).where(Difference.at < now(session) - timedelta(days=days)))
        if not keeps_texts:
            session.execute(update(Difference).where(Difference.text.is_not(None)).values(text=None))


def as_json(release: Release) -> Figures:
    """A release as the API and the commands tell of it."""

    def told(time: datetime | None) -> str | None:
        return time.isoformat(timespec="seconds") if time else None

    return {
        "version": release.version,
        "champion": release.champion,
        "mode": release.mode,
        "state": release.state,
        "reason": release.reason,
        "outcome": release.outcome,
        "steps": release.steps,
        "share": share_of(release),
        "started_at": told(release.started_at),
        "step_started_at": told(release.step_started_at),
        "ended_at": told(release.ended_at),
        "figures": release.figures,
    }


def difference_as_json(item: Difference) -> Figures:
    """A text that differs, in the same way."""
    return {
        "at": item.at.isoformat(timespec="seconds"),
        **{
            name: getattr(item, name)
            for name in (
                "text",
                "text_hash",
                "champion_label",
                "champion_score",
                "challenger_label",
                "challenger_score",
            )
        },
    }


def summed(first: Figures, second: Figures) -> Figures:
    """Sums of what was counted first and then; an answer, of whichever gateway, ends failures in a row."""
    figures = _summed(first, second)
    if second.get("answered"):
        figures["failed_in_a_row"] = second.get("failed_in_a_row", 0)
    return figures


def _summed(first: Figures, second: Figures) -> Figures:
    """Sums of what both have by the same name, in all depths."""
    summed = dict(first)
    for name, value in second.items():
        if isinstance(value, dict):
            summed[name] = _summed(summed.get(name, {}), value)
        else:
            summed[name] = summed.get(name, 0) + value
    return summed
