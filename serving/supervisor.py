"""Keeps the bundled Triton running, and ends it with everything that belongs to it."""

import asyncio
import contextlib
import logging
import os
import signal
import time
from pathlib import Path

import psutil

from serving import triton
from serving.die_with_parent import command_dying_with_parent
from serving.triton_client import TritonClient, TritonTimeoutError, TritonUnavailableError
from settings import Settings

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
HEALTHY_AFTER_S = 60.0
"""A Triton that ran this long has recovered: the next restart begins with the first pause again."""
PROBE_INTERVAL_S = 2.0
FAILED_PROBES = 3
"""Failures in a row, while Triton says that the model is ready, after which it is restarted."""
_PROBE_TIMEOUT_S = 30.0
_GRACE_S = 15.0
_LOG_TAIL_LINES = 5

log = logging.getLogger(__name__)


class TritonSupervisor:
    """Runs one Triton; restarts it with growing pauses when it dies."""

    def __init__(self, settings: Settings) -> None:
        """Prepare the command.

        Raises:
            PipelineError: Triton cannot run on this machine, or cannot be fetched.
        """
        self._command = command_dying_with_parent(triton.command(settings))
        self._environment = triton.environment(settings)
        self._address = settings.bundled_triton
        self._shared_memory_prefix = triton.shared_memory_prefix(settings)
        self.log_file = settings.state_dir / "logs" / "triton.log"
        self._process: asyncio.subprocess.Process | None = None

    async def run(self) -> None:
        """Start Triton and start it again whenever it ends, until this task is cancelled."""
        pause = FIRST_PAUSE_S
        try:
            while True:
                started = time.monotonic()
                process = await self._start()
                watch = asyncio.create_task(self._kill_when_broken(process))
                try:
                    await process.wait()
                finally:
                    watch.cancel()
                sweep(process.pid, self._shared_memory_prefix)
                ran_for = time.monotonic() - started
                pause = FIRST_PAUSE_S if ran_for >= HEALTHY_AFTER_S else pause
                log.error(
                    "Triton ended after %.0f s (%s); starting it again in %.1f s. The end of %s:\n%s",
                    ran_for,
                    _ending(process.returncode),
                    pause,
                    self.log_file,
                    _tail(self.log_file),
                )
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
        finally:
            await self._stop()

    def kill(self) -> None:
        """End Triton at once, where `run` is being cancelled or will be."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def _start(self) -> asyncio.subprocess.Process:
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("ab") as output:
            # A session of its own: Ctrl-C in the terminal reaches this process alone, which ends Triton in order.
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        log.info("Started Triton (process %d); it logs to %s.", self._process.pid, self.log_file)
        return self._process

    async def _kill_when_broken(self, process: asyncio.subprocess.Process) -> None:
        """Kill a Triton whose Python has died: it would say "ready" and fail requests for ever."""
        client = TritonClient(self._address)
        failed = 0
        dead: set[int] = set()
        reason = ""
        try:
            while failed < FAILED_PROBES:
                await asyncio.sleep(PROBE_INTERVAL_S)
                # Where one instance of several has died, the others answer most probes. Triton reaps those that it
                # ends itself within the interval.
                dead_before, dead = dead, _dead_children(process.pid)
                if dead & dead_before:
                    reason = "one of its Python processes has died"
                    break
                if not await client.is_loaded():
                    failed = 0
                    continue
                try:
                    await client.classify(["ready?"], _PROBE_TIMEOUT_S)
                except TritonUnavailableError as error:
                    failed += 1
                    reason = str(error)
                except TritonTimeoutError:
                    pass  # It may only be busy.
                else:
                    failed = 0
            log.error("Triton is broken (%s) and is killed.", reason)
            process.kill()
        finally:
            await client.close()

    async def _stop(self) -> None:
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), _GRACE_S)
            except asyncio.TimeoutError:
                log.warning("Triton did not end within %.0f s and is killed.", _GRACE_S)
        sweep(process.pid, self._shared_memory_prefix)


def sweep(group: int, shared_memory_prefix: str) -> None:
    """Kill what is left of Triton's process group and remove its shared memory."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    for segment in Path("/dev/shm").glob(f"{shared_memory_prefix}*"):
        segment.unlink(missing_ok=True)


def _dead_children(pid: int) -> set[int]:
    """Children of a process that have ended, and that it has not noticed."""
    try:
        children = psutil.Process(pid).children()
    except psutil.NoSuchProcess:
        return set()
    dead = set()
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.status() == psutil.STATUS_ZOMBIE:
                dead.add(child.pid)
    return dead


def _ending(returncode: int | None) -> str:
    if returncode is not None and returncode < 0:
        return f"killed by {signal.Signals(-returncode).name}"
    return f"exit status {returncode}"


def _tail(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    told = [line for line in lines if line.strip() and not line.startswith(("|", "+"))]  # not Triton's tables
    return "\n".join(f"    {line}" for line in told[-_LOG_TAIL_LINES:])
