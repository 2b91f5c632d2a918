"""A step of the wall clock is told once, whichever way it went."""

import time

import pytest

from common.clock import WallClock


def test_a_step_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = WallClock()
    assert clock.step_s() == 0
    set_by_s = 0.0
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + set_by_s)
    for step_s in (-3_600.0, 7_200.0):
        set_by_s += step_s
        assert clock.step_s() == pytest.approx(step_s, abs=3)
        assert clock.step_s() == 0
    set_by_s += 1
    assert clock.step_s() == 0
