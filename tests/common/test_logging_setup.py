"""Lines of the log: JSON that always parses, text that stays readable, each with its request or job."""

import contextvars
import io
import json
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from common.logging_setup import JsonFormatter, TextFormatter, set_up_logging
from common.request_context import MOST_CHARACTERS, current_request, doing_job, request_id
from common.settings import Settings


def loggers() -> dict[str, logging.Logger]:
    known = logging.root.manager.loggerDict
    return {name: logger for name, logger in known.items() if isinstance(logger, logging.Logger)}


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Settings], io.StringIO]]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logger.level for name, logger in loggers().items()}
    stream = io.StringIO()

    def start(settings: Settings) -> io.StringIO:
        monkeypatch.setattr(sys, "stderr", stream)
        root.handlers = []
        set_up_logging(settings)
        return stream

    yield start
    root.handlers = handlers
    root.setLevel(level)
    for name, logger in loggers().items():
        logger.setLevel(levels.get(name, logging.NOTSET))


def record(message: str, *arguments: object, **named: object) -> logging.LogRecord:
    made = logging.LogRecord("gateway.x", logging.WARNING, __file__, 1, message, arguments, None)
    made.__dict__.update(named)
    return made


def in_request(id_: str, work: Callable[[], str]) -> str:
    def within() -> str:
        current_request.set(id_)
        return work()

    return contextvars.copy_context().run(within)


def test_json_names_request_and_figures() -> None:
    line = in_request("abc-1", lambda: JsonFormatter(str).format(record("took %d s", 3, figures={"status": 503})))
    told = json.loads(line)
    assert told.pop("time").endswith("Z")
    assert told == {
        "level": "warning",
        "logger": "gateway.x",
        "message": "took 3 s",
        "request_id": "abc-1",
        "status": 503,
    }


def test_exceptions_are_in_the_line() -> None:
    try:
        raise ValueError("why\nnot")
    except ValueError:
        made = record("failed")
        made.exc_info = sys.exc_info()
    line = JsonFormatter(str).format(made)
    assert "\n" not in line
    assert "ValueError: why\nnot" in json.loads(line)["exception"]


@given(st.text(), st.one_of(st.text(), st.binary(), st.floats(), st.none()))
def test_every_message_is_one_line_of_json(message: str, argument: object) -> None:
    line = JsonFormatter(str).format(record("%s: %s", message, argument, figures={"path": message, "given": argument}))
    assert len(line.splitlines()) == 1
    line.encode("ascii")
    assert json.loads(line, parse_constant=str)["message"] == f"{message}: {argument}"


def test_text_names_the_job_in_its_first_line() -> None:
    with doing_job(7):
        line = TextFormatter(str).format(record("two\nlines"))
    assert line.partition(" ")[2] == "WARNING two [job 7]\nlines"
    assert TextFormatter(str).format(record("plain")).endswith(" WARNING plain")


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_line_has_a_secret(lines: Callable[[Settings], io.StringIO], log_format: Literal["text", "json"]) -> None:
    stream = lines(Settings(log_format=log_format, admin_key=SecretStr('an"admin"key')))
    log = logging.getLogger("gateway.x")
    try:
        raise ValueError('refused: an"admin"key')
    except ValueError:
        log.exception('given an"admin"key', extra={"figures": {"key": 'an"admin"key'}})
    written = stream.getvalue()
    assert "refused" in written
    assert "given …" in (written if log_format == "text" else json.loads(written)["message"])
    assert "admin" not in written


def test_only_this_project_is_told_at_the_level_debug(lines: Callable[[Settings], io.StringIO]) -> None:
    stream = lines(Settings(log_level="debug", log_format="json"))
    logging.getLogger("gateway.monitoring.request_log").debug("mine")
    logging.getLogger("sqlalchemy").debug("theirs")
    logging.getLogger("httpx").info("theirs")
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["mine"]


def test_warnings_only(lines: Callable[[Settings], io.StringIO]) -> None:
    stream = lines(Settings(log_level="warning"))
    logging.getLogger("gateway.monitoring.request_log").info("not this")
    logging.getLogger("gateway.monitoring.request_log").warning("this")
    assert stream.getvalue().splitlines()[0].endswith("WARNING this")


@given(st.binary(max_size=200))
def test_a_request_id_is_taken_only_if_it_is_harmless(given_: bytes) -> None:
    id_ = request_id(given_)
    assert 0 < len(id_) <= MOST_CHARACTERS
    assert set(id_) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
    assert id_ != request_id(b"")


def test_a_well_formed_request_id_is_kept() -> None:
    for id_ in ("a", "4bf92f3577b34da6a3ce929d0e0e4736", "01J8Z.x_y-z", "x" * MOST_CHARACTERS):
        assert request_id(id_.encode()) == id_
    assert request_id(b"x" * (MOST_CHARACTERS + 1)) != "x" * (MOST_CHARACTERS + 1)
