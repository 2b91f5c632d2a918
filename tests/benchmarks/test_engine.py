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
from benchmarks.batching import ALL_WAYS, LONE, ONE_BY_ONE, PACKED, PADDED, WAYS
from benchmarks.engine_worker import Worker, _Done
from benchmarks.models import publish_untrained
from benchmarks.results import Results
from benchmarks.run import Run
from benchmarks.sections.engine import SHARES
from serving.bundle import TOKENIZER
from serving.engine import Engine, load_tokenizer
from serving.packing import PackedRows
from serving.runtime import float_variants, int8_variants
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
def sleeping_worker(bert_bundle: Path, sleeping: SleepingGraph, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    """On two cores."""
    monkeypatch.setattr("serving.engine.load_graph", lambda *_, **__: sleeping)
    monkeypatch.setattr("serving.engine.all_shapes", lambda _: [(1, 16)])
    worker = Worker(bert_bundle, REFERENCE, 2)
    sleeping.most_at_a_time = 0
    with worker.engine:
        yield worker


def test_every_way_gives_the_same_answers(bert_bundle: Path) -> None:
    with Engine(bert_bundle, REFERENCE, 2) as engine:
        tokenizer = load_tokenizer(bert_bundle / TOKENIZER, engine.bundle.max_length)
        answers = {name: way.classify(engine, tokenizer, TEXTS[:256]) for name, way in ALL_WAYS.items()}
    assert np.ptp(answers[PACKED][:, 0]) > 0.1, "the texts must get different answers, or equal ones show nothing"
    for name, answer in answers.items():
        assert np.allclose(answer, answers[PACKED], atol=1e-5), name


def test_worker_counts_tokens_and_padding_of_what_it_ran(bert_bundle: Path) -> None:
    worker = Worker(bert_bundle, REFERENCE, 1)
    with worker.engine:
        figures = worker.measure(PADDED, TEXTS[:64], seconds=0)
    tokenizer = load_tokenizer(bert_bundle / TOKENIZER, MAX_LENGTH)
    lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch_fast(TEXTS[:64])]
    assert figures["padding_share"] == pytest.approx(1 - sum(lengths) / (64 * max(lengths)))
    assert figures["tokens_per_s"] / figures["texts_per_s"] == pytest.approx(fmean(lengths))


def test_one_by_one_runs_a_text_on_each_core_at_a_time(sleeping_worker: Worker, sleeping: SleepingGraph) -> None:
    figures = sleeping_worker.measure(ONE_BY_ONE, TEXTS, seconds=0.5)
    assert sleeping.most_at_a_time == 2
    assert figures["texts_per_s"] == pytest.approx(2 / RUN_S, rel=0.3)


def test_lone_text_runs_alone_and_its_latency_is_told(sleeping_worker: Worker, sleeping: SleepingGraph) -> None:
    figures = sleeping_worker.measure(LONE, TEXTS, seconds=0.5)
    assert sleeping.most_at_a_time == 1
    assert figures["texts_per_s"] == pytest.approx(1 / RUN_S, rel=0.3)
    assert figures["p50_ms"] == pytest.approx(1000 * RUN_S, rel=0.3)


def test_packed_keeps_every_core_at_work(sleeping_worker: Worker, sleeping: SleepingGraph) -> None:
    shares = sleeping_worker.shares(TEXTS, seconds=0.5)
    assert sleeping.most_at_a_time == 2
    # All of both cores' time; the rest is the beginning and the end.
    assert 0.75 < shares["graph_share"] <= 1
    assert 0 < shares["tokenizing_share"] < 0.5
    assert 0 < shares["packing_share"] < 0.5


def test_packing_share_is_scaled_to_the_texts_that_ran(
    sleeping_worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rounds of texts whose packing takes 0.2 s each, in one second of two cores."""
    done = _Done(texts_per_s=0, texts=2 * len(TEXTS), seconds=1, latencies_s=[])
    monkeypatch.setattr(sleeping_worker, "_run", lambda *_: done)
    monkeypatch.setattr(sleeping_worker, "_pack", lambda token_ids: time.sleep(0.2 * len(token_ids) / len(TEXTS)))
    assert sleeping_worker.shares(TEXTS, seconds=1)["packing_share"] == pytest.approx(0.2, rel=0.2)


def test_small_run_writes_json_markdown_and_picture(
    bert_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark_run, "text_set", lambda _name, _tokenizer: tuple(TEXTS))
    told: list[str] = []
    model = AutoModelForSequenceClassification.from_pretrained(bert_encoder)
    published = publish_untrained(model, bert_encoder, tmp_path, "two small layers", TEXTS, told.append)
    variants = published.variants()
    assert variants == [*float_variants(), *int8_variants()]

    machine = {"cores": 1, "processor": "?", "family": "?", "instruction_sets": [], "memory_gib": 1, "system": "?"}
    machine |= {"date": "?", "load_before": 0, "versions": {}}
    results = Results("packaged", published.description, machine, {"seconds": 0.02, "repeats": 2})
    results.served = str(published.choice().variant)
    run = Run(published, results, tmp_path, seconds=0.02, repeats=2, progress=told.append)
    command.measure(run, ["engine"], tmp_path / "out")

    assert not results.notes
    saved = json.loads((tmp_path / "out" / "results.json").read_text())
    figures = {(item["group"], item["name"]): item["figures"] for item in saved["measurements"]}
    assert figures.keys() == {(str(variant), name) for variant in variants for name in (*WAYS, SHARES)}
    assert all(len(values) == 2 for item in figures.values() for values in item.values())
    table = (tmp_path / "out" / "results.md").read_text()
    assert "packed ÷ padded" in table
    assert f"best precision ÷ fastest float, packed ({results.served} ÷ " in table
    assert all(way in table for way in WAYS)
    assert (tmp_path / "out" / "engine.png").read_bytes().startswith(b"\x89PNG")
    assert any("2/2" in line for line in told)
