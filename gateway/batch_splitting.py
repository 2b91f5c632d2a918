"""Answers a long list of texts in several calls, as if one version of the model had answered it in one."""

import asyncio

from gateway.backlog import Backlog, work_of
from gateway.inference import Model, Outcomes, Prediction
from serving.processor import usable_cores
from serving.protocol import MAX_BATCH_SIZE
from serving.triton_client import TextRefusedError, TritonTimeoutError, TritonUnavailableError

VERSION_TRIES = 3
"""Times that texts are asked before giving up on one version for all: the second try meets a swap of versions,
the third a swap during the second."""


class TextsRefusedError(Exception):
    """The model refused texts of a list."""

    def __init__(self, refusals: dict[int, str]) -> None:
        """Tell why, by the texts' positions."""
        super().__init__(refusals)
        self.refusals = refusals


class BatchSplitter:
    """Answers lists of texts through calls of up to `MAX_BATCH_SIZE`; make and use it within one event loop.

    All lists together have one call under way for each core and one ahead: enough that no core is idle, and few enough
    that a live request does not wait for long lists.
    """

    def __init__(self, model: Model, backlog: Backlog) -> None:
        """Answer by `model` what finds room in `backlog`."""
        self._model = model
        self._backlog = backlog
        self._free_calls = asyncio.Semaphore(usable_cores() + 1)

    async def predict(self, texts: list[str], known: dict[str, Prediction], deadline: float) -> list[Prediction]:
        """Answer `texts`, all by one version, until `deadline`, a time of the event loop's clock.

        `known` are answers that need not be asked for, as long as the others turn out to be of their version.

        Raises:
            OverloadedError: too much is to be done before.
            TextsRefusedError: the model refuses texts.
            TritonUnavailableError: nobody can answer now, or the version changes faster than the list is answered.
            TritonTimeoutError: no answer came in time.
            ModelTimeoutError: none can come in time.
        """
        unknown = [text for text in dict.fromkeys(texts) if text not in known]
        if not unknown:
            return [known[text] for text in texts]
        time_left_s = deadline - asyncio.get_running_loop().time()
        work = {text: work_of(text) for text in unknown}
        self._backlog.enter(sum(work.values()), time_left_s)
        try:
            # Its calls have the deadline too, but may wait long for their turn.
            return await asyncio.wait_for(self._predict(texts, known, unknown, deadline, work), time_left_s)
        except asyncio.TimeoutError:
            raise TritonTimeoutError("no answer before the deadline") from None
        finally:
            self._backlog.leave(sum(work.values()), done=False)

    async def _predict(
        self,
        texts: list[str],
        known: dict[str, Prediction],
        unknown: list[str],
        deadline: float,
        work: dict[str, int],
    ) -> list[Prediction]:
        """Answer `texts`; what was done is taken out of `work`."""
        predictions = dict(known)
        stale = unknown
        for _ in range(VERSION_TRIES):
            outcomes = await self._infer(stale, deadline, work)
            refused = {
                text: str(outcome) for text, outcome in outcomes.items() if isinstance(outcome, TextRefusedError)
            }
            if refused:
                raise TextsRefusedError({at: refused[text] for at, text in enumerate(texts) if text in refused})
            predictions |= {text: outcome for text, outcome in outcomes.items() if isinstance(outcome, Prediction)}
            # What was asked last was answered by the newest version: calls start in order, and may end in any.
            newest = predictions[stale[-1]].version
            stale = [text for text, prediction in predictions.items() if prediction.version != newest]
            if not stale:
                return [predictions[text] for text in texts]
        raise TritonUnavailableError("the model's version kept changing")

    async def _infer(self, texts: list[str], deadline: float, work: dict[str, int]) -> Outcomes:
        chunks = [texts[start : start + MAX_BATCH_SIZE] for start in range(0, len(texts), MAX_BATCH_SIZE)]
        calls = [asyncio.ensure_future(self._infer_chunk(chunk, deadline, work)) for chunk in chunks]
        try:
            outcomes = await asyncio.gather(*calls)
        finally:
            # After one has failed, or the caller has gone, the others would be work for nobody.
            for call in calls:
                call.cancel()
        return {text: outcome for chunk in outcomes for text, outcome in chunk.items()}

    async def _infer_chunk(self, chunk: list[str], deadline: float, work: dict[str, int]) -> Outcomes:
        async with self._free_calls:
            outcomes = await self._model.infer(chunk, deadline)
        self._backlog.leave(sum(work.pop(text, 0) for text in chunk), done=True)
        return outcomes
