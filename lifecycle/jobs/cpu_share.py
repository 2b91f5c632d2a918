"""Divides the CPUs between a job and the service beside it.

A job with a guaranteed share competes for the CPUs at a niceness that gives it this share beside a saturated Triton. It
is not run on idle CPU time (SCHED_IDLE) until it falls behind: a thread that holds Python's lock while it gets no CPU
time also stops the threads that renew the job's lease, and that would notice that it is behind.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager

from serving.host.supervisor import NICENESS

_NICE_STEP = 1.25
"""Ratio of CPU time between two processes whose niceness differs by one (sched(7))."""


@contextmanager
def modest(share: float) -> Iterator[None]:
    """Run the block, and the processes that it starts, on idle CPU time and at least `share` of all cores (0 to 1).

    With a share of 0, the job gets only what serving leaves idle. The calling thread stays modest after the block.
    """
    if not share or not hasattr(os, "SCHED_IDLE"):
        os.nice(19)
        if hasattr(os, "SCHED_IDLE"):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    else:
        os.nice(NICENESS + _steps(share))
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    yield


def _steps(share: float) -> int:
    """Return by how much the niceness of a process must be higher, so that it gets `share` of a core beside another."""
    return max(0, min(19 - NICENESS, math.floor(math.log((1 - share) / share, _NICE_STEP))))
