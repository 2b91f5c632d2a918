"""Runs app.py's commands in forks of one process that has imported the libraries, which takes longer than most do.

The forks share nothing else: each has its own directory, environment and output, and can be killed.
"""

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import app

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.preloaded"])

KillPoint = tuple[str, str, str]
"""Module, function, and whether the process is killed `before` or `after` the function's first call."""


def run_command(
    command: Sequence[str],
    directory: Path,
    environment: Mapping[str, str],
    timeout_s: float = 300,
    kill_at: KillPoint | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `python app.py COMMAND` in a directory; raises TimeoutExpired, after it has killed the process."""
    with tempfile.TemporaryDirectory() as written:
        outputs = [Path(written) / "stdout", Path(written) / "stderr"]
        try:
            status = run_in_fork(
                _run, list(command), directory, dict(environment), outputs, kill_at, timeout_s=timeout_s
            )
        except TimeoutError as error:
            written_so_far = (output.read_bytes() for output in outputs)
            raise subprocess.TimeoutExpired(command, timeout_s, *written_so_far) from error
        stdout, stderr = (output.read_text(encoding="utf-8") if output.exists() else "" for output in outputs)
        return subprocess.CompletedProcess(command, status, stdout, stderr)


def run_in_fork(function: Callable[..., None], *arguments: Any, timeout_s: float = 300) -> int:
    """Exit status of a fork that calls the function; raises TimeoutError, after it has killed the fork."""
    process = _FORKS.Process(target=function, args=arguments)
    process.start()
    process.join(timeout_s)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"{function.__name__} did not end within {timeout_s:.0f} s")
    return process.exitcode


def _run(
    command: list[str], directory: Path, environment: dict[str, str], outputs: list[Path], kill_at: KillPoint | None
) -> None:
    for number, output in enumerate(outputs, start=1):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [app.__file__, *command]
    if kill_at:
        _kill_at(*kill_at)
    sys.exit(app.main(command))


def _kill_at(module: str, path: str, moment: str) -> None:
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for step in owners:
        owner = getattr(owner, step)
    function = getattr(owner, name)

    def killing(*arguments: Any, **named: Any) -> None:
        if moment == "after":
            function(*arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, killing)
    for imported in list(sys.modules.values()):  # by name, before
        for known, value in list(vars(imported).items()):
            if value is function:
                setattr(imported, known, killing)
