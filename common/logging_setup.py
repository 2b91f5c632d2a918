"""Log formats: text for people, or JSON for search. Each line names its request or job."""

import json
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from common import tracing
from common.log_flood import FloodFilter
from common.request_context import current_job, current_request
from common.settings import Settings

_OWN = (
    "app",
    "serve",
    "common",
    "export",
    "gateway",
    "lifecycle",
    "scoring",
    "serving",
    "storage",
    "tables",
    "trainer",
)
"""Loggers of this project. Only these use the level `debug`, because libraries would log too much at it."""
_CHATTY = ("httpx", "alembic", "matplotlib", "torch", "onnxscript", "onnx_ir")


def set_up_logging(settings: Settings) -> None:
    """Log to standard error in the format and at the level of the settings."""
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
    logging.getLogger("apscheduler").setLevel(logging.ERROR)  # it warns each time a run takes longer than its interval


class TextFormatter(logging.Formatter):
    """Formats a text line: time, level, message, and the request or job at its end."""

    def __init__(self, without_secrets: Callable[[str], str]) -> None:
        """Remove secrets with `without_secrets`. Lines have the time of day without the date."""
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")
        self._without_secrets = without_secrets

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, with a traceback below it if there is one."""
        return self._without_secrets(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """Return the message with its request or job at the end of the first line."""
        first, newline, rest = super().formatMessage(record).partition("\n")
        origin = "".join(f" [{name.removesuffix('_id')} {value}]" for name, value in _origin().items())
        return first + origin + newline + rest


class JsonFormatter(logging.Formatter):
    """Formats a JSON object per line: `time` (UTC), `level`, `logger`, `message`, and further fields if known."""

    def __init__(self, without_secrets: Callable[[str], str]) -> None:
        """Remove secrets with `without_secrets`."""
        super().__init__()
        self._without_secrets = without_secrets

    def format(self, record: logging.LogRecord) -> str:
        """Return the line. Values without a JSON form become strings, because logging must not fail."""
        time = datetime.fromtimestamp(record.created, UTC)
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
        # Before encoding, because JSON escapes some characters, and a secret would not be found.
        told = {key: self._without_secrets(value) if isinstance(value, str) else value for key, value in line.items()}
        return json.dumps(told, default=lambda value: self._without_secrets(str(value)))


def _origin() -> dict[str, Any]:
    job, request = current_job.get(), current_request.get()
    return ({"request_id": request} if request else {}) | ({} if job is None else {"job_id": job})
