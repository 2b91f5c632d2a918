"""Ways to put texts into batches, all through the same graph, so that only the batching differs."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from serving.engine import Engine
from serving.packing import PackedRows

FloatArray = npt.NDArray[np.float32]
Classify = Callable[[Engine, Tokenizer, Sequence[str]], FloatArray]

ONE_BY_ONE = "one by one"
PADDED = "padded, 64"
SORTED = "sorted, padded, 64 of 256"
PACKED = "packed, 64"
PADDED_16 = "padded, 16"
PACKED_16 = "packed, 16"

PADDED_TOKENS = 16_384
"""Most tokens in one padded call: 64 texts of 256. Longer texts go in smaller batches, as anyone would who saw the
memory that attention takes."""
_BATCH = 64


def one_by_one(engine: Engine, _: Tokenizer, texts: Sequence[str]) -> FloatArray:
    """Probabilities [texts, labels]; one text a call."""
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


WAYS: Mapping[str, tuple[Classify, int]] = {
    ONE_BY_ONE: (one_by_one, 1),
    PADDED: (padded, _BATCH),
    SORTED: (sorted_then_padded, 4 * _BATCH),
    PACKED: (packed, _BATCH),
}
"""By name: how it classifies, and how many texts it is given at a time."""

WAYS_FOR_LONG_TEXTS: Mapping[str, tuple[Classify, int]] = {PADDED_16: (padded, 16), PACKED_16: (packed, 16)}
"""The same, for texts of which a core takes many seconds for 64."""


def _padded(token_ids: Sequence[Sequence[int]], engine: Engine) -> FloatArray:
    answers = []
    start = 0
    while start < len(token_ids):
        batch = token_ids[start : start + _BATCH]
        while len(batch) > 1 and len(batch) * max(map(len, batch)) > PADDED_TOKENS:
            batch = batch[: len(batch) // 2]
        answers.append(engine.runtime.run(_one_text_a_row(batch, engine.bundle.padding_token)))
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
