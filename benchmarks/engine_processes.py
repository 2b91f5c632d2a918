"""Several engine workers as one: N processes that run the same task at the same time."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from benchmarks.processes import PROJECT
from benchmarks.results import Figures
from errors import PipelineError
from serving.die_with_parent import command_dying_with_parent
from serving.processor import usable_cores
from settings import Settings

_AUTO = "auto"


def runtimes() -> list[str]:
    """Every runtime that the settings know by name."""
    return [name for name in get_args(Settings.model_fields["runtime"].annotation) if name != _AUTO]


@dataclass
class EngineProcesses:
    """Engines of one version in one runtime, each in a process of its own."""

    name: str
    """The runtime, its precision, and how the cores are divided."""
    workers: list["subprocess.Popen[str]"]

    def measure(self, way: str, texts: Path, seconds: float) -> Figures:
        """Classify the texts in a file in one of the ways of `batching`.

        Returns texts and tokens a second of all processes, tokens without padding; and the part of the computed
        tokens that is padding.
        """
        done = self._run(way, texts, seconds)
        return {
            "texts_per_s": sum(part["texts"] / part["seconds"] for part in done),
            "tokens_per_s": sum(part["tokens"] / part["seconds"] for part in done),
            "padding_share": 1 - sum(part["tokens"] for part in done) / sum(part["slots"] for part in done),
        }

    def shares(self, texts: Path, seconds: float) -> Figures:
        """The parts of the packed way's time, as the mean of the processes."""
        done = self._run("shares", texts, seconds)
        return {f"{name}_share": sum(part[name] for part in done) / len(done) for name in done[0]}

    def _run(self, way: str, texts: Path, seconds: float) -> list[dict[str, float]]:
        for worker in self.workers:
            assert worker.stdin is not None
            worker.stdin.write(json.dumps({"way": way, "texts": str(texts), "seconds": seconds}) + "\n")
            worker.stdin.flush()
        return [_answer(worker) for worker in self.workers]


@contextlib.contextmanager
def engine_processes(directory: Path, runtime: str, processes: int, threads: int) -> Iterator[EngineProcesses]:
    """Run engines of the version in `directory`; ends them afterwards.

    Raises:
        PipelineError: this runtime cannot be loaded, or an engine ended while it was measured.
    """
    command = [sys.executable, "-m", "benchmarks.engine_worker", str(directory.resolve()), runtime, str(threads)]
    # As Triton's environment has them.
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    with contextlib.ExitStack() as stack:
        workers = []
        for _ in range(processes):
            worker = subprocess.Popen(
                command_dying_with_parent(command),
                cwd=PROJECT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                # Ctrl-C is for this process, which ends its workers.
                start_new_session=True,
            )
            stack.callback(_end, worker)
            workers.append(worker)
        # All are waited for, so that none still loads while another is measured.
        precisions = {_answer(worker)["precision"] for worker in workers}
        division = f"{_counted(processes, 'process', 'processes')} × {_counted(threads, 'thread', 'threads')}"
        yield EngineProcesses(f"{runtime} {' '.join(precisions)}, {division}", workers)


def as_served() -> tuple[int, int]:
    """Processes and threads in each, as Triton runs them: one process a core."""
    return usable_cores(), 1


def _answer(worker: "subprocess.Popen[str]") -> dict[str, Any]:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise PipelineError(f"An engine ended with exit status {worker.wait()}; its message is above.")
    answer: dict[str, Any] = json.loads(line)
    return answer


def _end(worker: "subprocess.Popen[str]") -> None:
    worker.kill()
    worker.wait()
    for stream in (worker.stdin, worker.stdout):
        assert stream is not None
        with contextlib.suppress(BrokenPipeError):  # of a task that it has not read
            stream.close()


def _counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
