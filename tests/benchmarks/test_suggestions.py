"""The comparison of labelling what is suggested with labelling by chance: its tables and its texts."""

import pytest

from benchmarks import simulation, suggestions
from storage.feedback import is_held_out, text_hash


def test_the_table_tells_the_gain_of_each_seed_its_mean_and_its_spread() -> None:
    runs = [
        {"seed": seed, "way": way, "texts": 300, "accuracy": accuracy}
        for seed, random, suggested in ((1, 0.80, 0.81), (2, 0.81, 0.84))
        for way, accuracy in (("random", random), ("suggested", suggested))
    ]
    table = suggestions.told({"judged": 1_000, "before": 0.75, "runs": runs})
    assert "on 1,000 held-out tweets; before, 75.00%." in table
    assert "| 1 | 80.00% | 81.00% | +1.00 |" in table
    assert "| mean (standard deviation) | 80.50% (0.71) | 82.50% (2.12) | +2.00 (1.41) |" in table


def test_what_is_judged_by_is_never_labelled(monkeypatch: pytest.MonkeyPatch) -> None:
    ratings = [(f"tweet {number}", 1.0 if number % 2 else -1.0) for number in range(200)]
    monkeypatch.setattr(simulation, "read_ratings", lambda _: [*ratings, ("unclear", 0.1), ("Tweet  0", 1.0)])
    tweets = suggestions._tweets({text_hash("tweet 1")})
    assert len(tweets.pool) + len(tweets.judged) == 199
    assert all(is_held_out(text_hash(text)) for text, _ in tweets.judged)
    assert not any(is_held_out(text_hash(text)) for text, _ in tweets.pool)
    assert ("tweet 0", "Negative") in [*tweets.pool, *tweets.judged]
