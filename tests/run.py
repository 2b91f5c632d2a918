"""Runs pytest and ends every process that it leaves behind: `python -m tests.run PYTEST-ARGUMENT…`.

Ctrl-C interrupts pytest, which prints its summary. SIGTERM does the same.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time

import psutil

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_ENDS_IN_S = 40
"""What a pipeline is given to end in order."""


def main(arguments: list[str]) -> int:
    """Run pytest with `arguments`; returns its exit status."""
    # Processes that lose their parent become children of this one, and so are found at the end.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    # The terminal sends SIGINT to pytest as well. Handlers, unlike SIG_IGN, are not passed on to children.
    signal.signal(signal.SIGINT, lambda *_: None)
    pytest = subprocess.Popen([sys.executable, "-m", "pytest", *arguments])
    signal.signal(signal.SIGTERM, lambda *_: os.kill(pytest.pid, signal.SIGINT))
    while True:
        process, status = os.wait()  # orphans too, or they would seem to run still
        if process == pytest.pid:
            break
    end_children()
    return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def end_children() -> None:
    """End all processes below this one: those that do not end by themselves are asked to, and killed after a while."""
    for signal_number, wait_s in ((0, 2), (signal.SIGTERM, _ENDS_IN_S), (signal.SIGKILL, 10)):
        left = psutil.Process().children(recursive=True) if signal_number else []
        for process in left:
            with contextlib.suppress(psutil.Error):
                print(f"Left running by the tests: {process.pid} {' '.join(process.cmdline())[:200]}", file=sys.stderr)
                process.send_signal(signal_number)
        if _all_end(wait_s):
            return


def _all_end(wait_s: float) -> bool:
    """Whether no child is left within the time; a child's own children are this process's once it has ended."""
    until = time.monotonic() + wait_s
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < until:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.05)
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
