"""Ways to batch texts. All use the same graphs on the same cores, so that only the batching differs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from serving.backend.engine import Engine
from serving.backend.packing import PackedRows

FloatArray = npt.NDArray[np.float32]
Classify = Callable[[Engine, Tokenizer, Sequence[str]], FloatArray]

LONE = "one by one"
PADDED = "padded, 64"
PACKED = "packed, 64"

PADDED_TOKENS = 16_384
"""Maximum tokens in one padded call: 64 texts of 256. Longer texts use smaller batches, to limit the memory of
attention."""
_BATCH = 64


def padded(engine: Engine, tokenizer: Tokenizer, texts: Sequence[str]) -> FloatArray:
    """Return probabilities [texts, labels], from padded batches of 64 in the given order with one text per row."""
    token_ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts))]
    answers = []
    start = 0
    while start < len(token_ids):
        batch = token_ids[start : start + _BATCH]
        while len(batch) > 1 and len(batch) * max(map(len, batch)) > PADDED_TOKENS:
            batch = batch[: len(batch) // 2]
        answers.append(engine.full.graph.run(_one_text_a_row(batch, engine.bundle.padding_token)))
        start += len(batch)
    return np.concatenate(answers)


def packed(engine: Engine, _: Tokenizer, texts: Sequence[str]) -> FloatArray:
    """Return probabilities [texts, labels], with the deployed engine's packing."""
    return engine.classify(texts).values


@dataclass(frozen=True)
class Way:
    """A way to classify texts."""

    classify: Classify
    texts: int
    """Number of texts in one call."""
    callers: Callable[[int], int]
    """The number of concurrent callers by the number of cores."""
    has_core: bool = False
    """True if each caller runs the graph itself, on a core of its own."""


WAYS: Mapping[str, Way] = {
    LONE: Way(packed, 1, lambda _: 1),
    PADDED: Way(padded, _BATCH, lambda cores: cores, has_core=True),
    # A few more callers than cores, so that the engine's queue is never empty.
    PACKED: Way(packed, _BATCH, lambda cores: cores + 2),
}


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
