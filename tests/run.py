"""Runs pytest and ends every process that it leaves behind: `python -m tests.run [--again] PYTEST-ARGUMENT…`.

Ctrl-C interrupts pytest, which prints its summary. SIGTERM does the same.

`--again` runs failed tests once more, one by one, if they are few. If they all pass then, the machine was too busy for
them; the run succeeds and names them. A test that fails twice fails the run; so do more failures than MOST_AGAIN.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.pages import ORDERED

MOST_AGAIN = 8
"""Number of failures that may be accidents of a loaded machine; more have a cause in the code."""
_LAST_FAILED = Path(".pytest_cache/v/cache/lastfailed")
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_ENDS_IN_S = 40
"""What a pipeline is given to end in order."""


def main(arguments: list[str]) -> int:
    """Run pytest with `arguments`; returns its exit status."""
    # Processes that lose their parent become children of this one, and so are found at the end.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as app.py does; torch reads it when it is imported
    # The terminal sends SIGINT to pytest as well. Handlers, unlike SIG_IGN, are not passed on to children.
    signal.signal(signal.SIGINT, lambda *_: None)
    again = "--again" in arguments
    _LAST_FAILED.unlink(missing_ok=True)  # pytest keeps in it what this run does not select
    status = _pytest([argument for argument in arguments if argument != "--again"])
    if not again or status != pytest.ExitCode.TESTS_FAILED:
        return status
    failed = list(json.loads(_LAST_FAILED.read_text(encoding="utf-8")))
    if len(failed) > MOST_AGAIN:
        return status
    print(f"\nOnce more, one by one: the {len(failed)} tests that failed.", flush=True)
    in_order = [module for module in ORDERED if any(test.partition("::")[0] in ORDERED for test in failed)]
    status = _pytest([*in_order, *(test for test in failed if test.partition("::")[0] not in ORDERED)])
    if status == pytest.ExitCode.OK:
        print("Failed beside other tests, and passed by themselves:", *failed, sep="\n  ", flush=True)
    return status


def _pytest(arguments: list[str]) -> int:
    """Exit status of pytest, 128 and more for a signal; no process of the tests is left."""
    run = subprocess.Popen([sys.executable, "-m", "pytest", *arguments])
    signal.signal(signal.SIGTERM, lambda *_: os.kill(run.pid, signal.SIGINT))
    while True:
        process, status = os.wait()  # orphans too, or they would seem to run still
        if process == run.pid:
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
