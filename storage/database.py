"""Opens the database, migrates its tables, and provides transactions."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event, func, make_url, select
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.orm import Session

from common.errors import PipelineError
from common.sqlite_url import sqlite_file

_MIGRATIONS = Path(__file__).resolve().parent / "migrations"
_MIGRATION_LOCK = 7_203_411
"""Key of PostgreSQL's advisory lock for migrations."""
_WAIT_S = 10.0
"""Maximum seconds to wait for another process's transaction on SQLite, or for a connection of the pool."""
_SILENCE_S = 15.0
"""Maximum seconds in which PostgreSQL may be silent during a statement. Requests are refused then anyway."""
_MIGRATION_SILENCE_S = 900.0
"""Maximum seconds in which PostgreSQL may be silent during a migration, which may have to wait for that of another
process, or change a large table."""
_LAST_SILENCE_S = 2.0
"""Maximum seconds in which PostgreSQL may be silent while this process shuts down."""


class Database:
    """The pipeline's database: SQLite or PostgreSQL. Any thread may use it."""

    def __init__(self, url: str) -> None:
        """Connect to `url`, in SQLAlchemy's format.

        Raises:
            PipelineError: the database cannot be used, or its tables are newer than this code.
        """
        self._silence_s = _SILENCE_S
        try:
            self._engine = _engine(url, lambda: self._silence_s)
            self._readers = self._engine.execution_options(reads_only=True)
            try:
                self._migrate()
            except BaseException:
                self._engine.dispose()
                raise
        except (ArgumentError, DBAPIError, CommandError, OSError, ModuleNotFoundError) as error:
            reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
            raise PipelineError(
                f"The database {_without_password(url)} cannot be used: {reason}. Check SENTIMENT_DATABASE_URL, "
                "such as postgresql+psycopg://user:password@host/name or sqlite:///path; if it is unset, check "
                "SENTIMENT_STATE_DIR."
            ) from error

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """Open a transaction: all its changes are stored, or none."""
        with Session(self._engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Open a consistent read that does not block writers."""
        with Session(self._readers, expire_on_commit=False) as session:
            yield session

    @property
    def engine(self) -> Engine:
        """SQLAlchemy's engine, for a library with its own tables."""
        return self._engine

    def hurry(self) -> None:
        """Give up statements of all threads on a PostgreSQL that hangs after a moment, because this process ends."""
        self._silence_s = _LAST_SILENCE_S

    def close(self) -> None:
        """Close the unused connections."""
        self._engine.dispose()

    def _migrate(self) -> None:
        # Configured here and not in a file, so that it works from every directory.
        config = Config()
        # Alembic reads options as templates, so a percent sign in the path is doubled.
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        with self._engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                # During a migration by another process, tables that are up to date for this code can be used.
                current = MigrationContext.configure(connection).get_current_revision()
                if current == ScriptDirectory.from_config(config).get_current_head():
                    return
                self._silence_s = _MIGRATION_SILENCE_S
                connection.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
        self._silence_s = _SILENCE_S


def now(session: Session) -> datetime:
    """Return the time of the database's clock, which is the same for all hosts."""
    if session.get_bind().dialect.name == "postgresql":
        told: datetime = session.execute(select(func.clock_timestamp())).scalar_one()
        return told.astimezone(UTC)
    return datetime.now(UTC)


def _engine(url: str, silence_s: Callable[[], float]) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        from storage.patient_connection import limit_silence  # SQLite does not need the driver of PostgreSQL

        engine = create_engine(parsed, pool_pre_ping=True, pool_timeout=_WAIT_S, hide_parameters=True)
        limit_silence(engine, silence_s)
        return engine
    if file := sqlite_file(parsed):
        file.parent.mkdir(parents=True, exist_ok=True)
    # Errors go to the log, so they must not contain users' texts.
    engine = create_engine(parsed, hide_parameters=True, connect_args={"timeout": _WAIT_S})
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    # `_begin_sqlite` begins transactions, not the driver.
    connection.isolation_level = None
    # Erased texts must also disappear from the file; not every build of SQLite does that by default.
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "secure_delete = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    # IMMEDIATE, because a transaction that reads and then writes would fail if another has written meanwhile.
    reads_only = connection.get_execution_options().get("reads_only", False)
    connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")


def _without_password(url: str) -> str:
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "of SENTIMENT_DATABASE_URL"
