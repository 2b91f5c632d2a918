"""Restores a damaged record of the deployed version, and replaces a deployed version that does not load.

The record of the deployed version is a file that is replaced atomically, and versions are complete before they are
visible. But disks fail, and people edit and copy files. Then the database tells which version to deploy.
"""

import logging

from common.errors import PipelineError
from common.settings import Settings
from lifecycle.deployment.promotion import LEASE_S
from serving.host.load_check import why_not_loadable
from serving.model_repo.bundle import Bundle
from serving.model_repo.repository import ModelRepository
from storage import deployments, events, leases
from storage.database import Database
from storage.events import EventKind

log = logging.getLogger(__name__)


def restore_record(settings: Settings, database: Database) -> None:
    """Rewrite a damaged `config.pbtxt` with the deployed version according to the database.

    Raises:
        PipelineError: the database has no deployed version, or that version is damaged too.
    """
    repository = ModelRepository(settings.model_repository)
    try:
        repository.named()
        return
    except PipelineError as error:
        damage = error
    with leases.held(database, leases.DEPLOYING, LEASE_S) as is_held:
        if not is_held:
            return
        with database.reading() as session:
            serving = deployments.serving(session)
        if serving is None:
            raise damage
        repository.deploy(serving.version)
        message = f"{damage} It was restored from the database: version {serving.version} is deployed."
        with database.transaction() as session:
            events.record(session, EventKind.RECONCILED, message, version=serving.version)
    log.error("%s", message)


def replace_broken(settings: Settings, database: Database, *, by_loading: bool) -> None:
    """Deploy an earlier version if the deployed one is broken. Call it while Triton is down.

    A version is broken if it is incomplete or, with `by_loading`, does not load.

    Raises:
        PipelineError: no version that was ever deployed can be loaded now.
    """
    repository = ModelRepository(settings.model_repository)
    deployed = repository.named()
    problem = None if deployed is None else _problem(settings, repository, deployed, by_loading)
    if not problem:
        return
    with leases.held(database, leases.DEPLOYING, LEASE_S) as is_held:
        if not is_held or repository.named() != deployed:  # another version was deployed meanwhile
            return
        with database.reading() as session:
            others = [version for version in deployments.served(session) if version != deployed]
        target = next((v for v in others if not _problem(settings, repository, v, by_loading=True)), None)
        if target is None:
            raise PipelineError(
                f"Version {deployed} is broken, and so is every version that was deployed before: {problem}. "
                "Restore its files, or publish another version."
            )
        if repository.named() != deployed:  # the lease may have been lost during the check of the others
            return
        reason = f"version {deployed} is broken: {problem}"
        message = f"Rolled back from version {deployed} to {target}: {reason}."
        repository.deploy(target)
        with database.transaction() as session:
            deployment = deployments.intend(session, target, deployments.previous_of(session, target), reason)
            deployments.finish(session, deployment.id, monitor_s=0)
            events.record(session, EventKind.ROLLED_BACK, message, version=target)
    log.error("%s", message)


def _problem(settings: Settings, repository: ModelRepository, version: int, by_loading: bool) -> str:
    """Return why a version cannot be deployed; empty if no problem is known."""
    directory = repository.version_directory(version)
    try:
        Bundle.load(directory)
    except PipelineError as error:
        return str(error).rstrip(".")
    return why_not_loadable(settings, directory).rstrip(".") if by_loading else ""
