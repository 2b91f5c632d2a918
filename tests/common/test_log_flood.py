"""The log is not filled by one failure that comes with every request, and still tells all there is."""

import logging
from collections.abc import Iterator

import pytest

from common import log_flood
from common.log_flood import MOST_LINES, PERIOD_S, FloodFilter


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(record.getMessage())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("common.log_flood.time.monotonic", lambda: now[0])
    return now


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler = Lines()
    handler.addFilter(FloodFilter())
    logger = logging.getLogger("flooded")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def test_a_message_that_comes_again_and_again_is_counted(lines: Lines, clock: list[float]) -> None:
    log = logging.getLogger("flooded")
    for number in range(50):
        log.error("Row %d could not be kept", number)
    log.error("Something else")
    assert lines.told == [*(f"Row {number} could not be kept" for number in range(MOST_LINES)), "Something else"]
    clock[0] += PERIOD_S
    log.error("Row %d could not be kept", 50)
    log.error("Row %d could not be kept", 51)
    assert lines.told[-2:] == [
        f"Row 50 could not be kept ({50 - MOST_LINES} more like this were not logged)",
        "Row 51 could not be kept",
    ]


@pytest.mark.usefixtures("clock")
def test_messages_that_differ_and_information_always_pass_and_a_line_may_have_its_own_limit(lines: Lines) -> None:
    log = logging.getLogger("flooded")
    log.setLevel(logging.INFO)
    for number in range(20):
        log.warning("%s", f"Version {number} was rejected")
        log.warning("POST %s: 503", "/predict/live", extra={"most_lines": 15})
        log.info("Started")
        log.info("POST %s: 499", "/predict/live", extra={"most_lines": 5})
    assert len(lines.told) == 60


@pytest.mark.usefixtures("clock")
def test_what_is_remembered_is_bounded(lines: Lines) -> None:
    flood = FloodFilter()
    lines.addFilter(flood)
    for number in range(5_000):
        logging.getLogger("flooded").error("%s", f"Event {number}")
    assert len(flood._periods) <= log_flood._MOST_MESSAGES
