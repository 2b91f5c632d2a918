"""The load generator sends every text once, counts what is refused, and lasts long enough for a slow server."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from benchmarks.http_connection import is_complete
from benchmarks.load_worker import steady
from benchmarks.processes import free_ports
from benchmarks.worker import Worker, worker
from common.errors import PipelineError

TEXTS = [f"text number {number}, long enough to be sent often" for number in range(100)]


class Answering(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.pause_s = 0.0
        self.refuses_all = False
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/predict/live"

    def handle_error(self, *_: Any) -> None:
        """Load generators leave without waiting for their last answers."""


class Handler(BaseHTTPRequestHandler):
    """Refuses every other text."""

    protocol_version = "HTTP/1.1"
    server: Answering
    # The head and the body of an answer go in two packets, and Nagle's algorithm would hold the second back.
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        text = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"]
        self.server.texts.append(text)
        is_refused = self.server.refuses_all or len(self.server.texts) % 2
        if not is_refused:
            time.sleep(self.server.pause_s)
        self.send_response(503 if is_refused else 200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def answering() -> Iterator[Answering]:
    server = Answering()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def generator() -> Iterator[Worker]:
    with worker("benchmarks.load_worker") as process:
        yield process


@pytest.fixture
def texts(tmp_path: Path) -> str:
    file = tmp_path / "texts.json"
    file.write_text(json.dumps(TEXTS))
    return str(file)


def test_every_text_is_sent_once_and_refusals_are_counted(answering: Answering, generator: Worker, texts: str) -> None:
    task = {"kind": "http", "url": answering.url, "connections": 4, "texts": texts}
    for _ in range(2):
        figures = generator.do(seconds=0.5, **task)
        assert figures["texts_per_s"] > 0
        assert figures["failed"] > 0
        assert 0 < figures["p50_ms"] <= figures["p99_ms"]
    assert len(answering.texts) > len(TEXTS), "or it says nothing of a second round"
    assert len(set(answering.texts)) == len(answering.texts)


def test_known_texts_are_sent_again(answering: Answering, generator: Worker, texts: str) -> None:
    generator.do(kind="http", url=answering.url, connections=2, seconds=0.2, texts=texts, repeated=3)
    assert set(answering.texts) == set(TEXTS[:3])


def test_a_run_lasts_until_a_slow_server_has_answered_often(
    answering: Answering, generator: Worker, texts: str
) -> None:
    answering.pause_s = 0.1
    generator.do(kind="http", url=answering.url, connections=4, seconds=0.1, texts=texts)
    assert len(answering.texts) > 1.5 * 6 * 4, "refusals do not count"


def test_a_server_that_answers_nothing_well_is_an_error(answering: Answering, generator: Worker, texts: str) -> None:
    answering.refuses_all = True
    with pytest.raises(PipelineError, match=r"None of .* requests was answered with 200"):
        generator.do(kind="http", url=answering.url, connections=2, seconds=0.1, texts=texts, longest_s=0.5)


def test_what_is_offered_does_not_wait_for_answers(answering: Answering, generator: Worker, texts: str) -> None:
    answering.pause_s = 0.3
    loads = [(50, 1.0), (20, 1.0)]
    many, few = generator.do(kind="offer", url=answering.url, texts=texts, deadline_s=10, loads=loads)
    assert len(answering.texts) == 50 + 20
    for load, offered in ((many, 50), (few, 20)):
        assert load["statuses"].pop("none") == 0
        assert load["statuses"].keys() == {"200", "503"}
        assert sum(load["statuses"].values()) == offered
        assert load["p50_ms"]["200"] >= 300


def test_an_answer_is_complete_with_its_last_byte() -> None:
    answer = b"HTTP/1.1 200 OK\r\nserver: x\r\nContent-Length: 5\r\n\r\nabcde"
    assert is_complete(answer)
    assert not any(is_complete(answer[:end]) for end in range(len(answer)))
    assert not is_complete(b"HTTP/1.1 200 OK\r\nserver: x\r\n\r\nabcde")


def test_rate_of_a_full_server_is_counted_from_the_first_answers_to_the_last() -> None:
    # Four batches of 8, one a second; the run began a second before the first, and ended with one under way.
    answered_at = [second + 0.001 * answer for second in (1, 2, 3, 4) for answer in range(8)]
    answers, seconds = steady(answered_at)
    assert answers / seconds == pytest.approx(8, rel=0.01)
    assert steady([]) == (0, 0.0)


def test_ports_are_given_once() -> None:
    first, second = free_ports(4), free_ports(4)
    assert second >= first + 4
