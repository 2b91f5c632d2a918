"""The sample of what is asked: what is kept of an answer, for how long, and how much of it."""

import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from sqlalchemy import update

from storage.database import Database
from storage.feedback import text_hash
from storage.sampled_predictions import MOST_CHARACTERS, AnsweredText, add_sample, newest_sample, purge_sample
from storage.tables import SampledPrediction


def answered(text: str, version: int = 1, seconds_ago: float = 0) -> AnsweredText:
    probabilities = np.array([0.25, 0.75], "<f4").tobytes()
    return AnsweredText(text, "Positive", probabilities, version, len(text) > 100, time.monotonic() - seconds_ago)


def texts(database: Database) -> list[str | None]:
    return [row.text for row in newest_sample(database, 1_000)]


def test_what_is_known_of_an_answer_is_kept(database: Database) -> None:
    add_sample(database, [answered("Not  bad 🙂", version=3, seconds_ago=30), answered("x" * 101)], keeps_texts=True)
    first, second = newest_sample(database, 10)
    assert (first.text, first.label, first.version, first.truncated) == ("Not  bad 🙂", "Positive", 3, False)
    assert first.probabilities == [0.25, 0.75]
    assert (first.characters, first.words, first.text_hash) == (10, 3, text_hash("not bad 🙂"))
    assert second.truncated
    age_s = (datetime.now(UTC) - first.at).total_seconds()
    assert age_s == pytest.approx(30, abs=20)
    assert (second.at - first.at).total_seconds() == pytest.approx(30, abs=5)


def test_without_texts_hashes_lengths_and_answers_stay(database: Database) -> None:
    add_sample(database, [answered("Not bad")], keeps_texts=False)
    (row,) = newest_sample(database, 10)
    assert (row.text, row.text_hash, row.characters, row.words) == (None, text_hash("not bad"), 7, 2)
    assert row.probabilities == [0.25, 0.75]


def test_of_a_very_long_text_the_beginning_is_kept(database: Database) -> None:
    long = "word " * MOST_CHARACTERS
    add_sample(database, [answered(long)], keeps_texts=True)
    (row,) = newest_sample(database, 10)
    assert (row.text, row.text_hash) == (long[:MOST_CHARACTERS], text_hash(long))
    assert (row.characters, row.words) == (len(long), MOST_CHARACTERS)


def test_the_newest_are_found_by_number_time_and_version(database: Database) -> None:
    add_sample(database, [answered(f"old {number}", 1, seconds_ago=7_200) for number in range(3)], keeps_texts=True)
    add_sample(database, [answered(f"new {number}", 1 + number % 2) for number in range(4)], keeps_texts=True)
    hour_ago = datetime.now(UTC) - timedelta(hours=1)
    assert [row.text for row in newest_sample(database, 2)] == ["new 2", "new 3"]
    assert [row.text for row in newest_sample(database, 9, since=hour_ago)] == [f"new {number}" for number in range(4)]
    assert [row.text for row in newest_sample(database, 9, since=hour_ago, version=2)] == ["new 1", "new 3"]


def test_what_is_old_or_too_much_goes(database: Database) -> None:
    add_sample(database, [answered(f"text {number}") for number in range(10)], keeps_texts=True)
    with database.transaction() as session:
        long_ago = datetime.now(UTC) - timedelta(days=2)
        session.execute(update(SampledPrediction).where(SampledPrediction.id <= 3).values(at=long_ago))
    purge_sample(database, days=3, rows=10, keeps_texts=True)
    assert len(texts(database)) == 10
    purge_sample(database, days=1, rows=10, keeps_texts=True)
    assert texts(database) == [f"text {number}" for number in range(3, 10)]
    purge_sample(database, days=1, rows=2, keeps_texts=True)
    assert texts(database) == ["text 8", "text 9"]


def test_texts_that_are_no_longer_to_be_kept_go(database: Database) -> None:
    add_sample(database, [answered("a"), answered("b")], keeps_texts=True)
    purge_sample(database, days=1, rows=10, keeps_texts=False)
    assert texts(database) == [None, None]


def test_a_character_that_a_database_refuses_loses_nothing_else(database: Database) -> None:
    add_sample(database, [answered("before"), answered("a\0b"), answered("after")], keeps_texts=True)
    assert texts(database) == ["before", "a\ufffdb", "after"]
