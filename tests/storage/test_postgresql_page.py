"""docs/how-to-postgresql.md: its commands, on a real server."""

import os
from pathlib import Path
from urllib.parse import urlsplit

from tests.e2e.conftest import own_environment, run_block
from tests.pages import PROJECT, blocks
from tests.storage.conftest import find_postgres

PAGE = "docs/how-to-postgresql.md"


def test_commands(postgres_server: str, tmp_path: Path) -> None:
    make, look, dump = blocks(PAGE)
    (setting,) = (line for code in blocks(PAGE, "") for line in code.splitlines() if line.startswith("SENTIMENT_"))
    server = urlsplit(postgres_server)
    name, _, url = setting.partition("=")
    programs = find_postgres()
    environment = own_environment() | {
        "SENTIMENT_HOME": ".",
        "PGHOST": str(server.hostname),
        "PGPORT": str(server.port),
        "PGUSER": str(server.username),
        "PGDATABASE": "postgres",
        name: url.replace("db.example:5432", f"{server.hostname}:{server.port}"),
    }
    path = f"{programs}:{os.environ['PATH']}"
    run_block(f"PATH={path}\n{make}", tmp_path, environment)
    (tmp_path / "app.py").symlink_to(PROJECT / "app.py")
    assert "Nothing yet." in run_block(look, tmp_path, environment)
    run_block(f"PATH={path}\n{dump}", tmp_path, environment)
    assert (tmp_path / "sentiment.dump").read_bytes().startswith(b"PGDMP")
