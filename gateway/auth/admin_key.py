"""Loads the admin key, or creates it."""

import logging
import os
import secrets
import shlex
import tempfile
from pathlib import Path

from common.errors import PipelineError
from common.home import home
from common.settings import Settings

_FILE = "admin_key"

log = logging.getLogger(__name__)


def load_admin_key(settings: Settings) -> str:
    """Return the admin key of the settings, or else of an owner-only file that is created at the first start.

    Raises:
        PipelineError: the file is empty, or can neither be read nor created.
    """
    if settings.admin_key is not None:
        return settings.admin_key.get_secret_value()
    path = settings.state_dir / _FILE
    try:
        if not path.exists():
            _make(path)
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise PipelineError(
            f"The admin key in {path} cannot be read or created: {error}. Check the permissions."
        ) from error
    if not key:
        raise PipelineError(f"{path} is empty. Delete it to have a new admin key generated.")
    return key


def printing_command(settings: Settings) -> str:
    """Return the command that prints the admin key in the home directory; empty if the settings are the key.

    Strangers see it on the sign-in page. So a directory outside the home directory is named by its setting.
    """
    if settings.admin_key is not None:
        return ""
    state = settings.state_dir.absolute()
    if state.is_relative_to(home()):
        return f"cat {shlex.quote(str(state.relative_to(home()) / _FILE))}"
    return f'cat "$SENTIMENT_STATE_DIR/{_FILE}"'


def _make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written completely before it gets its name, so that of two concurrent starts none reads half a key.
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{_FILE}.") as part:
        part.write(secrets.token_urlsafe(32))
        part.flush()
        try:
            os.link(part.name, path)
        except FileExistsError:
            return
    log.info("Generated the admin key in %s. Requests that change the deployed model need it.", path)
