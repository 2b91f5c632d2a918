"""The admin key: where it comes from, and whether a request has it."""

import hmac
import logging
import os
import secrets
import tempfile
from pathlib import Path

from fastapi import Request

from errors import PipelineError
from gateway.deps import get_loop
from gateway.problems import KeyNeededError
from settings import Settings

KEY_HEADER = "X-API-Key"
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


def check_key(request: Request) -> None:
    """Raise a KeyNeededError unless the request has the admin key."""
    given = request.headers.get(KEY_HEADER, "")
    # A header's bytes are taken as Latin-1; the key is sent in UTF-8.
    if not hmac.compare_digest(given.encode("latin-1"), get_loop(request).admin_key.encode()):
        fault = "is wrong" if given else "is missing"
        raise KeyNeededError(f"The header {KEY_HEADER} {fault}; this needs the admin key.")
