"""Tries a version on live texts before its promotion: as a shadow, or as a canary that answers a growing share of them.

The database records the running release, and gateways follow that record. The version is loaded before the release is
recorded, and unloaded after its end is recorded. So a process that is killed at any point leaves either a release that
the next process continues, or a version loaded for nobody, which the next process unloads (`release_steering.py`).
"""

import logging

from common.errors import PipelineError
from common.settings import Settings
from lifecycle.canary import challenger
from lifecycle.deployment.promotion import LEASE_S, LEASE_WAIT_S, DeploymentError, UnknownVersionError, deploying
from serving.client import addresses
from serving.model_repo.repository import ModelRepository
from storage import events, leases, releases
from storage.database import Database
from storage.events import EventKind
from storage.releases import Mode
from storage.tables import Release

log = logging.getLogger(__name__)


def start(settings: Settings, database: Database, version: int, mode: Mode, reason: str) -> Release:
    """Start a shadow or canary of `version` beside the deployed version; a running shadow can become a canary.

    A held canary resumes at its step, unless the setting of the steps has changed; its figures start from zero.

    Raises:
        UnknownVersionError: the version is not published.
        DeploymentError: it is deployed already or does not load, nothing is deployed, or another release is running.
    """
    with deploying(database) as check:
        repository = ModelRepository(settings.model_repository)
        champion = repository.deployed()
        if version not in repository.published():
            raise UnknownVersionError(
                f"There is no version {version} in {repository.model}; `python app.py models` lists the versions."
            )
        if champion is None or version == champion:
            is_deployed = f"Version {version} is already deployed."
            raise DeploymentError(is_deployed if champion else "No version is deployed yet; run `python app.py` first.")
        with database.transaction() as session:
            releases.follow(session, champion)
            running = releases.running(session)
        is_next = (
            running is not None
            and (running.version, mode) == (version, releases.CANARY)
            and (running.mode == releases.SHADOW or bool(releases.held_because(running)))
        )
        if running is not None and not is_next:
            raise DeploymentError(
                f"The {running.mode} of version {running.version} is running. End it first, with "
                f"`POST /models/{running.version}/stop` or `python app.py stop {running.version}`."
            )
        tritons = addresses.find(settings.triton_address)
        try:
            challenger.load(tritons, repository, version)
        except PipelineError as error:
            if running is None:
                challenger.unload(tritons, repository)
            raise DeploymentError(str(error)) from error
        check()
        steps = settings.canary_shares if mode == releases.CANARY else []
        with database.transaction() as session:
            before = None if running is None else releases.locked(session, running.id)
            if running is not None and before is None:
                raise DeploymentError(f"The {running.mode} of version {version} has just ended; start it again.")
            if before is not None:
                releases.end(session, before, releases.STOPPED, "it continues as a canary")
                session.flush()
            release = releases.begin(session, version, champion, mode, steps, reason)
            if before is not None and before.steps == steps:
                release.step = before.step
            message = _start_message(settings, release)
            kind = EventKind.CANARY_STARTED if mode == releases.CANARY else EventKind.SHADOW_STARTED
            events.record(session, kind, message, version=version)
    log.info("%s", message)
    return release


def stop(database: Database, version: int, reason: str) -> Release:
    """End the shadow or canary of `version`; the deployed version answers all live texts again.

    Raises:
        DeploymentError: no shadow or canary of the version is running, or it is being promoted automatically now.
    """
    # An automatic promotion holds this lease until the version is deployed.
    with leases.held(database, leases.RELEASING, LEASE_S, LEASE_WAIT_S) as is_held:
        if not is_held:
            raise DeploymentError(f"Version {version} is being promoted now. Roll back once it is deployed.")
        return _stop(database, version, reason)


def _stop(database: Database, version: int, reason: str) -> Release:
    with database.transaction() as session:
        found = releases.running(session)
        release = None if found is None or found.version != version else releases.locked(session, found.id)
        if release is None:
            raise DeploymentError(f"Version {version} is not on trial; `python app.py release` shows what is.")
        releases.end(session, release, releases.STOPPED, reason)
        message = f"The {release.mode} of version {version} was ended: {reason}."
        events.record(session, EventKind.RELEASE_STOPPED, message, release.figures, version=version)
    log.info("%s", message)
    return release


def _start_message(settings: Settings, release: Release) -> str:
    if release.mode == releases.SHADOW:
        share = (
            f"it also classifies {settings.release_compared:.0%} of the live texts, and no client gets its predictions"
        )
    else:
        shares = release.steps[release.step :]
        share = f"it answers {', then '.join(f'{share:.0%}' for share in shares)} of the live texts"
    started = f"The {release.mode} of version {release.version} beside version {release.champion} has started"
    return f"{started}: {share} ({release.reason})."
