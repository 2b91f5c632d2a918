"""Worker processes for measurements. Each reads tasks from standard input and writes results to standard output."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from benchmarks.processes import PROJECT
from common.errors import PipelineError
from serving.host.die_with_parent import command_dying_with_parent


class Worker:
    """A process that runs one task at a time."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        """Wait until the process is ready."""
        self._process = process
        self._read()

    def do(self, **task: object) -> Any:
        """Run a task in the process and return its result.

        Raises:
            PipelineError: the task failed, or the process ended.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise PipelineError(f"A worker ended with exit status {self._process.wait()}; its message is above.")
        result, error = json.loads(line)
        if error:
            raise PipelineError(error)
        return result


@contextlib.contextmanager
def worker(module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Iterator[Worker]:
    """Run `python -m MODULE ARGUMENTS`, which calls `do_tasks`; kill it afterwards.

    Raises:
        PipelineError: the process ended before it was ready.
    """
    process = subprocess.Popen(
        command_dying_with_parent([sys.executable, "-m", module, *arguments]),
        cwd=PROJECT,
        env=os.environ | (environment or {}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Ctrl-C must only reach this process, which stops its workers.
        start_new_session=True,
    )
    try:
        yield Worker(process)
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):  # the worker has not read its task
                stream.close()


def do_tasks(do: Callable[..., object]) -> None:
    """Run in the worker process: call `do` with the fields of each task until the input ends."""
    print(json.dumps((None, "")), flush=True)
    for line in sys.stdin:
        try:
            result, error = do(**json.loads(line)), ""
        except PipelineError as failure:
            result, error = None, str(failure)
        print(json.dumps((result, error)), flush=True)
