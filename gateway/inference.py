"""Puts distinct texts to the model in one call, so that a text it refuses fails alone."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol, TypeAlias

from serving.triton_client import Classification, TextRefusedError

Classify: TypeAlias = Callable[[Sequence[str], float], Awaitable[Classification]]
"""`TritonClient.classify`: the answer for texts, within a number of seconds."""


class Prediction(NamedTuple):
    """The answer for one text. A tuple, for one is made for every text that is served."""

    label: str
    score: float
    """Calibrated probability of the label, 0 to 1, with the 4 decimals that are told."""
    version: int
    """The version of the model that gave the answer."""
    truncated: bool
    """Whether the text was longer than the model reads, and was cut."""
    probabilities: bytes
    """Of all labels, as `Classification` has them; only the sample of what is asked needs them."""


Outcomes: TypeAlias = dict[str, Prediction | TextRefusedError]
"""What became of each text of a call."""


class Model(Protocol):
    """What live and batch requests are answered by: `DeployedModel`, or a test's own."""

    async def infer(self, texts: list[str], deadline: float) -> Outcomes:
        """Answer as the function `infer` does."""


async def infer(classify: Classify, texts: list[str], deadline: float) -> Outcomes:
    """Answer at most `MAX_BATCH_SIZE` distinct texts until `deadline`, a time of the event loop's clock.

    Raises:
        TritonUnavailableError: nobody can answer now.
        TritonTimeoutError: no answer came in time.
    """
    try:
        answer = await classify(texts, deadline - asyncio.get_running_loop().time())
    except TextRefusedError as error:
        if len(texts) == 1:
            return {texts[0]: error}
        # Triton fails the whole call for one bad text. Asked at once, the single calls share its next batches.
        singles = await asyncio.gather(*(infer(classify, [text], deadline) for text in texts))
        return {text: outcome for single in singles for text, outcome in single.items()}
    cut = set(answer.truncated)
    width = len(answer.probabilities) // len(texts)
    # Many predictions are kept, and there are few labels: one string for each.
    return {
        text: Prediction(
            sys.intern(label),
            round(score, 4),
            answer.version,
            position in cut,
            answer.probabilities[position * width : (position + 1) * width],
        )
        for position, (text, label, score) in enumerate(zip(texts, answer.labels, answer.scores, strict=True))
    }
