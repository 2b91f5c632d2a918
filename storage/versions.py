"""Published versions and their gate results, which remain after a version's directory is deleted."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from serving.model_repo.bundle import Bundle
from storage.database import Database, now
from storage.tables import Figures, Verdict, Version


@dataclass(frozen=True)
class GateVerdict:
    """The result of a gate."""

    gate: str
    passed: bool
    message: str
    figures: Figures


def add_version(session: Session, bundle: Bundle) -> None:
    """Store the content of `bundle.json` of a published version."""
    if session.get(Version, bundle.version) is None:
        session.add(Version(version=bundle.version, bundle=asdict(bundle), added_at=now(session)))


def add_verdicts(database: Database, version: int, verdicts: Sequence[GateVerdict]) -> None:
    """Store the gates' results for a version, replacing earlier ones."""
    with database.transaction() as session:
        session.execute(delete(Verdict).where(Verdict.version == version))
        for verdict in verdicts:
            session.add(Verdict(version=version, at=now(session), **asdict(verdict)))


def verdicts_of(session: Session, version: int) -> list[Verdict]:
    """Return the gates' results for a version, in the order of the gates."""
    return list(session.scalars(select(Verdict).where(Verdict.version == version).order_by(Verdict.id)))


def known_versions(session: Session) -> list[Version]:
    """Return all versions, newest first."""
    return list(session.scalars(select(Version).order_by(Version.version.desc())))


def mark_removed(session: Session, version: int) -> None:
    """Record that the version's directory is deleted."""
    known = session.get(Version, version)
    if known is not None:
        known.removed_at = now(session)
