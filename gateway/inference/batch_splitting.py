"""Splits long lists of texts into several calls; the predictions for a list all come from one version."""

import asyncio
from collections import Counter
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from gateway.http.callers import current_caller
from gateway.inference.model import Model, Outcomes
from gateway.load_control.backlog import LONGEST_TEXT, Backlog, work_of
from gateway.load_control.turns import Turns
from serving.backend.cpu import usable_cores
from serving.client.errors import TextRefusedError, TritonTimeoutError
from serving.client.one_version import by_one_version
from serving.client.prediction import Prediction
from serving.client.triton_client import Classification
from serving.model_repo.protocol import MAX_BATCH_SIZE

VERSION_TRIES = 3
"""Maximum attempts to get all predictions from one version: the second attempt handles a version change, the third
another change during the second."""
MOST_WORK = 4 * LONGEST_TEXT
"""Maximum work of a call with more than one text: about four runs of the engine. A larger call would delay others for
longer, and would run for longer after its client has disconnected."""

Answer = TypeVar("Answer")


class TextsRefusedError(Exception):
    """The model refused some texts of a list."""

    def __init__(self, refusals: dict[int, str]) -> None:
        """Take the reasons, by the texts' positions."""
        super().__init__(refusals)
        self.refusals = refusals


def split(texts: Iterable[str]) -> Iterator[list[str]]:
    """Split texts into calls of at most `MAX_BATCH_SIZE` texts and `MOST_WORK` work."""
    call: list[str] = []
    work = 0
    for text in texts:
        work += work_of(text)
        if call and (len(call) == MAX_BATCH_SIZE or work > MOST_WORK):
            yield call
            call, work = [], work_of(text)
        call.append(text)
    if call:
        yield call


class BatchSplitter:
    """Predicts lists of texts in calls made by `split`. Create and use it within one event loop."""

    def __init__(self, model: Model, backlog: Backlog) -> None:
        """Call `model` for lists that fit in `backlog`; each call waits for its caller's turn."""
        self._model = model
        self._backlog = backlog
        # One call per core and one ahead: enough to keep all cores busy, and few enough that no call waits long.
        self._turns = Turns(usable_cores() + 1)

    async def predict(self, texts: list[str], known: dict[str, Prediction], deadline: float) -> list[Prediction]:
        """Return predictions for `texts`, all from one version, before `deadline`, a time of the event loop's clock.

        Predictions in `known` are used if the others come from the same version.

        Raises:
            OverloadedError: too much other work was accepted before.
            TextsRefusedError: the model refused some texts.
            TritonUnavailableError: no model can respond now, or the version changes faster than the list is processed.
            TritonTimeoutError: no response came in time.
            ModelTimeoutError: no response can come in time.
        """
        unknown = [text for text in dict.fromkeys(texts) if text not in known]
        if not unknown:
            return [known[text] for text in texts]

        async def call(stale: Sequence[str]) -> dict[str, Prediction]:
            return _accepted(texts, await self._predict(stale, deadline, work))

        with self._room_for(unknown, deadline) as work:
            answering = by_one_version(unknown, call, [0.0] * (VERSION_TRIES - 1), known)
            predictions = await _before(deadline, answering)
        return [predictions[text] for text in texts]

    async def classify(self, texts: list[str], deadline: float) -> list[Classification]:
        """Return full classifications of `texts`, from calls one after another, before `deadline`; they are not cached.

        If the version changes meanwhile, calls may get different versions; each classification names its own.

        Raises:
            OverloadedError: too much other work was accepted before.
            TextRefusedError: the model refused a text.
            TritonUnavailableError: no model can respond now.
            TritonTimeoutError: no response came in time.
            ModelTimeoutError: no response can come in time.
        """
        with self._room_for(texts, deadline) as work:
            return await _before(deadline, self._classify(texts, deadline, work))

    @contextmanager
    def _room_for(self, texts: Iterable[str], deadline: float) -> Iterator[Counter[str]]:
        """Reserve room for `texts` and yield their work by text; the block removes what is done."""
        work = Counter[str]()
        for text in texts:
            work[text] += work_of(text)
        caller = current_caller.get()
        self._backlog.enter(work.total(), deadline - asyncio.get_running_loop().time(), caller)
        try:
            yield work
        finally:
            self._backlog.leave(work.total(), caller, done=False)

    async def _classify(self, texts: list[str], deadline: float, work: Counter[str]) -> list[Classification]:
        answers = []
        for call in split(texts):
            async with self._turns.turn(current_caller.get()):
                time_left_s = deadline - asyncio.get_running_loop().time()
                answers.append(await self._model.classify(call, time_left_s, is_bulk=True))
            self._end(call, work)
        return answers

    async def _predict(self, texts: Sequence[str], deadline: float, work: Counter[str]) -> Outcomes:
        calls = [asyncio.ensure_future(self._predict_chunk(chunk, deadline, work)) for chunk in split(texts)]
        try:
            outcomes = await asyncio.gather(*calls)
        finally:
            # If one call failed or the client has disconnected, nobody needs the other results.
            for call in calls:
                call.cancel()
        return {text: outcome for chunk in outcomes for text, outcome in chunk.items()}

    async def _predict_chunk(self, chunk: list[str], deadline: float, work: Counter[str]) -> Outcomes:
        async with self._turns.turn(current_caller.get()):
            outcomes = await self._model.predict(chunk, deadline, is_bulk=True)
        self._end(chunk, work)
        return outcomes

    def _end(self, call: list[str], work: Counter[str]) -> None:
        self._backlog.leave(sum(work.pop(text, 0) for text in call), current_caller.get(), done=True)


async def _before(deadline: float, answering: Coroutine[Any, Any, Answer]) -> Answer:
    """Await a result until `deadline`. Its calls have this deadline too, but may wait long for their turn.

    Raises:
        TritonTimeoutError: the result did not come in time.
    """
    try:
        return await asyncio.wait_for(answering, deadline - asyncio.get_running_loop().time())
    except TimeoutError:
        raise TritonTimeoutError("no response before the deadline") from None


def _accepted(texts: list[str], outcomes: Outcomes) -> dict[str, Prediction]:
    """Return the predictions in `outcomes`, the results for some of `texts`.

    Raises:
        TextsRefusedError: the model refused some texts.
    """
    refused = {text: str(outcome) for text, outcome in outcomes.items() if isinstance(outcome, TextRefusedError)}
    if refused:
        raise TextsRefusedError({at: refused[text] for at, text in enumerate(texts) if text in refused})
    return {text: outcome for text, outcome in outcomes.items() if isinstance(outcome, Prediction)}
