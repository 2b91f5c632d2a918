"""Deploys a version in place of another without interrupting requests, and rolls back.

Triton's configuration file on disk is the record of the deployed version. Replacing the file is the switch
(`rollout.py`). An intention is stored before anything changes, and the outcome after all Tritons have responded with
the version. So a kill at any point leaves an intention that `reconcile` completes or undoes. MLflow's alias follows
later (`lifecycle/jobs/mlflow_alias.py`), because MLflow may be down, and a deployment must not wait for it.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from sqlalchemy.orm import Session

from common.errors import PipelineError
from common.settings import Settings
from lifecycle.deployment.rollout import outdated_tritons, roll_out, update_tritons
from serving.client import addresses
from serving.model_repo.bundle import Bundle
from serving.model_repo.repository import ModelRepository
from serving.model_repo.switch import Switch
from storage import deployments, events, leases, releases
from storage.database import Database
from storage.events import EventKind
from storage.tables import Deployment, Figures
from storage.versions import add_version

LEASE_S = 30.0
LEASE_WAIT_S = 35.0
"""A job promotes at low priority, so it may be slow to renew its lease."""

log = logging.getLogger(__name__)


class DeploymentError(PipelineError):
    """The requested deployment is not possible; the deployed version stays."""


class BusyDeployingError(DeploymentError):
    """Another deployment is in progress."""


class UnknownVersionError(DeploymentError):
    """The version is not in the repository."""


def promote(
    settings: Settings,
    database: Database,
    version: int,
    reason: str,
    figures: Figures | None = None,
    only_from: int | None = None,
) -> None:
    """Deploy `version`; the previous version becomes the rollback target.

    `only_from`, if given, is the version that must be deployed now, because `version` was compared with it.

    Raises:
        UnknownVersionError: the version is not published.
        DeploymentError: it is deployed already, damaged or not loadable, or the deployed version is not `only_from`.
    """
    with deploying(database) as check:
        repository = ModelRepository(settings.model_repository)
        previous = repository.deployed()
        if version not in repository.published():
            raise UnknownVersionError(
                f"There is no version {version} in {repository.model}; `python app.py models` lists the versions."
            )
        if version == previous:
            raise DeploymentError(f"Version {version} is already deployed.")
        if only_from not in (None, previous):
            raise DeploymentError(f"Version {only_from} is no longer deployed; version {previous} is.")
        _switch(settings, database, version, previous, reason, EventKind.PROMOTED, check, figures)


def roll_back(settings: Settings, database: Database, reason: str, only_from: int | None = None) -> int:
    """Deploy the previous version again; return its number.

    `only_from`, if given, is the version that must be deployed now: several processes may find the same fault at once,
    and only one may roll back.

    Raises:
        DeploymentError: there is no previous version, it does not load, or the deployed version is not `only_from`.
    """
    with deploying(database) as check:
        repository = ModelRepository(settings.model_repository)
        current = repository.deployed()
        if only_from not in (None, current):
            raise DeploymentError(f"Version {only_from} is no longer deployed; version {current} is.")
        with database.reading() as session:
            target = deployments.rollback_target(session)
            if target is not None:
                previous = deployments.previous_of(session, target)
        if target is None:
            raise DeploymentError(why_no_rollback(database, repository))
        if target not in repository.published():
            raise DeploymentError(
                f"Version {target}, the rollback target, is no longer in {repository.model}; promote another version."
            )
        _switch(settings, database, target, previous, reason, EventKind.ROLLED_BACK, check)
        return target


def why_no_rollback(database: Database, repository: ModelRepository) -> str:
    """Return the message that no version can be rolled back to, with the version that was rolled back last."""
    with database.reading() as session:
        served = deployments.served(session)
    current, published = repository.deployed(), repository.published()
    message = "There is no previous version to roll back to."
    newer = next((version for version in served if version != current and version in published), None)
    if newer is None:
        return message
    return (
        f"{message} Version {newer} was deployed before version {current} and was rolled back; to deploy it anyway: "
        f"`python app.py promote {newer}`."
    )


def reconcile(settings: Settings, database: Database) -> None:
    """Make the database and the disk agree after processes were killed, unless another process is deploying.

    If a promotion was interrupted before the switch, and its version was never deployed, it is undone. Any other
    deployment, including a rollback, is completed if its version loads.

    Raises:
        PipelineError: the repository is damaged, or another process took over.
    """
    repository = ModelRepository(settings.model_repository)
    lost = threading.Event()
    with leases.held(database, leases.DEPLOYING, LEASE_S, on_loss=lost.set) as is_held:
        deployed = repository.deployed()
        if not is_held or deployed is None:
            return
        with database.reading() as session:
            cut_off = deployments.intended(session)
        for intention in cut_off:
            deployed = _settle(settings, database, repository, intention, deployed, partial(_check, lost))
        with database.transaction() as session:
            for version in repository.published():
                try:
                    add_version(session, Bundle.load(repository.version_directory(version)))
                except PipelineError as error:
                    log.warning("%s It cannot be promoted.", error)
            known = deployments.serving(session)
            if known is None or known.version != deployed:
                _record_unknown(session, repository, deployed, known.version if known else None)


def _record_unknown(session: Session, repository: ModelRepository, version: int, recorded: int | None) -> None:
    """Record a deployed version that the database does not know. `recorded` is the version that it names, if any."""
    if recorded is not None:
        reason = f"changed in the model repository; the database named version {recorded}"
    elif repository.published() == {version}:
        reason = "first version"
        with suppress(PipelineError):
            if Bundle.load(repository.version_directory(version)).quick:
                reason = "quick first version; the full training follows"
    else:
        reason = "deployed before this database was created"
    found = deployments.intend(session, version, recorded, reason)
    deployments.finish(session, found.id, monitor_s=0)
    # The export that deploys the first version also sets MLflow's alias.
    found.alias_set = recorded is None
    figures: Figures = {}
    with suppress(PipelineError):  # a damaged version is reported where it is loaded
        figures = Bundle.load(repository.version_directory(version)).metrics
    events.record(session, EventKind.DEPLOYED, f"Version {version} is deployed ({reason}).", figures, version=version)


def reconcile_tritons(settings: Settings, database: Database) -> None:
    """Load the deployed version in Tritons that have another one, unless a deployment is in progress.

    Such a Triton started during a switch, or could not be reached by the host that deployed.

    Raises:
        PipelineError: the addresses of the Tritons cannot be found.
    """
    repository = ModelRepository(settings.model_repository)
    tritons = addresses.find(settings.triton_address)
    if not outdated_tritons(tritons, repository):
        return
    with leases.held(database, leases.DEPLOYING, LEASE_S) as is_held:
        if not is_held:
            return
        for address, problem in update_tritons(tritons, repository).items():
            if problem:
                log.error("Triton at %s cannot load the deployed version: %s", address, problem)
            else:
                log.warning(
                    "Triton at %s had another version and now has the deployed version %s.", address, repository.named()
                )


def _settle(
    settings: Settings,
    database: Database,
    repository: ModelRepository,
    intention: Deployment,
    deployed: int,
    check: Callable[[], None],
) -> int:
    """Complete or undo an interrupted deployment; return the version that is deployed afterwards.

    Raises:
        BusyDeployingError: by `check`, the lease was lost.
    """
    with database.reading() as session:
        has_served = bool(deployments.of_version(session, intention.version))
    tritons = addresses.find(settings.triton_address)
    is_wanted = intention.version in repository.published() and (has_served or intention.previous is None)
    Switch(repository).end()
    if is_wanted and intention.version != deployed:
        try:
            roll_out(tritons, repository, intention.version, check)
            deployed = intention.version
        except BusyDeployingError:
            raise
        except PipelineError as error:
            log.error("The interrupted deployment of version %d cannot be completed: %s", intention.version, error)
    update_tritons(tritons, repository)
    is_finished = intention.version == deployed
    monitor_s = 0 if has_served else settings.monitor_minutes * 60
    with database.transaction() as session:
        if is_finished:
            deployments.finish(session, intention.id, monitor_s)
        else:
            deployments.undo(session, intention.id)
        done = "completed" if is_finished else "undone"
        message = (
            f"The interrupted deployment of version {intention.version} was {done}: version {deployed} is deployed."
        )
        events.record(session, EventKind.RECONCILED, message, version=deployed)
    log.warning("%s", message)
    return deployed


@contextmanager
def deploying(database: Database) -> Iterator[Callable[[], None]]:
    """Hold the lease for changing the deployed version or starting a shadow or canary.

    Yields a function that raises a BusyDeployingError if the lease was lost, because another process may be deploying
    then. The block calls it before it changes anything that it has prepared for long.

    Raises:
        BusyDeployingError: another process still holds the lease after `LEASE_WAIT_S` seconds.
    """
    lost = threading.Event()
    with leases.held(database, leases.DEPLOYING, LEASE_S, LEASE_WAIT_S, lost.set) as is_held:
        if not is_held:
            raise BusyDeployingError("Another deployment is in progress; try again in a minute.")
        yield partial(_check, lost)


def _check(lost: threading.Event) -> None:
    """Raise a BusyDeployingError if the lease was lost."""
    if lost.is_set():
        raise BusyDeployingError(
            "The right to deploy was lost, because the database did not renew it in time. Another process may be "
            "deploying; try again in a minute."
        )


def _switch(
    settings: Settings,
    database: Database,
    version: int,
    previous: int | None,
    reason: str,
    kind: EventKind,
    check: Callable[[], None],
    figures: Figures | None = None,
) -> None:
    """Record the intention, roll out the version, and record the outcome, by an event of `kind`.

    `previous` is the version to which a rollback from `version` would lead. `check` raises an error if the lease was
    lost before the switch; nothing is switched then.
    """
    repository = ModelRepository(settings.model_repository)
    serving_before = repository.deployed()
    if kind is EventKind.PROMOTED:
        replaced = f" and replaced version {serving_before}" if serving_before else ""
        message, monitor_s = f"Version {version} was promoted{replaced}: {reason}.", settings.monitor_minutes * 60
    else:
        message, monitor_s = f"Rolled back from version {serving_before} to {version}: {reason}.", 0
    try:
        bundle = Bundle.load(repository.version_directory(version))
    except PipelineError as error:
        raise DeploymentError(str(error)) from error
    with database.transaction() as session:
        add_version(session, bundle)
        intention = deployments.intend(session, version, previous, reason)
    try:
        tritons = addresses.find(settings.triton_address)
        serving = roll_out(tritons, repository, version, check)
    except PipelineError as error:
        with suppress(PipelineError):
            update_tritons(addresses.find(settings.triton_address), repository)
        failure = f"Version {version} could not be deployed, version {serving_before} stays deployed: {error}"
        with database.transaction() as session:
            deployments.undo(session, intention.id)
            events.record(session, EventKind.PROMOTION_FAILED, failure, version=version)
        raise DeploymentError(failure) from error
    with database.transaction() as session:
        deployments.finish(session, intention.id, monitor_s)
        events.record(session, kind, message, figures, version=version)
        releases.follow(session, version)
    log.info("%s", message)
    if not serving:
        log.warning("Triton is not running; it loads version %d when it starts.", version)
