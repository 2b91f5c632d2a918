"""The simulation of live traffic, on made up texts: it finds what was put in, and tells it."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import drift
from benchmarks.drift import Known, Traffic
from lifecycle.estimation import Calibration

LABELS = ("Negative", "Positive")


def traffic(seed: int, word: str, error: float) -> Traffic:
    """Texts with a word, of which the version is sure to 0.9 and wrong in so many."""
    random = np.random.default_rng(seed)
    words = [f"word{number}" for number in range(50)]
    texts = [f"{word} {' '.join(random.choice(words, 8))} {number}" for number in range(1_500)]
    predicted = random.integers(0, 2, len(texts))
    targets = predicted ^ (random.random(len(texts)) < error)
    return Traffic(texts, targets, np.where(np.eye(2)[predicted] == 1, 0.9, 0.1).astype(np.float32))


def test_the_simulation_finds_what_was_put_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(drift, "UNCHANGED_WINDOWS", 4)
    monkeypatch.setattr(drift, "CHANGES", 2)
    monkeypatch.setattr(drift, "_RESULTS", tmp_path)
    validation = traffic(0, "film", error=0.1)
    known = Known(validation.texts, validation, LABELS, Calibration(1.0, 0.05))
    kinds = {
        "reviews": traffic(1, "film", error=0.1),
        "tweets": traffic(2, "haha", error=0.1),
        "editorials": traffic(3, "senate", error=0.4),
    }
    results = drift.simulate(known, kinds)
    assert [window["alarms"] for window in results["unchanged"]] == [{}] * 4
    assert results["noticed_in_window"]["tweets"] == [1, 1]
    assert all(window is not None for window in results["noticed_in_window"]["flipped feedback"])
    assert "haha" in results["changed"]["tweets"][0]["words"]
    table = drift._table(results)
    assert "| 4 windows of 500 unchanged texts | at most 2 false alarms | 0 |" in table
    assert "| tweets instead of reviews | within 3 windows | 2 of 2 times, after 1 windows at most |" in table
    # Of a model that does not know itself on such texts the estimate is too high, and the table says so.
    assert "0% of windows within" in next(line for line in table.splitlines() if "accuracy of editorials" in line)
    drift._draw(results)
    assert (tmp_path / "drift.png").stat().st_size > 10_000
