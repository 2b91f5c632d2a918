"""The `Server-Timing` response header (W3C), which shows where a request's time went."""

import time
from contextvars import ContextVar

from serving.model_repo.protocol import Phases

HEADER = "Server-Timing"
KNOWN = "cache;desc=hit"
"""Header value of a response from the cache, without a call to the model."""


class Timing:
    """The timing of one request, from its creation."""

    def __init__(self) -> None:
        """Start the clock."""
        self._started = time.perf_counter()
        self._call_started = self._started
        self._phases: Phases | None = None
        self.is_known = True
        """True while the response needs no call to the model."""

    def add(self, call_started: float, phases: Phases | None) -> None:
        """Record a finished call. Of several calls, the last counts, because the response waited for it."""
        self._call_started = call_started
        self._phases = phases
        self.is_known = False

    def header(self) -> str:
        """Return the header's value, in milliseconds; the rest of `total` is transport and the gateway's own work."""
        if self.is_known:
            return KNOWN
        durations = {}
        if self._phases is not None:
            durations["queue"] = self._call_started - self._started + self._phases.queue_s
            durations["tokenize"] = self._phases.tokenize_s
            durations["graph"] = self._phases.graph_s
        durations["total"] = time.perf_counter() - self._started
        return ", ".join(f"{name};dur={1_000 * seconds:.2f}" for name, seconds in durations.items())


current_timings: ContextVar[tuple[Timing, ...]] = ContextVar("current_timings", default=())
"""Timings of the current request, or of all requests that share a call."""


def add_call(started: float, phases: Phases | None) -> None:
    """Record a finished model call that began at `started`, for all requests that share it."""
    for timing in current_timings.get():
        timing.add(started, phases)


def begin() -> Timing:
    """Start the timing of the current request."""
    timing = Timing()
    current_timings.set((timing,))
    return timing
