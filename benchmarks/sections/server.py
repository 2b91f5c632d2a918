"""Section *server*: the gateway and Triton against common alternatives, with the same weights and texts, in turn."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks import baselines
from benchmarks.batching import PACKED
from benchmarks.engine_worker import engine_process, in_process
from benchmarks.processes import Server, free_ports, running, running_pipeline
from benchmarks.results import Case, Figures
from benchmarks.run import Run
from benchmarks.texts import REVIEWS
from common.settings import Settings
from export.standard import export_standard
from serving.backend.cpu import usable_cores
from serving.backend.runtime import float_variants
from serving.model_repo.variants import BFLOAT16, OPENVINO

SECTION = "server"
TITLE = "Servers, reviews, every text new"
ENGINE = "engine in process, as served"
GATEWAY = "gateway, live"
GATEWAY_ONE_STAGE = "gateway, live, one stage"
GATEWAY_BATCHES = "gateway, batches of 32"
CACHED = "gateway, live, 64 texts again and again"
CONSTANT = "gateway, a route that answers a constant"
TRITON_GRPC = "Triton, gRPC"
TRANSFORMERS = "FastAPI + transformers pipeline"
OPTIMUM = "FastAPI + optimum pipeline, ONNX Runtime"
_LITSERVE_PRECISION = next(variant.precision for variant in float_variants() if variant.runtime == OPENVINO)
LITSERVE = f"LitServe + OpenVINO {_LITSERVE_PRECISION}, padded batches of 32"

CONNECTIONS = (1, 16, 64, 256)
START_TIMEOUT_S = 300.0
_REPEATED_TEXTS = 64
_BASELINES = Path(baselines.__file__).resolve().parent
_OPTIMUM_PACKAGES = Path(sys.prefix) / "optimum"
"""Directory into which `make bench` installs optimum, with the older transformers that it needs."""


def connections(count: int) -> str:
    """Return the name of a case with `count` connections."""
    return f"{count} connection{'s' if count > 1 else ''}"


def streams(count: int, texts_each: int) -> str:
    """Return the name of a case with `count` streams of requests with `texts_each` texts each."""
    return f"{count} streams of {texts_each}"


def measure(run: Run) -> None:
    """Start all servers, wait until they are ready, and load them in turn while the alternatives are suspended."""
    with ExitStack() as stack:
        repository = run.model.repository.root
        pipeline = stack.enter_context(running_pipeline(repository, run.directory / "pipeline"))
        run.progress(f"{SECTION}: waiting until every server answers")
        others = dict(_start_baselines(run, stack))
        if run.model.one_stage:
            alone = stack.enter_context(
                running_pipeline(run.model.one_stage.root, run.directory / "one_stage_pipeline")
            )
            alone.wait_until_answering("/health/ready", START_TIMEOUT_S)
            others[GATEWAY_ONE_STAGE] = alone
        pipeline.wait_until_answering("/health/ready", START_TIMEOUT_S)
        for server in others.values():
            server.suspend()
        engine = stack.enter_context(engine_process(run.model.directory, run.model.choice().variant))

        cases = [Case(ENGINE, PACKED, partial(in_process, engine, PACKED, run.engine_texts_file(REVIEWS)))]
        cases += [Case(GATEWAY, connections(count), run.live_load(pipeline, count)) for count in CONNECTIONS]
        cases += [
            Case(name, connections(count), _while_resumed(server, run.live_load(server, count)))
            for name, server in others.items()
            for count in (1, 64)
        ]

        texts = str(run.texts_file(REVIEWS))
        live, batch = f"{pipeline.url}/predict/live", f"{pipeline.url}/predict/batch"
        lists = run.load(pipeline, "http", url=batch, connections=8, texts=texts, texts_each=32)
        cases.append(Case(GATEWAY_BATCHES, connections(8), lists))
        for count, texts_each in ((4, 64), (64, 1)):
            address = f"127.0.0.1:{pipeline.port + 1}"
            grpc = run.load(pipeline, "grpc", address=address, streams=count, texts=texts, texts_each=texts_each)
            cases.append(Case(TRITON_GRPC, streams(count, texts_each), grpc))

        known = run.load(pipeline, "http", url=live, connections=64, texts=texts, repeated=_REPEATED_TEXTS)
        cases.append(Case(CACHED, connections(64), known))
        constant = run.load(pipeline, "http", url=f"{pipeline.url}/health/live", connections=64)
        cases.append(Case(CONSTANT, connections(64), constant))
        run.measure(SECTION, cases)


def _while_resumed(server: Server, load: Callable[[float], Figures]) -> Callable[[float], Figures]:
    """Return `load` for a server that is suspended before and after it."""

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
    """Start the alternative servers whose packages are installed."""
    model = str(run.model.transformers)
    hint = "bf16" if _LITSERVE_PRECISION == BFLOAT16 else "f32"
    packages = {"PYTHONPATH": str(_OPTIMUM_PACKAGES), "HF_HUB_OFFLINE": "1"}
    for name, script, package, arguments, environment in (
        (TRANSFORMERS, "transformers_pipeline", "transformers", [], {}),
        (OPTIMUM, "transformers_pipeline", "optimum", ["optimum"], packages),
        (LITSERVE, "litserve_server", "litserve", [str(usable_cores()), hint], {}),
    ):
        is_there = _OPTIMUM_PACKAGES.is_dir() if name == OPTIMUM else importlib.util.find_spec(package) is not None
        if not is_there:
            run.results.notes.append(f"{SECTION}: {name} is left out, for {package} is not installed.")
            continue
        directory = run.directory / package
        served = model
        if name == OPTIMUM:
            served = str(directory / "standard")
            export_standard(Settings(model_dir=run.model.transformers), Path(served))
        port = free_ports(1)
        command = [sys.executable, str(_BASELINES / f"{script}.py"), served, str(port), *arguments]
        server = stack.enter_context(running(command, port, directory, script, environment))
        # Until the server listens, its port would look free to others.
        server.wait_until_answering("/health", START_TIMEOUT_S)
        yield name, server
