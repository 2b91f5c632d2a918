"""Compares a graph's predictions with torch's, with different texts sharing a batch."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import binom
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from serving.model_repo.texts import readable
from serving.model_repo.variants import BFLOAT16, FLOAT16, FLOAT32, INT8, Precision

MIXED_TEXTS = 200
"""Number of texts that are also tried in other batches than in their order."""
_SEED = 0
_REFERENCE_TOKENS = 8192

CONFIDENT = 0.9
"""Minimum calibrated probability for the reference to count as confident."""
STEADY = 0.05
"""A prediction is steady if its probabilities differ by at most this, whichever texts share its batch."""
RESOLUTION: dict[Precision, float] = {FLOAT32: 0.005, FLOAT16: 0.005, BFLOAT16: 0.02, INT8: 0.02}
"""A label that differs is a near tie if the reference's probabilities of both labels are at most so far apart. bfloat16
and int8 keep 8 bits of a number, float16 11; a GPU multiplies float32 numbers with 11 bits (TF32)."""
CHANCE = 0.01
"""A share is too low only if chance alone explains the count in at most this share of cases. Five mixes are tested, so
a variant that just reaches the minimum is refused by chance in at most one of twenty exports."""

FloatArray = npt.NDArray[np.float32]
Classify = Callable[[Sequence[str]], FloatArray]
"""Returns the probabilities [texts, labels] of texts that are sent together."""


@dataclass(frozen=True)
class Count:
    """The number of texts that fail a test, and the number of tested texts."""

    failed: int
    texts: int

    @property
    def share(self) -> float:
        """The share of texts that pass; 1 without texts."""
        return 1 - self.failed / self.texts if self.texts else 1.0

    def is_below(self, least: float) -> bool:
        """Return whether the share that passes is below `least` by more than chance explains (binomial test)."""
        return bool(binom.sf(self.failed - 1, self.texts, 1 - least) <= CHANCE)

    def __str__(self) -> str:
        """Format the count for a message."""
        return f"{self.failed:,} of {self.texts:,} texts"


@dataclass(frozen=True)
class Parity:
    """Agreement of predictions with a reference, over all tried mixes of texts."""

    texts: int
    labels: tuple[Count, ...]
    """By mix: texts with another label than the reference's, without near ties."""
    confident: tuple[Count, ...]
    """By mix: the same for the texts of whose label the reference is confident."""
    unsteady: Count
    """Texts whose probabilities differ by more than `STEADY` between the mixes."""
    differing: int
    """Number of texts with another label in any mix, without near ties."""
    near_ties: int
    """Number of texts with another label in any mix that are near ties in all of them."""
    label_agreement: float
    """Share of texts with the reference's label in the worst mix; near ties count as other labels."""
    confident_agreement: float
    largest_difference: float
    largest_spread: float

    def refusal(self, reference: str, least: float, least_confident: float = 0, least_steady: float = 0) -> str:
        """Return why the predictions agree too little with the `reference`, which messages name; empty if they agree.

        The other arguments are minimum shares of all texts, of the confident ones, and of the steady ones.
        """
        reasons = [
            f"{worst}{kind} get another label than {reference} ({worst.share:.2%} agree; near ties do not count), and "
            f"at least {minimum:.1%} must agree"
            for kind, counts, minimum in (
                ("", self.labels, least),
                (" with a confident label", self.confident, least_confident),
            )
            if (below := [count for count in counts if count.is_below(minimum)])
            for worst in [min(below, key=lambda count: count.share)]
        ]
        if self.unsteady.is_below(least_steady):
            reasons.append(
                f"{self.unsteady} get another prediction depending on which texts share their run, and "
                f"{least_steady:.1%} must get the same"
            )
        return "; ".join(reasons)


def reference_probabilities(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    max_length: int,
    temperature: float,
) -> FloatArray:
    """Torch's probabilities in float32 with ordinary padding, [texts, labels]."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    answer = np.empty((len(texts), model.config.num_labels or 0), dtype=np.float32)
    model.eval()  # type: ignore[no-untyped-call]
    with torch.inference_mode():
        start = 0
        while start < len(order):
            # Texts are sorted by length, so the last of a batch is about the longest. A token has a character or more.
            batch = order[start : start + 64]
            while len(batch) > 1 and len(batch) * min(len(texts[batch[-1]]), max_length) > _REFERENCE_TOKENS:
                batch = batch[: len(batch) // 2]
            inputs = tokenizer(
                [readable(texts[index], max_length).text for index in batch],
                truncation=True,
                max_length=max_length,
                split_special_tokens=True,  # `[SEP]` in a text is text, as in the engine
                padding=True,
                return_tensors="pt",
            )
            answer[batch] = torch.softmax(model(**inputs).logits.float() / temperature, dim=-1).numpy()
            start += len(batch)
    return answer


def check_parity(classify: Classify, texts: Sequence[str], reference: FloatArray, precision: Precision) -> Parity:
    """Compare the predictions of `classify` for `texts`, in any order, with `reference` [texts, labels].

    A label that differs is a near tie if the reference's probabilities of both labels differ by at most what the
    `precision` of the predictions resolves.
    """
    in_order = classify(texts)
    mixed = texts[:MIXED_TEXTS]
    answers = [in_order, *(_in_mix(classify, mixed, mix) for mix in _mixes(mixed))]
    spreads = np.ptp([answer[: len(mixed)] for answer in answers], axis=0).max(axis=1)
    confident = reference.max(axis=1) >= CONFIDENT
    labels, sure, agreements, confident_agreements = [], [], [], []
    differs, ties = np.zeros(len(texts), dtype=bool), np.zeros(len(texts), dtype=bool)
    for answer in answers:
        count = len(answer)
        margins = reference[:count].max(axis=1) - reference[np.arange(count), answer.argmax(axis=1)]
        other = answer.argmax(axis=1) != reference[:count].argmax(axis=1)
        wrong = other & (margins > RESOLUTION[precision])
        differs[:count] |= wrong
        ties[:count] |= other & ~wrong
        is_sure = confident[:count]
        labels.append(Count(int(wrong.sum()), count))
        sure.append(Count(int((wrong & is_sure).sum()), int(is_sure.sum())))
        agreements.append(Count(int(other.sum()), count).share)
        confident_agreements.append(Count(int((other & is_sure).sum()), int(is_sure.sum())).share)
    return Parity(
        texts=len(texts),
        labels=tuple(labels),
        confident=tuple(sure),
        unsteady=Count(int((spreads > STEADY).sum()), len(mixed)),
        differing=int(differs.sum()),
        near_ties=int((ties & ~differs).sum()),
        label_agreement=min(agreements),
        confident_agreement=min(confident_agreements),
        largest_difference=max(float(np.abs(answer - reference[: len(answer)]).max()) for answer in answers),
        largest_spread=float(spreads.max()),
    )


def _mixes(texts: Sequence[str]) -> Iterator[list[list[int]]]:
    """Ways to divide the texts into batches: one by one, sorted, paired, and shuffled in uneven batches."""
    shuffled = random.Random(_SEED)
    everything = list(range(len(texts)))
    yield [[index] for index in everything]
    by_length = sorted(everything, key=lambda index: len(texts[index]))
    yield [by_length[start : start + 64] for start in range(0, len(texts), 64)]
    # The shortest text with the longest, so that short texts fill the gaps of long rows.
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
