"""What a Triton leaves behind when it ends or is killed, or when its pipeline is: processes and shared memory."""

import contextlib
import logging
import os
import signal
import stat
from pathlib import Path

import psutil

_KILLED_IN_S = 10

log = logging.getLogger(__name__)


def end_earlier(shared_memory_prefix: str) -> None:
    """Kill the processes of an earlier Triton with this prefix, and remove its shared memory.

    The Triton of a killed pipeline ends in order, which takes seconds or, with requests in progress, up to 30. At its
    end it removes its sockets by name. They would be those of the Triton that starts there meanwhile, which nobody
    could reach then.
    """
    earlier = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            is_triton = process.uids().real == os.geteuid() and process.name().startswith("triton")
            if is_triton and any(shared_memory_prefix in argument for argument in process.cmdline()):
                process.kill()
                earlier.append(process)
    if earlier:
        log.info("The Triton of a killed pipeline was still ending, and was killed (process %d).", earlier[0].pid)
        psutil.wait_procs(earlier, _KILLED_IN_S)
        _remove(shared_memory_prefix)


def sweep(group: int, shared_memory_prefix: str) -> None:
    """Kill the remaining processes of Triton's group and remove its shared memory."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    _remove(shared_memory_prefix)


def close_to_others(shared_memory_prefix: str) -> None:
    """If other accounts can read Triton's shared memory, which contains all texts, make it private and log an error."""
    for segment in _own_segments(shared_memory_prefix):
        with contextlib.suppress(OSError):
            if segment.lstat().st_mode & 0o077:
                segment.chmod(0o600)
                log.error(
                    "%s could be read by the machine's other accounts until now, since this kernel has no seccomp. "
                    "Do not run the pipeline here where others have accounts.",
                    segment,
                )


def _remove(shared_memory_prefix: str) -> None:
    for segment in _own_segments(shared_memory_prefix):
        with contextlib.suppress(OSError):
            segment.unlink()


def _own_segments(shared_memory_prefix: str) -> list[Path]:
    """Return this account's shared memory. Any account can create files and links of the same name in /dev/shm."""
    own = []
    for segment in Path("/dev/shm").glob(f"{shared_memory_prefix}*"):
        with contextlib.suppress(OSError):
            status = segment.lstat()
            if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
                own.append(segment)
    return own
