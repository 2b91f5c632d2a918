"""What is usual is logged once, also if several steps of a start meet it."""

import logging
import subprocess
import sys

import pytest

from common.once import log_once
from tests.e2e.conftest import PROJECT

LINE = "There is no validation file."
CHILD = f"import logging; from common.once import log_once; log_once(logging.getLogger(), logging.WARNING, {LINE!r})"


def test_a_line_is_logged_once_by_a_process_and_those_that_it_starts(caplog: pytest.LogCaptureFixture) -> None:
    def child() -> str:
        return subprocess.run(
            [sys.executable, "-c", CHILD], cwd=PROJECT, check=True, capture_output=True, text=True
        ).stderr

    assert child() == f"{LINE}\n"
    for line in (LINE, LINE, "Another line."):
        log_once(logging.getLogger(), logging.WARNING, line)
    assert caplog.messages == [LINE, "Another line."]
    assert child() == ""
