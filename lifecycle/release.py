"""Tries a version on live texts before it serves: in the shadow, or as a canary that answers a growing share of them.

What is tried stands in the database, and gateways go by that. The version is loaded first and written down then, and
forgotten after its end is written down; so a process that is killed anywhere leaves a release that the next one goes on
with, or a version loaded for nobody, which the next one unloads (`release_steering.py`).
"""

import logging

from errors import PipelineError
from lifecycle import challenger
from lifecycle.promotion import LEASE_S, LEASE_WAIT_S, DeploymentError, UnknownVersionError, deploying
from serving import addresses
from serving.repository import ModelRepository
from settings import Settings
from storage import events, leases, releases
from storage.database import Database
from storage.events import EventKind
from storage.releases import Mode
from storage.tables import Release

log = logging.getLogger(__name__)


def start(settings: Settings, database: Database, version: int, mode: Mode, reason: str) -> Release:
    """Try `version` on live texts, beside the one that serves; what is in the shadow can go on as a canary.

    Raises:
        UnknownVersionError: it is not published.
        DeploymentError: it serves already, it does not load, or something is being tried.
    """
    with deploying(database):
        repository = ModelRepository(settings.model_repository)
        champion = repository.deployed()
        if version not in repository.published():
            raise UnknownVersionError(f"There is no version {version} in {repository.model}.")
        if champion is None or version == champion:
            raise DeploymentError(f"Version {version} serves already." if champion else "No version serves yet.")
        with database.transaction() as session:
            releases.follow(session, champion)
            running = releases.running(session)
        is_next = running is not None and (running.version, running.mode, mode) == (
            version,
            releases.SHADOW,
            releases.CANARY,
        )
        if running is not None and not is_next:
            raise DeploymentError(
                f"Version {running.version} is being tried ({running.mode}); end that with "
                f"`POST /models/{running.version}/stop` or `python app.py stop {running.version}` first."
            )
        tritons = addresses.find(settings.triton_address)
        try:
            challenger.load(tritons, repository, version)
        except PipelineError as error:
            if running is None:
                challenger.unload(tritons, repository)
            raise DeploymentError(str(error)) from error
        steps = settings.canary_shares if mode == releases.CANARY else []
        with database.transaction() as session:
            shadow = None if running is None else releases.locked(session, running.id)
            if running is not None and shadow is None:
                raise DeploymentError(f"The shadow of version {version} has just ended.")
            if shadow is not None:
                releases.end(session, shadow, releases.STOPPED, "it goes on as a canary")
                session.flush()
            release = releases.begin(session, version, champion, mode, steps, reason)
            message = _beginning(settings, release)
            kind = EventKind.CANARY_STARTED if mode == releases.CANARY else EventKind.SHADOW_STARTED
            events.record(session, kind, message, version=version)
    log.info("%s", message)
    return release


def stop(database: Database, version: int, reason: str) -> Release:
    """End the trial of `version`; the one that serves answers everything again.

    Raises:
        DeploymentError: it is not being tried, or is being promoted by itself at this moment.
    """
    # Whoever promotes it holds this until it serves.
    with leases.held(database, leases.RELEASING, LEASE_S, LEASE_WAIT_S) as is_held:
        if not is_held:
            raise DeploymentError(f"Version {version} is being promoted at this moment; roll back when it serves.")
        return _stop(database, version, reason)


def _stop(database: Database, version: int, reason: str) -> Release:
    with database.transaction() as session:
        found = releases.running(session)
        release = None if found is None or found.version != version else releases.locked(session, found.id)
        if release is None:
            raise DeploymentError(f"Version {version} is not being tried.")
        releases.end(session, release, releases.STOPPED, reason)
        message = f"The {release.mode} of version {version} was ended: {reason}."
        events.record(session, EventKind.RELEASE_STOPPED, message, release.figures, version=version)
    log.info("%s", message)
    return release


def _beginning(settings: Settings, release: Release) -> str:
    if release.mode == releases.SHADOW:
        told = f"{settings.release_compared:.0%} of the live texts are put to it too, and it answers nobody"
    else:
        told = f"it answers {', then '.join(f'{share:.0%}' for share in release.steps)} of the live texts"
    return f"Version {release.version} is tried beside {release.champion} ({release.mode}): {told} ({release.reason})."
