"""Takes back what does badly on live texts, goes on with what does well, and keeps the Tritons loaded with it.

Each process that serves looks after the Tritons that it asks, since others may not reach them. One at a time decides.
"""

import logging
import time
from datetime import timedelta
from functools import partial

from sqlalchemy.orm import Session

from errors import PipelineError
from lifecycle import challenger, promotion
from lifecycle.looking import look_repeatedly
from lifecycle.promotion import LEASE_S, BusyDeployingError, DeploymentError
from lifecycle.release_alarms import COMPARED_BEFORE, alarms, compared, is_proven
from serving import addresses
from serving.repository import ModelRepository
from settings import Settings
from storage import events, leases, releases
from storage.database import Database, now
from storage.events import EventKind
from storage.storage import Storage
from storage.tables import Release

INTERVAL_S = 1.0
"""Between two looks."""
_IDLE_INTERVAL_S = 30.0
"""The same while nothing is tried: somebody may be killed who has loaded a version and not written it down yet, and a
Triton may have been out of reach when a release ended."""
_MOST_ENDED = 2
"""Times in a row that a Triton may end while it loads a version, as it does when a machine is switched off."""

log = logging.getLogger(__name__)


class ReleaseSteering:
    """Looks at what is tried."""

    def __init__(self, settings: Settings) -> None:
        """Nothing is known yet."""
        self._settings = settings
        self._repository = ModelRepository(settings.model_repository)
        self._addresses = partial(addresses.find, settings.triton_address)
        self._idle_until = 0.0
        self._ended = 0

    async def watch(self, storage: Storage) -> None:
        """Look every `INTERVAL_S` seconds, until cancelled."""
        await look_repeatedly(self.look, storage, INTERVAL_S, "what is tried", log)

    def look(self, database: Database) -> None:
        """Do what is to be done now.

        Raises:
            PipelineError: the repository is damaged, or the Tritons' addresses cannot be found.
        """
        with database.reading() as session:
            release = releases.running(session)
        if release is None:
            self._ended = 0
            if time.monotonic() >= self._idle_until:
                self._unload(database)
            return
        self._idle_until = 0.0
        with leases.held(database, leases.RELEASING, LEASE_S) as is_held:
            is_promoted = is_held and self._decide(database, release.id)
        if not is_promoted:
            self._load(database, release)

    def _decide(self, database: Database, release_id: int) -> bool:
        """Take back, go on a step, or promote; returns whether nothing more is to be done now."""
        deployed = self._repository.deployed()
        with database.transaction() as session:
            if deployed is not None:
                releases.follow(session, deployed)
            release = releases.locked(session, release_id)
            if release is None:
                return True
            found = alarms(
                self._settings, release.champion, release.figures, releases.told_by_feedback(session, release_id)
            )
            if found:
                _take_back(session, release, "; ".join(found))
                return True
            if not release.steps or not self._is_step_over(session, release):
                return False
            if release.step + 1 < len(release.steps):
                _go_on(session, release)
                return False
        try:
            reason = f"its canary did well on up to {release.steps[-1]:.0%} of the live texts"
            promotion.promote(
                self._settings, database, release.version, reason, release.figures, only_from=release.champion
            )
        except BusyDeployingError:
            pass  # the next look will
        except DeploymentError as error:
            _take_back_for(database, release_id, error)
        return True

    def _is_step_over(self, session: Session, release: Release) -> bool:
        ends_at = release.step_started_at + timedelta(minutes=self._settings.release_step_minutes)
        return now(session) >= ends_at and is_proven(release.figures)

    def _load(self, database: Database, release: Release) -> None:
        """Have a Triton that has started meanwhile, or that nobody else reaches, load the version too."""
        try:
            if challenger.load(self._addresses(), self._repository, release.version):
                self._ended = 0
        except challenger.EndedLoadingError as error:
            # The version may be what ends it, with all that it serves.
            self._ended += 1
            if self._ended >= _MOST_ENDED:
                _take_back_for(database, release.id, error)
        except challenger.ChallengerError as error:
            _take_back_for(database, release.id, error)

    def _unload(self, database: Database) -> None:
        if self._repository.has_challenger or challenger.is_loaded(self._addresses()):
            # Whoever begins a release holds this lease until it is written down.
            with leases.held(database, leases.DEPLOYING, LEASE_S) as is_held:
                if not is_held:
                    return
                with database.reading() as session:
                    if releases.running(session) is not None:
                        return
                challenger.unload(self._addresses(), self._repository)
        self._idle_until = time.monotonic() + _IDLE_INTERVAL_S


def _go_on(session: Session, release: Release) -> None:
    release.step += 1
    release.step_started_at = now(session)
    release.figures = {**release.figures, COMPARED_BEFORE: compared(release.figures)}
    share = release.steps[release.step]
    message = f"Version {release.version} answers {share:.0%} of the live texts now; nothing speaks against it."
    events.record(session, EventKind.CANARY_STEP, message, release.figures, version=release.version)
    log.info("%s", message)


def _take_back_for(database: Database, release_id: int, error: PipelineError) -> None:
    with database.transaction() as session:
        release = releases.locked(session, release_id)
        if release is not None:
            _take_back(session, release, f"errors: {str(error).rstrip('.')}")


def _take_back(session: Session, release: Release, alarm: str) -> None:
    releases.end(session, release, releases.TAKEN_BACK, alarm)
    message = f"The {release.mode} of version {release.version} was taken back, {release.champion} serves: {alarm}."
    events.record(session, EventKind.TAKEN_BACK, message, release.figures, version=release.version)
    log.error("%s", message)
