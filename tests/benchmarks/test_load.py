"""The load generators send every request once, count what is refused, and their summary is understood."""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from benchmarks.http_load import steady, summary
from benchmarks.load import Client, Load, Requests, http_client, live_body, parse_summary
from benchmarks.processes import Server, free_ports
from errors import PipelineError

WRK_OUTPUT = b"""Running 1s test @ http://127.0.0.1:18000/predict/live
  1 threads and 4 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   612.00us  210.00us   4.11ms   91.20%
  6470 requests in 1.00s, 1.10MB read
  Non-2xx or 3xx responses: 12
{"answered": 6458, "refused": 12, "lost": 0, "seconds": 1.000115, "p50_ms": 0.5890, "p99_ms": 1.2300, \
"steady_answers": 6450, "steady_seconds": 0.998}
"""


class Answering(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        self.texts: list[str] = []
        super().__init__(("127.0.0.1", 0), Handler)

    def handle_error(self, *_: Any) -> None:
        """Load generators leave without waiting for their last answers."""


class Handler(BaseHTTPRequestHandler):
    """Refuses texts with an odd number."""

    protocol_version = "HTTP/1.1"
    server: Answering
    # The head and the body of an answer go in two packets, and Nagle's algorithm would hold the second back.
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        text = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"]
        self.server.texts.append(text)
        self.send_response(503 if int(text) % 2 else 200)
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


@pytest.fixture(params=["wrk", "http_load"])
def generator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "http_load":
        monkeypatch.setattr(shutil, "which", lambda _: None)
    elif shutil.which("wrk") is None:
        pytest.skip("wrk is not installed")


@pytest.fixture
def idle(tmp_path: Path) -> Iterator[Server]:
    process = subprocess.Popen(["sleep", "60"])
    yield Server(process, tmp_path / "log", 0)
    process.kill()
    process.wait()


@pytest.mark.usefixtures("generator")
def test_every_text_is_sent_once_and_refusals_are_counted(answering: Answering, idle: Server, tmp_path: Path) -> None:
    client = http_client(f"http://127.0.0.1:{answering.server_port}/predict/live", 4)
    load = Load(client, Requests(map(str, count()), live_body), idle, tmp_path)

    load(1)  # learns how many texts are needed
    answering.texts.clear()
    figures = load(1)

    assert len(set(answering.texts)) == len(answering.texts)
    assert figures["texts_per_s"] > 0
    assert figures["failed"] > 0
    assert 0 < figures["p50_ms"] <= figures["p99_ms"]
    assert figures["generator_cores"] < 1


def fake_generator(tmp_path: Path, answered_per_s: int) -> Client:
    """Answers at a fixed rate, in no time."""
    script = "import json, sys; seconds = float(sys.argv[1]); print('noise'); print(json.dumps({'answered':"
    script += f"int({answered_per_s} * seconds), 'refused': 0, 'lost': 0,"
    script += "'seconds': seconds, 'p50_ms': 1, 'p99_ms': 2, 'steady_answers': 0, 'steady_seconds': 0}))"

    def command(seconds: float, file: Path | None, _: bool) -> list[str]:
        assert file is not None
        with (tmp_path / "asked").open("a") as asked:
            asked.write(f"{seconds:g} {len(file.read_bytes().splitlines())}\n")
        return [sys.executable, "-c", script, str(seconds)]

    return Client(command, 8)


def runs(tmp_path: Path) -> list[tuple[float, int]]:
    lines = (tmp_path / "asked").read_text().splitlines()
    return [(float(seconds), int(offered)) for seconds, offered in map(str.split, lines)]


def test_run_that_sent_texts_twice_is_made_again_with_more(idle: Server, tmp_path: Path) -> None:
    load = Load(fake_generator(tmp_path, 1_000), Requests(map(str, count()), live_body), idle, tmp_path)
    assert load(1)["texts_per_s"] == 1_000
    (_, first), (_, second) = runs(tmp_path)
    assert first < 1_000 < second


def test_run_that_was_too_short_for_a_slow_server_is_made_longer(idle: Server, tmp_path: Path) -> None:
    load = Load(fake_generator(tmp_path, 2), Requests(map(str, count()), live_body), idle, tmp_path)
    assert load(1)["texts_per_s"] == 2
    load(1)
    assert [seconds for seconds, _ in runs(tmp_path)] == [1, 20, 20]


def test_summary_is_found_after_what_wrk_writes() -> None:
    assert parse_summary(WRK_OUTPUT)["answered"] == 6458
    assert parse_summary(WRK_OUTPUT)["refused"] == 12
    with pytest.raises(PipelineError, match="unable to connect"):
        parse_summary(b"unable to connect to 127.0.0.1:1 Connection refused\n")


def test_summary_of_the_fallback_is_the_same() -> None:
    line = summary([0.001 * number for number in range(1, 101)], [1.0, 2.0], refused=3, lost=1, seconds=2.0)
    assert parse_summary(line.encode()).keys() == parse_summary(WRK_OUTPUT).keys()
    assert parse_summary(line.encode())["p50_ms"] == pytest.approx(51)
    assert parse_summary(line.encode())["p99_ms"] == pytest.approx(100)


def test_rate_of_a_full_server_is_counted_from_the_first_answers_to_the_last() -> None:
    # Four batches of 8, one a second; the run began a second before the first, and ended with one under way.
    answered_at = [second + 0.001 * answer for second in (1, 2, 3, 4) for answer in range(8)]
    answers, seconds = steady(answered_at)
    assert answers / seconds == pytest.approx(8, rel=0.01)
    assert steady([]) == (0, 0.0)


def test_ports_are_given_once() -> None:
    first, second = free_ports(4), free_ports(4)
    assert second >= first + 4
