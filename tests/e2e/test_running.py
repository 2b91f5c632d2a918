"""The whole line with its real parts: what was trained is what answers, and it survives and ends as it should."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton
from mlflow import MlflowClient

from tests.e2e.conftest import Pipeline, free_ports, wait_for

pytestmark = pytest.mark.full

TEXTS = ["I love this product!", "This is terrible.", "An unforgettable, moving film.", "It broke after two days."]


def test_same_answer_over_http_and_triton_grpc(pipeline: Pipeline, http: httpx.Client) -> None:
    answer = http.post("/predict/batch", json={"texts": TEXTS})
    client = triton.InferenceServerClient(f"127.0.0.1:{pipeline.port + 1}")
    tensor = triton.InferInput("TEXT", [len(TEXTS), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text.encode()] for text in TEXTS], dtype=object))
    result = client.infer("sentiment", [tensor])
    client.close()

    labels = [label.decode() for label in result.as_numpy("LABEL").ravel()]
    scores = result.as_numpy("SCORE").ravel()
    assert answer.json() == {
        "predictions": {
            "label": {str(position): label for position, label in enumerate(labels)},
            "score": {str(position): round(float(score), 4) for position, score in enumerate(scores)},
        }
    }
    assert labels[:2] == ["Positive", "Negative"]
    assert answer.headers["X-Model-Version"] == result.get_response().model_version == "1"
    probabilities = result.as_numpy("PROBABILITIES")
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-3)
    assert np.allclose(probabilities.max(axis=1), scores)


def test_requests_are_answered_in_the_fast_event_loop(pipeline: Pipeline) -> None:
    (gateway,) = (
        process
        for process in psutil.Process(pipeline.process.pid).children(recursive=True)
        if any(
            connection.status == psutil.CONN_LISTEN and connection.laddr.port == pipeline.port
            for connection in process.net_connections()
        )
    )
    assert any("/uvloop/" in mapped.path for mapped in gateway.memory_maps())


def test_one_integer_names_the_model_everywhere(pipeline: Pipeline) -> None:
    version = pipeline.checkout / "triton_repo" / "sentiment" / "1"
    files = {path.name for path in version.iterdir()}
    assert files >= {"model.onnx", "tokenizer.json", "bundle.json"}
    # Whether int8 pays depends on the processor.
    assert all(name.startswith("model.int8.") for name in files - {"model.onnx", "tokenizer.json", "bundle.json"})
    bundle = json.loads((version / "bundle.json").read_text())
    client = MlflowClient(f"sqlite:///{pipeline.checkout}/.sentiment/mlflow.db")
    registered = client.get_model_version("sentiment", "1")
    run = client.get_run(bundle["mlflow_run"])

    assert bundle["version"] == 1
    assert bundle["labels"] == ["Negative", "Positive"]
    assert bundle["base_model"].startswith("all-MiniLM-L6-v2")
    assert registered.run_id == run.info.run_id
    assert client.get_model_version_by_alias("sentiment", "champion").version == registered.version
    assert run.data.tags["data_fingerprint"] == bundle["data_fingerprint"]
    assert run.data.metrics["macro_f1"] > 0.7
    assert bundle["metrics"]["macro_f1"] > 0.7
    assert all(proof["refused"] == "" for proof in bundle["proofs"] if proof["precision"] != "int8")
    artifacts = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert artifacts >= {"confusion_matrix.png", "confusion_matrix.json", "model", "bundle.json"}


def test_a_text_gets_the_same_answer_whatever_shares_its_batch(pipeline: Pipeline) -> None:
    """Triton itself is asked, because the gateway keeps its first answer."""
    client = triton.InferenceServerClient(f"127.0.0.1:{pipeline.port + 1}")
    long = "The plot goes on and on. " * 60
    probabilities = []
    for mates in ([], TEXTS[1:], [long], [long, *TEXTS] * 10):
        tensor = triton.InferInput("TEXT", [1 + len(mates), 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[text.encode()] for text in (TEXTS[0], *mates)], dtype=object))
        probabilities.append(client.infer("sentiment", [tensor]).as_numpy("PROBABILITIES")[0])
    client.close()
    # bfloat16 rounds sums of other shapes differently.
    assert np.ptp(probabilities, axis=0).max() < 0.02


def test_long_text_is_cut_and_told(http: httpx.Client) -> None:
    answer = http.post("/predict/batch", json={"texts": ["good", "very " * 2000 + "good"]})
    assert answer.status_code == 200
    assert answer.headers["X-Truncated-Texts"] == "1"
    assert "X-Truncated-Texts" not in http.post("/predict/live", json={"text": "good"}).headers


def test_gateway_of_an_external_triton(pipeline: Pipeline, tmp_path: Path) -> None:
    port = free_ports()
    environment = {"SENTIMENT_PORT": str(port), "SENTIMENT_TRITON_URL": f"127.0.0.1:{pipeline.port + 1}"}
    environment["SENTIMENT_HOME"] = str(tmp_path)
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, pipeline.checkout / "app.py", "serve"],
            cwd=tmp_path,
            env=pipeline.environment | environment,
            stderr=output,
        )
    try:
        wait_for(lambda: "Ready: version 1" in log.read_text() or process.poll() is not None, 60, "the second gateway")
        answer = httpx.post(f"http://127.0.0.1:{port}/predict/live", json={"text": TEXTS[0]})
        assert answer.json()["predictions"]["label"] == {"0": "Positive"}
        assert psutil.Process(process.pid).children() == []
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0, log.read_text()
    assert httpx.get(f"{pipeline.url}/health/ready").is_success


def test_a_connection_may_lie_idle_for_longer_than_clients_keep_theirs(pipeline: Pipeline) -> None:
    with closing(HTTPConnection("127.0.0.1", pipeline.port, timeout=15)) as connection:
        connection.connect()
        # Else it would connect anew where the gateway has closed.
        connection.auto_open = 0
        for idle_s in (6, 0):
            connection.request("GET", "/health/live")
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (200, b'{"status":"alive"}')
            time.sleep(idle_s)


def test_triton_killed_while_requests_flow(pipeline: Pipeline) -> None:
    statuses: Counter[int] = Counter()
    stop = threading.Event()

    numbers = itertools.count()

    def ask() -> None:
        with httpx.Client(base_url=pipeline.url, timeout=15) as client:
            while not stop.is_set():
                # Another text each time, because the gateway would answer one that it knows without Triton.
                answer = client.post("/predict/live", json={"text": f"{TEXTS[0]} {next(numbers)}"})
                statuses[answer.status_code] += 1
                if answer.status_code == 503:
                    assert answer.headers["Retry-After"] == "1"
                    assert answer.headers["Content-Type"] == "application/problem+json"
                    time.sleep(0.02)

    callers = [threading.Thread(target=ask) for _ in range(4)]
    for caller in callers:
        caller.start()
    try:
        wait_for(lambda: statuses[200] > 50, 30, "answers")
        before = pipeline.triton()
        stubs = before.children(recursive=True)
        before.kill()
        wait_for(lambda: statuses[503] > 0, 15, "503")
        assert not httpx.get(f"{pipeline.url}/health/ready").is_success
        assert httpx.get(f"{pipeline.url}/health/live").is_success
        answered = statuses[200]
        wait_for(lambda: statuses[200] > answered + 50, 60, "answers again")
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    assert statuses.keys() == {200, 503}
    assert pipeline.triton().pid != before.pid
    assert not any(stub.is_running() for stub in stubs)
    assert "killed by SIGKILL" in pipeline.log.read_text()


def test_interrupt_leaves_nothing(pipeline: Pipeline) -> None:
    """The last test of the file, because it ends the pipeline."""
    processes = pipeline.processes()
    os.killpg(pipeline.process.pid, signal.SIGINT)  # as the terminal does
    pipeline.process.wait(40)
    _, alive = psutil.wait_procs(processes, timeout=5)
    assert alive == []
    assert "The pipeline has shut down." in pipeline.log.read_text()
    assert not list(Path("/dev/shm").glob(f"sentiment-{pipeline.port + 1}-*"))
