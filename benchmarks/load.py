"""Loads a server from a process that costs little, and reads what came of it."""

import math
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import orjson

from benchmarks.processes import PROJECT, Server
from benchmarks.results import Figures
from errors import PipelineError
from serving.die_with_parent import command_dying_with_parent

_WRK_SCRIPT = Path(__file__).with_name("wrk.lua")
_TURNOVERS = 6
"""A run lasts until each connection had about so many answers, however slow the server."""
_FEW_A_SECOND = 1_000
"""Up to so many requests, a run is counted from its first answers on: with more, its ends do not matter."""
_MARGIN = 2.0
"""A run is given this times the requests that it is expected to make."""
_LONGEST_RUN_S = 20.0

Body = Callable[[Sequence[str]], object]


def live_body(texts: Sequence[str]) -> object:
    """The body of `POST /predict/live` for one text."""
    return {"text": texts[0]}


def batch_body(texts: Sequence[str]) -> object:
    """The body of `POST /predict/batch`."""
    return {"texts": texts}


def triton_http_body(texts: Sequence[str]) -> object:
    """The body of Triton's `POST /v2/models/sentiment/infer`."""
    text = {"name": "TEXT", "shape": [len(texts), 1], "datatype": "BYTES", "data": texts}
    return {"inputs": [text], "outputs": [{"name": "LABEL"}, {"name": "SCORE"}]}


def plain_list(texts: Sequence[str]) -> object:
    """What `grpc_load` and `client_load` read."""
    return texts


@dataclass(frozen=True)
class Client:
    """A way to send requests."""

    command: Callable[[float, Path | None, bool], list[str]]
    """The load generator's command line for so many seconds and a file of requests; whether its ends matter."""
    connections: int


def http_client(url: str, connections: int) -> Client:
    """Load `url` by wrk where it is installed, else by `http_load`.

    wrk adds the requests that a stall kept it from sending to the latencies (its `stats_correct`), so its
    percentiles are, if anything, too high.
    """
    if wrk := shutil.which("wrk"):

        def command(seconds: float, file: Path | None, steady: bool) -> list[str]:
            options = [f"-c{connections}", "-t1", f"-d{math.ceil(seconds)}s", "--timeout", "30s"]
            given = ["steady" if steady else "whole", *([str(file)] if file else [])]
            return [wrk, *options, "-s", str(_WRK_SCRIPT), url, "--", *given]
    else:

        def command(seconds: float, file: Path | None, steady: bool) -> list[str]:  # noqa: ARG001 - it always tells
            line = [sys.executable, "-m", "benchmarks.http_load", url, str(connections), str(seconds)]
            return [*line, *([str(file)] if file else [])]

    return Client(command, connections)


def grpc_client(address: str, streams: int) -> Client:
    """Ask Triton at `address` over gRPC."""
    return _triton_client("benchmarks.grpc_load", address, streams)


def python_client(address: str, streams: int) -> Client:
    """Ask Triton at `address` by `serving.client`."""
    return _triton_client("benchmarks.client_load", address, streams)


def _triton_client(module: str, address: str, streams: int) -> Client:
    def command(seconds: float, file: Path | None, _: bool) -> list[str]:
        return [sys.executable, "-m", module, address, str(streams), str(seconds), str(file)]

    return Client(command, streams)


@dataclass(frozen=True)
class Requests:
    """What is sent."""

    texts: Iterator[str]
    body: Body
    texts_each: int = 1


@dataclass
class Load:
    """A load that can be put on a server again and again, each time with texts that it never sent before."""

    client: Client
    requests: Requests | None
    """None for a GET without a body."""
    server: Server
    """What is loaded; each load begins when it is idle."""
    directory: Path
    _rate: float = field(default=0.0, init=False)
    """Requests answered a second, as far as is known."""

    def __call__(self, seconds: float) -> Figures:
        """Load the server for about `seconds`.

        Returns answered texts a second; median and 99th percentile of the latency of a request; failed requests
        (answers other than 200, and none); and what the load generator used of one core.

        Raises:
            PipelineError: no request was answered, or the load generator failed.
        """
        duration = seconds
        if self._rate:
            duration = max(seconds, min(_LONGEST_RUN_S, _TURNOVERS * self.client.connections / self._rate))
        while True:
            self.server.settle()
            offered = self.client.connections + max(256, math.ceil(_MARGIN * self._rate * duration))
            started = _cpu_of_children()
            run = self.start(duration, offered)
            line, _ = run.communicate()
            generator_cpu = _cpu_of_children() - started
            if run.returncode:
                raise PipelineError(f"The load generator failed: exit status {run.returncode}")
            outcome = parse_summary(line)
            made = outcome["answered"] + outcome["refused"]
            enough_texts = self.requests is None or made + self.client.connections <= offered
            enough_answers = made >= self.client.connections or duration >= _LONGEST_RUN_S
            self._rate = max(made, 1) / outcome["seconds"]
            if enough_texts and enough_answers:
                break
            if not enough_answers:
                needed = _TURNOVERS * self.client.connections / self._rate if made else 0
                duration = min(_LONGEST_RUN_S, max(2 * duration, needed))
        if not outcome["answered"]:
            raise PipelineError(f"None of {made:,.0f} requests was answered with 200 within {duration:.0f} s.")
        texts_each = self.requests.texts_each if self.requests else 1
        rate = outcome["answered"] / outcome["seconds"]
        # Fewer say nothing: the first answers of two streams may come long after one another.
        if outcome["steady_answers"] >= self.client.connections:
            rate = outcome["steady_answers"] / outcome["steady_seconds"]
        return {
            "texts_per_s": rate * texts_each,
            "p50_ms": outcome["p50_ms"],
            "p99_ms": outcome["p99_ms"],
            "failed": outcome["refused"] + outcome["lost"],
            "generator_cores": generator_cpu / outcome["seconds"],
        }

    def start(self, seconds: float, offered: int) -> subprocess.Popen[bytes]:
        """Start the load generator with `offered` requests; it writes the summary when it ends."""
        file = None
        if self.requests is not None:
            file = self.directory / "requests.jsonl"
            with file.open("wb") as output:
                for _ in range(offered):
                    texts = list(islice(self.requests.texts, self.requests.texts_each))
                    output.write(orjson.dumps(self.requests.body(texts)) + b"\n")
        return subprocess.Popen(
            command_dying_with_parent(self.client.command(seconds, file, self._rate < _FEW_A_SECOND)),
            cwd=PROJECT,
            stdout=subprocess.PIPE,
        )


def parse_summary(output: bytes) -> dict[str, float]:
    """Read the line of JSON that a load generator ends with; wrk writes more before it.

    Raises:
        PipelineError: there is none.
    """
    for line in reversed(output.splitlines()):
        if line.startswith(b"{"):
            summary: dict[str, float] = orjson.loads(line)
            return summary
    raise PipelineError(f"The load generator wrote no summary: {output.decode(errors='replace')[-500:]}")


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
