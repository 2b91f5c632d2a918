"""Feedback: the newest word on a text counts, and a text is for learning or for judging for ever."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, select, update
from sqlalchemy.exc import SQLAlchemyError

from common.settings import Settings
from storage.database import Database
from storage.feedback import (
    HELD_OUT_PERCENT,
    KeyUsedError,
    LabelledText,
    SourcedText,
    add_feedback,
    is_held_out,
    last_feedback_id,
    newest_feedback,
    text_hash,
)
from storage.tables import Feedback

LEARNT, HELD_OUT = (
    [text for text in (f"text {number}" for number in range(40)) if is_held_out(text_hash(text)) is held_out]
    for held_out in (False, True)
)
FIRST, SECOND, THIRD = LEARNT[:3]
TRUSTED = Settings().trusted_sources


def test_the_newest_row_of_a_text_counts_whatever_its_letter_case_and_white_space(database: Database) -> None:
    again = f"\t{FIRST.upper().replace(' ', '  ')}\n"
    judging = HELD_OUT[0].title()
    add_feedback(database, [LabelledText(FIRST, "Negative"), LabelledText(SECOND, "Negative")], "admin")
    add_feedback(database, [LabelledText(HELD_OUT[0], "Negative")], "admin")
    add_feedback(database, [LabelledText(again, "Positive"), LabelledText(judging, "Positive")], "import:more.csv")
    assert _told(newest_feedback(database, held_out=False, trusted=TRUSTED)) == [
        LabelledText(SECOND, "Negative"),
        LabelledText(again, "Positive"),
    ]
    assert _told(newest_feedback(database, held_out=True, trusted=TRUSTED)) == [LabelledText(judging, "Positive")]


def test_rows_are_bound_by_the_time_of_the_newest_and_by_their_ids(database: Database) -> None:
    assert last_feedback_id(database) == 0
    add_feedback(database, [LabelledText(FIRST, "Negative"), LabelledText(SECOND, "Negative")], "admin")
    then = datetime.now(UTC) - timedelta(days=1)
    with database.transaction() as session:
        session.execute(update(Feedback).values(received_at=then - timedelta(days=1)))
    assert _told(newest_feedback(database, held_out=False, trusted=TRUSTED, since=then)) == []
    before = last_feedback_id(database)
    add_feedback(database, [LabelledText(FIRST, "Positive"), LabelledText(THIRD, "Positive")], "admin")
    assert _told(newest_feedback(database, held_out=False, trusted=TRUSTED, since=then)) == [
        LabelledText(FIRST, "Positive"),
        LabelledText(THIRD, "Positive"),
    ]
    assert _told(newest_feedback(database, held_out=False, trusted=TRUSTED, up_to=before)) == [
        LabelledText(FIRST, "Negative"),
        LabelledText(SECOND, "Negative"),
    ]


def test_a_request_sent_again_under_its_key_is_kept_once(database: Database) -> None:
    rows = [LabelledText(FIRST, "Positive"), LabelledText(SECOND, "Negative")]
    assert add_feedback(database, rows, "admin", "a key")
    assert not add_feedback(database, rows, "admin", "a key")
    for others in (rows[:1], rows[::-1], [LabelledText(FIRST, "Negative"), rows[1]]):
        with pytest.raises(KeyUsedError):
            add_feedback(database, others, "admin", "a key")
    assert _rows(database) == 2
    assert add_feedback(database, rows, "admin", "another key")
    assert add_feedback(database, rows, "api")
    assert _rows(database) == 6


def test_a_request_sent_many_times_at_once_is_kept_once(database: Database) -> None:
    def send(_: int) -> None:
        # Who comes second may also be told to send again.
        with suppress(SQLAlchemyError):
            add_feedback(database, [LabelledText(FIRST, "Positive")], "admin", "a key")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(send, range(16)))
    assert _rows(database) == 1
    assert not add_feedback(database, [LabelledText(FIRST, "Positive")], "admin", "a key")


@given(
    # Of all characters, the dotless i alone becomes another letter in capitals.
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="ı")),
    st.sampled_from([str.upper, str.lower, str.swapcase, str.title]),
    st.sampled_from([" ", "\t\n", "\u00a0  "]),
)
def test_letter_case_and_white_space_move_no_text_from_judging_to_learning(
    text: str, change: Callable[[str], str], blank: str
) -> None:
    other = blank + blank.join(change(word) for word in text.split()) + blank
    assert text_hash(other) == text_hash(text)
    assert is_held_out(text_hash(other)) == is_held_out(text_hash(text))


def test_the_share_of_texts_that_are_held_out_is_as_said() -> None:
    held_out = sum(is_held_out(text_hash(f"a text of somebody, number {number}")) for number in range(10_000))
    assert held_out / 100 == pytest.approx(HELD_OUT_PERCENT, abs=1.5)


def _rows(database: Database) -> int:
    with database.reading() as session:
        return session.scalar(select(func.count(Feedback.id))) or 0


def _told(rows: Sequence[SourcedText]) -> list[LabelledText]:
    return [LabelledText(row.text, row.label) for row in rows]
