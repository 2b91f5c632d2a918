"""Real databases to test on: SQLite in a file, and a PostgreSQL server of the tests' own."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from storage.database import Database
from tests.e2e.conftest import free_ports

_POSTGRES_USER = "postgres"


class PostgresServer:
    """A PostgreSQL server of the tests' own, in a directory of its own, which can be ended and begun."""

    def __init__(self, binaries: Path) -> None:
        """Lay out its files; `start` begins."""
        self._binaries = binaries
        # Not among pytest's own, which another run of pytest closes to all other users.
        self._directory = Path(tempfile.mkdtemp(prefix="sentiment-postgres-"))
        self._data = self._directory / "data"
        # PostgreSQL refuses to run as root, as which tests in a container often do.
        self._as_user = ["runuser", "-u", _POSTGRES_USER, "--"] if os.geteuid() == 0 else []
        if self._as_user:
            shutil.chown(self._directory, _POSTGRES_USER)
        self._port = free_ports(1)
        self.url = f"postgresql+psycopg://{_POSTGRES_USER}:not-asked-for@127.0.0.1:{self._port}"
        """But for the database's name."""
        self._run("initdb", "-D", self._data, "-U", _POSTGRES_USER, "--auth=trust", "--no-sync")

    def start(self) -> None:
        options = f"-p {self._port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self._directory}"
        self._run("pg_ctl", "-D", self._data, "-w", "-o", options, "-l", self._directory / "server.log", "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", self._data, "-w", "-m", "immediate", "stop")

    @property
    def process_id(self) -> int:
        """Of the server's first process, whose children answer."""
        return int((self._data / "postmaster.pid").read_text().splitlines()[0])

    def remove(self) -> None:
        shutil.rmtree(self._directory)

    def _run(self, program: str, *arguments: str | Path) -> None:
        command = [*self._as_user, str(self._binaries / program), *map(str, arguments)]
        subprocess.run(command, check=True, capture_output=True, cwd=self._directory)


def find_postgres() -> Path | None:
    """Where the newest PostgreSQL server that is installed has its programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    return found[-1] if found else None


@contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    """A fresh PostgreSQL server during the block; the test is skipped where none is installed."""
    binaries = find_postgres()
    if binaries is None:
        pytest.skip("no PostgreSQL server is installed (Debian and Ubuntu: apt-get install postgresql)")
    server = PostgresServer(binaries)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        server.remove()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a fresh PostgreSQL server, but for the database's name."""
    with running_postgres() as server:
        yield server.url


@contextmanager
def made_database(server: str, name: str, template: str = "template1") -> Iterator[str]:
    """The URL of a database of a PostgreSQL server, a copy of `template`, for the length of the block."""
    with _administration(server) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    yield f"{server}/{name}"
    with _administration(server) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def database_away(url: str) -> Iterator[None]:
    """End all connections to a database of PostgreSQL, and let nobody connect to it during the block."""
    server, _, name = url.rpartition("/")
    with _administration(server) as connection:
        connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        try:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
            yield
        finally:
            connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


def _administration(server: str) -> "psycopg.Connection[tuple[object, ...]]":
    return psycopg.connect(f"{server.replace('+psycopg', '')}/postgres", autocommit=True)


def _name(request: pytest.FixtureRequest) -> str:
    return f"test_{abs(hash(request.node.nodeid))}"


@pytest.fixture
def postgres_url(postgres_server: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an empty database of PostgreSQL."""
    with made_database(postgres_server, _name(request)) as url:
        yield url


@pytest.fixture(scope="session")
def postgres_template(postgres_server: str) -> Iterator[str]:
    """The name of a database of PostgreSQL with all tables; copies of it need no migrations."""
    with made_database(postgres_server, "migrated") as url:
        Database(url).close()
        yield "migrated"


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of SQLite with all tables."""
    path = tmp_path_factory.mktemp("migrated") / "sentiment.db"
    Database(f"sqlite:///{path}").close()
    return path


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.full)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database of each kind, with all tables and no rows."""
    if request.param == "sqlite":
        path = tmp_path / "sentiment.db"
        shutil.copy(request.getfixturevalue("sqlite_template"), path)
        yield f"sqlite:///{path}"
    else:
        server, template = map(request.getfixturevalue, ("postgres_server", "postgres_template"))
        with made_database(server, _name(request), template) as url:
            yield url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.full)])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database of each kind without tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'sentiment.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database(database_url)
    yield opened
    opened.close()
