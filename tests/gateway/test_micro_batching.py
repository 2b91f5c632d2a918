import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest

from gateway.inference import Outcomes, infer
from gateway.micro_batching import MicroBatcher
from serving.protocol import MAX_BATCH_SIZE
from serving.triton_client import Classification, TextRefusedError, TritonTimeoutError, TritonUnavailableError

INSTANCES = 2
MOST_CALLS = INSTANCES + 1


class Model:
    """Answers each text with itself; every call ends when the test lets it."""

    def __init__(self) -> None:
        self.instances = INSTANCES
        self.calls: list[list[str]] = []
        self.timeouts: list[float] = []
        self.gate = asyncio.Event()
        self.error: Exception | None = None

    async def infer(self, texts: list[str], deadline: float) -> Outcomes:
        return await infer(self._classify, texts, deadline)

    async def _classify(self, texts: Sequence[str], timeout_s: float) -> Classification:
        self.calls.append(list(texts))
        self.timeouts.append(timeout_s)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        if "bad" in texts:
            raise TextRefusedError("bad text")
        return Classification(list(texts), [0.5] * len(texts), 1, [])


def run(scenario: Callable[[Model, Callable[..., asyncio.Task[str]]], Awaitable[None]]) -> None:
    async def main() -> None:
        model = Model()
        batcher = MicroBatcher(model)

        async def label(text: str, within_s: float) -> str:
            return (await batcher.predict(text, asyncio.get_running_loop().time() + within_s)).label

        def ask(text: str, within_s: float = 10.0) -> asyncio.Task[str]:
            return asyncio.create_task(label(text, within_s))

        await scenario(model, ask)

    asyncio.run(main())


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def occupy(ask: Callable[..., asyncio.Task[str]]) -> list[asyncio.Task[str]]:
    """Bring as many calls under way as there may be."""
    tasks = []
    for number in range(MOST_CALLS):
        tasks.append(ask(f"first {number}"))
        await settle()
    return tasks


def test_lone_request_goes_at_once() -> None:
    async def scenario(model: Model, ask: Callable[..., asyncio.Task[str]]) -> None:
        task = ask("alone")
        await settle()
        assert model.calls == [["alone"]]
        model.gate.set()
        assert await task == "alone"

    run(scenario)


def test_requests_of_one_moment_share_a_call() -> None:
    async def scenario(model: Model, ask: Callable[..., asyncio.Task[str]]) -> None:
        model.gate.set()
        texts = ["a", "b", "c", "d", "e"]
        assert list(await asyncio.gather(*map(ask, texts))) == texts
        assert model.calls == [["a", "b", "c"], ["d", "e"]], "one call for each instance that is free"

    run(scenario)


def test_requests_wait_while_all_instances_are_busy_until_they_make_a_fair_share() -> None:
    async def scenario(model: Model, ask: Callable[..., asyncio.Task[str]]) -> None:
        tasks = [ask(f"first {number}") for number in range(20)]
        await settle()
        tasks += [ask(f"second {number}") for number in range(9)]
        await settle()
        assert [len(call) for call in model.calls] == [10, 10]
        tasks.append(ask("second 9"))
        await settle()
        assert [len(call) for call in model.calls] == [10, 10, 10]
        tasks += [ask(f"third {number}") for number in range(40)]
        await settle()
        assert len(model.calls) == MOST_CALLS, "one call ahead is enough"
        model.gate.set()
        await asyncio.gather(*tasks)

    run(scenario)


def test_request_that_waits_goes_when_an_instance_is_free_however_few_they_are() -> None:
    async def scenario(model: Model, ask: Callable[..., asyncio.Task[str]]) -> None:
        tasks = [ask(f"first {number}") for number in range(20)]
        await settle()
        tasks.append(ask("lone"))
        await settle()
        assert len(model.calls) == INSTANCES
        model.gate.set()
        await asyncio.gather(*tasks)
        assert model.calls[INSTANCES:] == [["lone"]]

    run(scenario)


def test_more_instances_get_more_calls() -> None:
    async def scenario(model: Model, ask: Callable[..., asyncio.Task[str]]) -> None:
        tasks = await occupy(ask)
        tasks += [ask(f"{number}") for number in range(6)]
        model.instances = 6
        tasks.append(ask("last"))
        await settle()
        assert [len(call) for call in model.calls[MOST_CALLS:]] == [3, 2, 2]
        model.gate.set()
        await asyncio.gather(*tasks)

    run(scenario)


def test_next_free_call_takes_all_that_wait_up_to_the_limit_and_equal_texts_once() -> None:
    async def scenario(model: Model, ask: Callable[..., asyncio.Task[str]]) -> None:
        tasks = await occupy(ask)
        texts = [f"{number // 2}" for number in range(2 * MAX_BATCH_SIZE + 6)]
        tasks += [ask(text) for text in texts]
        await settle()
        assert len(model.calls) == MOST_CALLS
        model.gate.set()
        assert (await asyncio.gather(*tasks))[MOST_CALLS:] == texts
        assert [len(call) for call in model.calls[MOST_CALLS:]] == [MAX_BATCH_SIZE, 3]

    run(scenario)


def test_caller_that_has_gone_costs_no_inference() -> None:
    async def scenario(model: Model, ask: Callable[..., asyncio.Task[str]]) -> None:
        tasks = await occupy(ask)
        gone, stays = ask("gone"), ask("stays")
        await settle()
        gone.cancel()
        model.gate.set()
        assert await stays == "stays"
        assert model.calls[MOST_CALLS:] == [["stays"]]
        await asyncio.gather(*tasks)

    run(scenario)


def test_request_past_its_deadline_is_answered_then_and_costs_no_inference() -> None:
    async def scenario(model: Model, ask: Callable[..., asyncio.Task[str]]) -> None:
        tasks = await occupy(ask)
        late = ask("late", within_s=0.02)
        with pytest.raises(TritonTimeoutError):
            await late
        model.gate.set()
        await asyncio.gather(*tasks)
        assert len(model.calls) == MOST_CALLS

    run(scenario)


def test_call_may_take_as_long_as_its_most_patient_request() -> None:
    async def scenario(model: Model, ask: Callable[..., asyncio.Task[str]]) -> None:
        model.instances = 1
        hasty, patient = ask("hasty", within_s=0.02), ask("patient", within_s=60)
        with pytest.raises(TritonTimeoutError):
            await hasty
        model.gate.set()
        assert await patient == "patient"
        assert model.calls == [["hasty", "patient"]]
        assert model.timeouts == [pytest.approx(60, abs=1)]

    run(scenario)


def test_refused_text_fails_alone() -> None:
    async def scenario(model: Model, ask: Callable[..., asyncio.Task[str]]) -> None:
        model.instances = 1
        model.gate.set()
        answers = await asyncio.gather(ask("a"), ask("bad"), ask("b"), ask("bad"), return_exceptions=True)
        assert answers[0] == "a"
        assert answers[2] == "b"
        assert isinstance(answers[1], TextRefusedError)
        assert isinstance(answers[3], TextRefusedError)
        assert model.calls == [["a", "bad", "b"], ["a"], ["bad"], ["b"]]

    run(scenario)


@pytest.mark.parametrize("error", [TritonUnavailableError("down"), TritonTimeoutError("slow"), RuntimeError("?")])
def test_error_of_a_call_reaches_each_of_its_requests_and_frees_the_call(error: Exception) -> None:
    async def scenario(model: Model, ask: Callable[..., asyncio.Task[str]]) -> None:
        model.error = error
        model.gate.set()
        for _ in range(2 * MOST_CALLS):
            answers = await asyncio.gather(ask("a"), ask("b"), return_exceptions=True)
            assert list[object](answers) == [error, error]
        model.error = None
        assert await ask("a") == "a"

    run(scenario)
