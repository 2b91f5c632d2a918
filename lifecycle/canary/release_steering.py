"""Steers a release: takes back a faulty version, advances a good one, and keeps it loaded in the Tritons.

A version is taken back only for faults that callers cannot influence, found by the pipeline's own texts and
measurements (`release_faults.py`). Live texts that speak against its predictions may have been sent on purpose. So they
only hold the version at its step, and an administrator promotes it, stops it or lets it go on.

Each serving process manages the Tritons that it uses, because others may not reach them. One process at a time decides.
"""

import logging
import time
from functools import partial

from sqlalchemy.orm import Session

from common.clock import Elapsed
from common.errors import PipelineError
from common.settings import Settings
from lifecycle.canary import challenger
from lifecycle.canary.release_alarms import COMPARED_BEFORE, answer_alarms, compared, is_proven
from lifecycle.canary.release_faults import FaultFinder, Faults
from lifecycle.deployment import promotion
from lifecycle.deployment.promotion import LEASE_S, BusyDeployingError, DeploymentError
from serving.client import addresses
from serving.model_repo.repository import ModelRepository
from storage import events, leases, releases
from storage.database import Database, now
from storage.events import EventKind
from storage.tables import Release

INTERVAL_S = 1.0
"""Seconds between two evaluations."""
_IDLE_INTERVAL_S = 30.0
"""Seconds between two searches for leftover challengers while no release is running. A killed process may have loaded a
version without recording it, and a Triton may have been unreachable when a release ended."""
_MOST_ENDED = 2
"""Loads in a row during which a Triton ends before the version is taken back. One may be the shutdown of its host."""

log = logging.getLogger(__name__)


class ReleaseSteering:
    """Steers the running release in one process."""

    def __init__(self, settings: Settings) -> None:
        """Create the steering; nothing is known about a release yet."""
        self._settings = settings
        self._repository = ModelRepository(settings.model_repository)
        self._addresses = partial(addresses.find, settings.triton_address)
        self._idle_until = 0.0
        self._ended = 0
        self._finder: FaultFinder | None = None
        self._elapsed = Elapsed()

    def look(self, database: Database) -> None:
        """Do the next step of the running release; without one, unload a leftover challenger.

        Raises:
            PipelineError: the repository is damaged, or the Tritons' addresses cannot be found.
        """
        with database.reading() as session:
            release = releases.running(session)
        if release is None:
            self._ended = 0
            self._finder = None
            if time.monotonic() >= self._idle_until:
                self._unload(database)
            return
        self._idle_until = 0.0
        if self._finder is None or self._finder.release_id != release.id:
            self._finder = FaultFinder(self._settings, release, self._addresses)
        faults = self._finder.find(database, release)
        with leases.held(database, leases.RELEASING, LEASE_S) as is_held:
            is_over = not is_held or self._decide(database, release.id, faults)
        if not is_over:
            self._load(database, release)

    def _decide(self, database: Database, release_id: int, faults: Faults) -> bool:
        """Take back, hold, advance or promote the version; return whether nothing more is to be done now."""
        deployed = self._repository.deployed()
        with database.transaction() as session:
            if deployed is not None:
                releases.follow(session, deployed)
            release = releases.locked(session, release_id)
            if release is None:
                return True
            if faults.confirmed:
                _take_back(session, release, faults.confirmed)
                return True
            feedback = releases.right_by_feedback(session, release_id, self._settings.trusted_sources)
            doubts = [
                *faults.unconfirmed,
                *answer_alarms(self._settings, release.champion, release.figures, feedback),
            ]
            if doubts and not releases.held_because(release):
                _hold(session, release, "; ".join(doubts))
            is_going_on = faults.answers and not releases.held_because(release)
            if not is_going_on or not release.steps or not self._is_step_over(session, release):
                return False
            if release.step + 1 < len(release.steps):
                _go_on(session, release)
                return False
        try:
            reason = f"its canary raised no alarm on up to {release.steps[-1]:.0%} of the live texts"
            promotion.promote(
                self._settings, database, release.version, reason, release.figures, only_from=release.champion
            )
        except BusyDeployingError:
            pass  # the next evaluation tries again
        except DeploymentError as error:
            _take_back_for(database, release_id, error)
        return True

    def _is_step_over(self, session: Session, release: Release) -> bool:
        by_wall_clock_s = (now(session) - release.step_started_at).total_seconds()
        elapsed_s = self._elapsed.seconds((release.id, release.step_started_at), by_wall_clock_s)
        return elapsed_s >= 60 * self._settings.release_step_minutes and is_proven(release.figures)

    def _load(self, database: Database, release: Release) -> None:
        """Load the version in Tritons that have started meanwhile, or that only this process reaches."""
        try:
            if challenger.load(self._addresses(), self._repository, release.version):
                self._ended = 0
        except challenger.EndedLoadingError as error:
            # The version may be what ends this Triton, and the deployed model with it.
            self._ended += 1
            if self._ended >= _MOST_ENDED:
                _take_back_for(database, release.id, error)
        except challenger.ChallengerError as error:
            _take_back_for(database, release.id, error)

    def _unload(self, database: Database) -> None:
        if self._repository.has_challenger or challenger.is_loaded(self._addresses()):
            # The process that starts a release holds this lease until the release is recorded.
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
    message = f"The canary of version {release.version} advances to {share:.0%} of the live texts; it raised no alarm."
    events.record(session, EventKind.CANARY_STEP, message, release.figures, version=release.version)
    log.info("%s", message)


def _hold(session: Session, release: Release, reason: str) -> None:
    releases.hold(session, release, reason)
    version, step = release.version, " at its step" if release.steps else ""
    message = (
        f"The {release.mode} of version {version} is held{step}: {reason}.\n"
        "Callers can influence these figures, so the version was not taken back. Look at the texts with "
        f"`python app.py release --texts 20` and decide: `python app.py promote {version}`, "
        f"`python app.py stop {version}`, or `python app.py canary {version}`, which continues the canary "
        "with new figures. The console has the same actions."
    )
    events.record(session, EventKind.RELEASE_HELD, message, release.figures, version=release.version)
    log.warning("%s", message)


def _take_back_for(database: Database, release_id: int, error: PipelineError) -> None:
    with database.transaction() as session:
        release = releases.locked(session, release_id)
        if release is not None:
            _take_back(session, release, f"errors: {str(error).rstrip('.')}")


def _take_back(session: Session, release: Release, alarm: str) -> None:
    releases.end(session, release, releases.TAKEN_BACK, alarm)
    message = (
        f"The {release.mode} of version {release.version} was taken back, "
        f"version {release.champion} stays deployed: {alarm}."
    )
    events.record(session, EventKind.TAKEN_BACK, message, release.figures, version=release.version)
    log.error("%s", message)
