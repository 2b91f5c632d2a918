"""Packing: every token lands once, where its text is, in one of the shapes that were warmed up."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serving.packing import ROW_LENGTH, TOKENS_PER_CALL, PackedRows, all_shapes, pack

MAX_LENGTH = 512
PADDING = 0

lengths = st.lists(st.integers(1, MAX_LENGTH), min_size=1, max_size=80)
short_lengths = st.lists(st.integers(3, 60), min_size=1, max_size=200)


def texts_of(lengths: list[int]) -> list[list[int]]:
    """Texts whose tokens tell text and position, so that a misplaced one shows."""
    return [[1 + text * 1000 + position for position in range(length)] for text, length in enumerate(lengths)]


def read_back(rows: PackedRows) -> dict[int, list[int]]:
    """What the graph would see as each text, from its first token along its segment."""
    length = rows.input_ids.shape[1]
    found = {}
    for text, first in zip(rows.texts.tolist(), rows.first_tokens, strict=False):
        row, column = divmod(int(first), length)
        of_text = rows.segment_ids[row] == rows.segment_ids[row, column]
        assert of_text[column]
        assert column == 0 or not of_text[column - 1]
        assert rows.segment_ids[row, column] > 0
        assert rows.position_ids[row][of_text].tolist() == list(range(int(of_text.sum())))
        found[text] = rows.input_ids[row][of_text].tolist()
    return found


@given(st.one_of(lengths, short_lengths))
def test_every_text_can_be_read_back_exactly_once(lengths: list[int]) -> None:
    texts = texts_of(lengths)
    seen: dict[int, list[int]] = {}
    for rows in pack(texts, PADDING):
        found = read_back(rows)
        assert not found.keys() & seen.keys()
        seen |= found
        padding = rows.segment_ids == 0
        assert (rows.input_ids[padding] == PADDING).all()
        assert (rows.input_ids[~padding] > 0).all()
    assert seen == dict(enumerate(texts))


@given(st.one_of(lengths, short_lengths))
def test_only_shapes_that_are_warmed_up_occur(lengths: list[int]) -> None:
    known = set(all_shapes(MAX_LENGTH))
    assert {rows.input_ids.shape for rows in pack(texts_of(lengths), PADDING)} <= known


@given(st.one_of(lengths, short_lengths))
def test_no_call_exceeds_the_token_budget(lengths: list[int]) -> None:
    assert all(rows.input_ids.size <= TOKENS_PER_CALL for rows in pack(texts_of(lengths), PADDING))


def test_rows_of_short_texts_are_filled_close_to_full() -> None:
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(3.1, 0.5, 1000).astype(int), 4, ROW_LENGTH).tolist()
    cells = sum(rows.input_ids.size for rows in pack(texts_of(lengths), PADDING))
    assert sum(lengths) / cells > 0.98


def test_a_lone_short_text_gets_a_short_row() -> None:
    (rows,) = pack(texts_of([9]), PADDING)
    assert rows.input_ids.shape == (1, 16)


def test_short_texts_fill_the_gap_behind_a_long_one() -> None:
    (rows,) = pack(texts_of([260, 50]), PADDING)
    assert rows.input_ids.shape == (1, 320)


def test_nothing_to_pack() -> None:
    assert list(pack([], PADDING)) == []
