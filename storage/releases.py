"""Shadow and canary releases: the candidate, its results, and its outcome."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from sqlalchemy import delete, insert, select, update
from sqlalchemy.orm import Session

from storage import events
from storage.database import Database, now
from storage.events import EventKind
from storage.feedback import newest_label, text_hash
from storage.sampled_predictions import MOST_CHARACTERS
from storage.tables import Difference, Feedback, Figures, Release

Mode = Literal["shadow", "canary"]
SHADOW: Mode = "shadow"
"""The candidate also classifies a share of the live texts, but no client gets its predictions."""
CANARY: Mode = "canary"
"""Clients get the candidate's predictions for a growing share of the live texts."""

RUNNING = "running"
PROMOTED = "promoted"
"""The candidate was promoted, automatically or by a person."""
STOPPED = "stopped"
TAKEN_BACK = "taken-back"
"""The candidate had a fault and was rolled back."""

ALL = "all"
"""Key of the figures for texts of all lengths."""
HELD = "held"
"""Key of the reason why the release is held."""
MOST_DIFFERENCES = 1_000
"""Maximum differing texts stored per release, the newest; feedback on them shows which version is right."""


@dataclass(frozen=True, slots=True)
class DifferingText:
    """A text that two versions label differently, with both labels and scores."""

    text: str
    champion: tuple[str, float]
    challenger: tuple[str, float]


def begin(session: Session, version: int, champion: int, mode: Mode, steps: Sequence[float], reason: str) -> Release:
    """Start the release of `version`, with `champion` as the deployed version.

    Raises:
        IntegrityError: another release is running.
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
    """Return the running release, or None."""
    return session.scalars(select(Release).where(Release.state == RUNNING)).first()


def last_of(session: Session, version: int) -> Release | None:
    """Return the last release of a version, or None."""
    return session.scalars(select(Release).where(Release.version == version).order_by(Release.id.desc())).first()


def last(session: Session) -> Release | None:
    """Return the running or last release, or None."""
    return session.scalars(select(Release).order_by(Release.id.desc())).first()


def locked(session: Session, release_id: int) -> Release | None:
    """Return a running release, locked until the end of the transaction, or None if it has ended."""
    query = select(Release).where(Release.id == release_id, Release.state == RUNNING)
    return session.scalars(query.with_for_update()).first()


def end(session: Session, release: Release, state: str, outcome: str) -> None:
    """End a release with a final state and an outcome."""
    release.state, release.outcome, release.ended_at = state, outcome, now(session)


def follow(session: Session, deployed: int) -> None:
    """End the running release if the deployed version is no longer the one that it is compared with."""
    found = running(session)
    release = None if found is None else locked(session, found.id)
    if release is None or deployed == release.champion:
        return
    if deployed == release.version:
        end(session, release, PROMOTED, "it was promoted")
        return
    end(session, release, STOPPED, f"version {deployed} is deployed now, instead of {release.champion}")
    message = f"The {release.mode} of version {release.version} ended: {release.outcome}."
    events.record(session, EventKind.RELEASE_STOPPED, message, version=release.version)


def held_because(release: Release) -> str:
    """Return the reason why a running release is held; empty if it is not."""
    return str(release.figures.get(HELD, "")) if release.state == RUNNING else ""


def hold(session: Session, release: Release, reason: str) -> None:
    """Hold the release at its step until an administrator decides."""
    release.figures = {**release.figures, HELD: reason}
    session.flush()


def share_of(release: Release) -> float:
    """Return the current share of live texts for which clients get the candidate's predictions, 0 to 1."""
    return release.steps[release.step] if release.state == RUNNING and release.mode == CANARY else 0.0


def add_findings(
    database: Database,
    release_id: int,
    figures: Figures,
    differing: Sequence[DifferingText],
    keeps_texts: bool,
    before_commit: Callable[[], object] = lambda: None,
) -> None:
    """Add a gateway's counts, and store differing texts, or only their hashes without `keeps_texts`.

    Findings that arrive after the end of the release are ignored. `before_commit` is called when everything but the
    commit has succeeded. If the commit fails, nobody knows whether the findings were stored.
    """
    with database.transaction() as session:
        release = locked(session, release_id)
        if release is not None:
            release.figures = summed(release.figures, figures)
            _add_differing(session, release_id, differing, keeps_texts)
            session.flush()
        before_commit()


def _add_differing(session: Session, release_id: int, differing: Sequence[DifferingText], keeps_texts: bool) -> None:
    if differing:
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
    """Return the texts that a release's versions label differently, newest first."""
    query = select(Difference).where(Difference.release_id == release_id).order_by(Difference.id.desc()).limit(limit)
    with database.reading() as session:
        return list(session.scalars(query))


def differences_of(database: Database, version: int, limit: int) -> list[Difference] | None:
    """Return the differing texts of a version's last release, or None if it had no release."""
    with database.reading() as session:
        tried = last_of(session, version)
    return None if tried is None else differences(database, tried.id, limit)


def right_by_feedback(session: Session, release_id: int, trusted: str) -> tuple[int, int]:
    """Count the differing texts on which each version is right, according to feedback from trusted sources.

    Returns the count of the champion (the deployed version), then that of the challenger (the candidate). `trusted` is
    the value of `SENTIMENT_TRUSTED_SOURCES`.
    """
    query = (
        select(Difference.text_hash, Difference.champion_label, Difference.challenger_label, Feedback.label)
        .join(Feedback, Feedback.id == newest_label(Difference.text_hash, trusted))
        .where(Difference.release_id == release_id)
        .distinct()
    )
    champion = challenger = 0
    for _, champion_label, challenger_label, told in session.execute(query):
        champion += told == champion_label
        challenger += told == challenger_label
    return champion, challenger


def purge_differences(database: Database, days: float, keeps_texts: bool) -> None:
    """Delete differences older than `days`; without `keeps_texts`, delete the texts of all others too."""
    with database.transaction() as session:
        session.execute(delete(Difference).where(Difference.at < now(session) - timedelta(days=days)))
        if not keeps_texts:
            session.execute(update(Difference).where(Difference.text.is_not(None)).values(text=None))


def as_json(release: Release) -> Figures:
    """Return a release in the format of the API and the commands."""
    return {
        **release.as_json("version", "champion", "mode", "state", "reason", "outcome", "steps"),
        "held": held_because(release),
        "share": share_of(release),
        **release.as_json("started_at", "step_started_at", "ended_at"),
        "figures": {name: value for name, value in release.figures.items() if name != HELD},
    }


def difference_as_json(item: Difference) -> Figures:
    """Return a differing text in the format of the API and the commands."""
    labels = ("champion_label", "champion_score", "challenger_label", "challenger_score")
    return item.as_json("at", "text", "text_hash", *labels)


def summed(first: Figures, second: Figures) -> Figures:
    """Add new counts to the sums. A successful response at any gateway ends a series of failures."""
    figures = _summed(first, second)
    if second.get("answered"):
        figures["failed_in_a_row"] = second.get("failed_in_a_row", 0)
    return figures


def _summed(first: Figures, second: Figures) -> Figures:
    """Add values with the same keys, recursively."""
    summed = dict(first)
    for name, value in second.items():
        if isinstance(value, dict):
            summed[name] = _summed(summed.get(name, {}), value)
        else:
            summed[name] = summed.get(name, 0) + value
    return summed
