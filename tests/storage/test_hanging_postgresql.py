"""A PostgreSQL that hangs, and is not down, holds nobody up for long, and is used again when it goes on."""

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from storage import database as database_module
from storage import leases
from storage.database import Database
from tests.e2e.conftest import wait_for
from tests.lifecycle.conftest import make_served
from tests.storage.conftest import PostgresServer, running_postgres

pytestmark = pytest.mark.full


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    with running_postgres() as server:
        yield server


@contextmanager
def hanging(server: PostgresServer) -> Iterator[None]:
    """Stop all processes of the server during the block, as SIGSTOP does; the kernel still accepts connections."""
    first = psutil.Process(server.process_id)
    stopped = []
    try:
        for process in (first, *first.children()):
            with suppress(psutil.NoSuchProcess):  # some of the server's processes end by themselves
                process.suspend()
                stopped.append(process)
        yield
    finally:
        for process in stopped:
            process.resume()


def ask(database: Database) -> str:
    try:
        with database.reading() as session:
            return str(session.execute(text("SELECT 1")).scalar_one())
    except OperationalError as error:
        return str(error.orig)


def test_every_thread_gives_up_and_it_is_used_again_when_it_goes_on(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "_SILENCE_S", 1.0)
    database = Database(f"{server.url}/postgres")
    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(ask, [database] * 6)) == {"1"}
        with hanging(server):
            answers = [pool.submit(ask, database) for _ in range(6)]
            assert "1" not in {answer.result(60) for answer in answers}
        assert set(pool.map(ask, [database] * 6)) == {"1"}
    database.close()


def test_a_statement_that_waits_is_given_up_and_told(server: PostgresServer) -> None:
    database = Database(f"{server.url}/postgres")
    database._silence_s = 1.0
    with database.reading() as session:
        session.execute(text("SELECT 1"))
        with hanging(server), pytest.raises(OperationalError, match="has not responded for"):
            session.execute(text("SELECT 2"))
    assert ask(database) == "1"
    database.close()


def test_a_slow_statement_is_given_up_only_after_its_time(server: PostgresServer) -> None:
    database = Database(f"{server.url}/postgres")
    with database.reading() as session:
        assert session.execute(text("SELECT 1 FROM pg_sleep(3)")).scalar_one() == 1
    database.close()


def test_at_the_end_of_the_process_it_is_given_up_at_once(server: PostgresServer) -> None:
    """By the threads too that have waited since before."""
    database = Database(f"{server.url}/postgres")
    assert leases.take(database, leases.SCHEDULER, leases.new_holder(), 30)
    with hanging(server), ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, database)
        time.sleep(0.5)
        assert not answer.done()
        database.hurry()
        began = time.monotonic()
        assert answer.result(60) != "1"
        # Its own silence, and that of the connection that replaces it; without `hurry` 15 s and 10 s.
        assert time.monotonic() - began < database_module._SILENCE_S
    database.close()


def test_the_pipeline_serves_while_it_hangs_and_ends_when_it_is_told_to(
    server: PostgresServer, bert_bundle: Path, tmp_path: Path
) -> None:
    """SIGTERM waited for every thread that waited for the server; Triton that died was not started again."""
    served = make_served(tmp_path, bert_bundle, versions=1, SENTIMENT_DATABASE_URL=f"{server.url}/postgres")
    served.start()
    assert served.process is not None
    try:
        with hanging(server):
            time.sleep(20)  # longer than each thread waits by itself
            assert served.version() == 1
            children = psutil.Process(served.process.pid).children(True)
            next(child for child in children if child.name() == "tritonserver").kill()
            wait_for(lambda: "Triton ended after" in served.log and served.is_ready(), 120, "Triton to be back")
            served.process.send_signal(signal.SIGTERM)
            served.process.wait(40)
    finally:
        if served.process.poll() is None:
            served.kill()
