"""Keeps a second pipeline from training or serving with the same state directory."""

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from common.errors import PipelineError
from common.settings import Settings

_FILE = "pipeline.lock"

log = logging.getLogger(__name__)


def running_pipeline(settings: Settings) -> str:
    """Return in words which process has locked the state directory; empty if none has, or if that cannot be seen."""
    try:
        with (settings.state_dir / _FILE).open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return f"process {file.read().strip()}"
    except OSError:  # there is no such file, or its file system cannot lock
        pass
    return ""


@contextmanager
def only_pipeline(settings: Settings) -> Iterator[None]:
    """Lock the state directory during the block. The lock ends with this process, even if it is killed.

    Raises:
        PipelineError: another process has locked it; the message has its process id.
    """
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    with (settings.state_dir / _FILE).open("a+", encoding="utf-8") as file:
        try:
            _lock(file)
        except BlockingIOError as error:
            file.seek(0)
            raise PipelineError(
                f"Another process ({file.read().strip() or 'just started'}) is starting or serving with the state "
                f"directory {settings.state_dir}. Stop it, or set SENTIMENT_STATE_DIR to another directory here."
            ) from error
        except OSError as error:  # some network file systems cannot lock
            log.debug("%s cannot be locked: %s", settings.state_dir, error)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _lock(file: TextIO) -> None:
    """Lock `file`. For half a second, try again: `running_pipeline` holds a shared lock for a moment.

    Raises:
        BlockingIOError: another process has locked it.
    """
    for _ in range(9):
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(0.05)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
