"""The admin key: where it comes from."""

import logging
import os
import secrets
import tempfile
from pathlib import Path

from errors import PipelineError
from settings import Settings

_FILE = "admin_key"

log = logging.getLogger(__name__)


def load_admin_key(settings: Settings) -> str:
    """The key of the settings, or that of the state directory, made at the first start and readable by the owner only.

    Raises:
        PipelineError: the file can neither be read nor made.
    """
    if settings.admin_key is not None:
        return settings.admin_key.get_secret_value()
    path = settings.state_dir / _FILE
    try:
        if not path.exists():
            _make(path)
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise PipelineError(f"The admin key in {path} can neither be read nor made: {error}.") from error
    if not key:
        raise PipelineError(f"{path} is empty; remove it, and a new admin key is made.")
    return key


def _make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Made whole before it has its name, so that two that start at once do not read half of one.
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{_FILE}.") as part:
        part.write(secrets.token_urlsafe(32))
        part.flush()
        try:
            os.link(part.name, path)
        except FileExistsError:
            return
    log.info("The admin key, which requests that change what is served need, was made and lies in %s.", path)
