"""Real databases to test on: SQLite in a file, and a PostgreSQL server of the tests' own."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.database import Database

_POSTGRES_USER = "postgres"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a fresh PostgreSQL server, but for the database's name."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    if not found:
        pytest.skip("no PostgreSQL server is installed (Debian and Ubuntu: apt-get install postgresql)")
    binaries = found[-1]
    # Not among pytest's own, which another run of pytest closes to all other users.
    directory = Path(tempfile.mkdtemp(prefix="sentiment-postgres-"))
    data = directory / "data"
    # PostgreSQL refuses to run as root, as which tests in a container often do.
    as_user = ["runuser", "-u", _POSTGRES_USER, "--"] if os.geteuid() == 0 else []
    if as_user:
        shutil.chown(directory, _POSTGRES_USER)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def run(*command: str | Path) -> None:
        subprocess.run([*as_user, *map(str, command)], check=True, capture_output=True, cwd=directory)

    run(binaries / "initdb", "-D", data, "-U", _POSTGRES_USER, "--auth=trust", "--no-sync")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={directory}"
    run(binaries / "pg_ctl", "-D", data, "-w", "-o", options, "-l", directory / "server.log", "start")
    try:
        yield f"postgresql+psycopg://{_POSTGRES_USER}:not-asked-for@127.0.0.1:{port}"
    finally:
        run(binaries / "pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
        shutil.rmtree(directory)


@pytest.fixture
def postgres_url(postgres_server: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an empty database of PostgreSQL."""
    import psycopg

    name = f"test_{abs(hash(request.node.nodeid))}"
    server = postgres_server.replace("+psycopg", "")
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield f"{postgres_server}/{name}"
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'sentiment.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database(database_url)
    yield opened
    opened.close()
