"""Has a version serve again where the one that is deployed cannot: it does not load, or its record is damaged.

The record of what is deployed is a file that is replaced as a whole, and versions are complete before they are seen.
But disks fail, and people edit and copy: then what served before serves, as far as the database tells.
"""

import logging

from errors import PipelineError
from lifecycle.promotion import LEASE_S
from serving.bundle import Bundle
from serving.loading import why_not_loadable
from serving.repository import ModelRepository
from settings import Settings
from storage import deployments, events, leases
from storage.database import Database
from storage.events import EventKind

log = logging.getLogger(__name__)


def restore_record(settings: Settings, database: Database) -> None:
    """Write `config.pbtxt` again, where it is damaged, with the version that the database says serves.

    Raises:
        PipelineError: the database knows of none, or of one that is damaged too.
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
        message = f"{damage} It was written again: version {serving.version} serves."
        with database.transaction() as session:
            events.record(session, EventKind.RECONCILED, message, version=serving.version)
    log.error("%s", message)


def replace_broken(settings: Settings, database: Database, *, by_loading: bool) -> None:
    """Deploy what served before, where the deployed version cannot be served; to be called while Triton is down.

    A version is broken that is not complete, or, where it is tried `by_loading`, that does not load.

    Raises:
        PipelineError: nothing served before that can be served now.
    """
    repository = ModelRepository(settings.model_repository)
    deployed = repository.named()
    problem = None if deployed is None else _problem(settings, repository, deployed, by_loading)
    if not problem:
        return
    with leases.held(database, leases.DEPLOYING, LEASE_S) as is_held:
        if not is_held:
            return
        with database.reading() as session:
            others = [version for version in deployments.served(session) if version != deployed]
        target = next((v for v in others if not _problem(settings, repository, v, by_loading=True)), None)
        if target is None:
            raise PipelineError(
                f"Version {deployed} cannot serve, and no other that has served can: {problem}. "
                "Restore its files, or publish another version."
            )
        reason = f"version {deployed} cannot serve: {problem}"
        message = f"Rolled back from version {deployed} to {target}: {reason}."
        repository.deploy(target)
        with database.transaction() as session:
            deployment = deployments.intend(session, target, deployments.previous_of(session, target), reason)
            deployments.finish(session, deployment.id, bake_s=0)
            events.record(session, EventKind.ROLLED_BACK, message, version=target)
    log.error("%s", message)


def _problem(settings: Settings, repository: ModelRepository, version: int, by_loading: bool) -> str:
    """Why a version cannot be served; empty where nothing is known against it."""
    directory = repository.version_directory(version)
    try:
        Bundle.load(directory)
    except PipelineError as error:
        return str(error).rstrip(".")
    return why_not_loadable(settings, directory).rstrip(".") if by_loading else ""
