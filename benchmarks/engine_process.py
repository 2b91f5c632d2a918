"""The engine in a process of its own, as it is served, told what to run and asked for its figures."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import PROJECT
from benchmarks.results import Figures
from errors import PipelineError
from serving.die_with_parent import command_dying_with_parent
from serving.processor import usable_cores
from serving.runtime import Variant


@dataclass
class EngineProcess:
    """The engine of one version in one variant, on all cores."""

    variant: Variant
    worker: "subprocess.Popen[str]"

    def measure(self, way: str, texts: Path, seconds: float) -> Figures:
        """Classify the texts in a file in one of the ways of `batching`; see `Worker.measure`."""
        return self._run(way, texts, seconds)

    def shares(self, texts: Path, seconds: float) -> Figures:
        """Where a core's time goes in the packed way; see `Worker.shares`."""
        return self._run("shares", texts, seconds)

    def _run(self, way: str, texts: Path, seconds: float) -> Figures:
        assert self.worker.stdin is not None
        self.worker.stdin.write(json.dumps({"way": way, "texts": str(texts), "seconds": seconds}) + "\n")
        self.worker.stdin.flush()
        return _answer(self.worker)


@contextlib.contextmanager
def engine_process(directory: Path, variant: Variant) -> Iterator[EngineProcess]:
    """Run the engine of the version in `directory` on all cores; ends it afterwards.

    Raises:
        PipelineError: this variant cannot be loaded, or the engine ended while it was measured.
    """
    arguments = [str(directory.resolve()), variant.runtime, variant.precision, str(usable_cores())]
    worker = subprocess.Popen(
        command_dying_with_parent([sys.executable, "-m", "benchmarks.engine_worker", *arguments]),
        cwd=PROJECT,
        # As Triton's environment has them.
        env=os.environ | {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Ctrl-C is for this process, which ends its workers.
        start_new_session=True,
    )
    try:
        # Waited for, so that none still loads while another is measured.
        _answer(worker)
        yield EngineProcess(variant, worker)
    finally:
        worker.kill()
        worker.wait()
        for stream in (worker.stdin, worker.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):  # of a task that it has not read
                stream.close()


def _answer(worker: "subprocess.Popen[str]") -> dict[str, Any]:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise PipelineError(f"An engine ended with exit status {worker.wait()}; its message is above.")
    answer: dict[str, Any] = json.loads(line)
    return answer
