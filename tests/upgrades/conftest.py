"""The state of an older release, unpacked as if it had been written where it now lies."""

import json
import sqlite3
import tarfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import free_ports, own_environment
from tests.lifecycle.conftest import Served
from tests.storage.conftest import postgres_server, postgres_url
from tests.upgrades.make_state import CLIENT_KEY, NOTES, ROOT_OF_PATHS

__all__ = ["postgres_server", "postgres_url"]
ARCHIVES = sorted(Path(__file__).parent.glob("*.tar.xz"))


@dataclass
class OldState(Served):
    """The directory of a pipeline that an older release ran in, and today's `serve`."""

    client_key: str = ""

    @property
    def state_dir(self) -> Path:
        return self.directory / ".sentiment"

    @property
    def admin_key(self) -> str:
        return (self.state_dir / "admin_key").read_text().strip()

    @property
    def database_file(self) -> Path:
        return self.state_dir / "sentiment.db"

    def ask(self, method: str, path: str, **named: Any) -> httpx.Response:
        """Ask with the admin key that the older release made, unless another is given."""
        headers = {"X-API-Key": self.admin_key, **named.pop("headers", {})}
        return httpx.request(method, self.url + path, headers=headers, timeout=90, **named)

    def set_due(self, at: float) -> None:
        """Have the stored check be due at another time than months ago, when the archive was made."""
        with closing(sqlite3.connect(self.database_file)) as connection, connection:
            connection.execute("UPDATE scheduled_jobs SET next_run_time = ?", (at,))

    def due(self) -> float:
        with closing(sqlite3.connect(self.database_file)) as connection:
            ((at,),) = connection.execute("SELECT next_run_time FROM scheduled_jobs WHERE id = 'check'")
        return float(at)


def unpack(archive: Path, directory: Path) -> OldState:
    """Unpack an archive of `make_state`, and have the absolute paths in MLflow's store lead here."""
    with tarfile.open(archive) as tar:
        tar.extractall(directory, filter="tar")
    notes = json.loads((directory / NOTES).read_text(encoding="utf-8"))
    _move_paths(directory / ".sentiment" / "mlflow.db", notes[ROOT_OF_PATHS], str(directory.resolve()))
    port = free_ports()
    environment = own_environment() | {
        "SENTIMENT_HOME": ".",
        "SENTIMENT_PORT": str(port),
        # As by default, but for a test that opens the same store from another directory.
        "SENTIMENT_STATE_DIR": str(directory / ".sentiment"),
    }
    return OldState(directory, port, environment, client_key=notes[CLIENT_KEY])


def _move_paths(store: Path, before: str, after: str) -> None:
    with closing(sqlite3.connect(store)) as connection, connection:
        for table, column in (
            ("experiments", "artifact_location"),
            ("runs", "artifact_uri"),
            ("model_versions", "source"),
            ("model_versions", "storage_location"),
        ):
            connection.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (before, after))


@pytest.fixture(params=ARCHIVES, ids=lambda archive: archive.name.partition(".")[0])
def old_state(request: pytest.FixtureRequest, tmp_path: Path) -> OldState:
    directory = tmp_path / "pipeline"
    directory.mkdir(mode=0o755)
    return unpack(request.param, directory)
