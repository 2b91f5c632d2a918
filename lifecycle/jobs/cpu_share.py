"""Divides the CPUs between a job and the service beside it.

A job gets the CPU time that serving leaves idle (SCHED_IDLE, sched(7)), so that it delays no request. Beside a
saturated service that is almost nothing. So a job also has a guaranteed share of the machine: whenever it got less
during the last seconds, it competes for the CPUs, until it has its share.

Only root, or an account whose RLIMIT_NICE allows it, can leave SCHED_IDLE again. Elsewhere, a job with a share always
competes, with a niceness that gives it the share beside a saturated Triton.
"""

import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import psutil

from common.periodic import run_until
from serving.backend.cpu import usable_cores
from serving.host.supervisor import NICENESS
from storage import leases

_LOOK_S = 1.0
_WINDOW_S = 10.0
"""Seconds over which the CPU time of the job is compared with its share."""
_NICE_STEP = 1.25
"""Ratio of CPU time between two processes whose niceness differs by one (sched(7))."""

log = logging.getLogger(__name__)


@contextmanager
def modest(share: float) -> Iterator[None]:
    """Run the block, and the processes that it starts, on idle CPU time and at least `share` of all cores (0 to 1).

    The calling thread stays modest after the block.
    """
    if not hasattr(os, "SCHED_IDLE"):
        os.nice(19)
        yield
        return
    if not share:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        yield
        return
    if not _can_leave_idle():
        os.nice(NICENESS + _steps(share))
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        yield
        return
    # Twice the share, because a job that runs on one core needs a larger part of it. `_Governor` stops it in time.
    os.nice(_steps(min(2 * share, 0.5)))
    ended = threading.Event()
    governor = _Governor(share)
    keeper = threading.Thread(
        target=partial(run_until, ended, "CPU share of the job", governor.look, _LOOK_S), daemon=True
    )
    keeper.start()
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    try:
        yield
    finally:
        ended.set()
        keeper.join()


class _Governor:
    """Lets the threads of the calling thread's job compete for the CPUs while the job has less than its share."""

    def __init__(self, share: float) -> None:
        """Guarantee `share` of all cores. Threads that exist already are not part of the job, except the caller."""
        self._cores = share * usable_cores()
        self._process = psutil.Process()
        self._others = {thread for thread in _threads(os.getpid()) if thread != threading.get_native_id()}
        self._used: deque[tuple[float, float]] = deque()
        """Times of the monotonic clock, and the seconds of CPU time that the job had used until then."""

    def look(self) -> None:
        """Compare the CPU time of the last seconds with the share, and set the policy of all threads of the job."""
        processes = [self._process, *self._process.children(recursive=True)]
        now = time.monotonic()
        self._used.append((now, sum(map(_cpu_s, processes))))
        while now - self._used[0][0] > _WINDOW_S:
            self._used.popleft()
        began, used_before = self._used[0]
        is_short = self._used[-1][1] - used_before < self._cores * (now - began)
        policy = os.SCHED_BATCH if is_short else os.SCHED_IDLE
        # These must be in time, whatever the job does.
        punctual = {thread.native_id for thread in threading.enumerate() if thread.name.startswith(leases.KEEPER)}
        punctual |= {threading.get_native_id()} | self._others
        for process in processes:
            for thread in _threads(process.pid):
                if thread not in punctual:
                    with suppress(OSError):  # it has just ended
                        if os.sched_getscheduler(thread) != policy:
                            os.sched_setscheduler(thread, policy, os.sched_param(0))


def _steps(share: float) -> int:
    """Return by how much the niceness of a process must be higher, so that it gets `share` of a core beside another."""
    return max(0, min(19 - NICENESS, math.floor(math.log((1 - share) / share, _NICE_STEP))))


def _can_leave_idle() -> bool:
    """Return whether a thread of this process can change from SCHED_IDLE to another policy; found out in a thread."""
    found = []

    def leave() -> None:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        with suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
            found.append(True)

    thread = threading.Thread(target=leave)
    thread.start()
    thread.join()
    return bool(found)


def _threads(process_id: int) -> set[int]:
    with suppress(OSError):
        return {int(task.name) for task in Path(f"/proc/{process_id}/task").iterdir()}
    return set()


def _cpu_s(process: psutil.Process) -> float:
    """Return the seconds of CPU time of a process, and of its children that have ended."""
    with suppress(psutil.NoSuchProcess):
        return float(sum(process.cpu_times()[:4]))
    return 0.0
