"""What is under way, as it is told to who looks."""

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

import gateway.monitoring.request_log
from common.errors import PipelineError
from common.settings import Settings
from gateway.console.pages import progress
from gateway.load_control.admission import UnderWay
from gateway.main import create_app
from serving.client.call_statistics import CallStatistics
from storage import jobs, releases
from storage.database import Database
from storage.jobs import Outcome
from storage.lazy_database import Storage
from tests.gateway.conftest import ADMIN_KEY, make_app, served, until
from tests.gateway.console.conftest import INJECTED, OWN, sign_in
from tests.gateway.fake_triton import FakeTriton

PROGRESS = "/console/progress"


class Listener:
    """Somebody who looks."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http
        self._told: queue.Queue[tuple[str, str]] = queue.Queue()
        self.thread = threading.Thread(target=self._listen, args=(http,), daemon=True)
        self.thread.start()

    def _listen(self, http: httpx.Client) -> None:
        with http.stream("GET", PROGRESS) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            name, data = "", []
            for line in response.iter_lines():
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    data.append(line.removeprefix("data: "))
                elif not line and name:
                    self._told.put((name, "\n".join(data)))
                    name, data = "", []

    def hear(self, name: str, words: str = "") -> str:
        """Wait for an event of the name with the words."""
        deadline = time.monotonic() + 20
        while True:
            told, data = self._told.get(timeout=max(0.1, deadline - time.monotonic()))
            if told == name and words in data:
                return data


@contextmanager
def listening(triton: FakeTriton, directory: Path) -> Iterator[tuple[Listener, Database, UnderWay]]:
    """Somebody looks in the block, and until the service ends."""
    settings = Settings(
        triton_url=f"127.0.0.1:{triton.port}",
        state_dir=directory / "state",
        model_repository=directory / "triton_repo",
        admin_key=SecretStr(ADMIN_KEY),
    )
    storage, under_way = Storage(settings), UnderWay()
    app = create_app(settings, storage, CallStatistics(), under_way)
    with served(app) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
        listener = Listener(http)
        try:
            yield listener, storage.open(), under_way
        finally:
            under_way.ending = True
            listener.thread.join(20)
        assert not listener.thread.is_alive()
    storage.close()


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "INTERVAL_S", 0.05)


def test_a_job_is_followed_from_the_request_to_its_end(triton: FakeTriton, tmp_path: Path) -> None:
    with listening(triton, tmp_path) as (listener, database, _):
        listener.hear("changed")  # since a page that knew of nothing
        listener.hear("progress", "No jobs are running.")
        job = jobs.enqueue(database, jobs.RETRAIN, INJECTED)
        assert "<script>" not in listener.hear("progress", "waiting")
        jobs.begin(database, job.id)
        jobs.set_step(database, job.id, "training")
        told = listener.hear("progress", "training")
        assert '<li aria-current="step">training</li>' in told
        assert '<li class="past">collecting</li>' in told
        with database.transaction() as session:
            jobs.end(session, job.id, Outcome(jobs.REJECTED, {"version": 2, "gates": ["comparison"]}))
        assert "by comparison" in listener.hear("progress", "was rejected")


def test_that_a_job_has_ended_changes_what_is_known_of_the_versions(triton: FakeTriton, tmp_path: Path) -> None:
    with listening(triton, tmp_path) as (listener, database, _):
        listener.hear("progress", "No jobs are running.")
        job = jobs.enqueue(database, jobs.CHECK, "a test")
        with database.transaction() as session:
            jobs.end(session, job.id, Outcome(jobs.FAILED, {}, "The model does not answer."))
        listener.hear("changed")
        listener.hear("progress", "The model does not answer.")
        job = jobs.enqueue(database, jobs.CHECK, "a test")
        with database.transaction() as session:
            jobs.end(session, job.id, Outcome(jobs.SUCCEEDED, {"version": 1, "stale": False, "problems": []}))
        listener.hear("progress", "a check, which succeeded")


def test_a_version_that_is_tried_is_told_and_changes_what_is_known_of_it(triton: FakeTriton, tmp_path: Path) -> None:
    with listening(triton, tmp_path) as (listener, database, _):
        listener.hear("progress", "No jobs are running.")
        with database.transaction() as session:
            release = releases.begin(session, 2, 1, releases.CANARY, [0.05, 0.5], "a test")
        listener.hear("changed")
        told = listener.hear("progress", "Version 2 is on trial beside version 1 (canary, step 1 of 2)")
        assert "No jobs are running." not in told
        with database.transaction() as session:
            session.merge(release).step = 1
        listener.hear("changed")
        listener.hear("progress", "step 2 of 2")


def test_who_listens_does_not_hold_up_the_end(triton: FakeTriton, tmp_path: Path) -> None:
    with listening(triton, tmp_path) as (listener, _, under_way):
        listener.hear("progress")
        assert under_way.count == 1
        under_way.ending = True
        until(lambda: under_way.count == 0)


def test_a_listener_who_leaves_is_forgotten(triton: FakeTriton, tmp_path: Path) -> None:
    with listening(triton, tmp_path) as (listener, _, under_way):
        listener.hear("progress")
        with listener.http.stream("GET", PROGRESS) as response:
            lines = response.iter_lines()  # which ends the connection when it is forgotten
            next(lines)
            until(lambda: under_way.count == 2)
        until(lambda: under_way.count == 1)


def test_only_so_many_listen_at_once(triton: FakeTriton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "MOST_LISTENERS", 1)
    with listening(triton, tmp_path) as (listener, _, under_way):
        listener.hear("progress")
        assert listener.http.get(PROGRESS).status_code == 503
        under_way.ending = True
        listener.thread.join(20)
        under_way.ending = False

        def is_free() -> bool:
            with listener.http.stream("GET", PROGRESS) as response:
                return response.status_code == 200

        until(is_free)


def test_one_caller_leaves_streams_for_others(triton: FakeTriton, tmp_path: Path) -> None:
    """All addresses of this machine are one caller; a session is another."""
    request = b"GET /console/progress HTTP/1.1\r\nHost: localhost\r\n"
    with served(make_app(triton, tmp_path)) as port, contextlib.ExitStack() as open_:

        def ask(address: str, cookie: str = "") -> bytes:
            connection = socket.create_connection(("127.0.0.1", port), 20, source_address=(address, 0))
            open_.enter_context(connection).sendall(request + f"Cookie: {cookie}\r\n\r\n".encode())
            return connection.recv(12)

        statuses = [ask(f"127.0.0.{number % 3 + 1}") for number in range(20)]
        assert statuses.count(b"HTTP/1.1 200") == progress.MOST_OF_CALLER
        assert statuses.count(b"HTTP/1.1 503") == 20 - progress.MOST_OF_CALLER
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=OWN) as http:
            sign_in(http)
            cookie = "; ".join(f"{name}={value}" for name, value in http.cookies.items())
        assert ask("127.0.0.1", cookie) == b"HTTP/1.1 200"


def test_while_the_database_is_down_that_is_told(
    triton: FakeTriton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> None:
        raise PipelineError("the-secret")

    monkeypatch.setattr(progress, "read", fail)
    monkeypatch.setattr(gateway.monitoring.request_log, "SLOW_S", 0.0)
    with listening(triton, tmp_path) as (listener, _, _under_way):
        assert "the-secret" not in listener.hear("progress", "The database does not respond")
        listener.http.get("/console/health")
    told = [record.getMessage() for record in caplog.records if record.name == "gateway.monitoring.request_log"]
    assert any("/console/health" in line for line in told)
    assert not any(PROGRESS in line for line in told), "to be open long is no reason for a line"
