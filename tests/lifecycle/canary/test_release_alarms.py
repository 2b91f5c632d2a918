"""What speaks against a version that is tried: each alarm by itself, and none by chance."""

from typing import Any

import numpy as np
import pytest

from common.settings import Settings
from lifecycle.canary.release_alarms import (
    COMPARED_BEFORE,
    LEAST_TEXTS,
    answer_alarms,
    error_alarm,
    is_proven,
    latency_alarm,
)
from storage.tables import Figures


def part(texts: int, differ: int, gain: float = 0.0, spread: float = 0.1) -> Figures:
    """So many texts, on which the challenger is surer by `gain` on average."""
    return {
        "texts": texts,
        "differ": differ,
        "champion": 0.9 * texts,
        "challenger": (0.9 + gain) * texts,
        "squares": (spread**2 + gain**2) * texts,
    }


def found(figures: Figures, feedback: tuple[int, int] = (0, 0), **settings: Any) -> list[str]:
    used = Settings(**settings)
    of_calls = [alarm for alarm in (error_alarm(used, figures), latency_alarm(used, figures)) if alarm]
    return of_calls + answer_alarms(used, 1, figures, feedback)


def calls(count: int, slower: int) -> Figures:
    return {"calls": count, "slower": slower, "champion_ms": 10.0 * count, "challenger_ms": 25.0 * count}


@pytest.mark.parametrize(
    ("figures", "alarm"),
    [
        ({}, ""),
        ({"failed": 4}, ""),
        ({"failed": 5}, "errors: it failed on 5 of 5 texts"),
        ({"failed": 6, "answered": 94}, ""),
        ({"failed": 7, "answered": 93}, "errors: it failed on 7 of 100 texts"),
        ({"failed": 12, "answered": 388}, ""),
        ({"failed": 19, "answered": 10_000, "failed_in_a_row": 19}, ""),
        ({"failed": 20, "answered": 10_000, "failed_in_a_row": 20}, "errors: it failed on 20 texts in a row"),
        (calls(29, 29), ""),
        (
            calls(30, 29),
            "latency: 29 of 30 calls took over 2 times as long, on average 25.0 ms instead of 10.0 ms",
        ),
        (calls(100, 60), ""),
        ({"parts": {"all": part(49, 49)}}, ""),
        ({"parts": {"all": part(1_000, 230)}}, ""),
        (
            {"parts": {"all": part(1_000, 60), "33 to 64 words": part(60, 30)}},
            "disagreement: 30 of 60 texts (of 33 to 64 words) got another label than from version 1; "
            "the limit is 20.0%",
        ),
        ({"parts": {"all": part(500, 5, gain=-0.03)}}, ""),
        (
            {"parts": {"all": part(500, 5, gain=-0.05)}},
            "estimated accuracy: 0.8500 instead of 0.9000 on 500 texts (of all lengths)",
        ),
        ({"parts": {"all": part(500, 5, gain=+0.05)}}, ""),
    ],
)
def test_each_alarm_comes_with_its_numbers(figures: Figures, alarm: str) -> None:
    assert found(figures) == ([alarm] if alarm else [])


@pytest.mark.parametrize(
    ("feedback", "speaks"),
    [((9, 0), False), ((10, 0), True), ((0, 30), False), ((20, 10), False), ((40, 15), True)],
)
def test_feedback_on_texts_that_differ_is_held_against_chance(feedback: tuple[int, int], speaks: bool) -> None:
    alarm = found({}, feedback)
    assert bool(alarm) == speaks
    if speaks:
        assert alarm[0].startswith(
            f"feedback: of {sum(feedback)} texts with different labels, version 1 is right on {feedback[0]}"
        )


def test_bounds_are_settings() -> None:
    figures = {"failed": 10, "answered": 90, **calls(50, 50), "parts": {"all": part(500, 200, gain=-0.1)}}
    assert len(found(figures)) == 4
    lenient: dict[str, Any] = {"release_max_errors": 0.2, "release_max_disagreement": 0.6, "release_max_loss": 0.2}
    assert len(found(figures, **lenient)) == 1


def test_enough_texts_are_needed_before_silence_means_anything() -> None:
    assert not is_proven({})
    assert not is_proven({"parts": {"all": part(LEAST_TEXTS - 1, 0)}})
    assert is_proven({"parts": {"all": part(LEAST_TEXTS, 0)}})
    # Each step needs its own.
    assert not is_proven({"parts": {"all": part(300 + LEAST_TEXTS - 1, 0)}, COMPARED_BEFORE: 300})
    assert is_proven({"parts": {"all": part(300 + LEAST_TEXTS, 0)}, COMPARED_BEFORE: 300})


def test_a_version_as_good_as_the_other_gives_no_alarm_however_often_it_is_looked_at() -> None:
    random = np.random.default_rng(3)
    for _ in range(200):
        differ = random.random(1_000) < 0.1
        gain = random.normal(0, 0.15, 1_000)
        for texts in range(50, 1_000, 50):
            figures = {"parts": {"all": part(texts, int(differ[:texts].sum()), float(gain[:texts].mean()), 0.15)}}
            assert found(figures) == []
