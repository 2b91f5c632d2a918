"""Every way of batching gives the same answers; its figures are of all cores; a small run writes its report."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import numpy as np
import numpy.typing as npt
import pytest
from transformers import AutoModelForSequenceClassification

from benchmarks import __main__ as command
from benchmarks import run as benchmark_run
from benchmarks.batching import LONE, PACKED, PADDED, WAYS
from benchmarks.engine_worker import MeteredEngine
from benchmarks.models import publish_untrained
from benchmarks.results import Results
from benchmarks.run import Run
from benchmarks.worker import worker
from serving.backend.engine import Engine
from serving.backend.packing import PackedRows
from serving.backend.runtime import float_variants, int8_variants
from serving.backend.stage import load_tokenizer
from serving.model_repo.bundle import TOKENIZER
from tests.conftest import MAX_LENGTH, REFERENCE, SENTENCES

TEXTS = [f"{sentence} {'good ' * (number % 37)}" for number, sentence in enumerate(SENTENCES * 50)]
RUN_S = 0.05


class SleepingGraph:
    """Takes as long as it says, and no processor."""

    prepares_each_shape = False

    def __init__(self) -> None:
        self.most_at_a_time = 0
        self._at_a_time = 0
        self._lock = threading.Lock()

    def run(self, rows: PackedRows) -> npt.NDArray[np.float32]:
        with self._lock:
            self._at_a_time += 1
            self.most_at_a_time = max(self.most_at_a_time, self._at_a_time)
        time.sleep(RUN_S)
        with self._lock:
            self._at_a_time -= 1
        return np.full((len(rows.first_tokens), 2), 0.5, dtype=np.float32)


@pytest.fixture
def sleeping() -> SleepingGraph:
    return SleepingGraph()


@pytest.fixture
def sleeping_worker(
    bert_bundle: Path, sleeping: SleepingGraph, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MeteredEngine]:
    """On two cores."""
    monkeypatch.setattr("serving.backend.stage.load_graph", lambda *_, **__: sleeping)
    monkeypatch.setattr("serving.backend.stage.all_shapes", lambda *_: [(1, 16)])
    worker = MeteredEngine(bert_bundle, REFERENCE, 2)
    sleeping.most_at_a_time = 0
    with worker.engine:
        yield worker


def test_every_way_gives_the_same_answers(bert_bundle: Path) -> None:
    with Engine(bert_bundle, REFERENCE, 2) as engine:
        tokenizer = load_tokenizer(bert_bundle / TOKENIZER, engine.bundle.max_length)
        answers = {name: way.classify(engine, tokenizer, TEXTS[:256]) for name, way in WAYS.items()}
    assert np.ptp(answers[PACKED][:, 0]) > 0.1, "the texts must get different answers, or equal ones show nothing"
    for name, answer in answers.items():
        assert np.allclose(answer, answers[PACKED], atol=1e-5), name


def test_worker_counts_tokens_and_padding_of_what_it_ran(bert_bundle: Path) -> None:
    worker = MeteredEngine(bert_bundle, REFERENCE, 1)
    with worker.engine:
        figures = worker.measure(PADDED, TEXTS[:64], seconds=0)
    tokenizer = load_tokenizer(bert_bundle / TOKENIZER, MAX_LENGTH)
    lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch_fast(TEXTS[:64])]
    assert figures["padding_share"] == pytest.approx(1 - sum(lengths) / (64 * max(lengths)))
    assert figures["tokens_per_s"] / figures["texts_per_s"] == pytest.approx(fmean(lengths))


def test_lone_text_runs_alone_and_its_latency_is_told(sleeping_worker: MeteredEngine, sleeping: SleepingGraph) -> None:
    figures = sleeping_worker.measure(LONE, TEXTS, seconds=0.5)
    assert sleeping.most_at_a_time == 1
    assert figures["texts_per_s"] == pytest.approx(1 / RUN_S, rel=0.3)
    assert figures["p50_ms"] == pytest.approx(1000 * RUN_S, rel=0.3)


def test_packed_keeps_every_core_at_work(sleeping_worker: MeteredEngine, sleeping: SleepingGraph) -> None:
    sleeping_worker.measure(PACKED, TEXTS, seconds=0.5)
    assert sleeping.most_at_a_time == 2


def test_small_run_writes_json_and_markdown(
    bert_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark_run, "text_set", lambda *_: tuple(TEXTS))
    told: list[str] = []
    model = AutoModelForSequenceClassification.from_pretrained(bert_encoder)
    published = publish_untrained(model, bert_encoder, tmp_path, "two small layers", TEXTS, told.append)
    variants = published.variants()
    assert variants == [*float_variants(), *int8_variants()]

    machine = {"cores": 1, "processor": "?", "family": "?", "instruction_sets": [], "memory_gib": 1, "system": "?"}
    machine |= {"date": "?", "load_before": 0, "versions": {}}
    results = Results("packaged", published.description, machine, {"seconds": 0.02, "repeats": 2})
    results.served = str(published.choice().variant)
    with worker("benchmarks.load_worker") as generator:
        run = Run(published, results, generator, tmp_path, seconds=0.02, repeats=2, progress=told.append)
        command.measure(run, ["engine"], tmp_path / "out")

    assert not results.notes
    saved = json.loads((tmp_path / "out" / "results.json").read_text())
    figures = {(item["group"], item["name"]): item["figures"] for item in saved["measurements"]}
    assert figures.keys() == {(str(variant), name) for variant in variants for name in WAYS}
    assert all(len(values) == 2 for item in figures.values() for values in item.values())
    table = (tmp_path / "out" / "results.md").read_text()
    assert "packed ÷ padded" in table
    assert f"deployed precision ÷ fastest float ({results.served} ÷ " in table
    assert all(way in table for way in WAYS)
    assert any("2/2" in line for line in told)
