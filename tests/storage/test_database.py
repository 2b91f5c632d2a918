"""The database: its tables are what the code says, and what was written stays."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from pydantic import SecretStr
from sqlalchemy import func, select, text

from common.errors import PipelineError
from common.settings import Settings
from storage import jobs
from storage.database import _MIGRATION_LOCK, Database
from storage.lazy_database import Storage
from storage.tables import Feedback, Table
from tests.e2e.conftest import PROJECT, wait_for


def test_the_migrations_make_the_tables(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Table.metadata) == []


def test_many_open_a_new_database_at_once(empty_database_url: str) -> None:
    code = f"from storage.database import Database; Database({empty_database_url!r})"
    processes = [subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT, stderr=subprocess.PIPE) for _ in range(4)]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors.decode()


def test_a_migration_by_another_process_stops_neither_a_current_database_nor_other_threads(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.lazy_database._PATIENCE_S", 0.2)
    storage = Storage(Settings(database_url=SecretStr(postgres_url)))
    # In this order, so that the lock is free when the threads must end.
    with ThreadPoolExecutor() as threads, psycopg.connect(postgres_url.replace("+psycopg", "")) as migrating:
        migrating.execute("SELECT pg_advisory_lock(%s)", [_MIGRATION_LOCK])
        opening = threads.submit(storage.open)
        wait_for(storage._lock.locked, 10, "the other thread to begin")
        with pytest.raises(PipelineError, match="tables are being migrated"):
            storage.open()
        migrating.execute("SELECT pg_advisory_unlock(%s)", [_MIGRATION_LOCK])
        assert opening.result(60) is storage.open()
        migrating.execute("SELECT pg_advisory_lock(%s)", [_MIGRATION_LOCK])
        with closing(Database(postgres_url)) as current:
            assert jobs.get(current, 1) is None
    storage.close()


def test_tables_of_a_newer_release_are_left_alone(database_url: str) -> None:
    database = Database(database_url)
    with database.transaction() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(PipelineError, match="cannot be used: Can't locate revision identified by '9999'"):
        Database(database_url)
    database.close()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("postgresql+psycopg://me:the-secret@127.0.0.1:1/none", "127.0.0.1"),
        ("postgresql+nothing://me:the-secret@127.0.0.1/none", "Can't load plugin"),
        ("no url at all", "Check SENTIMENT_DATABASE_URL"),
        ("sqlite:////proc/none/sentiment.db", "cannot be used"),
    ],
)
def test_a_database_that_is_not_there_is_told_without_its_password(url: str, told: str) -> None:
    with pytest.raises(PipelineError) as caught:
        Database(url)
    assert told in str(caught.value)
    assert "the-secret" not in str(caught.value)


def test_what_was_kept_is_there_after_a_kill(database: Database, database_url: str) -> None:
    code = (
        "from storage.database import Database; from storage.feedback import LabelledText, add_feedback\n"
        f"database = Database({database_url!r})\n"
        "for number in range(10_000):\n"
        "    add_feedback(database, [LabelledText(f'text {number}', 'Positive')], 'api')\n"
        "    print(number, flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    answered = [process.stdout.readline() for _ in range(20)]
    os.kill(process.pid, signal.SIGKILL)
    rest, _ = process.communicate()
    told = len(answered) + len(rest.splitlines())
    with database.reading() as session:
        kept = session.scalar(select(func.count()).select_from(Feedback))
    assert kept is not None
    assert told <= kept <= told + 1


def test_sqlite_overwrites_what_is_erased(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'a.db'}")
    with database.reading() as session:
        assert session.scalar(text("PRAGMA secure_delete")) == 1
    database.close()


def test_storage_is_opened_when_it_can_be(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("in the way")
    storage = Storage(Settings(state_dir=tmp_path / "state"))
    with pytest.raises(PipelineError):
        storage.open()
    (tmp_path / "state").unlink()
    with pytest.raises(PipelineError):  # not asked again at once
        storage.open()
    storage._failed_at -= 60
    assert storage.open() is storage.open()
    storage.close()
