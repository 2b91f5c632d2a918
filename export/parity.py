"""Proves that a graph answers as torch does, whatever shares a text's batch."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

MIXED_TEXTS = 200
"""Texts that are also tried in other mixes than the order they come in."""
_SEED = 0
_REFERENCE_TOKENS = 8192

CONFIDENT = 0.9
"""Calibrated probability of a label from which on the reference counts as confident of it."""
STEADY = 0.05
"""A text is answered steadily if its probabilities differ by no more than this, whatever shares its batch."""

FloatArray = npt.NDArray[np.float32]
Classify = Callable[[Sequence[str]], FloatArray]
"""Probabilities [texts, labels] of texts that are sent together."""


@dataclass(frozen=True)
class Parity:
    """How answers agree with a reference, over every mix of batch-mates that was tried; as in `Proof`."""

    texts: int
    mixes: int
    label_agreement: float
    confident_agreement: float
    largest_difference: float
    largest_spread: float
    steady: float


def reference_probabilities(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    max_length: int,
    temperature: float,
) -> FloatArray:
    """Torch's own answer in float32 with ordinary padding, [texts, labels]."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    answer = np.empty((len(texts), model.config.num_labels or 0), dtype=np.float32)
    model.eval()  # type: ignore[no-untyped-call]
    with torch.inference_mode():
        start = 0
        while start < len(order):
            # Sorted by length, so the last of a batch is about its longest; a token has a character or more.
            batch = order[start : start + 64]
            while len(batch) > 1 and len(batch) * min(len(texts[batch[-1]]), max_length) > _REFERENCE_TOKENS:
                batch = batch[: len(batch) // 2]
            inputs = tokenizer(
                [texts[index] for index in batch],
                truncation=True,
                max_length=max_length,
                padding=True,
                return_tensors="pt",
            )
            answer[batch] = torch.softmax(model(**inputs).logits.float() / temperature, dim=-1).numpy()
            start += len(batch)
    return answer


def check_parity(classify: Classify, texts: Sequence[str], reference: FloatArray) -> Parity:
    """Compare the answers of `classify` to `texts`, in no particular order, with `reference` [texts, labels]."""
    in_order = classify(texts)
    mixed = texts[:MIXED_TEXTS]
    answers = [in_order, *(_in_mix(classify, mixed, mix) for mix in _mixes(mixed))]
    spreads = np.ptp([answer[: len(mixed)] for answer in answers], axis=0).max(axis=1)
    right, confident = reference.argmax(axis=1), reference.max(axis=1) >= CONFIDENT
    agreements = [answer.argmax(axis=1) == right[: len(answer)] for answer in answers]
    return Parity(
        texts=len(texts),
        mixes=len(answers),
        label_agreement=min(float(agrees.mean()) for agrees in agreements),
        confident_agreement=min(
            float(agrees[sure].mean()) if (sure := confident[: len(agrees)]).any() else 1.0 for agrees in agreements
        ),
        largest_difference=max(float(np.abs(answer - reference[: len(answer)]).max()) for answer in answers),
        largest_spread=float(spreads.max()),
        steady=float((spreads <= STEADY).mean()),
    )


def _mixes(texts: Sequence[str]) -> Iterator[list[list[int]]]:
    """Ways to divide the texts into batches: one by one, sorted, paired, and shuffled in uneven batches."""
    shuffled = random.Random(_SEED)
    everything = list(range(len(texts)))
    yield [[index] for index in everything]
    by_length = sorted(everything, key=lambda index: len(texts[index]))
    yield [by_length[start : start + 64] for start in range(0, len(texts), 64)]
    # The shortest with the longest, so that short texts fill the gaps of long rows.
    paired = [index for pair in zip(by_length, reversed(by_length), strict=True) for index in pair][: len(texts)]
    yield [paired[start : start + 32] for start in range(0, len(texts), 32)]
    shuffled.shuffle(everything)
    uneven: list[list[int]] = []
    while everything:
        size = shuffled.randint(1, 48)
        uneven.append(everything[:size])
        del everything[:size]
    yield uneven


def _in_mix(classify: Classify, texts: Sequence[str], mix: list[list[int]]) -> FloatArray:
    parts = [classify([texts[index] for index in batch]) for batch in mix]
    answer = np.empty((len(texts), parts[0].shape[1]), dtype=np.float32)
    for batch, part in zip(mix, parts, strict=True):
        answer[batch] = part
    return answer
