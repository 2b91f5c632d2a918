import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest

from gateway.inference import micro_batching
from gateway.inference.answer_cache import AnswerCache
from gateway.inference.micro_batching import MOST_TEXTS, MicroBatcher
from gateway.inference.model import Model
from gateway.load_control.backlog import Backlog
from gateway.monitoring.metrics import Metrics
from serving.client.errors import TextRefusedError, TritonTimeoutError, TritonUnavailableError
from serving.client.triton_client import Classification


class FakeModel(Model):
    """Answers each text with itself; every call ends when the test lets it."""

    def __init__(self) -> None:
        super().__init__(AnswerCache(0), Metrics())
        self.calls: list[list[str]] = []
        self.timeouts: list[float] = []
        self.gate = asyncio.Event()
        self.error: Exception | None = None

    async def classify(self, texts: Sequence[str], timeout_s: float, is_bulk: bool = False) -> Classification:  # noqa: ARG002
        self.calls.append(list(texts))
        self.timeouts.append(timeout_s)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        if "bad" in texts:
            raise TextRefusedError("bad text")
        return Classification(list(texts), [0.5] * len(texts), 1, [])


def run(scenario: Callable[[FakeModel, Callable[..., asyncio.Task[str]]], Awaitable[None]]) -> None:
    async def main() -> None:
        model = FakeModel()
        batcher = MicroBatcher(model, Backlog(longest_wait_s=2.0), Metrics())

        async def label(text: str, within_s: float) -> str:
            return (await batcher.predict(text, asyncio.get_running_loop().time() + within_s)).label

        def ask(text: str, within_s: float = 10.0) -> asyncio.Task[str]:
            return asyncio.create_task(label(text, within_s))

        await scenario(model, ask)

    asyncio.run(main())


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def occupy(ask: Callable[..., asyncio.Task[str]]) -> asyncio.Task[str]:
    """Bring a call under way."""
    task = ask("first")
    await settle()
    return task


async def occupy_after_a_call(model: FakeModel, ask: Callable[..., asyncio.Task[str]]) -> asyncio.Task[str]:
    """Bring a call under way when one has ended, so that it is known how long a call takes."""
    model.gate.set()
    await ask("before")
    model.gate.clear()
    return await occupy(ask)


def test_lone_request_goes_at_once() -> None:
    async def scenario(model: FakeModel, ask: Callable[..., asyncio.Task[str]]) -> None:
        task = ask("alone")
        await settle()
        assert model.calls == [["alone"]]
        model.gate.set()
        assert await task == "alone"

    run(scenario)


def test_requests_of_one_moment_share_a_call_up_to_the_limit_and_equal_texts_are_inferred_once() -> None:
    async def scenario(model: FakeModel, ask: Callable[..., asyncio.Task[str]]) -> None:
        model.gate.set()
        texts = [f"{number // 2}" for number in range(2 * MOST_TEXTS + 6)]
        assert list(await asyncio.gather(*map(ask, texts))) == texts
        assert [len(call) for call in model.calls] == [MOST_TEXTS, 3]

    run(scenario)


def test_requests_gather_while_a_call_is_under_way_but_do_not_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro_batching, "MOST_GATHERING_S", 0.05)
    monkeypatch.setattr(micro_batching, "GATHERING_SHARE", 1e9)

    async def scenario(model: FakeModel, ask: Callable[..., asyncio.Task[str]]) -> None:
        tasks = [await occupy_after_a_call(model, ask), ask("a")]
        await settle()
        tasks.append(ask("b"))
        await settle()
        assert len(model.calls) == 2, "others may come to go with them"
        await asyncio.sleep(0.1)
        assert model.calls[2:] == [["a", "b"]]
        model.gate.set()
        await asyncio.gather(*tasks)

    run(scenario)


def test_requests_that_make_a_full_call_gather_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro_batching, "MOST_GATHERING_S", 60.0)
    monkeypatch.setattr(micro_batching, "GATHERING_SHARE", 1e9)

    async def scenario(model: FakeModel, ask: Callable[..., asyncio.Task[str]]) -> None:
        tasks = [await occupy_after_a_call(model, ask)]
        tasks += [ask(f"{number}") for number in range(MOST_TEXTS)]
        await settle()
        assert len(model.calls[2]) == MOST_TEXTS
        model.gate.set()
        await asyncio.gather(*tasks)

    run(scenario)


def test_requests_that_gather_go_when_no_call_is_under_way_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro_batching, "MOST_GATHERING_S", 60.0)
    monkeypatch.setattr(micro_batching, "GATHERING_SHARE", 1e9)

    async def scenario(model: FakeModel, ask: Callable[..., asyncio.Task[str]]) -> None:
        tasks = [await occupy_after_a_call(model, ask), ask("lone")]
        await settle()
        model.gate.set()
        await asyncio.gather(*tasks)
        assert model.calls[2:] == [["lone"]]

    run(scenario)


def test_caller_that_has_gone_costs_no_inference() -> None:
    async def scenario(model: FakeModel, ask: Callable[..., asyncio.Task[str]]) -> None:
        gone, stays = ask("gone"), ask("stays")
        await asyncio.sleep(0)
        gone.cancel()
        model.gate.set()
        assert await stays == "stays"
        assert model.calls == [["stays"]]

    run(scenario)


def test_request_past_its_deadline_is_answered_then_and_costs_no_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro_batching, "MOST_GATHERING_S", 0.1)
    monkeypatch.setattr(micro_batching, "GATHERING_SHARE", 1e9)

    async def scenario(model: FakeModel, ask: Callable[..., asyncio.Task[str]]) -> None:
        task = await occupy_after_a_call(model, ask)
        with pytest.raises(TritonTimeoutError):
            await ask("late", within_s=0.02)
        model.gate.set()
        await task
        await asyncio.sleep(0.1)
        assert model.calls == [["before"], ["first"]]

    run(scenario)


def test_call_may_take_as_long_as_its_most_patient_request() -> None:
    async def scenario(model: FakeModel, ask: Callable[..., asyncio.Task[str]]) -> None:
        hasty, patient = ask("hasty", within_s=0.02), ask("patient", within_s=60)
        with pytest.raises(TritonTimeoutError):
            await hasty
        model.gate.set()
        assert await patient == "patient"
        assert model.calls == [["hasty", "patient"]]
        assert model.timeouts == [pytest.approx(60, abs=1)]

    run(scenario)


def test_refused_text_fails_alone() -> None:
    async def scenario(model: FakeModel, ask: Callable[..., asyncio.Task[str]]) -> None:
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
    async def scenario(model: FakeModel, ask: Callable[..., asyncio.Task[str]]) -> None:
        model.error = error
        model.gate.set()
        for _ in range(6):
            answers = await asyncio.gather(ask("a"), ask("b"), return_exceptions=True)
            assert list[object](answers) == [error, error]
        model.error = None
        assert await ask("a") == "a"

    run(scenario)
