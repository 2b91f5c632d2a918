"""Puts a version in the place of another while requests flow, and goes back.

The file on disk that Triton loads from is the record of what is deployed. An intention is written before it is touched,
and the outcome after Triton has answered with the version, so a kill at any point leaves one that `reconcile` finishes
or undoes. MLflow's alias follows (`alias.py`): MLflow may be down, and serving must not wait for it.
"""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from errors import PipelineError
from serving.bundle import Bundle
from serving.repository import ModelRepository
from serving.triton_client import TritonClient, TritonTimeoutError, TritonUnavailableError
from settings import Settings
from storage import deployments, events, leases
from storage.database import Database
from storage.events import EventKind
from storage.tables import Deployment, Figures
from storage.versions import add_version

LEASE_S = 15.0
LEASE_WAIT_S = 20.0
LOAD_TIMEOUT_S = 300.0
_ANSWER_TIMEOUT_S = 10.0

log = logging.getLogger(__name__)


class DeploymentError(PipelineError):
    """What was asked for cannot be deployed; what served before serves still."""


class UnknownVersionError(DeploymentError):
    """There is no such version in the repository."""


def promote(settings: Settings, database: Database, version: int, reason: str, figures: Figures | None = None) -> None:
    """Have `version` serve; the one that it follows can be gone back to.

    Raises:
        UnknownVersionError: it is not published.
        DeploymentError: it serves already, is damaged, or does not load.
    """
    with _deploying(database):
        repository = ModelRepository(settings.model_repository)
        previous = repository.deployed()
        if version not in repository.published():
            raise UnknownVersionError(f"There is no version {version} in {repository.model}.")
        if version == previous:
            raise DeploymentError(f"Version {version} serves already.")
        message = f"Version {version} was promoted{f' in the place of {previous}' if previous else ''}: {reason}."
        bake_s = settings.bake_minutes * 60
        _switch(settings, database, version, previous, reason, EventKind.PROMOTED, message, figures or {}, bake_s)


def roll_back(settings: Settings, database: Database, reason: str, only_from: int | None = None) -> int:
    """Have the version serve that did before; returns it.

    Raises:
        DeploymentError: there is none, it does not load, or what serves is not `only_from`, where that is given:
            several may find at once that a version does badly, and one is to go back.
    """
    with _deploying(database):
        repository = ModelRepository(settings.model_repository)
        current = repository.deployed()
        if only_from not in (None, current):
            raise DeploymentError(f"Version {only_from} serves no longer; version {current} does.")
        with database.reading() as session:
            target = deployments.rollback_target(session)
            if target is not None:
                previous = deployments.previous_of(session, target)
        if target is None:
            raise DeploymentError("There is no version to go back to.")
        if target not in repository.published():
            raise DeploymentError(f"Version {target}, to go back to, is no longer in {repository.model}.")
        message = f"Rolled back from version {current} to {target}: {reason}."
        _switch(settings, database, target, previous, reason, EventKind.ROLLED_BACK, message, {}, bake_s=0)
        return target


def reconcile(settings: Settings, database: Database) -> None:
    """Make the database and the disk agree after processes were killed; what is being done by others is left alone.

    A promotion that was cut off is undone, for its version has never served; a rollback is finished.

    Raises:
        PipelineError: the repository is damaged.
    """
    repository = ModelRepository(settings.model_repository)
    with leases.held(database, leases.DEPLOYING, LEASE_S) as is_held:
        deployed = repository.deployed()
        if not is_held or deployed is None:
            return
        with database.reading() as session:
            cut_off = deployments.intended(session)
        for intention in cut_off:
            deployed = _settle(settings, database, repository, intention, deployed)
        with database.transaction() as session:
            for version in repository.published():
                add_version(session, Bundle.load(repository.version_directory(version)))
            known = deployments.serving(session)
            if known is None or known.version != deployed:
                found = deployments.intend(session, deployed, known.version if known else None, "found deployed")
                deployments.finish(session, found.id, bake_s=0)
                # The export that deploys the first version names it in MLflow too.
                found.alias_set = known is None


def _settle(
    settings: Settings, database: Database, repository: ModelRepository, intention: Deployment, deployed: int
) -> int:
    """Finish or undo what was cut off; returns the version that is deployed then."""
    with database.reading() as session:
        has_served = bool(deployments.of_version(session, intention.version))
    target = intention.version if has_served or intention.previous is None else intention.previous
    if target not in repository.published():
        target = deployed
    repository.deploy(target)
    # Triton may run, with either version; or it starts after this, and loads what the file says.
    if _load(settings.triton_address, target) is None:
        log.warning("Triton does not run; it will load version %d when it does.", target)
    with database.transaction() as session:
        if target == intention.version:
            deployments.finish(session, intention.id, bake_s=0)
        else:
            deployments.undo(session, intention.id)
        done = "finished" if target == intention.version else "undone"
        message = f"The deployment of version {intention.version} had been cut off and was {done}: {target} serves."
        events.record(session, EventKind.RECONCILED, message, version=target)
    log.warning("%s", message)
    return target


@contextmanager
def _deploying(database: Database) -> Iterator[None]:
    with leases.held(database, leases.DEPLOYING, LEASE_S, LEASE_WAIT_S) as is_held:
        if not is_held:
            raise DeploymentError("Another version is being deployed at this moment; try again.")
        yield


def _switch(
    settings: Settings,
    database: Database,
    version: int,
    previous: int | None,
    reason: str,
    kind: EventKind,
    message: str,
    figures: Figures,
    bake_s: float,
) -> None:
    """The steps, in their order."""
    repository = ModelRepository(settings.model_repository)
    serving_before = repository.deployed()
    try:
        bundle = Bundle.load(repository.version_directory(version))
    except PipelineError as error:
        raise DeploymentError(str(error)) from error
    with database.transaction() as session:
        add_version(session, bundle)
        intention = deployments.intend(session, version, previous, reason)
    repository.deploy(version)
    problem = _load(settings.triton_address, version)
    if problem:
        if serving_before is not None:
            repository.deploy(serving_before)
            _load(settings.triton_address, serving_before)
        failure = f"Version {version} could not be deployed, {serving_before} serves still: {problem}"
        with database.transaction() as session:
            deployments.undo(session, intention.id)
            events.record(session, EventKind.PROMOTION_FAILED, failure, version=version)
        raise DeploymentError(failure)
    with database.transaction() as session:
        deployments.finish(session, intention.id, bake_s)
        events.record(session, kind, message, figures, version=version)
    log.info("%s", message)
    if problem is None:
        log.warning("Triton does not run; it will load version %d when it does.", version)


def _load(address: str, version: int) -> str | None:
    """Have a running Triton load what the disk says, and see it answer by it.

    Returns what went wrong, empty where nothing did, or none where no Triton runs.
    """
    return asyncio.run(_load_and_ask(address, version))


async def _load_and_ask(address: str, version: int) -> str | None:
    client = TritonClient(address)
    try:
        if not await client.is_live():
            return None
        await client.load_model(LOAD_TIMEOUT_S)
        answered = (await client.classify(["I love this product!"], _ANSWER_TIMEOUT_S)).version
    except (TritonUnavailableError, TritonTimeoutError) as error:
        return str(error)
    finally:
        await client.close()
    return "" if answered == version else f"version {answered} answers after it was loaded"
