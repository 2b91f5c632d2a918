"""The engine: one queue for all callers, each of whom gets the answers to their own texts."""

import contextlib
import json
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import serving.backend.engine
from common.errors import PipelineError
from serving.backend.engine import Engine
from serving.backend.packing import PackedRows
from serving.backend.requests import DroppedError, Probabilities, Request, TextError
from serving.model_repo.bundle import TOKENIZER, Bundle
from serving.model_repo.protocol import NOBODY_WAITS, TIME_HAS_PASSED
from serving.model_repo.texts import CHARACTERS_PER_TOKEN, MAX_CHARACTERS
from tests.conftest import LABELS, MAX_LENGTH, REFERENCE, SENTENCES
from tests.e2e.conftest import wait_for

CORES = 2
LONG = "a " * 1_500


@pytest.fixture
def engine(bert_bundle: Path) -> Iterator[Engine]:
    with Engine(bert_bundle, REFERENCE, CORES) as engine:
        yield engine


class HeldGraph:
    """The engine's own graph, each run of which waits until the test lets it go on."""

    prepares_each_shape = False

    def __init__(self, engine: Engine) -> None:
        self._graph = engine.full.graph
        self.runs: list[int] = []
        """Tokens of each run that began."""
        self.may_run = threading.Semaphore(0)
        self.began = threading.Semaphore(0)
        self.error: Exception | None = None
        engine.full.graph = engine.full.graph_of_all_cores = self

    def run(self, rows: PackedRows) -> Any:
        self.runs.append(int((rows.segment_ids > 0).sum()))
        self.began.release()
        assert self.may_run.acquire(timeout=20)
        if self.error is not None:
            raise self.error
        return self._graph.run(rows)


def test_callers_at_the_same_time_get_the_answers_to_their_own_texts(engine: Engine) -> None:
    shuffled = random.Random(0)
    texts = [" ".join(shuffled.choices(SENTENCES, k=shuffled.randint(1, 30))) for _ in range(120)]
    alone = np.concatenate([engine.classify([text]).values for text in texts])
    assert np.ptp(alone[:, 0]) > 0.1, "the texts must get different answers, or equal ones show nothing"
    answers: dict[int, Any] = {}

    def ask(start: int) -> None:
        for size in (1, 7, 22):
            answers[start] = engine.classify(texts[start : start + size]).values
            start += size

    callers = [threading.Thread(target=ask, args=(start,)) for start in range(0, 120, 30)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    together = np.concatenate([answers[start] for start in sorted(answers)])
    assert np.allclose(together, alone, atol=1e-4)


def test_texts_that_wait_share_the_next_run_whoever_sent_them(engine: Engine) -> None:
    held = HeldGraph(engine)
    first = [engine.submit(["good " * 200]) for _ in range(CORES)]
    for _ in range(CORES):
        assert held.began.acquire(timeout=20)
    waiting = [engine.submit([sentence]) for sentence in SENTENCES]
    held.may_run.release(CORES + 2)
    for answer in (*first, *waiting):
        answer.result(20)
    assert len(held.runs) <= CORES + 2


def test_a_short_request_overtakes_a_long_one_that_waits(engine: Engine) -> None:
    held = HeldGraph(engine)
    engine.full.seconds_per_token = 1.0
    busy = [engine.submit(["good " * 200]) for _ in range(CORES)]
    for _ in range(CORES):
        assert held.began.acquire(timeout=20)
    long = engine.submit(["good " * 250] * 6)
    short = engine.submit(["good"])
    held.may_run.release()  # One core becomes free.
    assert held.began.acquire(timeout=20)
    assert held.runs[CORES:] == [engine.count_tokens(["good"])]
    assert not long.done()
    held.may_run.release(100)
    for answer in (*busy, short, long):
        answer.result(20)


def test_a_lone_text_runs_on_all_cores_and_many_on_one_each(engine: Engine) -> None:
    of_one_core, of_all = engine.full.graph, engine.full.graph_of_all_cores
    assert of_one_core is not of_all
    used = []

    class Named:
        prepares_each_shape = False

        def __init__(self, name: str, graph: Any) -> None:
            self._name, self._graph = name, graph

        def run(self, rows: PackedRows) -> Any:
            used.append(self._name)
            return self._graph.run(rows)

    engine.full.graph, engine.full.graph_of_all_cores = Named("one", of_one_core), Named("all", of_all)
    engine.classify(["good"])
    assert used == ["all"]
    used.clear()
    engine.classify(["good " * 60] * 40)
    assert set(used) == {"one"}


def test_a_run_that_fails_fails_its_requests_alone(engine: Engine) -> None:
    held = HeldGraph(engine)
    held.error = MemoryError("too much")
    held.may_run.release(2)  # and one that shows that it is not the text's fault
    with pytest.raises(MemoryError, match="too much"):
        engine.classify(["good"])
    held.error = None
    held.may_run.release()
    assert engine.classify(["good"]).values.shape == (1, 2)


def test_closing_answers_what_waits(bert_bundle: Path) -> None:
    engine = Engine(bert_bundle, REFERENCE, CORES)
    answers = [engine.submit(SENTENCES) for _ in range(20)]
    engine.close()
    assert all(answer.done() and answer.exception() is None for answer in answers)
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit(["good"])


def test_no_texts(engine: Engine) -> None:
    assert engine.classify([]).values.shape == (0, 2)


def test_a_request_is_told_where_its_time_went(engine: Engine) -> None:
    held = HeldGraph(engine)
    busy = [engine.submit(["good " * 200]) for _ in range(CORES)]
    for _ in range(CORES):
        assert held.began.acquire(timeout=20)
    waiting = engine.submit(["good"])
    time.sleep(0.2)
    held.may_run.release(CORES + 1)
    waited = waiting.result(20).phases
    assert waited.tokenize_s > 0
    assert waited.queue_s >= 0.2
    assert waited.graph_s > 0
    for answer in busy:
        ran = answer.result(20).phases
        assert ran.queue_s < ran.graph_s
        assert ran.graph_s >= 0.2


def test_totals_count_what_was_run(engine: Engine) -> None:
    before = engine.totals()
    answers = [engine.classify([sentence]) for sentence in SENTENCES]
    totals = engine.totals()
    assert totals.texts - before.texts == len(SENTENCES)
    assert totals.tokens - before.tokens == engine.count_tokens(SENTENCES)
    assert totals.slots % 16 == 0
    assert totals.slots >= totals.tokens
    assert totals.runs - before.runs == len(SENTENCES)
    for total, of_requests in (
        (totals.tokenize_s, [answer.phases.tokenize_s for answer in answers]),
        (totals.queue_s, [answer.phases.queue_s for answer in answers]),
    ):
        assert total == pytest.approx(sum(of_requests))
    assert 0 < totals.pack_s + totals.graph_s <= sum(answer.phases.graph_s for answer in answers)
    assert (totals.waiting_texts, totals.busy_cores) == (0, 0)


def occupy(engine: Engine, held: HeldGraph) -> list[Future[Probabilities]]:
    """Have every core begin a run, which the test holds."""
    busy = [engine.submit(["good " * 200]) for _ in range(CORES)]
    for _ in range(CORES):
        assert held.began.acquire(timeout=20)
    return busy


def test_a_request_whose_time_has_passed_costs_no_run(engine: Engine) -> None:
    held = HeldGraph(engine)
    busy = occupy(engine, held)
    late = [engine.submit(["very " * 100] * 30, timeout_s=0.01) for _ in range(5)]
    patient = engine.submit(["good"], timeout_s=60)
    time.sleep(0.02)
    held.may_run.release(100)
    for answer in late:
        with pytest.raises(DroppedError, match=TIME_HAS_PASSED):
            answer.result(20)
    for answer in (*busy, patient):
        answer.result(20)
    assert held.runs[CORES:] == [engine.count_tokens(["good"])]


def test_a_request_that_nobody_wants_any_more_costs_no_run(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.backend.engine, "LOOK_S", 0.0)
    held = HeldGraph(engine)
    busy = occupy(engine, held)
    left = engine.submit(["very " * 100] * 100, is_wanted=lambda: False)
    stayed = engine.submit(["good"], is_wanted=lambda: True)
    held.may_run.release(100)
    with pytest.raises(DroppedError, match=NOBODY_WAITS):
        left.result(20)
    for answer in (*busy, stayed):
        answer.result(20)
    assert held.runs[CORES:] == [engine.count_tokens(["good"])]


def test_an_interrupted_wait_leaves_nothing_to_finish(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by the cancellation of a job that proves its export."""
    monkeypatch.setattr(serving.backend.engine, "LOOK_S", 0.0)
    held = HeldGraph(engine)
    main_thread = threading.get_ident()

    def interrupt() -> None:
        for _ in range(CORES):
            assert held.began.acquire(timeout=20)
        signal.pthread_kill(main_thread, signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a run in the background ignores it
    try:
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            engine.classify(["very " * 100] * 100)
    finally:
        signal.signal(signal.SIGINT, before)
    held.may_run.release(CORES)  # another run would fail
    engine.close()
    assert len(held.runs) == CORES


def test_a_request_that_is_answered_while_it_is_asked_about_stays_answered(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the thread that asked goes on: what it raises would fail the test."""
    monkeypatch.setattr(serving.backend.engine, "LOOK_S", 0.0)
    held = HeldGraph(engine)
    busy = occupy(engine, held)
    asked: list[int] = []
    answers: list[Future[Probabilities]] = []

    def is_wanted() -> bool:
        asked.append(1)
        if len(asked) > 1:
            return True
        answers[0].result(20)
        return False

    answers.append(engine.submit(["good"], is_wanted=is_wanted))
    held.may_run.release(100)
    assert len(answers[0].result(20).values) == 1
    for answer in busy:
        answer.result(20)
    engine.close()
    assert len(asked) > 0


@pytest.mark.parametrize("failing", ["_deliver", "_take"])
def test_an_error_of_the_engine_itself_ends_requests_and_no_thread(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    works = getattr(engine, failing)

    def fail(*_: object) -> None:
        raise IndexError("nobody expected this")

    for _ in range(2 * CORES):  # as often as there are threads, and more
        monkeypatch.setattr(engine, failing, fail)
        answer = engine.submit(["good"])
        with pytest.raises(IndexError, match="nobody expected this"):
            answer.result(20)
        monkeypatch.setattr(engine, failing, works)

    def is_answered() -> bool:
        with contextlib.suppress(IndexError):  # a thread may still have to end what waits
            return len(engine.submit(["good"]).result(20).values) == 1
        return False

    wait_for(is_answered, 10, "an answer")
    assert all(thread.is_alive() for thread in engine._threads)
    wait_for(lambda: engine.totals().busy_cores == 0, 10, "all cores to be idle")


def test_nobody_is_asked_about_a_request_that_hardly_waited(engine: Engine) -> None:
    asked = threading.Event()

    def is_wanted() -> bool:
        asked.set()
        return True

    engine.submit(["good"], is_wanted=is_wanted).result(20)
    assert not asked.is_set()


def spoil_vocabulary(bundle: Path, directory: Path, change: dict[str, int | None]) -> Path:
    """A copy of the bundle whose tokenizer has other tokens; none takes one away."""
    shutil.copytree(bundle, directory)
    content = json.loads((directory / TOKENIZER).read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in change]
    vocabulary = content["model"]["vocab"]
    for token, number in change.items():
        if number is None:
            del vocabulary[token]
        else:
            vocabulary[token] = number
    (directory / TOKENIZER).write_text(json.dumps(content))
    return directory


@pytest.mark.parametrize(
    ("change", "bad"), [({"poison": 10_000_000}, "poison"), ({"[UNK]": None}, "☃")], ids=["graph", "tokenizer"]
)
def test_a_text_that_the_graph_or_the_tokenizer_fails_on_fails_alone(
    bert_bundle: Path, tmp_path: Path, change: dict[str, int | None], bad: str
) -> None:
    with Engine(spoil_vocabulary(bert_bundle, tmp_path / "spoilt", change), REFERENCE, CORES) as engine:
        alone = engine.classify(["good"]).values
        held = HeldGraph(engine)
        # They are in one run, so the graph fails for all of them at first.
        answers = [engine.submit([text]) for text in ("terrible", "good", f"good {bad}", "good")]
        held.may_run.release(100)
        assert np.allclose(answers[1].result(20).values, alone, atol=1e-5)
        assert np.allclose(answers[3].result(20).values, alone, atol=1e-5)
        with pytest.raises(TextError, match=r"TEXT\[0\] cannot be classified"):
            answers[2].result(20)
        with pytest.raises(TextError, match=r"TEXT\[1\] cannot be classified"):
            engine.classify(["good", bad])
        assert np.allclose(engine.classify(["good"]).values, alone, atol=1e-5)


@pytest.mark.parametrize("length", [20, 3_000])
def test_while_short_requests_come_a_core_is_kept_for_them(engine: Engine, length: int) -> None:
    engine.classify(["good"])
    engine.classify(["good"])
    held = HeldGraph(engine)
    many = [f"screen {number} {'a ' * (length // 2)}" for number in range(12)]
    bulk = [engine.submit(many, is_bulk=True) for _ in range(2)]
    assert held.began.acquire(timeout=20)
    assert not held.began.acquire(timeout=0.3), "the other core takes bulk too"
    short = engine.submit(["good"])
    assert held.began.acquire(timeout=20), "the core that is kept does not take the short request"
    held.may_run.release(1_000)
    assert short.result(60).truncated.tolist() == [False]
    assert [len(answer.result(60).values) for answer in bulk] == [12, 12]


def test_the_gateways_signs_of_life_keep_no_core(engine: Engine) -> None:
    engine.classify(["Is this ready?"])
    time.sleep(serving.backend.engine.INTERACTIVE_S + 0.1)
    engine.classify(["Is this ready?"])
    held = HeldGraph(engine)
    bulk = engine.submit([f"screen {number} {LONG}" for number in range(4)], is_bulk=True)
    assert held.began.acquire(timeout=20)
    assert held.began.acquire(timeout=20), "only one core works"
    held.may_run.release(1_000)
    assert len(bulk.result(60).values) == 4


def test_the_longest_texts_cost_what_the_model_reads_of_them(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenized: list[int] = []

    class Counting:
        def encode_batch_fast(self, texts: list[str]) -> Any:
            tokenized.extend(map(len, texts))
            return tokenizer.encode_batch_fast(texts)

    tokenizer = engine.full.tokenizer
    monkeypatch.setattr(engine.full, "tokenizer", Counting())
    text = "the screen is bright " * (MAX_CHARACTERS // 21)
    many = engine.classify([text] * 4)
    assert max(tokenized) <= CHARACTERS_PER_TOKEN * MAX_LENGTH
    one = engine.classify([text[: CHARACTERS_PER_TOKEN * MAX_LENGTH]])
    assert np.allclose(many.values, one.values, atol=1e-5)
    assert many.truncated.all()
    assert engine.count_tokens([text]) == MAX_LENGTH


def test_texts_that_the_tokenizer_reads_only_alone_are_classified_and_ctrl_c_is_no_fault_of_a_text(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing:
        error: BaseException = MemoryError("no room for so many")

        def encode_batch_fast(self, _: list[str]) -> Any:
            raise self.error

        def encode(self, text: str) -> Any:
            return tokenizer.encode(text)

    tokenizer, failing, expected = engine.full.tokenizer, Failing(), engine.classify(["good", "bad"]).values
    monkeypatch.setattr(engine.full, "tokenizer", failing)
    assert np.allclose(engine.classify(["good", "bad"]).values, expected, atol=1e-5)
    failing.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        engine.classify(["good"])


def test_a_long_request_is_tokenized_while_short_ones_are_answered(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_tokenize = threading.Event()

    class Slow:
        def encode_batch_fast(self, texts: list[str]) -> Any:
            assert len(texts) == 1 or may_tokenize.wait(20)
            return tokenizer.encode_batch_fast(texts)

    tokenizer = engine.full.tokenizer
    monkeypatch.setattr(engine.full, "tokenizer", Slow())
    is_wanted = threading.Event()
    is_wanted.set()
    long = ["the screen is bright " * 200] * 2 * serving.backend.engine.TOKENIZED_TOGETHER
    answered, left = engine.submit(long), engine.submit(long, is_wanted=is_wanted.is_set)
    assert len(engine.classify(["good"]).values) == 1
    monkeypatch.setattr(serving.backend.engine, "LOOK_S", 0.0)
    is_wanted.clear()
    may_tokenize.set()
    assert len(answered.result(60).values) == len(long)
    with pytest.raises(DroppedError, match=NOBODY_WAITS):
        left.result(20)


def test_a_graph_of_other_labels_is_refused(bert_bundle: Path, tmp_path: Path) -> None:
    directory = tmp_path / "other"
    shutil.copytree(bert_bundle, directory)
    replace(Bundle.load(directory), labels=(*LABELS, "Neutral")).save(directory)
    with pytest.raises(PipelineError, match=r"gives 2 probabilities .* names 3 labels"):
        Engine(directory, REFERENCE, CORES)


def test_a_client_that_cannot_be_asked_about_fails_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no engine thread ends with it: as many requests as there are threads would else end the engine."""
    monkeypatch.setattr(serving.backend.engine, "LOOK_S", 0.0)

    def is_wanted() -> bool:
        raise KeyError("unexpected")

    held = HeldGraph(engine)
    busy = occupy(engine, held)
    bad = [engine.submit(["good"], is_wanted=is_wanted) for _ in range(2 * CORES)]
    held.may_run.release(100)
    for answer in bad:
        with pytest.raises(KeyError, match="unexpected"):
            answer.result(20)
    for answer in busy:
        answer.result(20)
    assert all(thread.is_alive() for thread in engine._threads)
    assert engine.submit(["good"]).result(20).values.shape == (1, 2)


def test_a_long_request_that_cannot_be_queued_is_told_so(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("too much")

    monkeypatch.setattr(Request, "queue", fail)
    answer = engine.submit(["good " * 4_000] * 30)  # tokenized in another thread
    with pytest.raises(MemoryError, match="too much"):
        answer.result(20)
