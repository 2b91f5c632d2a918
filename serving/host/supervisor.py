"""Keeps the bundled Triton running, and stops it with all its child processes and shared memory."""

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from common.errors import PipelineError
from common.periodic import run_periodically
from common.settings import Settings
from serving.client.triton_client import TritonClient
from serving.host import triton
from serving.host.die_with_parent import command_dying_with_parent
from serving.host.leftovers import close_to_others, sweep
from serving.host.log_file import last_lines, rotate
from serving.host.start_failure import why_not_started
from serving.host.watchdog import CHILD_DIED, PROBE_INTERVAL_S, until_broken
from serving.model_repo.repository import ModelRepository

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 60.0
LEAST_FAILED_STARTS = 5
"""Failed starts in a row before a Triton that was never live is given up."""
LEAST_FAILING_S = 300.0
"""Minimum seconds between the first and the last of these failures. A shorter outage does not end the pipeline."""
NICENESS = 5
"""Triton's niceness above this process's own. Triton's engine uses all cores while texts wait. With equal priority, the
gateway could not reject excess requests in time: at three times the possible load it fell 40 s behind."""
_CRASHES = {signal.SIGSEGV, signal.SIGILL, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE}
"""Signals that a process gets for its own fault."""
_GRACE_S = 15.0
_LOG_TAIL_LINES = 5
_ROTATE_S = 30.0

log = logging.getLogger(__name__)


class TritonSupervisor:
    """Runs one Triton and restarts it when it dies; pauses grow while it dies before it is live."""

    def __init__(self, settings: Settings, on_failed_start: Callable[[], None] = lambda: None) -> None:
        """Prepare the command. `on_failed_start` runs in a thread after each failed start.

        A start has failed if, before Triton was live, it exited with an error or crashed, or one of its Python
        processes died. A Triton that a signal from elsewhere ended, as for lack of memory, has not failed.

        Raises:
            PipelineError: Triton cannot run on this machine, or cannot be downloaded.
        """
        command = triton.command(settings)
        self._server_directory = Path(command[0]).parents[3]  # of pytriton/tritonserver/bin/tritonserver
        self._command = command_dying_with_parent(command, own_group=True, niceness=NICENESS, private_files=True)
        self._environment = triton.environment(settings)
        self._settings = settings
        self._shared_memory_prefix = triton.shared_memory_prefix(settings)
        self._on_failed_start = on_failed_start
        self.log_file = settings.state_dir / "logs" / "triton.log"
        self._process: asyncio.subprocess.Process | None = None
        self._has_lived = False
        """True if Triton has been live since its last start."""
        self._has_ever_lived = False
        self._lost_child = False
        """True if the watchdog has killed Triton since its last start because one of its Python processes died."""
        self._log_start = 0
        """Size of the log in bytes when Triton was last started."""

    async def run(self) -> None:
        """Start Triton, and restart it whenever it ends, until this task is cancelled.

        Raises:
            PipelineError: Triton was never live, and has failed to start LEAST_FAILED_STARTS times or more with the
                same version, for LEAST_FAILING_S or longer.
        """
        pause = FIRST_PAUSE_S
        failed_starts = 0
        failing_since = 0.0
        version = self._named_version()
        try:
            while True:
                started = time.monotonic()
                self._has_lived = self._lost_child = False
                process = await self._start()
                # The watchdog ends with its process; it only runs again if it raised an error.
                kill_when_broken = partial(self._kill_when_broken, process)
                watches = [
                    asyncio.create_task(run_periodically("Triton watchdog", kill_when_broken, PROBE_INTERVAL_S)),
                    asyncio.create_task(run_periodically("Triton log", self._rotate_log, _ROTATE_S)),
                ]
                try:
                    await process.wait()
                finally:
                    for watch in watches:
                        watch.cancel()
                sweep(process.pid, self._shared_memory_prefix)
                status = process.returncode or 0
                has_failed = not self._has_lived and (status > 0 or -status in _CRASHES or self._lost_child)
                ending = f"Triton ended after {time.monotonic() - started:.0f} s ({_ending(process.returncode)})"
                if self._has_lived:
                    pause = FIRST_PAUSE_S
                    log.error(
                        "%s; starting it again in %.1f s. The end of %s:\n%s",
                        ending,
                        pause,
                        self.log_file,
                        _tail(self.log_file),
                    )
                else:
                    reason = why_not_started(self.log_file, self._log_start) or "its log gives no reason"
                    if has_failed:
                        failing_since = failing_since if failed_starts else time.monotonic()
                        failed_starts += 1
                        failing_s = time.monotonic() - failing_since
                        is_hopeless = failed_starts >= LEAST_FAILED_STARTS and failing_s >= LEAST_FAILING_S
                        if is_hopeless and not self._has_ever_lived:
                            raise PipelineError(self._advice(failed_starts, reason))
                    log.error("%s before it responded: %s. Starting it again in %.1f s.", ending, reason, pause)
                if has_failed:
                    await asyncio.to_thread(self._on_failed_start)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
                before, version = version, self._named_version()
                if version != before:
                    failed_starts, pause = 0, FIRST_PAUSE_S
        finally:
            await self._stop()

    def _named_version(self) -> int | None:
        """Return the version that Triton loads at its next start; None if the record names none."""
        with contextlib.suppress(PipelineError, OSError):
            return ModelRepository(self._settings.model_repository).named()
        return None

    def _advice(self, failed_starts: int, reason: str) -> str:
        return (
            f"Triton failed to start {failed_starts} times: {reason}. All it logged is in {self.log_file}. If a file "
            f"of Triton is missing, delete {self._server_directory} and start again; it is unpacked again. If a system "
            "library is missing, install it."
        )

    def kill(self) -> None:
        """Kill Triton at once; call this only if `run` is being cancelled or will be."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def _start(self) -> asyncio.subprocess.Process:
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("ab") as output:
            self._log_start = output.tell()
            # Triton has its own process group: Ctrl-C only reaches this process, which shuts Triton down cleanly.
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                env=self._environment,
                cwd=triton.working_directory(self._settings),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        log.info("Started Triton (process %d); it logs to %s.", self._process.pid, self.log_file)
        return self._process

    async def _rotate_log(self) -> None:
        if await asyncio.to_thread(rotate, self.log_file):
            self._log_start = 0

    async def _kill_when_broken(self, process: asyncio.subprocess.Process) -> None:
        """Wait until Triton is broken, then kill it, because it would not end by itself."""
        client = TritonClient(self._settings.bundled_triton)
        try:
            reason = await until_broken(client, process.pid, self._note_life)
            log.error("Triton is broken (%s) and is killed.", reason)
            self._lost_child = reason == CHILD_DIED
            process.kill()
        finally:
            await client.close()

    def _note_life(self) -> None:
        if not self._has_lived:
            close_to_others(self._shared_memory_prefix)
        self._has_lived = self._has_ever_lived = True

    async def _stop(self) -> None:
        process = self._process
        if process is None:
            return
        try:
            if process.returncode is None:
                process.terminate()
                await asyncio.wait_for(process.wait(), _GRACE_S)
        except TimeoutError:
            log.warning("Triton did not end within %.0f s and is killed.", _GRACE_S)
        finally:  # also if a second Ctrl-C cancels the waiting
            sweep(process.pid, self._shared_memory_prefix)


def _ending(returncode: int | None) -> str:
    if returncode is not None and returncode < 0:
        return f"killed by {signal.Signals(-returncode).name}"
    return f"exit status {returncode}"


def _tail(path: Path) -> str:
    told = [
        line for line in last_lines(path) if line.strip() and not line.startswith(("|", "+"))
    ]  # skip Triton's tables
    return "\n".join(f"    {line}" for line in told[-_LOG_TAIL_LINES:])
