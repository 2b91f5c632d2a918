"""Leases: one holder at a time, whoever asks, and none for ever."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from storage import leases
from storage.database import Database
from storage.tables import Lease
from tests.e2e.conftest import PROJECT, wait_for

NAME = leases.SCHEDULER


def test_of_many_one_has_it(database: Database) -> None:
    holders = [leases.new_holder() for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda holder: leases.take(database, NAME, holder, 30), holders))
    assert taken.count(True) == 1
    assert leases.holder_of(database, NAME) == holders[taken.index(True)]
    assert leases.take(database, "another", holders[0], 30)


def test_it_is_renewed_given_back_and_lost_by_time(database: Database) -> None:
    first, second = leases.new_holder(), leases.new_holder()
    assert leases.take(database, NAME, first, 30)
    assert leases.take(database, NAME, first, 30)
    assert not leases.take(database, NAME, second, 30)
    leases.give_back(database, NAME, second)
    assert leases.holder_of(database, NAME) == first
    leases.give_back(database, NAME, first)
    assert leases.holder_of(database, NAME) is None
    assert leases.take(database, NAME, second, 0.2)
    wait_for(lambda: leases.take(database, NAME, first, 30), 5, "the lease to be over")
    assert not leases.take(database, NAME, second, 30)


def test_a_block_holds_it_longer_than_its_time(database: Database) -> None:
    lost = threading.Event()
    with leases.held(database, NAME, 0.4, on_loss=lost.set) as is_held:
        assert is_held
        time.sleep(1.2)
        assert not leases.take(database, NAME, leases.new_holder(), 30)
        with leases.held(database, NAME, 0.4) as second_is_held:
            assert not second_is_held
    assert not lost.is_set()
    assert leases.take(database, NAME, leases.new_holder(), 30)


def test_a_block_is_told_that_it_lost_it(database: Database) -> None:
    lost = threading.Event()
    with leases.held(database, NAME, 2, on_loss=lost.set):
        with database.transaction() as session:
            lease = session.get_one(Lease, NAME)
            lease.holder = leases.new_holder()
        assert lost.wait(5)


def test_a_killed_holder_has_it_no_more(database: Database, database_url: str) -> None:
    code = (
        f"from storage import leases; from storage.database import Database; import time\n"
        f"assert leases.take(Database({database_url!r}), {NAME!r}, leases.new_holder(), 300)\n"
        "print('taken', flush=True); time.sleep(300)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"taken\n"
    assert leases.holder_of(database, NAME) is not None
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert leases.holder_of(database, NAME) is None
    assert leases.take(database, NAME, leases.new_holder(), 30)


def test_a_copy_of_this_machine_is_another_machine(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the same name and the same namespaces, but of its processes nothing is known here."""
    read = Path.read_text

    def read_another(path: Path) -> str:
        return "copy" if path.name == "boot_id" else read(path)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_text", read_another)
        leases._here.cache_clear()
        copy = leases.new_holder()
    leases._here.cache_clear()
    host, boot, namespace, _process, token = copy.split(" ")
    assert boot == "copy"
    assert leases.take(database, NAME, f"{host} {boot} {namespace} {2**22 + 1} {token}", 30)
    assert not leases.take(database, NAME, leases.new_holder(), 30)
    assert not leases.is_of_this_process(copy)


def test_what_a_block_did_is_done_even_if_its_lease_cannot_be_released(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OperationalError("DELETE", {}, Exception("the database has gone away"))

    monkeypatch.setattr(leases, "give_back", fail)
    with leases.held(database, NAME, 30) as is_held:
        assert is_held
    assert f"The lease '{NAME}' cannot be released now; it expires in 30 s" in caplog.text


def test_a_block_is_told_in_time_while_the_database_hangs(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    lost, hanging = threading.Event(), threading.Event()
    with leases.held(database, NAME, 0.4, on_loss=lost.set):
        monkeypatch.setattr(leases, "take", lambda *_: hanging.wait(60))
        try:
            assert lost.wait(20)
            assert not hanging.is_set()
        finally:
            hanging.set()
