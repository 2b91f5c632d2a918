"""Confirms faults of a version on trial by measurements that callers cannot influence.

The version is probed with the pipeline's own texts. Each text goes to the champion first, and counts only if the
champion classifies it. If live calls are slow, speed is compared without live traffic, once per release.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from common.settings import Settings
from lifecycle.canary.release_alarms import error_alarm, latency_alarm
from lifecycle.deployment.probe import Probing
from lifecycle.deployment.speed import why_slower
from serving.model_repo.protocol import CHALLENGER_NAME, MODEL_NAME
from storage.database import Database
from storage.tables import Release

PROBE_INTERVAL_S = 60.0
"""Seconds between two probes while there is no suspicion."""
SUSPICIOUS_INTERVAL_S = 10.0


@dataclass(frozen=True)
class Faults:
    """Known faults of a version on trial."""

    confirmed: str = ""
    """The fault for which the version is taken back; empty if there is none."""
    unconfirmed: tuple[str, ...] = ()
    """Alarms of live calls that the pipeline's own measurements do not confirm. Refuted slowness is not among them."""
    answers: bool = False
    """True if the version passed the last probe with the pipeline's own texts."""


class FaultFinder:
    """Searches for faults of the version of one release, in one process."""

    def __init__(self, settings: Settings, release: Release, find_addresses: Callable[[], Sequence[str]]) -> None:
        """Create a finder that probes the Tritons at the addresses returned by `find_addresses`."""
        self.release_id = release.id
        self._settings = settings
        self._find_addresses = find_addresses
        self._probing = Probing(release.version, CHALLENGER_NAME, beside=MODEL_NAME)
        self._probed_at = float("-inf")
        self._late = 0
        self._failure: str | None = None
        self._is_probed_for_errors = False
        self._is_timed = False
        self._slowness: str | None = ""

    def find(self, database: Database, release: Release) -> Faults:
        """Return the known faults of the version, after a probe or speed comparison if one is due.

        Raises:
            PipelineError: the addresses of the Tritons cannot be found.
        """
        errors = error_alarm(self._settings, release.figures)
        late = release.figures.get("late", 0)
        is_suspicious = errors or late > self._late or self._probing.is_in_doubt
        if time.monotonic() - self._probed_at >= (SUSPICIOUS_INTERVAL_S if is_suspicious else PROBE_INTERVAL_S):
            self._late = late
            self._is_probed_for_errors = bool(errors)
            self._failure = self._probing.confirm(self._find_addresses())
            self._probed_at = time.monotonic()
        if self._failure:
            return Faults(f"{errors or 'errors'}; {self._failure}")
        # A probe from before the errors says nothing about them.
        answers = self._failure == "" and (not errors or self._is_probed_for_errors)
        unconfirmed = [f"{errors}, but it classifies the pipeline's own texts"] if errors and answers else []
        if latency := latency_alarm(self._settings, release.figures):
            if not self._is_timed:
                largest = self._settings.release_max_slowdown
                self._slowness = why_slower(self._settings, database, release.version, release.champion, largest)
                self._is_timed = True
            if self._slowness:
                return Faults(f"{latency}; {self._slowness}")
            if self._slowness is None:
                unconfirmed.append(f"{latency}, which could not be measured without live traffic")
        return Faults("", tuple(unconfirmed), answers)
