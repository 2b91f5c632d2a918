"""The log: lines to read, or JSON to search; each names the request or the job that it belongs to."""

import json
import logging
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import tracing
from log_flood import FloodFilter
from request_context import current_job, current_request
from settings import Settings

_OWN = ("app", "serve", "gateway", "serving", "lifecycle", "storage", "trainer", "export")
"""Loggers of this project; at the level `debug` the libraries' would drown them."""
_CHATTY = ("httpx", "alembic", "matplotlib", "torch", "onnxscript", "onnx_ir")


def set_up_logging(settings: Settings) -> None:
    """Log to standard error, as the settings say."""
    level = getattr(logging, settings.log_level.upper())
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(FloodFilter())
    kind = JsonFormatter if settings.log_format == "json" else TextFormatter
    handler.setFormatter(kind(settings.without_secrets))
    logging.basicConfig(level=max(level, logging.INFO), handlers=[handler])
    for name in _OWN:
        logging.getLogger(name).setLevel(level)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("apscheduler").setLevel(logging.ERROR)  # it warns of each look that takes long


class TextFormatter(logging.Formatter):
    """A line to read: time, level, message, and at its end the request or the job."""

    def __init__(self, without_secrets: Callable[[str], str]) -> None:
        """Tell hours, minutes and seconds: whoever reads it knows the day."""
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")
        self._without_secrets = without_secrets

    def format(self, record: logging.LogRecord) -> str:
        """The line, and a traceback below it."""
        return self._without_secrets(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The message with its origin, at the end of the first of its lines."""
        first, newline, rest = super().formatMessage(record).partition("\n")
        origin = "".join(f" [{name.removesuffix('_id')} {value}]" for name, value in _origin().items())
        return first + origin + newline + rest


class JsonFormatter(logging.Formatter):
    """An object in a line: `time` (UTC), `level`, `logger`, `message`, and what else is known."""

    def __init__(self, without_secrets: Callable[[str], str]) -> None:
        """Tell everything by `without_secrets`."""
        super().__init__()
        self._without_secrets = without_secrets

    def format(self, record: logging.LogRecord) -> str:
        """The line. What JSON has no form for is told in words, for a log must not fail."""
        time = datetime.fromtimestamp(record.created, timezone.utc)
        line: dict[str, Any] = {
            "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_origin(),
            **tracing.current_ids(),
            **getattr(record, "figures", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # Each by itself, for JSON would write some of their characters otherwise.
        told = {key: self._without_secrets(value) if isinstance(value, str) else value for key, value in line.items()}
        return json.dumps(told, default=lambda value: self._without_secrets(str(value)))


def _origin() -> dict[str, Any]:
    job, request = current_job.get(), current_request.get()
    return ({"request_id": request} if request else {}) | ({} if job is None else {"job_id": job})
