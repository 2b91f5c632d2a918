"""Puts a version in the place of another while requests flow, and goes back.

The file on disk that Triton loads from is the record of what is deployed; that it is replaced is the switch
(`rollout.py`). An intention is written before anything is touched, and the outcome after all Tritons have answered with
the version, so a kill at any point leaves one that `reconcile` finishes or undoes. MLflow's alias follows (`alias.py`):
MLflow may be down, and serving must not wait for it.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from errors import PipelineError
from lifecycle.rollout import align, roll_out, strays
from serving import addresses
from serving.bundle import Bundle
from serving.repository import ModelRepository
from serving.switch import Switch
from settings import Settings
from storage import deployments, events, leases, releases
from storage.database import Database
from storage.events import EventKind
from storage.tables import Deployment, Figures
from storage.versions import add_version

LEASE_S = 15.0
LEASE_WAIT_S = 20.0

log = logging.getLogger(__name__)


class DeploymentError(PipelineError):
    """What was asked for cannot be deployed; what served before serves still."""


class BusyDeployingError(DeploymentError):
    """Another version is being deployed at this moment."""


class UnknownVersionError(DeploymentError):
    """There is no such version in the repository."""


def promote(
    settings: Settings,
    database: Database,
    version: int,
    reason: str,
    figures: Figures | None = None,
    only_from: int | None = None,
) -> None:
    """Have `version` serve; the one that it follows can be gone back to.

    Raises:
        UnknownVersionError: it is not published.
        DeploymentError: it serves already, is damaged, or does not load, or what serves is not `only_from`, where that
            is given: the version was tried beside that one.
    """
    with deploying(database):
        repository = ModelRepository(settings.model_repository)
        previous = repository.deployed()
        if version not in repository.published():
            raise UnknownVersionError(f"There is no version {version} in {repository.model}.")
        if version == previous:
            raise DeploymentError(f"Version {version} serves already.")
        if only_from not in (None, previous):
            raise DeploymentError(f"Version {only_from} serves no longer; version {previous} does.")
        message = f"Version {version} was promoted{f' in the place of {previous}' if previous else ''}: {reason}."
        bake_s = settings.bake_minutes * 60
        _switch(settings, database, version, previous, reason, EventKind.PROMOTED, message, figures or {}, bake_s)


def roll_back(settings: Settings, database: Database, reason: str, only_from: int | None = None) -> int:
    """Have the version serve that did before; returns it.

    Raises:
        DeploymentError: there is none, it does not load, or what serves is not `only_from`, where that is given:
            several may find at once that a version does badly, and one is to go back.
    """
    with deploying(database):
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

    A promotion that was cut off before the switch is undone, for its version has never served; one that was cut off
    after it, and a rollback, is finished.

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
                try:
                    add_version(session, Bundle.load(repository.version_directory(version)))
                except PipelineError as error:
                    log.warning("%s It cannot be promoted.", error)
            known = deployments.serving(session)
            if known is None or known.version != deployed:
                found = deployments.intend(session, deployed, known.version if known else None, "found deployed")
                deployments.finish(session, found.id, bake_s=0)
                # The export that deploys the first version names it in MLflow too.
                found.alias_set = known is None


def straighten(settings: Settings, database: Database) -> None:
    """Have a Triton that serves another version than the deployed one load that, unless a deployment is under way.

    It started at the moment of a switch, or another host, which cannot reach it, deployed.

    Raises:
        PipelineError: the addresses of the Tritons cannot be found.
    """
    repository = ModelRepository(settings.model_repository)
    tritons = addresses.find(settings.triton_address)
    if not strays(tritons, repository):
        return
    with leases.held(database, leases.DEPLOYING, LEASE_S) as is_held:
        if not is_held:
            return
        for address, problem in align(tritons, repository).items():
            if problem:
                log.error("Triton at %s cannot load what is deployed: %s", address, problem)
            else:
                log.warning("Triton at %s was given the deployed version %s.", address, repository.named())


def _settle(
    settings: Settings, database: Database, repository: ModelRepository, intention: Deployment, deployed: int
) -> int:
    """Finish or undo what was cut off; returns the version that is deployed then."""
    with database.reading() as session:
        has_served = bool(deployments.of_version(session, intention.version))
    tritons = addresses.find(settings.triton_address)
    is_wanted = intention.version in repository.published() and (has_served or intention.previous is None)
    Switch(repository).end()
    if is_wanted and intention.version != deployed:
        try:
            roll_out(tritons, repository, intention.version)
            deployed = intention.version
        except PipelineError as error:
            log.error("Version %d, which was meant to serve, cannot: %s", intention.version, error)
    align(tritons, repository)
    is_finished = intention.version == deployed
    bake_s = 0 if has_served else settings.bake_minutes * 60
    with database.transaction() as session:
        if is_finished:
            deployments.finish(session, intention.id, bake_s)
        else:
            deployments.undo(session, intention.id)
        done = "finished" if is_finished else "undone"
        message = f"The deployment of version {intention.version} had been cut off and was {done}: {deployed} serves."
        events.record(session, EventKind.RECONCILED, message, version=deployed)
    log.warning("%s", message)
    return deployed


@contextmanager
def deploying(database: Database) -> Iterator[None]:
    """Hold the right to change what is deployed, or tried.

    Raises:
        BusyDeployingError: another process has it for long.
    """
    with leases.held(database, leases.DEPLOYING, LEASE_S, LEASE_WAIT_S) as is_held:
        if not is_held:
            raise BusyDeployingError("Another version is being deployed at this moment; try again.")
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
    try:
        tritons = addresses.find(settings.triton_address)
        serving = roll_out(tritons, repository, version)
    except PipelineError as error:
        with suppress(PipelineError):
            align(addresses.find(settings.triton_address), repository)
        failure = f"Version {version} could not be deployed, {serving_before} serves still: {error}"
        with database.transaction() as session:
            deployments.undo(session, intention.id)
            events.record(session, EventKind.PROMOTION_FAILED, failure, version=version)
        raise DeploymentError(failure) from error
    with database.transaction() as session:
        deployments.finish(session, intention.id, bake_s)
        events.record(session, kind, message, figures, version=version)
        releases.follow(session, version)
    log.info("%s", message)
    if not serving:
        log.warning("Triton does not run; it will load version %d when it does.", version)
