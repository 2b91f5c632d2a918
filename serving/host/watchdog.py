"""Detects a broken Triton whose process still runs: Triton hangs, or its Python backend has died or hangs."""

import asyncio
import contextlib
import time
from collections.abc import Callable

import psutil

from serving.client.errors import NoRoomError, TextRefusedError, TritonTimeoutError, TritonUnavailableError
from serving.client.triton_client import TritonClient
from serving.model_repo.protocol import CHALLENGER_NAME

PROBE_INTERVAL_S = 2.0
_FIRST_INTERVAL_S = 0.2
CHILD_DIED = "one of its Python processes has died"
FAILED_PROBES = 3
"""Probes that must fail in a row, while Triton reports the model as ready, before Triton counts as broken."""
LONGEST_SILENCE_S = 15.0
"""Maximum seconds between two successful liveness checks; they succeed whatever the state of the model."""
LONGEST_START_S = 900.0
"""Maximum seconds until Triton is first live, which is after it has loaded a version; its Python may need 300 s."""
STUCK_PROBES = 2
PROBE_TIMEOUT_S = 5.0
LEAST_CPU_S = 0.1
"""Minimum CPU time of a busy Python backend while a probe times out: 2 % of a core. If it uses less during STUCK_PROBES
probes in a row, it hangs."""


async def until_broken(client: TritonClient, process_id: int, on_life: Callable[[], None]) -> str:
    """Monitor the Triton with the given process id through `client`; return the fault once it is broken.

    If one of its Python processes has died, the fault is `CHILD_DIED`. `on_life` is called after each successful
    liveness check.
    """
    started = heard_at = time.monotonic()
    was_live = False
    failed = stuck = 0
    dead: set[int] = set()
    needed: set[int] = set()
    while True:
        if was_live:
            await asyncio.sleep(PROBE_INTERVAL_S)
        elif await _comes_alive(client):
            was_live, heard_at = True, time.monotonic()
            # Children that died before now are not a candidate's, because candidates are loaded later.
            needed |= {child.pid for child in _children(process_id) if _is_dead(child)}
        # Probes may not notice that one of several instances died, so look for dead child processes. Triton reaps
        # children that it ends itself within the interval, so only children found dead twice count. A candidate's child
        # does not count: its calls fail, so the candidate is rolled back while the deployed version stays up.
        children = _children(process_id)
        # Before Triton is live, each child is needed. One that died at its start leaves Triton waiting for minutes.
        needed |= {child.pid for child in children if _serves(child) or (not was_live and _is_dead(child))}
        dead_before, dead = dead, {child.pid for child in children if _is_dead(child)} & needed
        if dead & dead_before:
            return CHILD_DIED
        if await client.is_live():
            was_live, heard_at = True, time.monotonic()
            on_life()
        elif was_live and time.monotonic() - heard_at > LONGEST_SILENCE_S:
            return f"it hangs: it has given no sign of life for {LONGEST_SILENCE_S:.0f} s"
        elif not was_live and time.monotonic() - started > LONGEST_START_S:
            return f"it has not started within {LONGEST_START_S:.0f} s"
        if not await client.is_loaded():
            failed = stuck = 0
            continue
        used_before = _cpu_of_children(process_id)
        try:
            # A refusal is a response too. If there is no room, other requests fill it, which is not a fault.
            with contextlib.suppress(TextRefusedError, NoRoomError):
                await client.classify(["ready?"], PROBE_TIMEOUT_S)
        except TritonUnavailableError as error:
            failed += 1
            if failed == FAILED_PROBES:
                return str(error)
        except TritonTimeoutError:
            stuck = stuck + 1 if _cpu_of_children(process_id) - used_before < LEAST_CPU_S else 0
            if stuck == STUCK_PROBES:
                return "its Python process hangs: it neither answers nor computes"
        else:
            failed = stuck = 0


async def _comes_alive(client: TritonClient) -> bool:
    """Poll whether Triton becomes live within an interval; poll often, because Triton may hang right afterwards."""
    deadline = time.monotonic() + PROBE_INTERVAL_S
    while time.monotonic() < deadline:
        if await client.is_live():
            return True
        await asyncio.sleep(_FIRST_INTERVAL_S)
    return False


def _serves(child: psutil.Process) -> bool:
    """Return whether a child runs and its command line names no candidate; a dead process has no command line."""
    try:
        return not any(CHALLENGER_NAME in word for word in child.cmdline())
    except psutil.Error:
        return False


def _is_dead(process: psutil.Process) -> bool:
    """Return whether the process has ended but was not reaped by its parent."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _cpu_of_children(process_id: int) -> float:
    """Return the seconds of CPU time that the children of a process have used."""
    used = 0.0
    for child in _children(process_id):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = child.cpu_times()
            used += times.user + times.system
    return used


def _children(process_id: int) -> list[psutil.Process]:
    try:
        children: list[psutil.Process] = psutil.Process(process_id).children()
    except psutil.NoSuchProcess:
        return []
    return children
