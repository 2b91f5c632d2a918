"""Triton and its Python process die, hang, or find no shared memory."""

import time

import httpx

from tests.e2e.chaos.fault import Fault
from tests.e2e.chaos.surroundings import SHARED_MEMORY, full, has_own_mounts
from tests.e2e.chaos.target import Target

SHORTAGE_S = 6.0
RESTARTS = 3


def _kill(target: Target) -> None:
    target.triton().kill()


def _stop(target: Target) -> None:
    target.triton().suspend()


def _kill_again_and_again(target: Target) -> None:
    for _ in range(RESTARTS):
        process = target.triton()
        process.kill()
        process.wait(20)


def _kill_stub(target: Target) -> None:
    target.stub().kill()


def _stop_stub(target: Target) -> None:
    target.stub().suspend()


def _fill_shared_memory(target: Target) -> None:
    """Long lists need more of it than Triton has taken so far."""
    with full(SHARED_MEMORY):
        ended = time.monotonic() + SHORTAGE_S
        while time.monotonic() < ended:
            texts = [f"{'a bright screen ' * 500}{number} {time.monotonic_ns()}" for number in range(64)]
            answer = httpx.post(f"{target.served.url}/predict/batch", json={"texts": texts}, timeout=60)
            assert answer.status_code in (200, 503, 504), answer.text
        target.promote(target.other(), status=409)


def _restart_without_shared_memory(target: Target) -> None:
    with full(SHARED_MEMORY):
        target.triton().kill()
        time.sleep(SHORTAGE_S)


_ENDED = "Triton ended after"

FAULTS = [
    Fault("triton-killed", "Triton is killed", _kill, _ENDED),
    Fault("triton-hangs", "Triton hangs (stopped, for good)", _stop, "hangs"),
    Fault(
        "triton-restarting", f"Triton is killed {RESTARTS} times, each time as it starts", _kill_again_and_again, _ENDED
    ),
    Fault("stub-killed", "the Python process inside Triton is killed", _kill_stub, "Triton is broken"),
    Fault("stub-hangs", "the Python process inside Triton hangs (stopped, for good)", _stop_stub, "Triton is broken"),
]
if has_own_mounts():
    FAULTS += [
        Fault(
            "shm-full",
            f"no shared memory for {SHORTAGE_S:.0f} s of long lists, and a promotion meanwhile",
            _fill_shared_memory,
            "could not be deployed",
        ),
        Fault(
            "shm-full-restart",
            f"Triton is killed, and finds no shared memory for {SHORTAGE_S:.0f} s",
            _restart_without_shared_memory,
            _ENDED,
        ),
    ]
