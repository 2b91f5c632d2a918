"""Removes versions that nobody will go back to."""

import logging
import shutil

from serving.repository import ModelRepository
from settings import Settings
from storage import deployments, events, versions
from storage.database import Database
from storage.events import EventKind

log = logging.getLogger(__name__)


def remove_old_versions(settings: Settings, database: Database, aliased: set[int]) -> list[int]:
    """Keep the newest versions up to the number of the settings, rejected ones going first; returns what is removed.

    The version that serves, the one to go back to, those being deployed and those that an alias names (`aliased`)
    stay, whatever the number.
    """
    repository = ModelRepository(settings.model_repository)
    published = repository.published()
    with database.reading() as session:
        needed = {repository.deployed(), deployments.rollback_target(session)}
        for deployment in deployments.intended(session):
            needed |= {deployment.version, deployment.previous}
        rejected = {
            version
            for version in published
            if any(not verdict.passed for verdict in versions.verdicts_of(session, version))
        }
    kept = published & (needed | aliased)
    others = sorted(published - kept, key=lambda version: (version not in rejected, version), reverse=True)
    removed = others[max(settings.keep_versions - len(kept), 0) :]
    for version in removed:
        directory = repository.version_directory(version)
        # Renamed first, so that a version is there whole or not at all.
        gone = directory.with_name(f".{version}.removed")
        shutil.rmtree(gone, ignore_errors=True)
        directory.rename(gone)
        shutil.rmtree(gone)
        with database.transaction() as session:
            versions.mark_removed(session, version)
            message = f"Version {version} was removed from {repository.model}: it neither serves nor is gone back to."
            events.record(session, EventKind.VERSION_REMOVED, message, version=version)
        log.info("%s", message)
    return removed
