"""A step of the wall clock is told once, whichever way it went, and makes no recorded time last longer."""

import time

import pytest

from common.clock import Elapsed, WallClock


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


def test_a_step_of_the_clock_does_not_move_what_began_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    elapsed = Elapsed()
    passed_s = 0.0
    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + passed_s)
    assert elapsed.seconds("a window", 100.0) == pytest.approx(100, abs=3)
    passed_s = 60.0
    assert elapsed.seconds("a window", -3_600.0) == pytest.approx(160, abs=3)  # set back
    assert elapsed.seconds("a window", 7_200.0) == pytest.approx(160, abs=3)  # set forward
    assert elapsed.seconds("another one", 2.0) == pytest.approx(2, abs=3)
    assert elapsed.seconds("one that will begin", -60.0) == pytest.approx(0, abs=3)
