"""The way to the database for a process that must go on without it: opened when it can be, and tried again later."""

import logging
import threading
import time

from errors import PipelineError
from settings import Settings
from storage.database import Database

_PAUSE_S = 5.0
"""After a failure, before the database is tried again: whoever asks meanwhile gets the same answer at once."""

log = logging.getLogger(__name__)


class Storage:
    """Opens the database of the settings at first use; usable from any thread."""

    def __init__(self, settings: Settings) -> None:
        """Prepare; nothing is opened yet."""
        self._url = settings.database
        self._lock = threading.Lock()
        self._database: Database | None = None
        self._failure: PipelineError | None = None
        self._failed_at = 0.0

    def open(self) -> Database:
        """Return the database.

        Raises:
            PipelineError: it cannot be used now.
        """
        with self._lock:
            if self._database is not None:
                return self._database
            if self._failure is not None and time.monotonic() - self._failed_at < _PAUSE_S:
                raise self._failure
            try:
                self._database = Database(self._url)
            except PipelineError as error:
                if self._failure is None:
                    log.error("%s Predictions are served without it.", error)
                self._failure, self._failed_at = error, time.monotonic()
                raise
            return self._database

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            if self._database is not None:
                self._database.close()
