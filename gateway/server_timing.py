"""`Server-Timing` of answers (W3C): where the time of a request went."""

import time
from contextvars import ContextVar

from serving.protocol import Phases

HEADER = "Server-Timing"
KNOWN = "cache;desc=hit"
"""Of an answer for which the model was not asked."""


class Timing:
    """The time of one request, which begins now."""

    def __init__(self) -> None:
        """Begin."""
        self._started = time.perf_counter()
        self._call_started = self._started
        self._phases: Phases | None = None
        self.is_known = True
        """Whether the answer needed no call to the model."""

    def add(self, call_started: float, phases: Phases | None) -> None:
        """Take a call that has ended: of several, the last is the one that the answer waited for."""
        self._call_started = call_started
        self._phases = phases
        self.is_known = False

    def header(self) -> str:
        """The header's value, in milliseconds: what is left of `total` is transport and the gateway's own work."""
        if self.is_known:
            return KNOWN
        told = {}
        if self._phases is not None:
            told["queue"] = self._call_started - self._started + self._phases.queue_s
            told["tokenize"] = self._phases.tokenize_s
            told["graph"] = self._phases.graph_s
        told["total"] = time.perf_counter() - self._started
        return ", ".join(f"{name};dur={1_000 * seconds:.2f}" for name, seconds in told.items())


current_timings: ContextVar[tuple[Timing, ...]] = ContextVar("current_timings", default=())
"""Those of the request that is being answered, or of all that share a call."""


def begin() -> Timing:
    """Time the current request from now on."""
    timing = Timing()
    current_timings.set((timing,))
    return timing
