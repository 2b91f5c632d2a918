"""The gRPC port for programs, before a real Triton: predictions pass, and nothing that changes or reads more."""

import contextlib
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton_client
from tritonclient.grpc import service_pb2, service_pb2_grpc

from common.triton_addresses import socket_path
from gateway.auth.wrong_keys import MOST_A_MINUTE
from gateway.grpc_port.messages import MOST_OF_CALLER, READ_S
from gateway.grpc_port.server import _MOST_CONNECTIONS
from serving.client import sockets
from serving.client.client import Client, KeyRefusedError
from storage import events
from storage.api_keys import Scope, add_key
from storage.events import EventKind
from tests.e2e.conftest import free_ports, wait_for
from tests.lifecycle.conftest import ADMIN_KEY, Served, make_served, serving

pytestmark = pytest.mark.full

NOBODY = 65_534
SYSTEM_PYTHON = "/usr/bin/python3"
"""One that other accounts can run; the environment of the tests may lie where they cannot get."""
CONTROL_KEY = "a-key-of-model-control"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory, bert_bundle: Path) -> Iterator[Served]:
    with serving(make_served(tmp_path_factory.mktemp("door"), bert_bundle)) as served:
        yield served


def address(served: Served) -> str:
    return f"127.0.0.1:{served.port + 1}"


@pytest.fixture
def stranger(pipeline: Served) -> Iterator[Any]:
    """Triton's own client."""
    with contextlib.closing(triton_client.InferenceServerClient(address(pipeline))) as client:
        yield client


def server(served: Served) -> psutil.Process:
    assert served.process is not None
    children = psutil.Process(served.process.pid).children(recursive=True)
    return next(child for child in children if child.name() == "tritonserver")


def model_that_leaves_a_trace(trace: Path) -> tuple[str, dict[str, bytes]]:
    tensor = '{"name": "A", "data_type": "TYPE_FP32", "dims": [1]}'
    config = f'{{"name": "other", "backend": "python", "input": [{tensor}], "output": [{tensor.replace("A", "B", 1)}]}}'
    code = f"open({str(trace)!r}, 'w')\nclass TritonPythonModel:\n    def execute(self, requests): return []\n"
    return config, {"file:1/model.py": code.encode()}


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(triton_client.InferenceServerException) as caught:
        call()
    assert caught.value.status() == "StatusCode.PERMISSION_DENIED"
    return str(caught.value.message())


def test_nobody_takes_the_model_away_or_lists_what_there_is(stranger: Any) -> None:
    refused(lambda: stranger.unload_model("sentiment"))
    refused(stranger.get_model_repository_index)
    assert stranger.is_model_ready("sentiment")


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.register_system_shared_memory("a", "/a", 1),
        lambda client: client.get_system_shared_memory_status(),
        lambda client: client.get_cuda_shared_memory_status(),
        lambda client: client.unregister_system_shared_memory(),
        lambda client: client.get_trace_settings(),
        lambda client: client.update_trace_settings(settings={"trace_level": ["TENSORS"]}),
        lambda client: client.get_log_settings(),
        lambda client: client.update_log_settings({"log_file": "/tmp/anywhere"}),
    ],
)
def test_what_nothing_here_needs_of_triton_is_off(stranger: Any, call: Callable[[Any], object]) -> None:
    assert "Shared memory, trace and log settings are off" in refused(lambda: call(stranger))


def test_streams_and_methods_that_are_none_are_refused(pipeline: Served) -> None:
    with grpc.insecure_channel(address(pipeline)) as channel:
        stream = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(iter([]))
        with pytest.raises(grpc.RpcError, match="PERMISSION_DENIED"):
            next(stream)
        with pytest.raises(grpc.RpcError, match="PERMISSION_DENIED"):
            channel.unary_unary("/inference.GRPCInferenceService/Nothing")(b"")


def texts_input(texts: list[bytes]) -> Any:
    given = triton_client.InferInput("TEXT", [len(texts), 1], "BYTES")
    given.set_data_from_numpy(np.array([[text] for text in texts], dtype=object))
    return given


def test_predictions_health_and_metadata_pass_as_before(pipeline: Served, stranger: Any) -> None:
    answer = stranger.infer("sentiment", [texts_input([b"good", b"bad"])], request_id="mine")
    assert answer.as_numpy("LABEL").shape == (2, 1)
    assert answer.as_numpy("PROBABILITIES").shape == (2, 2)
    assert (answer.get_response().id, answer.get_response().model_version) == ("mine", "1")
    assert stranger.is_server_live()
    assert stranger.is_server_ready()
    assert stranger.get_server_metadata().name == "triton"
    assert stranger.get_model_metadata("sentiment").versions == ["1"]
    assert stranger.get_model_config("sentiment").config.max_batch_size == 64
    assert stranger.get_inference_statistics("sentiment").model_stats[0].name == "sentiment"
    with grpc.insecure_channel(address(pipeline)) as channel:
        assert channel.unary_unary("/grpc.health.v1.Health/Check")(b"") == b"\x08\x01"
    with Client(address(pipeline)) as client:
        assert len(client.predict(["fine"] * 200).labels) == 200


def test_calls_are_counted_by_their_status(pipeline: Served, stranger: Any) -> None:
    def counts() -> dict[str, float]:
        lines = httpx.get(f"{pipeline.url}/metrics", headers={"X-API-Key": ADMIN_KEY}).text.splitlines()
        return {
            name: float(value)
            for name, _, value in (line.rpartition(" ") for line in lines)
            if name.startswith("sentiment_grpc_")
        }

    before = counts()
    stranger.infer("sentiment", [texts_input([b"good", b"bad"])])
    with pytest.raises(triton_client.InferenceServerException, match="empty"):
        stranger.infer("sentiment", [texts_input([b""])])
    after = counts()
    assert {name: value - before.get(name, 0) for name, value in after.items() if value != before.get(name)} == {
        'sentiment_grpc_calls_total{code="OK"}': 1,
        'sentiment_grpc_calls_total{code="INVALID_ARGUMENT"}': 1,
        "sentiment_grpc_texts_total": 3,
    }


def test_the_models_own_refusal_passes(stranger: Any) -> None:
    with pytest.raises(triton_client.InferenceServerException, match=r"TEXT\[1\] is empty") as caught:
        stranger.infer("sentiment", [texts_input([b"good", b""])])
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def raw(*texts: bytes) -> bytes:
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


def request(**given: Any) -> Any:
    made = service_pb2.ModelInferRequest(model_name="sentiment")
    made.inputs.add(name="TEXT", datatype="BYTES", shape=[1, 1])
    made.raw_input_contents.append(raw(b"good"))
    for name, value in given.items():
        setattr(made, name, value)
    return made


def spoilt(change: Callable[[Any], object]) -> Any:
    made = request()
    change(made)
    return made


def set_region(parameters: Any) -> None:
    parameters["shared_memory_region"].string_param = "region"


STRANGE = {
    "shared memory for the input": (
        lambda made: set_region(made.inputs[0].parameters),
        "The parameter shared_memory_region of TEXT is not allowed: shared memory",
    ),
    "shared memory for an output": (
        lambda made: set_region(made.outputs.add(name="LABEL").parameters),
        "The parameter shared_memory_region of LABEL",
    ),
    "a sequence": (
        lambda made: setattr(made.parameters["sequence_id"], "int64_param", 1),
        "The parameter sequence_id is not allowed",
    ),
    "no input": (lambda made: made.ClearField("inputs"), "One input is needed: TEXT"),
    "another input": (lambda made: setattr(made.inputs[0], "name", "PATH"), "One input is needed: TEXT"),
    "another datatype": (lambda made: setattr(made.inputs[0], "datatype", "FP32"), "with the datatype BYTES"),
    "two inputs": (lambda made: made.inputs.add(name="TEXT", datatype="BYTES", shape=[1, 1]), "One input is needed"),
    "a negative shape": (lambda made: made.inputs[0].shape.__setitem__(0, -1), r"The shape of TEXT is \[-1, 1\]"),
    "a huge shape": (lambda made: made.inputs[0].shape.__setitem__(0, 2**62), "with n from 1 to 64"),
    "three dimensions": (lambda made: made.inputs[0].shape.append(1), r"\[n, 1\] is needed"),
    "fewer texts than told": (lambda made: made.inputs[0].shape.__setitem__(0, 2), "has 1 texts, but its shape says 2"),
    "a length beyond the end": (
        lambda made: made.raw_input_contents.__setitem__(0, b"\xff\xff\xff\xffgood"),
        "not a list of texts",
    ),
    # A million of them held Triton for 17 seconds (CVE-2026-24146).
    "many outputs": (
        lambda made: [made.outputs.add(name="LABEL") for _ in range(9)],
        "names 9 outputs; at most 8 are allowed",
    ),
    # To parse them all took seconds.
    "a million outputs": (lambda made: made.outputs.extend([made.outputs.add()] * 1_000_000), "has over 64 fields"),
    "a megabyte of tiny texts": (
        lambda made: made.inputs[0].contents.bytes_contents.extend([b""] * 600_000),
        "bytes outside raw_input_contents",
    ),
    "contents twice": (lambda made: made.raw_input_contents.append(raw(b"a")), "raw_input_contents has 2"),
}


@pytest.mark.parametrize("name", STRANGE)
def test_a_request_that_no_client_makes_never_reaches_triton(pipeline: Served, name: str) -> None:
    change, told = STRANGE[name]
    with grpc.insecure_channel(address(pipeline)) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(spoilt(change))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert re.search(told, caught.value.details())
        assert stub.ModelInfer(request()).model_version == "1"


@pytest.mark.parametrize("name", ["sentiment_challenger", "other", "", "../sentiment"])
def test_other_models_are_not_there(pipeline: Served, name: str) -> None:
    with grpc.insecure_channel(address(pipeline)) as channel:
        with pytest.raises(grpc.RpcError, match="Request for unknown model") as caught:
            service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request(model_name=name))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_message_is_bounded(pipeline: Served) -> None:
    with grpc.insecure_channel(address(pipeline)) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        largest = spoilt(lambda made: made.inputs[0].shape.__setitem__(0, 64))
        largest.raw_input_contents[0] = raw(*["é".encode() * 90_000] * 64)
        assert len(stub.ModelInfer(largest, timeout=60).outputs) >= 4
        largest.raw_input_contents[0] = raw(b"a" * 2**25)
        with pytest.raises(grpc.RpcError, match="RESOURCE_EXHAUSTED"):
            stub.ModelInfer(largest)


@contextlib.contextmanager
def unfinished_calls(served: Served, method: str, count: int) -> Iterator[list[Any]]:
    """So many calls whose message never comes, from connections of which each has a part."""
    never = threading.Event()

    def nothing() -> Iterator[bytes]:
        never.wait(60)
        yield from ()

    options = [("grpc.use_local_subchannel_pool", 1)]
    with contextlib.ExitStack() as stack:
        channels = [stack.enter_context(grpc.insecure_channel(address(served), options)) for _ in range(4)]
        stack.callback(never.set)
        method = f"/inference.GRPCInferenceService/{method}"
        yield [channels[number % 4].stream_unary(method).future(nothing()) for number in range(count)]


def test_calls_that_never_send_their_message_are_ended_and_block_nobody_for_long(pipeline: Served) -> None:
    with unfinished_calls(pipeline, "ModelInfer", 2 * MOST_OF_CALLER) as calls, Client(address(pipeline)) as client:
        started = time.monotonic()
        assert client.predict(["good"], timeout_s=30).version == 1
        assert time.monotonic() - started < READ_S
        for call in calls:
            assert call.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)


def test_many_calls_of_one_connection_are_all_answered(pipeline: Served) -> None:
    """More than once: gRPC counts the streams of the calls before until it frees them."""
    with grpc.insecure_channel(address(pipeline)) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for _ in range(3):
            calls = [stub.ServerLive.future(service_pb2.ServerLiveRequest(), timeout=60) for _ in range(400)]
            assert {call.code() for call in calls} == {grpc.StatusCode.OK}


def test_connections_to_the_port_leave_room_for_those_of_http(pipeline: Served) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(_MOST_CONNECTIONS + 200):
            stack.enter_context(socket.create_connection(("127.0.0.1", pipeline.port + 1)))
        assert pipeline.process is not None
        time.sleep(0.5)
        opened = psutil.Process(pipeline.process.pid).num_fds()
        assert opened < _MOST_CONNECTIONS + 100
        assert pipeline.is_ready()


def test_no_command_line_has_a_secret_and_no_process_but_the_pipeline_listens(pipeline: Served) -> None:
    assert pipeline.process is not None
    gateway = psutil.Process(pipeline.process.pid)
    for process in (gateway, *gateway.children(recursive=True)):
        words = process.cmdline()
        assert not re.search(r"restricted|secret|password|key=", " ".join(words)), words
        assert ADMIN_KEY not in words
        listening = {item.laddr.port for item in process.net_connections("inet") if item.status == psutil.CONN_LISTEN}
        assert listening == ({pipeline.port, pipeline.port + 1} if process == gateway else set()), words


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to be root, to act as another account")
def test_another_account_reaches_neither_triton_nor_its_memory(pipeline: Served) -> None:
    path = socket_path(pipeline.settings.bundled_triton)
    metrics = next(item for item in path.parent.iterdir() if item.name.startswith("metrics"))
    (memory,) = Path("/dev/shm").glob(f"sentiment-{pipeline.port + 1}-*")
    # So that it is the directory itself which keeps them out, and none above it.
    opened = [item for item in path.parents[1:] if item.owner() == "root" and item != Path("/tmp")]
    modes = {item: item.stat().st_mode for item in opened}
    for item in opened:
        item.chmod(0o755)
    code = f"""
import socket
for path in {str(path)!r}, {str(metrics)!r}:
    try:
        socket.socket(socket.AF_UNIX).connect(path)
        print("connected to", path)
    except PermissionError:
        print("refused")
for path in {str(memory)!r}, "/proc/{server(pipeline).pid}/environ", "/proc/{server(pipeline).pid}/fd/0":
    try:
        open(path, "rb").read()
        print("read", path)
    except PermissionError:
        print("refused")
"""
    try:
        tried = subprocess.run([SYSTEM_PYTHON, "-c", code], capture_output=True, text=True, user=NOBODY, group=NOBODY)
    finally:
        for item, mode in modes.items():
            item.chmod(mode)
    assert tried.stdout.split("\n") == ["refused"] * 5 + [""], tried.stdout + tried.stderr


def test_nobody_loads_a_model_and_so_runs_code(pipeline: Served, stranger: Any, tmp_path: Path) -> None:
    config, files = model_that_leaves_a_trace(tmp_path / "trace")
    told = refused(lambda: stranger.load_model("other", config=config, files=files))
    assert told.startswith("Only the pipeline changes models: use `python app.py promote`")
    assert not (tmp_path / "trace").exists()
    # A model that Triton could not load makes it "not ready" for good; the next test starts it anew.
    # Over the socket, which is the pipeline's own user's, it does: the model is one that Triton would run.
    socket_path = sockets.grpc_target(pipeline.settings.bundled_triton)
    with contextlib.closing(triton_client.InferenceServerClient(socket_path)) as own:
        with contextlib.suppress(triton_client.InferenceServerException):
            own.load_model("other", config=config, files=files)
        own.unload_model("other")
    assert (tmp_path / "trace").exists()


def test_the_port_stays_taken_while_triton_restarts(pipeline: Served) -> None:
    """Whoever got it then would be sent the texts of users, and answer them."""
    before = server(pipeline)
    codes: list[grpc.StatusCode] = []
    told: list[str] = []
    with grpc.insecure_channel(address(pipeline)) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert stub.ModelInfer(request()).model_version == "1"
        before.kill()
        deadline = time.monotonic() + 60
        while not codes or codes[-1] is not grpc.StatusCode.OK:
            assert time.monotonic() < deadline, codes[-1]
            with socket.socket() as thief:
                thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                with pytest.raises(OSError, match="Address already in use"):
                    thief.bind(("127.0.0.1", pipeline.port + 1))
            try:
                stub.ModelInfer(request(), timeout=30)
                codes.append(grpc.StatusCode.OK)
            except grpc.RpcError as error:
                codes.append(error.code())
                told.append(error.details())
            time.sleep(0.01)
    assert set(codes) == {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.OK}
    assert len(codes) > 10
    assert "Triton is down, starting or restarting; try again" in told
    assert not any("/proc" in details for details in told)
    assert server(pipeline).pid != before.pid
    wait_for(lambda: httpx.get(f"{pipeline.url}/health/ready").is_success, 30, "the gateway to notice")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to be root, to act as another account")
def test_another_account_cannot_take_the_port_either(pipeline: Served) -> None:
    code = f"""
import socket
for host in "127.0.0.1", "0.0.0.0", "::ffff:127.0.0.1":
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            thief.bind((host, {pipeline.port + 1}))
            thief.listen()
            print("took", host)
        except OSError as error:
            print("refused")
"""
    tried = subprocess.run([SYSTEM_PYTHON, "-c", code], capture_output=True, text=True, user=NOBODY, group=NOBODY)
    assert tried.stdout == "refused\n" * 3, tried.stdout + tried.stderr


def test_where_keys_are_needed_they_are_needed_here_too(bert_bundle: Path, tmp_path: Path) -> None:
    served = make_served(tmp_path, bert_bundle, 1, SENTIMENT_ACCESS="keys", SENTIMENT_CALLER_LIMIT="100/hour")
    database = served.database()
    keys = {scope: add_key(database, f"the-{scope.value}", [scope]) for scope in (Scope.PREDICT, Scope.READ)}
    database.close()
    with serving(served):
        for key, told in (
            ("", "An API key is needed"),
            ("wrong", "is wrong"),
            (keys[Scope.READ], "lacks the scope predict"),
        ):
            with Client(address(served), api_key=key) as client, pytest.raises(KeyRefusedError, match=told):
                client.predict(["good"], timeout_s=10)
        with contextlib.closing(triton_client.InferenceServerClient(address(served))) as client:
            assert client.is_server_live()
            assert client.is_model_ready("sentiment")
            with pytest.raises(triton_client.InferenceServerException, match="An API key is needed"):
                client.get_model_config("sentiment")
            refused(lambda: client.load_model("other", headers={"x-api-key": ADMIN_KEY}))
            for _ in range(MOST_A_MINUTE):
                with pytest.raises(triton_client.InferenceServerException) as caught:
                    client.get_model_config("sentiment", headers={"x-api-key": "a-guess"})
            assert "Too many wrong API keys" in str(caught.value)
        with (
            unfinished_calls(served, "ServerLive", 2 * MOST_OF_CALLER),
            Client(address(served), api_key=keys[Scope.PREDICT]) as client,
        ):
            # What strangers may ask without a key keeps nobody out who has one.
            assert len(client.predict(["good"] * 90, timeout_s=3).labels) == 90
        database = served.database()
        wait_for(lambda: bool(events.newest(database, 1, EventKind.KEYS_GUESSED)), 5, "an event")
        database.close()
        # The limit of texts is one, whichever way they come.
        with contextlib.closing(triton_client.InferenceServerClient(address(served))) as client:
            with pytest.raises(triton_client.InferenceServerException) as caught:
                client.infer("sentiment", [texts_input([b"a"] * 20)], headers={"x-api-key": keys[Scope.PREDICT]})
            assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"


def test_a_triton_that_runs_alone_is_controlled_with_its_key_only(bert_bundle: Path, tmp_path: Path) -> None:
    served = make_served(tmp_path, bert_bundle, 2, SENTIMENT_TRITON_KEY=CONTROL_KEY)
    apart = free_ports()
    processes: list[subprocess.Popen[bytes]] = []

    def start(command: str, name: str, **settings: str) -> Path:
        log = tmp_path / f"{name}.log"
        environment = {**served.environment, "SENTIMENT_STATE_DIR": str(tmp_path / name), **settings}
        with log.open("wb") as output:
            processes.append(
                subprocess.Popen(served.command(command), cwd=tmp_path, env=environment, stdout=output, stderr=output)
            )
        return log

    try:
        log = start("triton", "triton")
        wait_for(lambda: "Ready: version 1 is deployed at 127.0.0.1" in log.read_text(), 90, "Triton")
        with contextlib.closing(triton_client.InferenceServerClient(address(served))) as client:
            header = "triton-grpc-protocol-sentiment-key"
            for headers in ({}, {header: "a-wrong-key-of-control"}, {header: ""}, {header: CONTROL_KEY[:-1]}):
                refused(lambda headers=headers: client.unload_model("sentiment", headers=headers))  # type: ignore[misc]
            assert client.is_model_ready("sentiment")
            assert client.get_model_repository_index(headers={header: CONTROL_KEY}).models

        url = {"SENTIMENT_PORT": str(apart), "SENTIMENT_TRITON_URL": address(served)}
        gateway = f"http://127.0.0.1:{apart}"
        good = start("gateway", "gateway", **url)
        wait_for(lambda: "Ready: version 1" in good.read_text(), 60, "the gateway")
        promote = {"url": f"{gateway}/models/2/promote", "headers": {"X-API-Key": ADMIN_KEY}, "timeout": 60}
        answer = httpx.post(**promote)  # type: ignore[arg-type]
        assert answer.json() == {"version": 2}
        assert "refuses model control" not in good.read_text()

        # With another key it says so, at once and when it is asked to promote.
        processes[-1].terminate()
        processes[-1].wait(30)
        bad = start("gateway", "without-key", SENTIMENT_TRITON_KEY="another-key-of-control", **url)
        wait_for(lambda: "Ready: version 2" in bad.read_text(), 60, "the gateway without the key")
        told = "it refuses model control: SENTIMENT_TRITON_KEY is missing here, or is not the key"
        wait_for(lambda: told in bad.read_text(), 20, "the gateway to tell that its key is wrong")
        promote["url"] = f"{gateway}/models/1/promote"
        answer = httpx.post(**promote)  # type: ignore[arg-type]
        assert answer.status_code == 409
        assert told in answer.json()["detail"]
        assert CONTROL_KEY not in "".join(path.read_text() for path in tmp_path.glob("*.log"))
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(60)
