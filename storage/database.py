"""Opens the database, brings its tables up to date, and gives out transactions."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event, func, make_url, select
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.orm import Session

from errors import PipelineError

_MIGRATIONS = Path(__file__).resolve().parent / "migrations"
_MIGRATION_LOCK = 7_203_411
"""Of PostgreSQL's advisory locks, the one under which tables are brought up to date."""
_WAIT_S = 10.0
"""For another process's transaction on SQLite, or a connection to PostgreSQL."""


class Database:
    """The database of the settings: SQLite, or PostgreSQL by URL. Usable from any thread."""

    def __init__(self, url: str) -> None:
        """Connect to `url`, as SQLAlchemy writes them.

        Raises:
            PipelineError: there is no such database, or its tables are newer than this code.
        """
        try:
            self._engine = _engine(url)
            self._readers = self._engine.execution_options(reads_only=True)
            try:
                self._migrate()
            except BaseException:
                self._engine.dispose()
                raise
        except (ArgumentError, DBAPIError, CommandError, OSError, ModuleNotFoundError) as error:
            reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
            raise PipelineError(
                f"The database {_without_password(url)} cannot be used: {reason}. SENTIMENT_DATABASE_URL names it, "
                "as postgresql+psycopg://user:password@host/name or sqlite:///path."
            ) from error

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """All that is done within is kept, or nothing of it is."""
        with Session(self._engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """One consistent view, which holds up no writer."""
        with Session(self._readers, expire_on_commit=False) as session:
            yield session

    @property
    def engine(self) -> Engine:
        """For a library that brings tables of its own."""
        return self._engine

    def close(self) -> None:
        """Close the connections that are not in use."""
        self._engine.dispose()

    def _migrate(self) -> None:
        # Not from a file: the same for whoever opens the database, wherever it is started.
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        with self._engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


def now(session: Session) -> datetime:
    """The time by the database's clock, which is the same for all hosts."""
    if session.get_bind().dialect.name == "postgresql":
        told: datetime = session.execute(select(func.clock_timestamp())).scalar_one()
        return told.astimezone(timezone.utc)
    return datetime.now(timezone.utc)


def _engine(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return create_engine(
            parsed, pool_pre_ping=True, hide_parameters=True, connect_args={"connect_timeout": int(_WAIT_S)}
        )
    if parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    # What users wrote is no part of an error, which goes to the log.
    engine = create_engine(parsed, hide_parameters=True, connect_args={"timeout": _WAIT_S})
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    # Transactions begin below, and not when the driver sees fit.
    connection.isolation_level = None
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and then wants to write would fail at once where another has written meanwhile.
    reads_only = connection.get_execution_options().get("reads_only", False)
    connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")


def _without_password(url: str) -> str:
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "of SENTIMENT_DATABASE_URL"


DatabaseDownError = OperationalError
"""The database cannot answer now: it is down, full, or locked by another."""
