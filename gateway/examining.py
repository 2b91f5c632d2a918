"""Asks the model for all that it tells of texts, for people who look at single answers."""

import asyncio

from gateway.backlog import Backlog, work_of
from gateway.deployed_model import DeployedModel
from serving.protocol import MAX_BATCH_SIZE
from serving.triton_client import Classification


class Examiner:
    """Asks in calls of up to `MAX_BATCH_SIZE` texts, one after another; the answers are not kept."""

    def __init__(self, model: DeployedModel, backlog: Backlog) -> None:
        """Ask `model` for what finds room in `backlog`."""
        self._model = model
        self._backlog = backlog

    async def examine(self, texts: list[str], deadline: float) -> list[Classification]:
        """Ask for `texts`, `MAX_BATCH_SIZE` a call, until `deadline`, a time of the event loop's clock.

        Calls may be answered by different versions where one follows another meanwhile; each names its own.

        Raises:
            OverloadedError: too much is to be done before.
            TextRefusedError: the model refuses a text.
            TritonUnavailableError: nobody can answer now.
            TritonTimeoutError: no answer came in time.
            ModelTimeoutError: none can come in time.
        """
        now = asyncio.get_running_loop().time
        left = sum(map(work_of, texts))
        self._backlog.enter(left, deadline - now())
        answers = []
        try:
            for start in range(0, len(texts), MAX_BATCH_SIZE):
                chunk = texts[start : start + MAX_BATCH_SIZE]
                answers.append(await self._model.classify(chunk, deadline - now()))
                done = sum(map(work_of, chunk))
                left -= done
                self._backlog.leave(done, done=True)
        finally:
            self._backlog.leave(left, done=False)
        return answers
