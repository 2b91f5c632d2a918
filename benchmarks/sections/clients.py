"""*clients*: what a program gets that asks Triton over gRPC: by the client, and by no more than the protocol."""

from contextlib import ExitStack
from functools import partial

from benchmarks.batching import PACKED
from benchmarks.engine_process import engine_process
from benchmarks.load import Client, Load, Requests, grpc_client, plain_list, python_client
from benchmarks.processes import running_pipeline
from benchmarks.results import Case
from benchmarks.run import Run
from benchmarks.sections.server import ENGINE, START_TIMEOUT_S, TRITON_GRPC, streams
from benchmarks.texts import REVIEWS

SECTION = "clients"
CLIENT = "serving/client.py"
LONG_LISTS = "2 streams of 256"
"""Long enough for the client to divide them, and short enough for a slow model to answer some in one repeat."""


def measure(run: Run) -> None:
    """Measure the engine in process, one call a request, and the client, by small and by long lists."""
    with ExitStack() as stack:
        pipeline = stack.enter_context(running_pipeline(run.model.repository.root, run.directory / "pipeline"))
        run.progress(f"{SECTION}: waiting until the pipeline answers")
        pipeline.wait_until_answering("/health/ready", START_TIMEOUT_S)
        engine = stack.enter_context(engine_process(run.model.directory, run.model.choice().variant))

        def load(group: str, name: str, client: Client, texts_each: int) -> Case:
            requests = Requests(run.never_sent(REVIEWS), plain_list, texts_each)
            return Case(group, name, Load(client, requests, pipeline, run.directory))

        address = f"127.0.0.1:{pipeline.port + 1}"
        cases = [
            Case(ENGINE, PACKED, partial(engine.measure, PACKED, run.texts_file(REVIEWS))),
            load(TRITON_GRPC, streams(4, 64), grpc_client(address, 4), 64),
            load(CLIENT, streams(4, 64), python_client(address, 4), 64),
            load(CLIENT, LONG_LISTS, python_client(address, 2), 256),
        ]
        run.measure(SECTION, cases)
