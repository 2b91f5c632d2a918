"""A database of an older release is brought up to date, on SQLite and on PostgreSQL, and its check stays due."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime

import pytest
from alembic import command
from alembic.config import Config
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from pydantic import SecretStr
from sqlalchemy import BigInteger, Engine, Integer, MetaData, create_engine, func, select, text

from common.settings import Settings
from lifecycle.jobs.scheduler import Scheduler
from storage.database import Database
from storage.feedback import LabelledText, add_feedback
from storage.lazy_database import Storage
from storage.tables import Feedback, Job
from tests.e2e.conftest import PROJECT, wait_for
from tests.upgrades.conftest import OldState
from tests.upgrades.make_state import FEEDBACK, IMPORTED

SCHEDULED = "scheduled_jobs"


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.full)])
def old_database(request: pytest.FixtureRequest, old_state: OldState) -> str:
    """The URL of a database as the older release left it."""
    file = f"sqlite:///{old_state.database_file}"
    if request.param == "sqlite":
        return file
    url: str = request.getfixturevalue("postgres_url")
    with _engine(file) as source, _engine(url) as target:
        _copy(source, target)
    return url


@contextmanager
def _engine(url: str) -> Iterator[Engine]:
    engine = create_engine(url)
    try:
        yield engine
    finally:
        engine.dispose()


def _copy(source: Engine, target: Engine) -> None:
    """Have the migrations of the older release and its APScheduler make the tables, and fill them with its rows."""
    before, after = MetaData(), MetaData()
    before.reflect(source)
    with source.connect() as connection:
        revision = connection.scalar(text("SELECT version_num FROM alembic_version"))
    config = Config()
    config.set_main_option("script_location", str(PROJECT / "storage" / "migrations"))
    with target.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, str(revision))
    SQLAlchemyJobStore(engine=target, tablename=SCHEDULED).jobs_t.create(target)
    after.reflect(target)
    with source.connect() as reading, target.begin() as writing:
        for table in after.sorted_tables:
            if table.name == "alembic_version":
                continue
            rows = [
                {
                    name: value.replace(tzinfo=UTC) if isinstance(value, datetime) else value
                    for name, value in row.items()
                }
                for row in reading.execute(select(before.tables[table.name])).mappings()
            ]
            if rows:
                writing.execute(table.insert(), rows)
            key = table.c.get("id")
            if rows and key is not None and isinstance(key.type, BigInteger | Integer):
                sequence = func.pg_get_serial_sequence(table.name, "id")
                writing.execute(select(func.setval(sequence, select(func.max(key)).scalar_subquery())))


def test_feedback_and_history_are_there(old_database: str) -> None:
    with closing(Database(old_database)) as database:
        with database.reading() as session:
            rows = session.execute(select(Feedback.source, func.count()).group_by(Feedback.source)).all()
            assert dict(rows) == {"legacy:api": len(FEEDBACK), "import:imported.csv": len(IMPORTED)}
            assert [job.kind for job in session.scalars(select(Job).order_by(Job.id))] == [
                "check",
                "retrain",
                "check",
                "check",
            ]
        known = {row.id for row in _all_feedback(database)}
        (added,) = add_feedback(database, [LabelledText("one more", "Positive")], "admin")
        assert added not in known


def _all_feedback(database: Database) -> list[Feedback]:
    with database.reading() as session:
        return list(session.scalars(select(Feedback)))


def test_the_stored_check_keeps_its_time(old_database: str, old_state: OldState) -> None:
    due = round(time.time()) + 25 * 60
    with _engine(old_database) as engine, engine.begin() as connection:
        (state,) = connection.execute(text(f"SELECT job_state FROM {SCHEDULED}")).one()
        connection.execute(text(f"UPDATE {SCHEDULED} SET next_run_time = :due"), {"due": due})
    settings = Settings(
        database_url=SecretStr(old_database),
        state_dir=old_state.state_dir,
        model_repository=old_state.directory / "triton_repo",
    )
    storage = Storage(settings)
    scheduler = Scheduler(settings, storage)
    scheduler.start()
    try:
        wait_for(lambda: _stored(old_database)[1] != bytes(state), 30, "the check to be stored anew")
        at, renewed = _stored(old_database)
        assert at == due
        assert b"lifecycle.jobs.scheduler:request_check" in renewed
    finally:
        scheduler.stop()
        storage.close()


def _stored(url: str) -> tuple[float, bytes]:
    with _engine(url) as engine, engine.connect() as connection:
        at, state = connection.execute(text(f"SELECT next_run_time, job_state FROM {SCHEDULED}")).one()
    return float(at), bytes(state)
