"""Looks after something again and again, in a thread, beside what is served."""

import asyncio
import logging
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError

from errors import PipelineError
from storage.database import Database
from storage.storage import Storage


async def look_repeatedly(
    look: Callable[[Database], None], storage: Storage, interval_s: float, what: str, log: logging.Logger
) -> None:
    """Call `look` every `interval_s` seconds, until cancelled; where it fails, `log` says so of `what`."""
    while True:
        await asyncio.sleep(interval_s)
        try:
            await asyncio.to_thread(lambda: look(storage.open()))
        except (PipelineError, SQLAlchemyError, OSError) as error:
            log.error("The look at %s failed: %s", what, str(error).partition("\n")[0])
