"""Sends many texts to running Tritons, as any client would."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.errors import PipelineError
from serving.client.errors import TextRefusedError, TritonTimeoutError, TritonUnavailableError
from serving.client.one_version import VersionChangesError, by_one_version
from serving.client.replicas import Replicas
from serving.client.triton_client import Classification
from serving.model_repo.protocol import MAX_BATCH_SIZE

CALL_TIMEOUT_S = 60.0
VERSION_TRIES = 5


@dataclass(frozen=True)
class Answers:
    """Predictions of one version for a list of texts."""

    version: int
    labels: list[str]
    confidence: npt.NDArray[np.float32]
    """[texts], the probability of the predicted label"""
    probabilities: npt.NDArray[np.float32]
    """[texts, labels], in the order of the version's labels"""

    def indices(self, labels: tuple[str, ...]) -> npt.NDArray[np.int64]:
        """Return the predicted labels as indices into `labels`; -1 for a label that is not among them."""
        index = {label: position for position, label in enumerate(labels)}
        return np.array([index.get(label, -1) for label in self.labels], dtype=np.int64)


def batch_predict(address: str, texts: Sequence[str]) -> Answers:
    """Classify all of `texts` with one version of the model at `address`, which `serving.client.addresses` parses.

    Raises:
        PipelineError: the model does not respond, refuses a text, or changes its version again and again.
    """
    return asyncio.run(_ask(address, texts))


async def _ask(address: str, texts: Sequence[str]) -> Answers:
    client = Replicas(address)

    async def call(starts: Sequence[int]) -> dict[int, Classification]:
        return {start: await client.classify(texts[start : start + MAX_BATCH_SIZE], CALL_TIMEOUT_S) for start in starts}

    try:
        starts = range(0, len(texts), MAX_BATCH_SIZE)
        by_start = await by_one_version(starts, call, [0.0] * (VERSION_TRIES - 1))
        answers = [by_start[start] for start in starts]
        return Answers(
            answers[0].version,
            [label for answer in answers for label in answer.labels],
            np.array([score for answer in answers for score in answer.scores], dtype=np.float32),
            np.frombuffer(b"".join(answer.probabilities for answer in answers), "<f4").reshape(len(texts), -1),
        )
    except VersionChangesError as error:
        raise PipelineError("The version that is served changes faster than it can be asked.") from error
    except (TritonUnavailableError, TritonTimeoutError) as error:
        raise PipelineError(f"Triton does not respond at {address}: {error}.") from error
    except TextRefusedError as error:
        raise PipelineError(f"The model at {address} refuses a text: {error}") from error
    finally:
        await client.close()
