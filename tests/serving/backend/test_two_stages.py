"""A first stage decides the texts that it is sure of, and the full model the others, in any mix of texts."""

import random
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from serving.backend.cpu import arithmetic
from serving.backend.engine import Engine
from serving.backend.packing import TOKENS_PER_RUN, PackedRows
from serving.backend.requests import DroppedError, TextError
from serving.model_repo.bundle import FIRST_STAGE, Bundle, Certificate
from serving.model_repo.variants import FLOAT32, OPENVINO, Variant
from tests.conftest import REFERENCE, SENTENCES, make_bundle, make_encoder

CORES = 2
TEXTS = [f"{sentence} {'good ' * (number % 23)}" for number, sentence in enumerate(SENTENCES * 32)]

FloatArray = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def directory(bert_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version whose first stage is of another family, with another tokenizer, and is sure of about half of TEXTS."""
    directory = shutil.copytree(bert_bundle, tmp_path_factory.mktemp("stages") / "1")
    make_bundle(make_encoder("roberta", tmp_path_factory.mktemp("roberta")), directory / FIRST_STAGE)
    with Engine(directory / FIRST_STAGE, REFERENCE, CORES) as first:
        confidence = np.sort(first.classify(TEXTS).values.max(axis=1))
    middle = int(np.argmax(np.diff(confidence[60:-60]))) + 60  # a gap, so that no text is near the threshold
    certify(directory, threshold=float(confidence[middle : middle + 2].mean()))
    return directory


def certify(directory: Path, threshold: float, full: Variant = REFERENCE, of: str = "") -> None:
    found = certificate(threshold, full=full, of=of)
    replace(Bundle.load(directory), first_stage=found).save(directory)


def certificate(threshold: float, limit: float = 0.01, full: Variant = REFERENCE, of: str = "") -> Certificate:
    return Certificate(
        threshold=threshold,
        disagreement=limit,
        limit=limit,
        texts=1_000,
        differing=3,
        share=0.5,
        gain=1.5,
        origin="another model",
        first=REFERENCE,
        full=full,
        arithmetic=of or arithmetic(),
    )


@pytest.fixture
def engine(directory: Path) -> Iterator[Engine]:
    with Engine(directory, REFERENCE, CORES) as engine:
        engine.second_opinions = None  # test_audited_stages has it
        yield engine


@pytest.fixture(scope="module")
def expected(directory: Path, bert_bundle: Path) -> FloatArray:
    """The probabilities that each text should get, [texts, labels], from both models apart."""
    certificate = Bundle.load(directory).first_stage
    assert certificate is not None
    with Engine(directory / FIRST_STAGE, REFERENCE, CORES) as first, Engine(bert_bundle, REFERENCE, CORES) as full:
        answers, others = first.classify(TEXTS).values, full.classify(TEXTS).values
    is_sure = answers.max(axis=1) >= certificate.threshold
    assert 60 <= is_sure.sum() <= len(TEXTS) - 60
    assert np.median(np.abs(answers - others)) > 0.1, "both models must differ, or the same result shows nothing"
    return np.where(is_sure[:, None], answers, others)


class HeldGraph:
    """A stage's own graph, each run of which waits until the test lets it go on."""

    prepares_each_shape = False

    def __init__(self, stage: Any) -> None:
        self._graph = stage.graph
        self.runs: list[int] = []
        """Tokens of each run that began."""
        self.may_run = threading.Semaphore(0)
        self.began = threading.Semaphore(0)
        stage.graph = stage.graph_of_all_cores = self

    def run(self, rows: PackedRows) -> Any:
        self.runs.append(int((rows.segment_ids > 0).sum()))
        self.began.release()
        assert self.may_run.acquire(timeout=20)
        return self._graph.run(rows)


def test_each_text_gets_the_answer_of_its_stage_whoever_it_shares_a_run_with(
    directory: Path, engine: Engine, expected: FloatArray
) -> None:
    order = random.Random(0).sample(range(len(TEXTS)), len(TEXTS))
    found = np.empty_like(expected)

    def call(places: list[int]) -> None:
        while places:
            part, places = places[:7], places[7:]
            found[part] = engine.classify([TEXTS[place] for place in part]).values

    callers = [threading.Thread(target=call, args=(order[start::4],)) for start in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert np.allclose(found, expected, atol=1e-4)
    assert np.allclose(engine.classify(TEXTS).values, expected, atol=1e-4)
    totals = engine.totals()
    assert totals.texts == 2 * len(TEXTS)
    certificate = engine.bundle.first_stage
    assert certificate is not None
    with Engine(directory / FIRST_STAGE, REFERENCE, CORES) as first:
        sure = int((first.classify(TEXTS).values.max(axis=1) >= certificate.threshold).sum())
    assert totals.first_stage_texts == 2 * sure


def test_undecided_texts_of_many_requests_fill_the_full_models_runs(engine: Engine) -> None:
    held = HeldGraph(engine.full)
    held.may_run.release(10_000)
    assert engine.first is not None
    engine.first.threshold = 1.1  # sure of nothing
    engine.full.seconds_per_token = 1.0  # texts wait as long as it takes to fill a run
    answers = [engine.submit([text]) for text in TEXTS * 4]
    for answer in answers:
        answer.result(60)
    tokens = sum(held.runs)
    assert tokens == engine.count_tokens(TEXTS * 4)
    assert len(held.runs) <= 1.5 * tokens / TOKENS_PER_RUN


def test_an_undecided_text_keeps_its_place_before_longer_requests(engine: Engine) -> None:
    assert engine.first is not None
    engine.first.threshold = 1.1
    engine.full.seconds_per_token = 1.0
    held = HeldGraph(engine.full)
    busy = [engine.submit(["good " * 200]) for _ in range(CORES)]
    for _ in range(CORES):
        assert held.began.acquire(timeout=20)
    long = engine.submit(["good " * 250] * 6)
    short = engine.submit(["good"])
    for _ in range(CORES + 2):
        held.may_run.release(1)
        assert held.began.acquire(timeout=20)
        if held.runs[CORES:]:
            break
    assert held.runs[CORES] == engine.count_tokens(["good"])
    held.may_run.release(100)
    for answer in (*busy, short, long):
        answer.result(20)


def test_a_request_that_is_dropped_before_the_full_model_ends_and_others_go_on(engine: Engine) -> None:
    assert engine.first is not None
    engine.first.threshold = 1.1
    held = HeldGraph(engine.full)
    busy = [engine.submit(["good " * 200]) for _ in range(CORES)]
    for _ in range(CORES):
        assert held.began.acquire(timeout=20)
    late, other = engine.submit(["good day"], timeout_s=0.2), engine.submit(["a fine day"])
    threading.Event().wait(0.3)
    held.may_run.release(100)
    with pytest.raises(DroppedError):
        late.result(20)
    for answer in (*busy, other):
        answer.result(20)


def test_a_core_goes_on_after_a_run_whose_requests_are_all_dropped(engine: Engine) -> None:
    assert engine.first is not None
    engine.first.threshold = 1.1
    engine.full.seconds_per_token = 1.0
    first, text = engine.first.graph, "good " * 200
    gates = [threading.Event() for _ in range(3)]
    began: list[threading.Event] = [threading.Event() for _ in gates]
    next_gate = iter(range(len(gates)))

    class Gated:
        prepares_each_shape = False

        def run(self, rows: PackedRows) -> Any:
            if (rows.segment_ids > 0).sum() >= tokens:
                number = next(next_gate)
                began[number].set()
                assert gates[number].wait(20)
            return first.run(rows)

    [encoding] = engine.first.tokenizer.encode_batch_fast([text])
    tokens = len(encoding.ids)
    engine.first.graph = engine.first.graph_of_all_cores = Gated()
    full = HeldGraph(engine.full)
    is_wanted = [True]
    dropped = engine.submit([text] * 3, is_wanted=lambda: is_wanted[0])
    assert began[0].wait(20)
    assert began[1].wait(20)
    others = [engine.submit(["good"]), engine.submit(["good " * 150])]
    gates[1].set()
    assert began[2].wait(20)  # by the core that has run the others in the first stage
    is_wanted[0] = False
    threading.Event().wait(0.1)
    gates[2].set()
    assert full.began.acquire(timeout=20)
    with pytest.raises(DroppedError):
        dropped.result(20)
    assert engine.totals().waiting_texts == 1
    gates[0].set()  # all texts of this run are dropped, while another text waits for the full model
    assert full.began.acquire(timeout=20), "the core has stopped"
    full.may_run.release(100)
    for other in others:
        other.result(20)


def test_a_text_on_which_the_full_models_tokenizer_fails_fails_its_own_request_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine.first is not None
    engine.first.threshold = 1.1
    tokenizer = engine.full.tokenizer

    class Failing:
        def encode_batch_fast(self, texts: list[str]) -> Any:
            return [self.encode(text) for text in texts]

        def encode(self, text: str) -> Any:
            if "terrible" in text:
                raise RuntimeError("a panic")
            return tokenizer.encode(text)

    monkeypatch.setattr(engine.full, "tokenizer", Failing())
    good, bad = engine.submit(["good day", "fine"]), engine.submit(["good", "terrible"])
    assert good.result(20).values.shape == (2, 2)
    with pytest.raises(TextError, match=r"TEXT\[1\] cannot be classified: RuntimeError: a panic"):
        bad.result(20)
    assert engine.totals().waiting_texts == 0


@pytest.mark.parametrize("change", [{"full": Variant(OPENVINO, FLOAT32)}, {"of": "another processor"}])
def test_without_a_certificate_for_this_variant_and_processor_the_full_model_decides_all(
    directory: Path, bert_bundle: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    copy = shutil.copytree(directory, tmp_path / "1")
    certify(copy, 0.5, **change)
    with Engine(copy, REFERENCE, CORES) as engine, Engine(bert_bundle, REFERENCE, CORES) as full:
        assert engine.first is None
        assert np.allclose(engine.classify(TEXTS).values, full.classify(TEXTS).values, atol=1e-4)
