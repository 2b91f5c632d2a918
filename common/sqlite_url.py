"""URLs of SQLite files for SQLAlchemy and MLflow, whatever characters the path has."""

import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from common.home import from_home

if TYPE_CHECKING:
    from sqlalchemy import URL

_RESERVED = "%?"
"""Characters of a path that mean something else in SQLAlchemy's URLs, depending on its version."""
_PREFIX = "sqlite:///"
_FILE = re.compile(r"sqlite(?:\+\w+)?:///(.+)", re.DOTALL)
_SQLITE_URI = "file:"


def sqlite_url(path: Path) -> str:
    """Return the URL of the SQLite file at an absolute path."""
    plain = f"{_PREFIX}{path}"
    if not any(character in plain for character in _RESERVED):
        return plain
    from sqlalchemy import URL  # only here, because this module is imported with the settings

    # A URI of SQLite's own, whose percent signs SQLAlchemy escapes as its version needs it. The driver is named, since
    # MLflow creates the directory that it reads in a URL with the prefix `sqlite:///`, without unescaping it.
    database = f"{_SQLITE_URI}{quote(str(path))}"
    url = URL.create("sqlite+pysqlite", database=database, query={"uri": "true"})
    return url.render_as_string(hide_password=False)


def sqlite_file(url: "str | URL") -> Path | None:
    """Return the path of the file behind a URL; None for other databases, for one in memory, and for no URL at all."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(url)
    except ArgumentError:
        return None
    database = parsed.database or ""
    if parsed.get_backend_name() != "sqlite" or database in ("", ":memory:"):
        return None
    if database.startswith(_SQLITE_URI):
        database = unquote(database.removeprefix(_SQLITE_URI).partition("?")[0])
    return Path(database)


def file_from_home(url: str) -> str:
    """Return a URL whose SQLite file counts from the home directory if its path is relative; others are unchanged."""
    found = _FILE.fullmatch(url)
    if found is None or found[1].startswith(("/", ":", _SQLITE_URI)):
        return url
    file, _, options = found[1].partition("?")
    anchored = sqlite_url(from_home(Path(file)).absolute())
    return f"{anchored}{'&' if '?' in anchored else '?'}{options}" if options else anchored
