"""PostgreSQL ends or hangs; of two hosts on it, the one that schedules is killed."""

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.e2e.chaos.fault import Fault
from tests.e2e.chaos.surroundings import four_free_ports
from tests.e2e.chaos.target import Target
from tests.e2e.conftest import wait_for
from tests.lifecycle.conftest import Served
from tests.storage.conftest import PostgresServer

AWAY_S = 8.0
HANGS_S = 14.0
TAKE_OVER_S = 60.0
_UNKEPT = "could not be stored|cannot be stored"


@contextmanager
def running_postgres(binaries: Path) -> Iterator[PostgresServer]:
    """Run a server of its own during the block."""
    server = PostgresServer(binaries)
    try:
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        server.remove()


def _stop(target: Target) -> None:
    assert target.postgres is not None
    target.postgres.stop()
    time.sleep(AWAY_S)
    target.postgres.start()


def _suspend(target: Target) -> None:
    assert target.postgres is not None
    first = psutil.Process(target.postgres.process_id)
    processes = [first, *first.children()]
    for process in processes:
        process.suspend()
    time.sleep(HANGS_S)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()


def _kill_scheduling_host(target: Target) -> None:
    directory = target.directory / "second"
    directory.mkdir()
    own = {"SENTIMENT_STATE_DIR": str(directory / "state"), "SENTIMENT_PORT": str(four_free_ports())}
    second = Served(directory, int(own["SENTIMENT_PORT"]), {**target.served.environment, **own})
    second.start()
    target.beside.append(second)
    try:
        target.served.kill()
        target.is_over()
        wait_for(lambda: "The scheduler runs here" in second.log, TAKE_OVER_S, "the other host to schedule")
        assert second.check()["state"] == "succeeded"
        target.is_well()
        target.served.start()
    finally:
        second.stop()


FAULTS = [
    Fault("postgres-down", f"PostgreSQL is down for {AWAY_S:.0f} s", _stop, _UNKEPT),
    Fault("postgres-hangs", f"PostgreSQL hangs for {HANGS_S:.0f} s", _suspend, _UNKEPT),
    Fault(
        "scheduler-host-killed",
        "of two hosts, the one that schedules is killed",
        _kill_scheduling_host,
        "The scheduler runs here",
        cuts_connections=True,
    ),
]
