"""SIGTERM under load, with the real Triton: what was accepted is answered, and nothing is left."""

import contextlib
import re
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e.conftest import wait_for
from tests.lifecycle.conftest import Served, make_served, serving

pytestmark = pytest.mark.full

CALLERS = 8
BATCHES = 4


@pytest.fixture
def running(tmp_path: Path, bert_bundle: Path) -> Iterator[Served]:
    """A deadline that has room for several long batches on any machine."""
    with serving(make_served(tmp_path, bert_bundle, versions=1, SENTIMENT_BATCH_DEADLINE_S="600")) as served:
        yield served


LONG = "The battery lasts all day, and the plot makes no sense at all. " * 20


def test_sigterm_under_load_fails_nothing_that_was_accepted_and_leaves_nothing(running: Served) -> None:
    assert running.process is not None
    pipeline = psutil.Process(running.process.pid)
    processes = [pipeline, *pipeline.children(recursive=True)]
    outcomes: Counter[str] = Counter()
    ended = threading.Event()

    client = httpx.Client(base_url=running.url, timeout=90, limits=httpx.Limits(max_connections=CALLERS + BATCHES + 1))

    def call(number: int) -> None:
        while not ended.is_set():
            asked = time.monotonic()
            try:
                answer = client.post("/predict/live", json={"text": f"fine {number} {asked}"})
            except httpx.TransportError:
                outcomes["lost before the signal" if asked < signalled else "refused by the socket"] += 1
                time.sleep(0.01)
                continue
            outcomes[str(answer.status_code)] += 1
            if answer.status_code == 503:
                outcomes[answer.json()["type"].rpartition(":")[2]] += 1
                time.sleep(0.01)

    def under_way() -> int:
        """Requests that the gateway has accepted, this one not counted."""
        found = re.search(r"^http_server_active_requests (\d+)", client.get("/metrics").text, re.MULTILINE)
        assert found is not None
        return int(found[1]) - 1

    signalled = float("inf")
    with client, ThreadPoolExecutor(CALLERS + BATCHES) as pool:
        accepted = [
            pool.submit(client.post, "/predict/batch", json={"texts": [f"{LONG} {batch} {n}" for n in range(400)]})
            for batch in range(BATCHES)
        ]
        try:
            wait_for(lambda: under_way() == BATCHES, 30, "the batches to be accepted")
            callers = [pool.submit(call, number) for number in range(CALLERS)]
            wait_for(lambda: outcomes["200"] > CALLERS, 30, "answers")
            assert not any(batch.done() for batch in accepted), "they must still be under way when the signal comes"
            signalled = time.monotonic()
            running.process.send_signal(signal.SIGTERM)
            wait_for(lambda: outcomes["ending"] > 0, 10, "refusals")
            assert [batch.result().status_code for batch in accepted] == [200] * BATCHES
            assert running.process.wait(60) == 0
        finally:
            ended.set()
        for caller in callers:
            caller.result()
    running.process = None
    assert outcomes.keys() <= {"200", "503", "ending", "refused by the socket"}, outcomes
    _, alive = psutil.wait_procs(processes, timeout=5)
    assert not alive
    assert not list(Path("/dev/shm").glob(f"sentiment-{running.port + 1}-*"))
    for port in range(running.port, running.port + 4):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))


def test_a_second_signal_ends_at_once(running: Served) -> None:
    assert running.process is not None
    pipeline = psutil.Process(running.process.pid)
    processes = [pipeline, *pipeline.children(recursive=True)]
    texts = [f"{LONG} {number}" for number in range(1_000)]

    def ask() -> None:
        with contextlib.suppress(httpx.TransportError):
            running.ask("POST", "/predict/batch", json={"texts": texts})

    asking = [threading.Thread(target=ask) for _ in range(3)]
    for thread in asking:
        thread.start()
    time.sleep(0.3)
    running.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    running.process.send_signal(signal.SIGTERM)
    running.process.wait(20)
    running.process = None
    for thread in asking:
        thread.join()
    _, alive = psutil.wait_procs(processes, timeout=5)
    assert not alive
    assert not list(Path("/dev/shm").glob(f"sentiment-{running.port + 1}-*"))
