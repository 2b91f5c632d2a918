"""Ways to put texts into batches, all through the same graphs on the same cores, so that only the batching differs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from serving.engine import Engine
from serving.packing import PackedRows, choose_rows, lay_out

FloatArray = npt.NDArray[np.float32]
Classify = Callable[[Engine, Tokenizer, Sequence[str]], FloatArray]

ONE_BY_ONE = "one by one"
LONE = "one by one, lone"
PADDED = "padded, 64"
SORTED = "sorted, padded, 64 of 256"
PACKED = "packed, 64"
PADDED_16 = "padded, 16"
PACKED_16 = "packed, 16"

PADDED_TOKENS = 16_384
"""Most tokens in one padded call: 64 texts of 256. Longer texts go in smaller batches, as anyone would who saw the
memory that attention takes."""
_BATCH = 64


def one_by_one(engine: Engine, tokenizer: Tokenizer, texts: Sequence[str]) -> FloatArray:
    """Probabilities [texts, labels]; one text a run, on one core."""
    answers = []
    for encoding in tokenizer.encode_batch_fast(list(texts)):
        rows = lay_out(choose_rows([len(encoding.ids)]), [encoding.ids], engine.bundle.padding_token)
        answers.append(engine.graph.run(rows))
    return np.concatenate(answers)


def lone(engine: Engine, _: Tokenizer, texts: Sequence[str]) -> FloatArray:
    """Probabilities [texts, labels]; one text a call, as the engine answers who asks it alone."""
    return np.concatenate([engine.classify([text]).values for text in texts])


def padded(engine: Engine, tokenizer: Tokenizer, texts: Sequence[str]) -> FloatArray:
    """Probabilities [texts, labels]; batches of 64 in the order given, one text a row, padded to the longest."""
    return _padded([encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts))], engine)


def sorted_then_padded(engine: Engine, tokenizer: Tokenizer, texts: Sequence[str]) -> FloatArray:
    """Probabilities [texts, labels]; as `padded`, but texts of like length share a batch."""
    token_ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts))]
    order = sorted(range(len(texts)), key=lambda index: len(token_ids[index]))
    answer = np.empty((len(texts), len(engine.bundle.labels)), dtype=np.float32)
    answer[order] = _padded([token_ids[index] for index in order], engine)
    return answer


def packed(engine: Engine, _: Tokenizer, texts: Sequence[str]) -> FloatArray:
    """Probabilities [texts, labels]; as the engine is served."""
    return engine.classify(texts).values


class Callers(Enum):
    """Who calls at the same time."""

    ONE = auto()
    """One, who waits for each answer."""
    ONE_A_CORE = auto()
    """One for each core, who runs the graph on it."""
    MORE_THAN_CORES = auto()
    """A few more than cores, so that texts always wait in the engine's queue."""

    def number(self, cores: int) -> int:
        """How many call."""
        return {Callers.ONE: 1, Callers.ONE_A_CORE: cores, Callers.MORE_THAN_CORES: cores + 2}[self]


@dataclass(frozen=True)
class Way:
    """How texts are classified."""

    classify: Classify
    texts: int
    """That a caller has classified at a time."""
    callers: Callers


WAYS: Mapping[str, Way] = {
    ONE_BY_ONE: Way(one_by_one, 1, Callers.ONE_A_CORE),
    LONE: Way(lone, 1, Callers.ONE),
    PADDED: Way(padded, _BATCH, Callers.ONE_A_CORE),
    SORTED: Way(sorted_then_padded, 4 * _BATCH, Callers.ONE_A_CORE),
    PACKED: Way(packed, _BATCH, Callers.MORE_THAN_CORES),
}

WAYS_FOR_LONG_TEXTS: Mapping[str, Way] = {
    PADDED_16: Way(padded, 16, Callers.ONE_A_CORE),
    PACKED_16: Way(packed, 16, Callers.MORE_THAN_CORES),
}
"""The same, for texts of which a core takes many seconds for 64."""

ALL_WAYS: Mapping[str, Way] = {**WAYS, **WAYS_FOR_LONG_TEXTS}


def _padded(token_ids: Sequence[Sequence[int]], engine: Engine) -> FloatArray:
    answers = []
    start = 0
    while start < len(token_ids):
        batch = token_ids[start : start + _BATCH]
        while len(batch) > 1 and len(batch) * max(map(len, batch)) > PADDED_TOKENS:
            batch = batch[: len(batch) // 2]
        answers.append(engine.graph.run(_one_text_a_row(batch, engine.bundle.padding_token)))
        start += len(batch)
    return np.concatenate(answers)


def _one_text_a_row(batch: Sequence[Sequence[int]], padding_token: int) -> PackedRows:
    rows, length = len(batch), max(map(len, batch))
    lengths = np.fromiter(map(len, batch), dtype=np.int64, count=rows)
    real = np.arange(length) < lengths[:, None]
    input_ids = np.full((rows, length), padding_token, dtype=np.int64)
    input_ids[real] = np.concatenate(batch)
    return PackedRows(
        input_ids=input_ids,
        position_ids=np.where(real, np.arange(length), 0),
        segment_ids=real.astype(np.int64),
        first_tokens=np.arange(rows) * length,
        texts=np.arange(rows),
    )
