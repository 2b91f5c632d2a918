"""Asks running Tritons for many answers, as any client would."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from errors import PipelineError
from serving.protocol import MAX_BATCH_SIZE
from serving.replicas import Replicas
from serving.triton_client import TextRefusedError, TritonTimeoutError, TritonUnavailableError

CALL_TIMEOUT_S = 60.0
VERSION_TRIES = 5


@dataclass(frozen=True)
class Answers:
    """What one version answered."""

    version: int
    labels: list[str]
    confidence: npt.NDArray[np.float32]
    """[texts], the probability of the label"""
    probabilities: npt.NDArray[np.float32]
    """[texts, labels], in the order of the version's labels"""

    def indices(self, labels: tuple[str, ...]) -> npt.NDArray[np.int64]:
        """The labels as indices into others; -1 for one that is not among them."""
        index = {label: position for position, label in enumerate(labels)}
        return np.array([index.get(label, -1) for label in self.labels], dtype=np.int64)


def ask(address: str, texts: Sequence[str]) -> Answers:
    """Have the model at `address`, as `serving.addresses` reads it, answer all of `texts`, by one version.

    Raises:
        PipelineError: it does not answer, or refuses a text.
    """
    return asyncio.run(_ask(address, texts))


async def _ask(address: str, texts: Sequence[str]) -> Answers:
    client = Replicas(address)
    try:
        for _ in range(VERSION_TRIES):
            versions: set[int] = set()
            labels: list[str] = []
            confidence: list[float] = []
            probabilities: list[bytes] = []
            for start in range(0, len(texts), MAX_BATCH_SIZE):
                answer = await client.classify(texts[start : start + MAX_BATCH_SIZE], CALL_TIMEOUT_S)
                versions.add(answer.version)
                labels += answer.labels
                confidence += answer.scores
                probabilities.append(answer.probabilities)
            if len(versions) == 1:
                return Answers(
                    versions.pop(),
                    labels,
                    np.array(confidence, dtype=np.float32),
                    np.frombuffer(b"".join(probabilities), "<f4").reshape(len(labels), -1),
                )
        raise PipelineError("The version that is served changes faster than it can be asked.")
    except (TritonUnavailableError, TritonTimeoutError) as error:
        raise PipelineError(f"Triton does not answer at {address}: {error}.") from error
    except TextRefusedError as error:
        raise PipelineError(f"The model at {address} refuses a text: {error}") from error
    finally:
        await client.close()
