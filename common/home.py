"""The home directory of the pipeline: `.env` is in it, and relative paths of settings start there.

It is the directory of `app.py`, wherever the process was started, unless `SENTIMENT_HOME` names another. So a cron job
or a service unit uses the same state as a person in the checkout.
"""

import os
from pathlib import Path

HOME = "SENTIMENT_HOME"
_CHECKOUT = Path(__file__).resolve().parents[1]


def home() -> Path:
    """Return the home directory, as an absolute path."""
    return _of_account(Path(os.environ.get(HOME) or _CHECKOUT)).absolute()


def from_home(path: Path) -> Path:
    """Return a path that counts from the home directory if it is relative. `~` is the account's own directory.

    It stays relative if the process runs in the home directory, so that messages are short there.
    """
    path = _of_account(path)
    return path if path.is_absolute() or _is_here(home()) else home() / path


def _of_account(path: Path) -> Path:
    """Return a path with the account's own directory in place of `~`, which no shell replaces in `.env` and units.

    If the account has none, the path is returned as it is.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def _is_here(directory: Path) -> bool:
    """Return whether the process runs in a directory. The process's own may have been deleted."""
    try:
        return directory.samefile(".")
    except OSError:
        return False


def env_file() -> Path:
    """Return the path of `.env`, which may be absent."""
    return from_home(Path(".env"))
