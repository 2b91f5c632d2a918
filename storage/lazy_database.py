"""Lazy access to the database, for a process that must also run without it: failed attempts are retried later."""

import logging
import threading
import time

from common.errors import PipelineError
from common.settings import Settings
from storage.database import Database

_PAUSE_S = 5.0
"""Seconds between two attempts to open the database; calls in between get the same error at once."""
_PATIENCE_S = 5.0
"""Maximum seconds to wait for another thread that opens the database, which can last as long as a migration."""

log = logging.getLogger(__name__)


class Storage:
    """Opens the database of the settings at first use; any thread may use it."""

    def __init__(self, settings: Settings) -> None:
        """Store the settings, without opening the database."""
        self._url = settings.database
        self._lock = threading.Lock()
        self._database: Database | None = None
        self._failure: PipelineError | None = None
        self._failed_at = 0.0

    def open(self) -> Database:
        """Return the database.

        Raises:
            PipelineError: the database cannot be used now.
        """
        if self._database is not None:
            return self._database
        if not self._lock.acquire(timeout=_PATIENCE_S):
            raise PipelineError("The database cannot be used yet: its tables are being migrated, or it hangs.")
        try:
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
        finally:
            self._lock.release()

    def hurry(self) -> None:
        """Give up statements on a database that hangs after a moment, because this process ends."""
        database = self._database  # without the lock: another thread may hold it while the database hangs
        if database is not None:
            database.hurry()

    def close(self) -> None:
        """Close the connections."""
        database = self._database
        if database is not None:
            database.close()
