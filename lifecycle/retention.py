"""Removes versions that nobody will go back to."""

import logging
import shutil
from pathlib import Path

from serving.repository import ModelRepository
from settings import Settings
from storage import deployments, events, releases, versions
from storage.database import Database
from storage.events import EventKind

log = logging.getLogger(__name__)


def remove_old_versions(settings: Settings, database: Database, aliased: set[int]) -> list[int]:
    """Keep the newest versions up to the number of the settings, rejected ones going first; returns what is removed.

    The version that serves, the one to go back to, those being deployed or tried, and those that an alias names
    (`aliased`) stay, whatever the number.
    """
    repository = ModelRepository(settings.model_repository)
    published = repository.published()
    with database.reading() as session:
        needed = {repository.deployed(), deployments.rollback_target(session)}
        tried = releases.running(session)
        needed |= {tried.version, tried.champion} if tried else set()
        # Between that it is loaded and that it is written down.
        needed |= {version for version in published if repository.has_challenger_of(version)}
        for deployment in deployments.intended(session):
            needed |= {deployment.version, deployment.previous}
        rejected = {
            version
            for version in published
            if any(not verdict.passed for verdict in versions.verdicts_of(session, version))
        }
    for gone in repository.model.glob(".*.removed"):  # by a process that was killed before it had done this
        _forget(repository, database, int(gone.name.split(".")[1]))
    kept = published & (needed | aliased)
    others = sorted(published - kept, key=lambda version: (version not in rejected, version), reverse=True)
    removed = others[max(settings.keep_versions - len(kept), 0) :]
    for version in removed:
        # Renamed first, so that a version is there whole or not at all.
        repository.version_directory(version).rename(_gone(repository, version))
        _forget(repository, database, version)
    return removed


def _gone(repository: ModelRepository, version: int) -> Path:
    return repository.model / f".{version}.removed"


def _forget(repository: ModelRepository, database: Database, version: int) -> None:
    with database.transaction() as session:
        versions.mark_removed(session, version)
        message = f"Version {version} was removed from {repository.model}: it neither serves nor is gone back to."
        events.record(session, EventKind.VERSION_REMOVED, message, version=version)
    shutil.rmtree(_gone(repository, version))
    log.info("%s", message)
