"""A process with one engine, told over its standard input what to run: `python -m benchmarks.engine_worker`.

A process a variant, so that each has its own memory and threads. Each line of the input is a task, each line of the
output its figures, both JSON.
"""

import json
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from benchmarks.batching import ALL_WAYS, LONE, PACKED, Callers
from serving.bundle import TOKENIZER
from serving.engine import Engine, load_tokenizer
from serving.packing import PackedRows, pack
from serving.runtime import Graph, Precision, RuntimeName, Variant


class Meter:
    """Counts what passes through the graphs."""

    def __init__(self) -> None:
        """Count from zero."""
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Count from zero again."""
        self.seconds = 0.0
        """Of all runs, also of those at the same time."""
        self.tokens = 0
        self.slots = 0
        """Tokens computed, padding among them."""

    def add(self, rows: PackedRows, seconds: float) -> None:
        """Count a run."""
        tokens = int(np.count_nonzero(rows.segment_ids))
        with self._lock:
            self.seconds += seconds
            self.tokens += tokens
            self.slots += rows.input_ids.size


class MeteredGraph:
    """A graph whose runs are counted."""

    def __init__(self, graph: Graph, meter: Meter) -> None:
        """Count the runs of `graph`."""
        self._graph = graph
        self._meter = meter
        self.prepares_each_shape = graph.prepares_each_shape

    def run(self, rows: PackedRows) -> npt.NDArray[np.float32]:
        """Run the graph and count."""
        started = time.perf_counter()
        answer = self._graph.run(rows)
        self._meter.add(rows, time.perf_counter() - started)
        return answer


class _Call(NamedTuple):
    """What one caller did."""

    started: float
    ended: float
    texts: int
    latencies_s: list[float]


class _Done(NamedTuple):
    """What all callers did together."""

    texts_per_s: float
    texts: int
    seconds: float
    """From the first caller's start to the last one's end."""
    latencies_s: list[float]


class Worker:
    """An engine whose runs are counted."""

    def __init__(self, directory: Path, variant: Variant, cores: int) -> None:
        """Load the version in `directory`; every shape is run once."""
        self.engine = Engine(directory, variant, cores)
        self._cores = cores
        self._meter = Meter()
        self.engine.graph = MeteredGraph(self.engine.graph, self._meter)
        self.engine._graph_of_all_cores = MeteredGraph(self.engine._graph_of_all_cores, self._meter)
        self._tokenizer = load_tokenizer(directory / TOKENIZER, self.engine.bundle.max_length)

    def measure(self, way: str, texts: Sequence[str], seconds: float) -> dict[str, float]:
        """Classify the texts, again and again, in one of the ways of `batching` for about `seconds`.

        Returns texts and tokens a second on all cores, tokens without padding; the part of the computed tokens that is
        padding; and for a lone text the median latency.
        """
        done = self._run(way, texts, seconds)
        figures = {
            "texts_per_s": done.texts_per_s,
            "tokens_per_s": done.texts_per_s * self._meter.tokens / done.texts,
            "padding_share": 1 - self._meter.tokens / self._meter.slots,
        }
        return figures | {"p50_ms": 1000 * median(done.latencies_s)} if way == LONE else figures

    def shares(self, texts: Sequence[str], seconds: float) -> dict[str, float]:
        """The shares of a core's time, in the packed way, of tokenizing, packing, and the graph.

        Tokenizing and packing are measured apart, while nothing else runs here; the graph as it runs, so that what
        interrupts it is among its time.
        """
        packed = self._run(PACKED, texts, seconds)
        core_seconds = self._cores * packed.seconds
        graph = self._meter.seconds / core_seconds

        started = time.perf_counter()
        token_ids: list[list[int]] = []
        size = ALL_WAYS[PACKED].texts
        for start in range(0, len(texts), size):
            encodings = self._tokenizer.encode_batch_fast(list(texts[start : start + size]))
            token_ids += [encoding.ids for encoding in encodings]
        tokenized = time.perf_counter()
        self._pack(token_ids)
        packing = time.perf_counter() - tokenized
        rounds = packed.texts / len(texts)
        return {
            "tokenizing_share": rounds * (tokenized - started) / core_seconds,
            "packing_share": rounds * packing / core_seconds,
            "graph_share": graph,
        }

    def _run(self, name: str, texts: Sequence[str], seconds: float) -> _Done:
        way = ALL_WAYS[name]
        batches = [list(texts[start : start + way.texts]) for start in range(0, len(texts) - way.texts + 1, way.texts)]
        callers = way.callers.number(self._cores)
        all_here = threading.Barrier(callers)
        # Whoever is free takes the next batch; taking a number is atomic.
        numbers = count()

        def call() -> _Call:
            all_here.wait()
            latencies: list[float] = []
            started = ended = time.perf_counter()
            while ended - started < seconds or not latencies:
                way.classify(self.engine, self._tokenizer, batches[next(numbers) % len(batches)])
                before, ended = ended, time.perf_counter()
                latencies.append(ended - before)
            return _Call(started, ended, len(latencies) * way.texts, latencies)

        self._meter.reset()
        with ThreadPoolExecutor(callers) as pool:
            calls = [future.result() for future in [pool.submit(call) for _ in range(callers)]]
        all_texts = sum(call.texts for call in calls)
        elapsed = max(call.ended for call in calls) - min(call.started for call in calls)
        if way.callers is Callers.ONE_A_CORE:
            # Each by its own time: with batches enough, a core would not wait for the last one of another.
            texts_per_s = sum(call.texts / (call.ended - call.started) for call in calls)
        else:
            texts_per_s = all_texts / elapsed
        return _Done(texts_per_s, all_texts, elapsed, [latency for call in calls for latency in call.latencies_s])

    def _pack(self, token_ids: Sequence[list[int]]) -> None:
        """Pack as the engine does of texts that wait."""
        for _ in pack(token_ids, self.engine.bundle.padding_token):
            pass


def main(arguments: Sequence[str]) -> None:
    """Answer tasks until the input ends."""
    directory, runtime, precision, cores = arguments
    variant = Variant(cast(RuntimeName, runtime), cast(Precision, precision))
    worker = Worker(Path(directory), variant, int(cores))
    print(json.dumps({"loaded": str(worker.engine.variant)}), flush=True)
    texts: list[str] = []
    texts_file = ""
    with worker.engine:
        for line in sys.stdin:
            task: dict[str, Any] = json.loads(line)
            # Equal texts are read once.
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
