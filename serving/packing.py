"""Packs texts of mixed lengths into few rows, with little padding and few different shapes.

The shapes are few on purpose: a runtime prepares each one when it first sees it, so all of them
are run once before a version is ready (`all_shapes`).
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]

ROW_LENGTH = 128
"""Tokens of a row that holds a mixture of short texts; longer rows waste attention (design, finding 3)."""
SHORT_STEP = 16
"""A lone row is cut to a multiple of this."""
LONG_STEP = 64
"""A text longer than ROW_LENGTH gets a row of a multiple of this."""
TOKENS_PER_CALL = 1024
"""Most tokens in one run of the graph: bounds its memory, and keeps long texts from holding up short ones.

On one core the graph runs as many tokens a second with 512 in a call as with 4096.
"""
_FIRST_TOKEN_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class PackedRows:
    """The input of one run of the packed graph."""

    input_ids: Int64Array
    """[rows, length]; padding after the last text of a row."""
    position_ids: Int64Array
    """[rows, length]; from 0 in each text."""
    segment_ids: Int64Array
    """[rows, length]; 1, 2, … for the texts of a row, 0 for padding."""
    first_tokens: Int64Array
    """[texts or more]; where each text begins in rows * length; repeats the first up to a round number."""
    texts: Int64Array
    """[texts]; which text of the batch each of `first_tokens` is."""


@dataclass
class _Row:
    length: int
    texts: list[int]
    used: int


def pack(token_ids: Sequence[Sequence[int]], padding_token: int) -> Iterator[PackedRows]:
    """Pack the texts, each a non-empty list of token ids, into runs of at most TOKENS_PER_CALL tokens.

    Best-fit decreasing: the longest text first, each into the fullest row that still holds it. A row
    opened for a text longer than ROW_LENGTH takes short ones into its gap. One text alone may exceed
    TOKENS_PER_CALL.
    """
    lengths = [len(ids) for ids in token_ids]
    rows = _fill_rows(lengths)
    rows.sort(key=lambda row: row.length)
    start = 0
    while start < len(rows):
        length = rows[start].length
        end = start + 1
        while end < len(rows) and rows[end].length == length and (end + 1 - start) * length <= TOKENS_PER_CALL:
            end += 1
        group = rows[start:end]
        if len(group) == 1 and length == ROW_LENGTH:
            length = -(-group[0].used // SHORT_STEP) * SHORT_STEP
        yield _lay_out(group, length, token_ids, lengths, padding_token)
        start = end


def all_shapes(max_length: int) -> Iterator[tuple[int, int]]:
    """Every (rows, length) that `pack` makes of texts of at most `max_length` tokens."""
    yield from ((1, length) for length in range(SHORT_STEP, ROW_LENGTH, SHORT_STEP))
    lengths = [
        ROW_LENGTH,
        *(step for step in range(2 * LONG_STEP, max_length + LONG_STEP, LONG_STEP) if step > ROW_LENGTH),
    ]
    for length in lengths:
        yield from ((rows, length) for rows in range(1, max(1, TOKENS_PER_CALL // length) + 1))


def rows_of_shape(rows: int, length: int, max_length: int, padding_token: int) -> PackedRows:
    """Full rows of texts of at most `max_length` tokens, for warming a runtime up."""
    row = [min(max_length, length - start) for start in range(0, length, max_length)]
    lengths = row * rows
    group = [_Row(length, list(range(first, first + len(row))), length) for first in range(0, len(lengths), len(row))]
    return _lay_out(group, length, [[padding_token] * text for text in lengths], lengths, padding_token)


def _fill_rows(lengths: list[int]) -> list[_Row]:
    rows: list[_Row] = []
    # Free tokens of each open row with its index, sorted: the first that is large enough fits best.
    gaps: list[tuple[int, int]] = []
    for text in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        need = lengths[text]
        best = bisect_left(gaps, (need, -1))
        if best < len(gaps):
            free, index = gaps.pop(best)
            rows[index].texts.append(text)
            rows[index].used += need
        else:
            length = ROW_LENGTH if need <= ROW_LENGTH else -(-need // LONG_STEP) * LONG_STEP
            free, index = length, len(rows)
            rows.append(_Row(length, [text], need))
        if free > need:
            insort(gaps, (free - need, index))
    return rows


def _lay_out(
    rows: list[_Row], length: int, token_ids: Sequence[Sequence[int]], lengths: list[int], padding_token: int
) -> PackedRows:
    texts = np.fromiter((text for row in rows for text in row.texts), dtype=np.int64)
    counts = [len(row.texts) for row in rows]
    text_lengths = np.fromiter((lengths[text] for text in texts), dtype=np.int64, count=len(texts))
    ends = np.cumsum(text_lengths)
    row_of_text = np.repeat(np.arange(len(rows)), counts)
    # Texts lie end to end, so a text's place in its row is its place in all texts less its row's.
    first_of_row = np.cumsum([0, *counts[:-1]])
    starts = ends - text_lengths
    first_tokens = row_of_text * length + starts - starts[first_of_row][row_of_text]

    positions = np.arange(ends[-1]) - np.repeat(starts, text_lengths)
    places = np.repeat(first_tokens, text_lengths) + positions
    flat = np.full((3, len(rows) * length), 0, dtype=np.int64)
    flat[0] = padding_token
    flat[0, places] = np.fromiter(
        (token for text in texts for token in token_ids[text]), dtype=np.int64, count=ends[-1]
    )
    flat[1, places] = positions
    flat[2, places] = np.repeat(np.arange(len(texts)) - first_of_row[row_of_text] + 1, text_lengths)

    round_number = next((count for count in _FIRST_TOKEN_COUNTS if count >= len(texts)), len(texts))
    padded_first_tokens = np.zeros(round_number, dtype=np.int64)
    padded_first_tokens[: len(texts)] = first_tokens
    input_ids, position_ids, segment_ids = flat.reshape(3, len(rows), length)
    return PackedRows(input_ids, position_ids, segment_ids, padded_first_tokens, texts)
