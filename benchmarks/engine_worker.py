"""The engine in a separate process, as it is deployed: `python -m benchmarks.engine_worker`."""

import json
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import lru_cache
from itertools import count
from pathlib import Path
from statistics import median
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt

from benchmarks.batching import LONE, WAYS
from benchmarks.results import Figures
from benchmarks.worker import Worker, do_tasks, worker
from serving.backend.cpu import usable_cores
from serving.backend.engine import Engine
from serving.backend.packing import PackedRows
from serving.backend.runtime import Graph
from serving.backend.stage import load_tokenizer
from serving.model_repo.bundle import TOKENIZER
from serving.model_repo.variants import Precision, RuntimeName, Variant


def engine_process(directory: Path, variant: Variant) -> AbstractContextManager[Worker]:
    """Run the engine of the version in `directory` on all cores; see `in_process`."""
    return worker(
        "benchmarks.engine_worker",
        str(directory.resolve()),
        variant.runtime,
        variant.precision,
        # The values in Triton's environment.
        environment={"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"},
    )


def in_process(engine: Worker, way: str, texts: Path, seconds: float) -> Figures:
    """Have an engine classify the texts of a file; see `MeteredEngine.measure`."""
    figures: Figures = engine.do(way=way, texts=str(texts), seconds=seconds)
    return figures


class MeteredGraph:
    """A graph that counts the tokens it computes."""

    def __init__(self, graph: Graph) -> None:
        """Wrap `graph`."""
        self._graph = graph
        self._lock = threading.Lock()
        self.prepares_each_shape = graph.prepares_each_shape
        self.reset()

    def reset(self) -> None:
        """Begin with counters at zero."""
        self.tokens = 0
        self.slots = 0
        """Token positions, including padding."""

    def run(self, rows: PackedRows) -> npt.NDArray[np.float32]:
        """Run the graph and update the counters."""
        answer = self._graph.run(rows)
        with self._lock:
            self.tokens += int(np.count_nonzero(rows.segment_ids))
            self.slots += rows.input_ids.size
        return answer


class _Call(NamedTuple):
    """The measurements of one caller."""

    started: float
    ended: float
    texts: int
    latencies_s: list[float]


class MeteredEngine:
    """An engine whose computed tokens are counted."""

    def __init__(self, directory: Path, variant: Variant, cores: int) -> None:
        """Load the version in `directory` and run each usual shape once."""
        self.engine = Engine(directory, variant, cores)
        self._graphs: list[MeteredGraph] = []
        for stage in self.engine.stages:
            metered = MeteredGraph(stage.graph), MeteredGraph(stage.graph_of_all_cores)
            stage.graph, stage.graph_of_all_cores = metered
            self._graphs += metered
        self._cores = cores
        self._tokenizer = load_tokenizer(directory / TOKENIZER, self.engine.bundle.max_length)

    def measure(self, way: str, texts: Sequence[str], seconds: float) -> Figures:
        """Classify the texts repeatedly for about `seconds`, in one of the ways of `batching`.

        Returns texts and tokens per second on all cores, the share of padding in the computed tokens, and, for one text
        at a time, the median latency. Padding is no token; those of a text that two stages read count twice.
        """
        how = WAYS[way]
        batches = [list(texts[start : start + how.texts]) for start in range(0, len(texts) - how.texts + 1, how.texts)]
        callers = how.callers(self._cores)
        all_here = threading.Barrier(callers)
        # Each free caller takes the next batch; `next` on a count is atomic.
        numbers = count()

        def call() -> _Call:
            all_here.wait()
            latencies: list[float] = []
            started = ended = time.perf_counter()
            while ended - started < seconds or not latencies:
                how.classify(self.engine, self._tokenizer, batches[next(numbers) % len(batches)])
                before, ended = ended, time.perf_counter()
                latencies.append(ended - before)
            return _Call(started, ended, len(latencies) * how.texts, latencies)

        for graph in self._graphs:
            graph.reset()
        with ThreadPoolExecutor(callers) as pool:
            calls = [future.result() for future in [pool.submit(call) for _ in range(callers)]]
        all_texts = sum(call.texts for call in calls)
        if how.has_core:
            # Sum the callers' own rates: in a long run, no core would wait for another's last batch.
            texts_per_s = sum(call.texts / (call.ended - call.started) for call in calls)
        else:
            texts_per_s = all_texts / (max(call.ended for call in calls) - min(call.started for call in calls))
        tokens = sum(graph.tokens for graph in self._graphs)
        figures = {
            "texts_per_s": texts_per_s,
            "tokens_per_s": texts_per_s * tokens / all_texts,
            "padding_share": 1 - tokens / sum(graph.slots for graph in self._graphs),
        }
        latencies = [latency for call in calls for latency in call.latencies_s]
        return figures | {"p50_ms": 1000 * median(latencies)} if way == LONE else figures


@lru_cache
def _read(texts: str) -> list[str]:
    read: list[str] = json.loads(Path(texts).read_text(encoding="utf-8"))
    return read


def main(arguments: Sequence[str]) -> None:
    """Load the engine and run the measurements that arrive as tasks."""
    directory, runtime, precision = arguments
    variant = Variant(cast(RuntimeName, runtime), cast(Precision, precision))
    metered = MeteredEngine(Path(directory), variant, usable_cores())

    def measure_file(way: str, texts: str, seconds: float) -> Figures:
        return metered.measure(way, _read(texts), seconds)

    with metered.engine:
        do_tasks(measure_file)


if __name__ == "__main__":
    main(sys.argv[1:])
