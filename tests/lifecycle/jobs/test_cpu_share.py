"""A job leaves the CPUs to serving, but gets its share of them beside a service that uses all."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from lifecycle.jobs import cpu_share
from serving.backend.cpu import usable_cores
from serving.host.supervisor import NICENESS
from tests.e2e.conftest import PROJECT

SHARE = 0.1
BUSY = "while True: pass"
SERVICE = f"import os; os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))\n{BUSY}"
JOB = f"""
import subprocess, sys
from lifecycle.jobs.cpu_share import modest
with modest(float(sys.argv[1])):
    children = [subprocess.Popen([sys.executable, "-c", {BUSY!r}]) for _ in range(int(sys.argv[2]))]
    print(*(child.pid for child in children), flush=True)
    sys.stdin.read()
    for child in children:
        child.kill()
"""
linux = pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="only Linux has SCHED_IDLE")


@pytest.mark.parametrize(("share", "steps"), [(0.5, 0), (0.2, 6), (0.1, 9), (0.001, 19 - NICENESS)])
def test_a_smaller_share_is_a_higher_niceness(share: float, steps: int) -> None:
    assert cpu_share._steps(share) == steps


@pytest.fixture
def busy_service() -> Iterator[None]:
    """As many busy processes as there are cores, at the niceness of Triton."""
    command = ["nice", "-n", str(NICENESS), sys.executable, "-c", SERVICE]
    processes = [subprocess.Popen(command) for _ in range(usable_cores())]
    yield
    for process in processes:
        process.kill()
        process.wait()


def _share_of_job(guaranteed: float, seconds: float) -> float:
    """Return the share of all cores that a job with as many busy processes gets."""
    with subprocess.Popen(
        [sys.executable, "-c", JOB, str(guaranteed), str(usable_cores())],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as job:
        assert job.stdout is not None
        children = [psutil.Process(int(pid)) for pid in job.stdout.readline().split()]

        def used() -> float:
            return sum(sum(child.cpu_times()[:2]) for child in children)

        began, before = time.monotonic(), used()
        time.sleep(seconds)
        share = (used() - before) / (time.monotonic() - began) / usable_cores()
        job.communicate()
    return share


@linux
@pytest.mark.full
@pytest.mark.usefixtures("busy_service")
def test_beside_a_busy_service_a_job_gets_about_its_share() -> None:
    assert SHARE / 2 < _share_of_job(SHARE, 20) < 3 * SHARE
    assert _share_of_job(0, 10) < SHARE / 2
