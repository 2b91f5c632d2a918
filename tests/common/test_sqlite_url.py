"""An SQLite file lies where its directory is, whatever characters the directory has."""

from contextlib import closing
from pathlib import Path

import pytest

from common.settings import Settings
from common.sqlite_url import sqlite_file, sqlite_url
from storage.database import Database

ODD = ["a blank", "&", "(", "'", '"', "$HOME", "%41", "100%", "?", "?mode=memory", "#", "é", "+", ":", "\\", "[x]"]


@pytest.mark.parametrize("name", ODD)
def test_the_database_is_in_the_state_directory_and_nothing_is_elsewhere(name: str, tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path / name)
    with closing(Database(settings.database)):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name / "sentiment.db").stat().st_size > 0
    assert sqlite_file(settings.database) == tmp_path / name / "sentiment.db"


def test_usual_paths_have_the_usual_url() -> None:
    assert sqlite_url(Path("/srv/é & ü/sentiment.db")) == "sqlite:////srv/é & ü/sentiment.db"


@pytest.mark.parametrize(
    "url", ["postgresql+psycopg://me@host/name", "sqlite://", "sqlite:///:memory:", "no url at all", "http://host:5000"]
)
def test_what_is_no_file_of_sqlite(url: str) -> None:
    assert sqlite_file(url) is None
