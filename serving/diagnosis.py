"""Finds out that a Triton which runs does not answer any more: it hangs, or its Python has died or hangs."""

import asyncio
import contextlib
import time
from collections.abc import Callable

import psutil

from serving.protocol import CHALLENGER_NAME
from serving.triton_client import TextRefusedError, TritonClient, TritonTimeoutError, TritonUnavailableError

PROBE_INTERVAL_S = 2.0
_FIRST_INTERVAL_S = 0.2
FAILED_PROBES = 3
"""Failures in a row, while Triton says that the model is ready, that show that it is broken."""
LONGEST_SILENCE_S = 15.0
"""Without a sign of life from a Triton that has given one; it answers that it lives whatever the model does."""
LONGEST_START_S = 900.0
"""Without its first sign of life, which it gives when it has loaded a version; its Python may take 300 s for that."""
STUCK_PROBES = 2
PROBE_TIMEOUT_S = 5.0
LEAST_CPU_S = 0.1
"""What Triton's Python uses at the least while a probe is not answered, if it has work: 2 % of a core. One that uses
less, twice in a row, is not busy; it hangs."""


async def until_broken(client: TritonClient, process_id: int, on_life: Callable[[], None]) -> str:
    """Watch the Triton of a process, which `client` asks; returns, when it is broken, what is wrong.

    `on_life` is called whenever it shows that it serves.
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
            # What has died before now is no challenger's, for these come later.
            needed |= {child.pid for child in _children(process_id) if _is_dead(child)}
        # Where one instance of several has died, the others answer most probes. Triton reaps those that it ends itself
        # within the interval.
        # One of a challenger is no reason to end what serves: its calls fail, and by that it is taken back.
        children = _children(process_id)
        needed |= {child.pid for child in children if _serves(child)}
        dead_before, dead = dead, {child.pid for child in children if _is_dead(child)} & needed
        if dead & dead_before:
            return "one of its Python processes has died"
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
            with contextlib.suppress(TextRefusedError):  # an answer too
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
    """Whether it gives its first sign of life within an interval; looked for often, for then it may hang at once."""
    deadline = time.monotonic() + PROBE_INTERVAL_S
    while time.monotonic() < deadline:
        if await client.is_live():
            return True
        await asyncio.sleep(_FIRST_INTERVAL_S)
    return False


def _serves(child: psutil.Process) -> bool:
    """Whether it runs, and for no challenger, which is told by the command line; a dead one has lost that."""
    try:
        return not any(CHALLENGER_NAME in word for word in child.cmdline())
    except psutil.Error:
        return False


def _is_dead(process: psutil.Process) -> bool:
    """Whether it has ended, and its parent has not noticed."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _cpu_of_children(process_id: int) -> float:
    """Seconds of processor time that the children of a process have used."""
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
