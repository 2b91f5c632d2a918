"""One process of the engine, told over its standard input what to run: `python -m benchmarks.engine_worker`.

A process a measurement, because threads are set when a library loads, and because the engine is served as one
process a core. Each line of the input is a task, each line of the output its figures, both JSON.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from benchmarks.batching import PACKED, WAYS, WAYS_FOR_LONG_TEXTS
from serving.bundle import TOKENIZER
from serving.engine import Engine
from serving.packing import PackedRows
from serving.runtime import Runtime


class MeteredRuntime:
    """A runtime that also counts what passes through it."""

    def __init__(self, runtime: Runtime) -> None:
        """Count from zero."""
        self.name = runtime.name
        self.precision = runtime.precision
        self._runtime = runtime
        self.seconds = 0.0
        self.slots = 0
        """Tokens computed, padding among them."""

    def run(self, rows: PackedRows) -> npt.NDArray[np.float32]:
        """Run the graph and count."""
        started = time.perf_counter()
        answer = self._runtime.run(rows)
        self.seconds += time.perf_counter() - started
        self.slots += rows.input_ids.size
        return answer


class Worker:
    """An engine and the texts of the task before, so that equal texts are read once."""

    def __init__(self, directory: Path, runtime: str, threads: int) -> None:
        """Load the version in `directory` and run every shape once."""
        self._engine = Engine(directory, runtime, threads)
        self._engine.warm_up()
        self._meter = MeteredRuntime(self._engine.runtime)
        self._engine.runtime = self._meter
        self._tokenizer = Tokenizer.from_file(str(directory / TOKENIZER))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self._engine.bundle.max_length)
        self.precision = self._meter.precision

    def measure(self, way: str, texts: Sequence[str], seconds: float) -> dict[str, float]:
        """Classify the texts, again and again, in one of the ways for about `seconds`.

        Returns texts, tokens (without padding), slots (with padding) and seconds: all, and those of the graph.
        """
        classify, size = {**WAYS, **WAYS_FOR_LONG_TEXTS}[way]
        batches = [list(texts[start : start + size]) for start in range(0, len(texts) - size + 1, size)]
        tokens = [sum(len(item.ids) for item in self._tokenizer.encode_batch_fast(batch)) for batch in batches]
        self._meter.seconds, self._meter.slots = 0.0, 0
        done = done_texts = done_tokens = 0
        started = time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds or done == 0:
            classify(self._engine, self._tokenizer, batches[done % len(batches)])
            done_texts += size
            done_tokens += tokens[done % len(batches)]
            done += 1
        return {
            "texts": done_texts,
            "tokens": done_tokens,
            "slots": self._meter.slots,
            "seconds": elapsed,
            "graph_seconds": self._meter.seconds,
        }

    def shares(self, texts: Sequence[str], seconds: float) -> dict[str, float]:
        """The parts of the packed way's time that go to tokenizing, to the graph, and to packing and all else."""
        packed = self.measure(PACKED, texts, seconds)
        batch_size = WAYS[PACKED][1]
        started = time.perf_counter()
        for start in range(0, len(texts) - batch_size + 1, batch_size):
            self._tokenizer.encode_batch_fast(list(texts[start : start + batch_size]))
        tokenized = len(texts) // batch_size * batch_size
        tokenizing = (time.perf_counter() - started) / tokenized * packed["texts"] / packed["seconds"]
        graph = packed["graph_seconds"] / packed["seconds"]
        return {"tokenizing": tokenizing, "graph": graph, "packing_and_rest": 1 - tokenizing - graph}


def main(arguments: Sequence[str]) -> None:
    """Answer tasks until the input ends."""
    directory, runtime, threads = arguments
    worker = Worker(Path(directory), runtime, int(threads))
    print(json.dumps({"precision": worker.precision}), flush=True)
    texts: list[str] = []
    texts_file = ""
    for line in sys.stdin:
        task: dict[str, Any] = json.loads(line)
        if task["texts"] != texts_file:
            texts_file = task["texts"]
            texts = json.loads(Path(texts_file).read_text(encoding="utf-8"))
        if task["way"] == "shares":
            figures = worker.shares(texts, task["seconds"])
        else:
            figures = worker.measure(task["way"], texts, task["seconds"])
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
