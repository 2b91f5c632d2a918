"""*server*: the gateway and Triton beside what users run today, same weights, same texts, in turns."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import cycle
from pathlib import Path

from benchmarks import baselines
from benchmarks.batching import PACKED
from benchmarks.engine_process import engine_process
from benchmarks.load import (
    Body,
    Client,
    Load,
    Requests,
    batch_body,
    grpc_client,
    http_client,
    live_body,
    plain_list,
    triton_http_body,
)
from benchmarks.processes import Server, free_ports, running, running_pipeline
from benchmarks.results import Case, Figures
from benchmarks.run import Run
from benchmarks.texts import REVIEWS
from serving.processor import usable_cores
from serving.protocol import MODEL_NAME
from serving.runtime import BFLOAT16, OPENVINO, float_variants

SECTION = "server"
ENGINE = "engine in process, as served"
GATEWAY = "gateway, live"
GATEWAY_BATCHES = "gateway, batches of 32"
CACHED = "gateway, live, 64 texts again and again"
CONSTANT = "gateway, a route that answers a constant"
TRITON_GRPC = "Triton, gRPC"
TRITON_HTTP = "Triton, HTTP"
TRANSFORMERS = "FastAPI + transformers pipeline"
_LITSERVE_PRECISION = next(variant.precision for variant in float_variants() if variant.runtime == OPENVINO)
LITSERVE = f"LitServe + OpenVINO {_LITSERVE_PRECISION}, padded batches of 32"

CONNECTIONS = (1, 16, 64, 256)
START_TIMEOUT_S = 300.0
_REPEATED_TEXTS = 64
_BASELINES = Path(baselines.__file__).resolve().parent


def connections(count: int) -> str:
    """The name of a case with so many connections."""
    return f"{count} connection{'s' if count > 1 else ''}"


def streams(count: int, texts_each: int) -> str:
    """The name of a case with so many streams of requests that carry so many texts."""
    return f"{count} streams of {texts_each}"


def measure(run: Run) -> None:
    """Start everything, wait until it answers, and load one after the other while the rest rests."""
    with ExitStack() as stack:
        repository = run.model.repository.root
        pipeline = stack.enter_context(running_pipeline(repository, run.directory / "pipeline"))
        others = dict(_start_baselines(run, stack))
        run.progress(f"{SECTION}: waiting until every server answers")
        pipeline.wait_until_answering("/health/ready", START_TIMEOUT_S)
        for server in others.values():
            server.wait_until_answering("/health", START_TIMEOUT_S)
        for server in others.values():
            server.suspend()
        engine = stack.enter_context(engine_process(run.model.directory, run.model.choice().variant))

        def load(group: str, name: str, client: Client, body: Body, texts_each: int = 1) -> Case:
            requests = Requests(run.never_sent(REVIEWS), body, texts_each)
            return Case(group, name, Load(client, requests, pipeline, run.directory))

        cases = [Case(ENGINE, PACKED, partial(engine.measure, PACKED, run.texts_file(REVIEWS)))]
        cases += [Case(GATEWAY, connections(count), run.live_load(pipeline, count)) for count in CONNECTIONS]
        cases += [
            Case(name, connections(count), _while_resumed(server, run.live_load(server, count)))
            for name, server in others.items()
            for count in (1, 64)
        ]

        batches = http_client(f"{pipeline.url}/predict/batch", 8)
        cases.append(load(GATEWAY_BATCHES, connections(8), batches, batch_body, 32))
        for count, texts_each in ((4, 64), (64, 1)):
            grpc = grpc_client(f"127.0.0.1:{pipeline.port + 1}", count)
            cases.append(load(TRITON_GRPC, streams(count, texts_each), grpc, plain_list, texts_each))
            http = http_client(f"http://127.0.0.1:{pipeline.port + 3}/v2/models/{MODEL_NAME}/infer", count)
            cases.append(load(TRITON_HTTP, streams(count, texts_each), http, triton_http_body, texts_each))

        again = Requests(cycle(run.texts(REVIEWS)[:_REPEATED_TEXTS]), live_body)
        cached = http_client(f"{pipeline.url}/predict/live", 64)
        cases.append(Case(CACHED, connections(64), Load(cached, again, pipeline, run.directory)))
        constant = http_client(f"{pipeline.url}/health/live", 64)
        cases.append(Case(CONSTANT, connections(64), Load(constant, None, pipeline, run.directory)))
        run.measure(SECTION, cases)


def _while_resumed(server: Server, load: Load) -> Callable[[float], Figures]:
    """The load, for a server that is suspended before and after."""

    def measure(seconds: float) -> Figures:
        server.resume()
        try:
            figures = load(seconds)
            server.settle()
        finally:
            server.suspend()
        return figures

    return measure


def _start_baselines(run: Run, stack: ExitStack) -> Iterator[tuple[str, Server]]:
    """Start those whose packages are installed."""
    model = str(run.model.transformers)
    hint = "bf16" if _LITSERVE_PRECISION == BFLOAT16 else "f32"
    for name, script, package, arguments in (
        (TRANSFORMERS, "transformers_pipeline", "transformers", []),
        (LITSERVE, "litserve_server", "litserve", [str(usable_cores()), hint]),
    ):
        if importlib.util.find_spec(package) is None:
            run.results.notes.append(f"{SECTION}: {name} is left out, for {package} is not installed.")
            continue
        port = free_ports(1)
        command = [sys.executable, str(_BASELINES / f"{script}.py"), model, str(port), *arguments]
        server = stack.enter_context(running(command, port, run.directory / script, script))
        # Until it listens, its port would be found free again.
        server.wait_until_answering("/health", START_TIMEOUT_S)
        yield name, server
