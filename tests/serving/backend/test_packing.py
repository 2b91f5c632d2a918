"""Packing: every text runs once, in one of the shapes that were warmed up, and its tokens are where they belong."""

from itertools import islice

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serving.backend.packing import (
    ROW_LENGTH,
    TOKENS_PER_RUN,
    PackedRows,
    all_shapes,
    choose_rows,
    lay_out,
    rows_of_shape,
)

MAX_LENGTH = 512
PADDING = 0

lengths = st.lists(st.integers(1, MAX_LENGTH), min_size=1, max_size=80)
short_lengths = st.lists(st.integers(3, 60), min_size=1, max_size=200)
budgets = st.integers(ROW_LENGTH, TOKENS_PER_RUN)


def texts_of(lengths: list[int]) -> list[list[int]]:
    """Texts whose tokens tell text and position, so that a misplaced one shows."""
    return [[1 + text * 1000 + position for position in range(length)] for text, length in enumerate(lengths)]


def runs_of(
    texts: list[list[int]], budget: int = TOKENS_PER_RUN, packed: bool = True
) -> list[tuple[list[list[int]], PackedRows]]:
    """Run after run until no text waits: the texts that each was chosen from, and its input."""
    runs = []
    while texts:
        rows = choose_rows(list(map(len, texts)), budget, packed)
        chosen = [text for row in rows for text in row.texts]
        assert chosen.count(0) == 1, "the most urgent text always runs"
        assert len(set(chosen)) == len(chosen)
        runs.append((texts, lay_out(rows, texts, PADDING)))
        texts = [text for index, text in enumerate(texts) if index not in chosen]
    return runs


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


@given(st.one_of(lengths, short_lengths), budgets, st.booleans())
def test_every_text_can_be_read_back_exactly_once(lengths: list[int], budget: int, packed: bool) -> None:
    texts = texts_of(lengths)
    seen = []
    for waiting, rows in runs_of(texts, budget, packed):
        for index, tokens in read_back(rows).items():
            assert tokens == waiting[index]
            seen.append(tokens)
        padding = rows.segment_ids == 0
        assert (rows.input_ids[padding] == PADDING).all()
        assert (rows.input_ids[~padding] > 0).all()
    assert sorted(seen) == sorted(texts)


@given(st.one_of(lengths, short_lengths), budgets, st.booleans())
def test_only_shapes_that_are_warmed_up_occur(lengths: list[int], budget: int, packed: bool) -> None:
    known = set(all_shapes(MAX_LENGTH, packed))
    assert {rows.input_ids.shape for _, rows in runs_of(texts_of(lengths), budget, packed)} <= known


@given(st.one_of(lengths, short_lengths), budgets)
def test_no_run_exceeds_its_budget_unless_one_text_does(lengths: list[int], budget: int) -> None:
    for _, rows in runs_of(texts_of(lengths), budget):
        assert rows.input_ids.size <= budget or len(rows.texts) == 1


@given(st.lists(st.integers(1, MAX_LENGTH), min_size=1, max_size=40), st.booleans())
def test_long_and_unpacked_texts_have_rows_of_their_own_with_next_to_no_padding(
    lengths: list[int], packed: bool
) -> None:
    if packed:
        lengths = [length + ROW_LENGTH for length in lengths if length + ROW_LENGTH <= MAX_LENGTH]
    for _, rows in runs_of(texts_of(lengths), packed=packed):
        assert len(rows.texts) == len(rows.input_ids)
        assert ((rows.segment_ids == 0).sum(axis=1) < 16).all()


def test_rows_of_short_texts_are_filled_close_to_full() -> None:
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(3.1, 0.5, 1000).astype(int), 4, ROW_LENGTH).tolist()
    slots = sum(rows.input_ids.size for _, rows in runs_of(texts_of(lengths)))
    assert sum(lengths) / slots > 0.97


def test_texts_of_any_length_are_run_about_in_the_order_in_which_they_are_due() -> None:
    """However short: while many wait, those that come first are not put off for what fits a row better."""
    random = np.random.default_rng(0)
    arriving = iter(np.clip(random.lognormal(3.1, 0.5, 4000).astype(int), 4, ROW_LENGTH).tolist())
    waiting = [(tokens, 0) for tokens in islice(arriving, 100)]
    waits = []
    for run in range(100):
        rows = choose_rows([tokens for tokens, _ in waiting])
        chosen = {text for row in rows for text in row.texts}
        waits += [run - waiting[text][1] for text in chosen if waiting[text][1]]
        waiting = [text for index, text in enumerate(waiting) if index not in chosen]
        waiting += [(tokens, run) for tokens in islice(arriving, 100 - len(waiting))]
    assert max(waits) <= np.median(waits) + 2


def test_a_lone_short_text_gets_a_short_row() -> None:
    ((_, rows),) = runs_of(texts_of([9]))
    assert rows.input_ids.shape == (1, 16)


def test_warming_up_makes_each_shape_of_texts_no_longer_than_the_model_reads() -> None:
    for shape in all_shapes(100):
        rows = rows_of_shape(*shape, max_length=100, padding_token=PADDING)
        assert rows.input_ids.shape == shape
        assert rows.position_ids.max() < 100
        assert (rows.segment_ids > 0).all()
