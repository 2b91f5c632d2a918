"""Packs texts of mixed lengths into few rows, with little padding and few different shapes.

A model that cannot be packed gets each text in a row of its own. Texts of about the same length then share a run.

The number of shapes is kept small (`all_shapes`), because a runtime prepares each shape on its first run. The usual
shapes are run once before a version is ready.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]

ROW_LENGTH = 128
"""Tokens in a row of several short texts; longer rows waste attention computation."""
STEP = 16
"""The length of a single row, or of a row with one long text, is rounded up to a multiple of this."""
TOKENS_PER_RUN = 512
"""Maximum tokens in one run of the graph, unless one text has more. This limits memory, and the time that short texts
wait for long ones. On one core, runs of 512 tokens have the same throughput as runs of 4096."""
IN_TURN = 0.95
"""Share of a run's tokens that goes to the most urgent short texts, regardless of length; this share is sure to fit.
If all texts were chosen by how well they fit, the shortest would wait for several more runs."""
SURPLUS = 3.0
"""Tokens of the short texts from which a run is filled, as a multiple of the tokens that the run holds."""
CHOICE = 256
"""Number of waiting texts from which a run is chosen: several times what a run holds, even if the texts are short."""
_FIRST_TOKEN_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Row:
    """Texts that share a row."""

    length: int
    """Tokens in the row, including padding."""
    texts: list[int]
    """Indices of the row's texts in the list that they were chosen from."""


@dataclass(frozen=True)
class PackedRows:
    """The inputs for one run of the packed graph."""

    input_ids: Int64Array
    """[rows, length]; padded after the last text of a row."""
    position_ids: Int64Array
    """[rows, length]; starts at 0 for each text."""
    segment_ids: Int64Array
    """[rows, length]; 1, 2, … for the texts of a row, 0 for padding."""
    first_tokens: Int64Array
    """[texts or more]; where each text begins in rows * length; padded with 0, the first text, to one of few sizes."""
    texts: Int64Array
    """[texts]; index of the text that each entry of `first_tokens` belongs to."""


def choose_rows(lengths: Sequence[int], budget: int = TOKENS_PER_RUN, packed: bool = True) -> list[Row]:
    """Choose texts for the next run, in rows of equal length: at most `budget` tokens, but at least one text.

    `lengths` are the token counts of the waiting texts, most urgent first; the first text is always chosen. A text
    longer than ROW_LENGTH gets its own row, because packing saves nothing there, beside rows of equal length. Shorter
    texts are packed by best-fit decreasing: first the most urgent texts, then less urgent ones that fill the gaps.

    Unless the texts are `packed`, short ones get rows of their own too, a power of two of them, so that there are few
    shapes.
    """
    longest = lengths[0]
    if longest > ROW_LENGTH or not packed:
        length = _whole_steps(longest)
        alike = [text for text, tokens in enumerate(lengths) if _whole_steps(tokens) == length]
        count = min(len(alike), max(1, budget // length))
        if not packed:
            count = 1 << count.bit_length() - 1
        return [Row(length, [text]) for text in alike[:count]]

    most_rows = max(1, budget // ROW_LENGTH)
    in_turn: list[int] = []
    behind: list[int] = []
    tokens_so_far = longest
    for text, tokens in enumerate(lengths[1:], start=1):
        if tokens <= ROW_LENGTH:
            tokens_so_far += tokens
            if tokens_so_far <= most_rows * ROW_LENGTH * IN_TURN:
                in_turn.append(text)
            elif tokens_so_far <= most_rows * ROW_LENGTH * SURPLUS:
                behind.append(text)
            else:
                break
    for texts in (in_turn, behind):
        texts.sort(key=lengths.__getitem__, reverse=True)

    rows: list[list[int]] = []
    # (Free tokens, index) of each open row, sorted: the first gap that is large enough fits best.
    gaps: list[tuple[int, int]] = []
    for text in [0, *in_turn, *behind]:
        need = lengths[text]
        best = bisect_left(gaps, (need, -1))
        if best < len(gaps):
            free, row = gaps.pop(best)
            rows[row].append(text)
        elif len(rows) < most_rows:
            free, row = ROW_LENGTH, len(rows)
            rows.append([text])
        else:
            continue
        if free > need:
            insort(gaps, (free - need, row))
    length = _whole_steps(sum(lengths[text] for text in rows[0])) if len(rows) == 1 else ROW_LENGTH
    return [Row(length, row) for row in rows]


def pack(token_ids: Sequence[Sequence[int]], padding_token: int, packed: bool = True) -> Iterator[PackedRows]:
    """Lay out all texts in successive runs, as the engine does when they wait together.

    The `texts` of a run are indices into the texts that were still waiting when the run was chosen.
    """
    waiting = list(token_ids)
    while waiting:
        choice = waiting[:CHOICE]
        rows = choose_rows(list(map(len, choice)), packed=packed)
        yield lay_out(rows, choice, padding_token)
        chosen = {text for row in rows for text in row.texts}
        waiting[:CHOICE] = [ids for text, ids in enumerate(choice) if text not in chosen]


def all_shapes(max_length: int, packed: bool = True) -> Iterator[tuple[int, int]]:
    """Yield each (rows, length) that `choose_rows` returns for texts of up to `max_length` tokens, shortest first."""
    if not packed:
        for length in range(STEP, _whole_steps(max_length) + STEP, STEP):
            most_rows = max(1, TOKENS_PER_RUN // length)
            yield from ((1 << power, length) for power in range(most_rows.bit_length()))
        return
    yield from ((1, length) for length in range(STEP, ROW_LENGTH, STEP))
    for length in range(ROW_LENGTH, max(ROW_LENGTH, _whole_steps(max_length)) + STEP, STEP):
        yield from ((rows, length) for rows in range(1, max(1, TOKENS_PER_RUN // length) + 1))


def rows_of_shape(rows: int, length: int, max_length: int, padding_token: int) -> PackedRows:
    """Return full rows of texts of at most `max_length` tokens, to warm up a runtime."""
    pieces = [min(max_length, length - start) for start in range(0, length, max_length)]
    token_ids = [[padding_token] * piece for piece in pieces] * rows
    full = [Row(length, list(range(first, first + len(pieces)))) for first in range(0, len(token_ids), len(pieces))]
    return lay_out(full, token_ids, padding_token)


def lay_out(rows: Sequence[Row], token_ids: Sequence[Sequence[int]], padding_token: int) -> PackedRows:
    """Lay out the rows as the graph's inputs; `token_ids` are the texts that the rows' indices refer to."""
    length = rows[0].length
    texts = np.fromiter((text for row in rows for text in row.texts), dtype=np.int64)
    counts = [len(row.texts) for row in rows]
    text_lengths = np.fromiter((len(token_ids[text]) for text in texts), dtype=np.int64, count=len(texts))
    ends = np.cumsum(text_lengths)
    row_of_text = np.repeat(np.arange(len(rows)), counts)
    # Texts lie end to end, so a text's offset in its row is its global offset minus that of the row's first text.
    first_of_row = np.cumsum([0, *counts[:-1]])
    starts = ends - text_lengths
    first_tokens = row_of_text * length + starts - starts[first_of_row][row_of_text]

    positions = np.arange(ends[-1]) - np.repeat(starts, text_lengths)
    places = np.repeat(first_tokens, text_lengths) + positions
    flat = np.zeros((3, len(rows) * length), dtype=np.int64)
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


def _whole_steps(tokens: int) -> int:
    return -(-tokens // STEP) * STEP
