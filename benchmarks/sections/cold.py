"""*cold*: how long until the pipeline answers, and until another version does, while requests flow."""

import asyncio
import math
import time

from benchmarks.load import parse_summary
from benchmarks.processes import Server, running_pipeline
from benchmarks.results import Figures
from benchmarks.run import Run
from benchmarks.sections.server import START_TIMEOUT_S
from serving.triton_client import TritonClient

SECTION = "cold"
START = "from `serve` to the first answer"
LOAD = "a new version under load"
LOAD_CONNECTIONS = 16

_LEAD_S = 1.0
"""Requests flow for so long before the version is loaded, and at least so long after."""
_REQUESTS_PER_S = 5_000
"""More than a gateway answers, so that no text is sent twice."""


def measure(run: Run) -> None:
    """Start the pipeline and load another version, as often as a case is repeated."""
    first = run.model.version
    second = first + 1
    if second not in run.model.repository.published():
        run.model.publish_again(second)
    try:
        for repeat in range(run.repeats):
            run.model.repository.deploy(first)
            run.progress(f"{SECTION}, {repeat + 1}/{run.repeats}: starting")
            started = time.perf_counter()
            with running_pipeline(run.model.repository.root, run.directory / "cold") as pipeline:
                pipeline.wait_until_answering("/health/ready", START_TIMEOUT_S)
                ready = time.perf_counter() - started
                run.results.measurement(SECTION, "pipeline", START).add({"ready_s": ready})
                run.model.repository.deploy(second)
                figures = _load_version(run, pipeline, loading_takes_s=ready)
                run.results.measurement(SECTION, "pipeline", LOAD).add(figures)
            run.progress(f"{SECTION}, {repeat + 1}/{run.repeats}: ready {ready:.1f} s, {figures}")
    finally:
        run.model.repository.deploy(first)


def _load_version(run: Run, pipeline: Server, loading_takes_s: float) -> Figures:
    """Have Triton load what is deployed now, while requests flow for thrice as long as a start takes."""
    seconds = math.ceil(3 * loading_takes_s + 2 * _LEAD_S)
    flowing = run.live_load(pipeline, LOAD_CONNECTIONS).start(seconds, offered=seconds * _REQUESTS_PER_S)
    try:
        time.sleep(_LEAD_S)
        took = asyncio.run(_load(f"127.0.0.1:{pipeline.port + 1}"))
        ended_before = flowing.poll() is not None
    finally:
        output, _ = flowing.communicate()
    outcome = parse_summary(output)
    return {
        "load_s": took,
        "failed": outcome["refused"] + outcome["lost"],
        "answered": outcome["answered"],
        "texts_per_s": outcome["answered"] / outcome["seconds"],
        "p99_ms": outcome["p99_ms"],
        "outlasted_the_requests": float(ended_before),
    }


async def _load(address: str) -> float:
    client = TritonClient(address)
    try:
        started = time.perf_counter()
        await client.load_model(START_TIMEOUT_S)
        return time.perf_counter() - started
    finally:
        await client.close()
