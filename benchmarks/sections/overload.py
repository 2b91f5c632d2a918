"""Section *overload*: a load of three times the maximum throughput, and then a calm one of half the maximum."""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.load_worker import ANSWERED
from benchmarks.processes import Server, running_pipeline
from benchmarks.results import Figures, in_a_line
from benchmarks.run import Run
from benchmarks.sections.server import START_TIMEOUT_S
from benchmarks.texts import REVIEWS

SECTION = "overload"
TITLE = "Overload, reviews, every text new, offered at a fixed rate"
BEST = "gateway, live, what it serves at most"
OVERLOADED = "gateway, live, three times that"
DEADLINE_S = 1.0
"""Each request's deadline (`X-Request-Timeout-Ms`), in seconds."""
TIMES = 3.0
_RAMP = (0.8, 1.0, 1.2, 1.4)
"""Offered loads to find the maximum throughput, as multiples of the closed-loop throughput of 64 connections."""
_RAMP_S = 5.0
_CALM = 0.5
_CALM_S = 5.0
_SAMPLE_S = 0.5
REFUSED = "503"


def measure(run: Run) -> None:
    """Find the maximum throughput, then offer an overload; repeat this `run.repeats` times."""
    with running_pipeline(run.model.repository.root, run.directory / "overload") as pipeline:
        pipeline.wait_until_answering("/health/ready", START_TIMEOUT_S)
        closed = run.live_load(pipeline, 64)
        for repeat in range(run.repeats):
            about = closed(run.seconds)["texts_per_s"]
            ramp = _offer(run, pipeline, [(share * about, _RAMP_S) for share in _RAMP])
            best = max(load["answered_per_s"] for load in ramp)
            run.results.measurement(SECTION, BEST, f"in {_RAMP_S:g} s").add({"texts_per_s": best})
            pipeline.settle()
            with _memory(pipeline) as memory_mib:
                flood, calm = _offer(run, pipeline, [(TIMES * best, run.seconds), (_CALM * best, _CALM_S)])
            figures = _figures(flood, calm, memory_mib)
            run.results.measurement(SECTION, OVERLOADED, f"deadline {DEADLINE_S:g} s").add(figures)
            run.progress(f"{SECTION}, {repeat + 1}/{run.repeats}: at most {best:,.0f}/s; {in_a_line(figures)}")


def _offer(run: Run, pipeline: Server, loads: list[tuple[float, float]]) -> list[dict[str, Any]]:
    """Run open-loop loads in sequence, each a (requests per second, seconds) pair; return the results of each."""
    task = {"url": f"{pipeline.url}/predict/live", "texts": str(run.texts_file(REVIEWS)), "deadline_s": DEADLINE_S}
    outcomes: list[dict[str, Any]] = run.generator.do(kind="offer", loads=loads, **task)
    return outcomes


def _figures(flood: dict[str, Any], calm: dict[str, Any], memory_mib: list[float]) -> Figures:
    statuses = flood["statuses"]
    half = len(memory_mib) // 2
    return {
        "texts_per_s": flood["answered_per_s"],
        "p50_ms": flood["p50_ms"].get(ANSWERED, math.inf),
        "p99_ms": flood["p99_ms"].get(ANSWERED, math.inf),
        "refused": statuses.get(REFUSED, 0),
        "refused_p99_ms": flood["p99_ms"].get(REFUSED, 0.0),
        "failed": sum(count for status, count in statuses.items() if status not in (ANSWERED, REFUSED)),
        "normal_after_s": calm["normal_after_s"],
        "memory_first_half_mib": max(memory_mib[:half], default=0.0),
        "memory_second_half_mib": max(memory_mib[half:], default=0.0),
        "generator_cores": flood["generator_cores"],
    }


@contextmanager
def _memory(pipeline: Server) -> Iterator[list[float]]:
    """Sample the memory of all of the pipeline's processes, in MiB, while the block runs."""
    samples: list[float] = []
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(_SAMPLE_S):
            samples.append(pipeline.memory_bytes() / 2**20)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()
