"""Removes old versions that are not needed any more."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from common.settings import Settings
from lifecycle.deployment.promotion import BusyDeployingError, deploying
from serving.model_repo.repository import ModelRepository
from storage import deployments, events, releases, versions
from storage.database import Database
from storage.events import EventKind

log = logging.getLogger(__name__)


def remove_old_versions(settings: Settings, database: Database, aliased: set[int]) -> list[int]:
    """Keep the newest `keep_versions` versions; remove the others, rejected ones first, and return them.

    The deployed version, the rollback target, versions in deployment or on trial, and versions with an MLflow alias
    (`aliased`) always stay. While another process deploys or starts a trial, nothing is removed: the version that it
    needs may not be recorded yet.
    """
    try:
        with deploying(database) as check:
            return _remove(settings, database, aliased, check)
    except BusyDeployingError:
        log.info("No old versions are removed now, because a deployment is in progress; the next retraining does it.")
        return []


def _remove(settings: Settings, database: Database, aliased: set[int], check: Callable[[], None]) -> list[int]:
    repository = ModelRepository(settings.model_repository)
    published = repository.published()
    with database.reading() as session:
        needed = {repository.deployed(), deployments.rollback_target(session)}
        tried = releases.running(session)
        needed |= {tried.version, tried.champion} if tried else set()
        # A version that is loaded for a shadow or canary, and not recorded yet.
        needed |= {version for version in published if repository.has_challenger_of(version)}
        for deployment in deployments.intended(session):
            needed |= {deployment.version, deployment.previous}
        rejected = {
            version
            for version in published
            if any(not verdict.passed for verdict in versions.verdicts_of(session, version))
        }
    for gone in repository.model.glob(".*.removed"):  # left by a process that was killed
        _forget(repository, database, int(gone.name.split(".")[1]))
    kept = published & (needed | aliased)
    others = sorted(published - kept, key=lambda version: (version not in rejected, version), reverse=True)
    removed = others[max(settings.keep_versions - len(kept), 0) :]
    for version in removed:
        check()
        # Renamed first, so that a version is never visible in part.
        repository.version_directory(version).rename(_gone(repository, version))
        _forget(repository, database, version)
    return removed


def _gone(repository: ModelRepository, version: int) -> Path:
    return repository.model / f".{version}.removed"


def _forget(repository: ModelRepository, database: Database, version: int) -> None:
    with database.transaction() as session:
        versions.mark_removed(session, version)
        message = (
            f"Version {version} was removed from {repository.model}: it is neither deployed nor the rollback target."
        )
        events.record(session, EventKind.VERSION_REMOVED, message, version=version)
    shutil.rmtree(_gone(repository, version))
    log.info("%s", message)
