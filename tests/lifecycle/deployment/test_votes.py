"""What callers without the admin key send moves no version; what a version does wrong by itself still does."""

import json
import socket
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from gateway.canary.challenger import position_of
from lifecycle.deployment.post_deploy_monitor import LEAST_CALLS
from serving.model_repo.variants import FLOAT_GRAPH
from tests.callers import Callers
from tests.e2e.conftest import wait_for
from tests.lifecycle.conftest import Served, make_served, publish, serving

pytestmark = pytest.mark.full

LONG = "a long text that says very little about anything at all " * 1_500
ATTACKED_S = 14.0
"""Of each attack: longer than between two looks at the deployed version."""


class Attack(Callers):
    """Callers without a key that send what `send` makes of a client, the server's port and a number."""

    def __init__(self, port: int, callers: int, send: Callable[[httpx.Client, int, int], object]) -> None:
        self.outcomes: Counter[object] = Counter()
        self._port = port
        self._send = send
        super().__init__(partial(self._call, number) for number in range(callers))

    def _call(self, caller: int) -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{self._port}", timeout=60) as client:
            for number in count(caller * 10_000_000):
                if self.ended.is_set():
                    return
                try:
                    self.outcomes[self._send(client, self._port, number)] += 1
                except (httpx.TransportError, OSError) as error:
                    self.outcomes[type(error).__name__] += 1


def live(client: httpx.Client, text: str, **headers: str) -> int:
    return client.post("/predict/live", json={"text": text}, headers=headers).status_code


def short_deadlines(client: httpx.Client, _port: int, number: int) -> object:
    """Texts that nobody has asked yet, with less time than an answer takes."""
    return live(client, f"hurry {number} " + "word " * 60, **{"X-Request-Timeout-Ms": "3"})


def disconnects(_client: httpx.Client, port: int, number: int) -> object:
    """Requests whose client leaves before the answer."""
    body = json.dumps({"text": f"leaving {number} " + "word " * 200}).encode()
    lines = ["POST /predict/live HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""])
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.sendall(head.encode() + body)
        time.sleep(0.06)
    return "left"


def bad_texts(client: httpx.Client, _port: int, number: int) -> object:
    """Texts that are refused, by the gateway or by the model."""
    text = ("", " \t", "\\ud800", "\\u0000", f"\\udfff {number}")[number % 5]
    body = b'{"text": "' + text.encode() + b'"}'
    return client.post("/predict/live", content=body, headers={"Content-Type": "application/json"}).status_code


def long_texts(client: httpx.Client, _port: int, number: int) -> object:
    """Texts as long as there may be, each new."""
    return live(client, f"{number} {LONG}"[:90_000])


def slow_texts(client: httpx.Client, _port: int, number: int) -> object:
    """Texts that take several times as long as others, each new."""
    return live(client, f"{number} {LONG}"[:30_000])


def floods(client: httpx.Client, _port: int, number: int) -> object:
    """Lists of long texts."""
    texts = [f"{number} {place} {LONG[:3_000]}" for place in range(64)]
    return client.post("/predict/batch", json={"texts": texts}).status_code


ATTACKS: list[tuple[Callable[..., object], int]] = [
    (slow_texts, 1),  # alone, so that a lone text takes longer than with the version before
    (short_deadlines, 8),
    (disconnects, 16),
    (bad_texts, 4),
    (long_texts, 64),
    (floods, 8),
]


def spoil(bundle: Path, directory: Path, nodes: Callable[[onnx.GraphProto], str]) -> Path:
    """A copy of a bundle whose graph computes something more: a scalar, of which 0 times is added to the answer."""
    directory.mkdir()
    for file in bundle.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    model = onnx.load(str(directory / FLOAT_GRAPH))
    graph = model.graph
    output = graph.output[0].name
    for node in graph.node:
        node.output[:] = [f"{name}_before" if name == output else name for name in node.output]
        node.input[:] = [f"{name}_before" if name == output else name for name in node.input]
    scalar = nodes(graph)
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.float32), "nothing"))
    graph.node.append(helper.make_node("Mul", [scalar, "nothing"], ["nothing_more"]))
    graph.node.append(helper.make_node("Add", [f"{output}_before", "nothing_more"], [output]))
    onnx.save(model, str(directory / FLOAT_GRAPH))
    return directory


def fail_on_short_rows(graph: onnx.GraphProto) -> str:
    """Read the 101st token of each row: rows of up to 100 tokens are an error, those it is warmed up with are not."""
    graph.initializer.append(numpy_helper.from_array(np.array([100]), "late"))
    graph.node.append(helper.make_node("Gather", ["input_ids", "late"], ["late_tokens"], axis=1))
    graph.node.append(helper.make_node("ReduceMax", ["late_tokens"], ["late_token"], keepdims=0))
    graph.node.append(helper.make_node("Cast", ["late_token"], ["late_value"], to=TensorProto.FLOAT))
    return "late_value"


def fail_on_middle_rows(graph: onnx.GraphProto) -> str:
    """The same, but rows of up to 16 tokens are no error either: what a promotion asks is answered."""
    for name, value in (("second", 1), ("sixteen", 16), ("thousand", 1_000), ("hundred", 100)):
        graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
    graph.node.append(helper.make_node("Shape", ["input_ids"], ["shape"]))
    graph.node.append(helper.make_node("Gather", ["shape", "second"], ["length"]))
    graph.node.append(helper.make_node("Sub", ["length", "sixteen"], ["longer"]))
    graph.node.append(helper.make_node("Mul", ["longer", "thousand"], ["far"]))
    graph.node.append(helper.make_node("Min", ["far", "hundred"], ["late"]))
    graph.node.append(helper.make_node("Gather", ["input_ids", "late"], ["late_tokens"], axis=1))
    graph.node.append(helper.make_node("ReduceMax", ["late_tokens"], ["late_token"], keepdims=0))
    graph.node.append(helper.make_node("Cast", ["late_token"], ["late_value"], to=TensorProto.FLOAT))
    return "late_value"


def take_long(graph: onnx.GraphProto) -> str:
    """Multiply large matrices at each run."""
    matrix = np.full((768, 768), 1e-4, np.float32)
    graph.initializer.append(numpy_helper.from_array(matrix, "matrix"))
    graph.node.append(helper.make_node("ReduceMax", ["input_ids"], ["largest"], keepdims=0))
    graph.node.append(helper.make_node("Cast", ["largest"], ["largest_value"], to=TensorProto.FLOAT))
    graph.node.append(helper.make_node("Add", ["matrix", "largest_value"], ["product_0"]))
    for step in range(4):
        graph.node.append(helper.make_node("MatMul", [f"product_{step}", "matrix"], [f"product_{step + 1}"]))
    graph.node.append(helper.make_node("ReduceMax", ["product_4"], ["product"], keepdims=0))
    return "product"


def contrary(bundle: Path, directory: Path) -> Path:
    """A copy of a bundle that gives each text the other label."""
    directory.mkdir()
    for file in bundle.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    content = json.loads((directory / "bundle.json").read_text())
    content["labels"].reverse()
    (directory / "bundle.json").write_text(json.dumps(content))
    return directory


@pytest.fixture
def started(tmp_path: Path, bert_bundle: Path) -> Served:
    """Versions 1 and 2 are good; nothing runs yet. This runtime raises where a graph is wrong for a shape."""
    steps = {"SENTIMENT_RELEASE_STEPS": "50,100", "SENTIMENT_RELEASE_STEP_MINUTES": "1000"}
    return make_served(
        tmp_path, bert_bundle, 2, SENTIMENT_RUNTIME="onnxruntime", SENTIMENT_RELEASE_COMPARED="1", **steps
    )


def triton_of(served: Served) -> psutil.Process:
    assert served.process is not None
    return next(child for child in psutil.Process(served.process.pid).children(True) if child.name() == "tritonserver")


def kinds(served: Served) -> list[str]:
    """The kinds of events, the oldest first."""
    return [event["kind"] for event in served.ask("GET", "/events").json()][::-1]


def ask_alone(served: Served, words: str, texts: int = 130) -> None:
    with httpx.Client(base_url=served.url, timeout=30) as client:
        assert {live(client, f"{words} {number}") for number in range(texts)} == {200}


def message_of_rollback(served: Served) -> str:
    """Wait for the event; it is recorded after the switch, and after Triton has loaded the version before."""
    wait_for(lambda: "rolled-back" in kinds(served), 60, "the event of the rollback")
    return next(
        str(event["message"]) for event in served.ask("GET", "/events").json() if event["kind"] == "rolled-back"
    )


def release_of(served: Served, version: int) -> dict[str, Any]:
    models = {model["version"]: model for model in served.ask("GET", "/models").json()}
    found: dict[str, Any] = models[version]["release"]
    return found


@pytest.mark.alone
def test_no_caller_forces_a_rollback(started: Served) -> None:
    with serving(started) as served:
        triton = triton_of(served)
        ask_alone(served, "before")
        assert served.ask("POST", "/models/2/promote").json() == {"version": 2}
        for send, callers in ATTACKS:
            with Attack(served.port, callers, send) as attack:
                ended = time.monotonic() + ATTACKED_S
                while served.repository.deployed() == 2 and (
                    time.monotonic() < ended or (callers == 1 and attack.outcomes[200] < 1.3 * LEAST_CALLS)
                ):
                    time.sleep(0.5)
            print(send.__name__, callers, dict(attack.outcomes))
            assert served.repository.deployed() == 2, f"{send.__name__}: {served.log}"
        assert "rolled-back" not in kinds(served)
        # Nor is a Triton that has much to do taken for one that hangs.
        assert "is broken" not in served.log, served.log
        assert triton.is_running(), served.log
        # The attack on latency was noticed, and measured apart.
        wait_for(lambda: "suspected" in kinds(served), 120, "the suspicion to be reported")
        assert served.version() == 2


def test_a_version_that_fails_on_each_text_is_not_deployed(started: Served, bert_bundle: Path, tmp_path: Path) -> None:
    publish(started, spoil(bert_bundle, tmp_path / "3", fail_on_short_rows), 3)
    with serving(started) as served:
        refused = served.ask("POST", "/models/3/promote")
        assert refused.status_code == 409
        assert "could not be deployed, version 1 stays deployed" in refused.json()["detail"]
        # The gateway may have seen version 3 fail; it knows that version 1 answers again when it has asked.
        wait_for(served.is_ready, 20, "version 1 to answer")
        assert served.version() == 1


def test_a_version_that_fails_on_some_texts_is_rolled_back_whether_or_not_anybody_asks(
    started: Served, bert_bundle: Path, tmp_path: Path
) -> None:
    publish(started, spoil(bert_bundle, tmp_path / "3", fail_on_middle_rows), 3)
    with serving(started) as served:
        promoted = time.monotonic()
        assert served.ask("POST", "/models/3/promote").json() == {"version": 3}
        wait_for(lambda: served.repository.deployed() == 1, 60, "version 3 to be rolled back")
        print(f"rolled back after {time.monotonic() - promoted:.1f} s")
        wait_for(lambda: served.is_ready() and served.version() == 1, 60, "version 1 to answer")
        assert "of the pipeline's own texts" in message_of_rollback(served)


def test_a_version_that_is_slow_is_rolled_back(started: Served, bert_bundle: Path, tmp_path: Path) -> None:
    publish(started, spoil(bert_bundle, tmp_path / "3", take_long), 3)
    with serving(started) as served:
        ask_alone(served, "before")
        assert served.ask("POST", "/models/3/promote").json() == {"version": 3}
        promoted = time.monotonic()
        ask_alone(served, "after")
        wait_for(lambda: served.repository.deployed() == 1, 90, "version 3 to be rolled back")
        print("slow", f"rolled back after {time.monotonic() - promoted:.1f} s")
        assert "measured without live traffic, it takes" in message_of_rollback(served)


@pytest.mark.alone
def test_no_caller_takes_a_canary_back_and_one_that_fails_is(
    started: Served, bert_bundle: Path, tmp_path: Path
) -> None:
    publish(started, spoil(bert_bundle, tmp_path / "3", fail_on_short_rows), 3)
    with serving(started) as served:
        assert served.ask("POST", "/models/2/canary").is_success
        for send, callers in ATTACKS:
            with Attack(served.port, callers, send) as attack:
                time.sleep(ATTACKED_S)
            print(send.__name__, callers, dict(attack.outcomes))
            release = release_of(served, 2)
            assert release["state"] == "running", release
            assert "errors" not in release["held"]
        assert served.ask("POST", "/models/2/stop").is_success
        begun = time.monotonic()
        assert served.ask("POST", "/models/3/canary").is_success
        with Attack(served.port, 2, lambda client, _port, number: live(client, f"good {number}")) as attack:
            wait_for(lambda: release_of(served, 3)["state"] != "running", 90, "version 3 to be taken back")
        print(f"taken back after {time.monotonic() - begun:.1f} s", dict(attack.outcomes))
        assert release_of(served, 3)["state"] == "taken-back"
        assert "of the pipeline's own texts" in release_of(served, 3)["outcome"]
        assert set(attack.outcomes) == {200}


def test_answers_that_callers_make_differ_hold_a_canary_until_an_administrator_decides(
    started: Served, bert_bundle: Path, tmp_path: Path
) -> None:
    publish(started, contrary(bert_bundle, tmp_path / "3"), 3)
    with serving(started) as served:
        assert served.ask("POST", "/models/3/canary").is_success
        texts = [f"wanted {number}" for number in range(400)]
        with httpx.Client(base_url=served.url, timeout=30) as client:
            for text in texts:
                live(client, text)
                if release_of(served, 3)["held"]:
                    break
            wait_for(lambda: release_of(served, 3)["held"], 120, "the canary to be held")
        held = release_of(served, 3)
        assert (held["state"], held["share"]) == ("running", 0.5)
        assert "disagreement" in held["held"]
        assert kinds(served)[-1] == "release-held"
        assert "It is held: " in served.app("release").stdout
        page = served.ask("GET", "/console/versions").text
        assert "Held until you decide: disagreement" in page
        answered = {text: position_of(text) for text in texts}
        assert min(answered.values()) < 0.5

        assert served.ask("POST", "/models/3/canary").json()["held"] == ""
        going_on = release_of(served, 3)
        assert (going_on["state"], going_on["share"], going_on["figures"]) == ("running", 0.5, {})
        assert served.ask("POST", "/models/3/promote").is_success
        assert release_of(served, 3)["state"] == "promoted"
