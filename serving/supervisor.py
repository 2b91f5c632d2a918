"""Keeps the bundled Triton running, and ends it with everything that belongs to it."""

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from serving import triton
from serving.diagnosis import until_broken
from serving.die_with_parent import command_dying_with_parent
from serving.triton_client import TritonClient
from settings import Settings

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
NICENESS = 5
"""Of Triton, above this process's own. Its engine takes every core while texts wait; a gateway that had to share them
evenly could not refuse in time what is too much: offered three times what could be served, it fell 40 s behind."""
_GRACE_S = 15.0
_LOG_TAIL_LINES = 5

log = logging.getLogger(__name__)


class TritonSupervisor:
    """Runs one Triton and restarts it when it dies, with growing pauses as long as it dies before it has served."""

    def __init__(self, settings: Settings, on_failed_start: Callable[[], None] = lambda: None) -> None:
        """Prepare the command. `on_failed_start` is called, in a thread, after Triton has ended before it served.

        Raises:
            PipelineError: Triton cannot run on this machine, or cannot be fetched.
        """
        self._command = command_dying_with_parent(triton.command(settings), own_group=True, niceness=NICENESS)
        self._environment = triton.environment(settings)
        self._address = settings.bundled_triton
        self._shared_memory_prefix = triton.shared_memory_prefix(settings)
        self._on_failed_start = on_failed_start
        self.log_file = settings.state_dir / "logs" / "triton.log"
        self._process: asyncio.subprocess.Process | None = None
        self._has_lived = False
        """Whether Triton, since it was started last, has got so far that it serves."""

    async def run(self) -> None:
        """Start Triton and start it again whenever it ends, until this task is cancelled."""
        pause = FIRST_PAUSE_S
        try:
            while True:
                started = time.monotonic()
                self._has_lived = False
                process = await self._start()
                watch = asyncio.create_task(self._kill_when_broken(process))
                try:
                    await process.wait()
                finally:
                    watch.cancel()
                sweep(process.pid, self._shared_memory_prefix)
                ran_for = time.monotonic() - started
                if self._has_lived:
                    pause = FIRST_PAUSE_S
                log.error(
                    "Triton ended after %.0f s (%s); starting it again in %.1f s. The end of %s:\n%s",
                    ran_for,
                    _ending(process.returncode),
                    pause,
                    self.log_file,
                    _tail(self.log_file),
                )
                if not self._has_lived and (process.returncode or 0) > 0:
                    # By itself, as it does where it cannot load the model.
                    await asyncio.to_thread(self._on_failed_start)
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
            # In a process group of its own: Ctrl-C in the terminal reaches this process alone, which ends it in order.
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        log.info("Started Triton (process %d); it logs to %s.", self._process.pid, self.log_file)
        return self._process

    async def _kill_when_broken(self, process: asyncio.subprocess.Process) -> None:
        """Kill a Triton that will not answer any more, for it would not end by itself."""
        client = TritonClient(self._address)
        try:
            reason = await until_broken(client, process.pid, self._note_life)
            log.error("Triton is broken (%s) and is killed.", reason)
            process.kill()
        finally:
            await client.close()

    def _note_life(self) -> None:
        self._has_lived = True

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


def _ending(returncode: int | None) -> str:
    if returncode is not None and returncode < 0:
        return f"killed by {signal.Signals(-returncode).name}"
    return f"exit status {returncode}"


def _tail(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    told = [line for line in lines if line.strip() and not line.startswith(("|", "+"))]  # not Triton's tables
    return "\n".join(f"    {line}" for line in told[-_LOG_TAIL_LINES:])
