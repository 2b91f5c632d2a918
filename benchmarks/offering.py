"""Has a pipeline offered requests at fixed rates by a process of its own (`open_load.py`)."""

import subprocess
import sys
from itertools import islice
from typing import Any

import orjson

from benchmarks.load import live_body
from benchmarks.open_load import ANSWERED
from benchmarks.processes import PROJECT, Server
from benchmarks.results import Figures
from benchmarks.run import Run
from benchmarks.texts import REVIEWS
from errors import PipelineError
from serving.die_with_parent import command_dying_with_parent


def offer(run: Run, pipeline: Server, deadline_s: float, loads: list[tuple[float, float]]) -> list[dict[str, Any]]:
    """Offer so many live requests a second for so many seconds, one load after the other; what came of each.

    Every text is new, and each request allows `deadline_s`.

    Raises:
        PipelineError: the load generator failed.
    """
    file = run.directory / "offered.jsonl"
    with file.open("wb") as output:
        for text in islice(run.never_sent(REVIEWS), sum(int(rate * seconds) for rate, seconds in loads)):
            output.write(orjson.dumps(live_body([text])) + b"\n")
    command = [sys.executable, "-m", "benchmarks.open_load", f"{pipeline.url}/predict/live", f"{1e3 * deadline_s:.0f}"]
    command += [str(file), *(f"{rate}:{seconds}" for rate, seconds in loads)]
    ended = subprocess.run(command_dying_with_parent(command), cwd=PROJECT, stdout=subprocess.PIPE, check=False)
    if ended.returncode:
        raise PipelineError(f"The load generator failed: exit status {ended.returncode}")
    return [orjson.loads(line) for line in ended.stdout.splitlines()]


def outcome_figures(outcome: dict[str, Any]) -> Figures:
    """Latencies of what was answered with 200, and how many were not."""
    answered = outcome["latencies_ms"][ANSWERED]
    failed = sum(count for status, count in outcome["statuses"].items() if status != ANSWERED)
    return {"p50_ms": answered["p50"], "p99_ms": answered["p99"], "failed": failed}
