import time

import pytest

from common import progress
from common.progress import listening, under_way


def test_a_block_is_told_from_its_beginning_on_and_with_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_TICKS", 0.01)
    lines: list[str] = []
    with listening(lines.append):
        with under_way("measuring the speed"):
            assert lines == ["measuring the speed"]
            while len(lines) < 3:
                time.sleep(0.01)
        ended = len(lines)
        time.sleep(0.05)
    assert lines[1] == "measuring the speed, 0 s"
    assert len(lines) == ended, "nothing is told after the block"
