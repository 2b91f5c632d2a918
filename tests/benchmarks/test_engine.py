"""Every way of batching gives the same answers; a small run of the engine writes its report."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification

from benchmarks import __main__ as command
from benchmarks import run as benchmark_run
from benchmarks.batching import PACKED, PADDED, WAYS
from benchmarks.engine_processes import runtimes
from benchmarks.engine_worker import Worker
from benchmarks.models import publish_untrained
from benchmarks.results import Results
from benchmarks.run import Run
from serving.bundle import TOKENIZER
from serving.engine import Engine
from serving.runtime import ONNXRUNTIME, OPENVINO
from tests.conftest import SENTENCES

TEXTS = [f"{sentence} {'good ' * (number % 37)}" for number, sentence in enumerate(SENTENCES * 50)]


def test_every_way_gives_the_same_answers(bert_bundle: Path) -> None:
    engine = Engine(bert_bundle, ONNXRUNTIME, threads=1)
    tokenizer = Tokenizer.from_file(str(bert_bundle / TOKENIZER))
    tokenizer.no_padding()
    tokenizer.enable_truncation(engine.bundle.max_length)
    answers = {way: classify(engine, tokenizer, TEXTS[:256]) for way, (classify, _) in WAYS.items()}
    assert np.ptp(answers[PACKED][:, 0]) > 0.1, "the texts must get different answers, or equal ones show nothing"
    for way, answer in answers.items():
        assert np.allclose(answer, answers[PACKED], atol=1e-5), way


def test_worker_counts_texts_tokens_and_padding(bert_bundle: Path) -> None:
    worker = Worker(bert_bundle, ONNXRUNTIME, 1)
    done = worker.measure(PADDED, TEXTS[:64], seconds=0)
    tokenizer = Tokenizer.from_file(str(bert_bundle / TOKENIZER))
    lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch_fast(TEXTS[:64])]
    assert done["texts"] == 64
    assert done["tokens"] == sum(lengths)
    assert done["slots"] == 64 * max(lengths)
    assert 0 < done["graph_seconds"] < done["seconds"]


def test_shares_sum_to_the_whole(bert_bundle: Path) -> None:
    shares = Worker(bert_bundle, ONNXRUNTIME, 1).shares(TEXTS, seconds=0.2)
    assert sum(shares.values()) == pytest.approx(1)
    assert 0 < shares["tokenizing"] < 1
    assert 0 < shares["graph"] < 1


def test_runtimes_are_those_of_the_settings() -> None:
    assert {ONNXRUNTIME, OPENVINO} <= set(runtimes())
    assert "auto" not in runtimes()


def test_small_run_writes_json_markdown_and_picture(
    bert_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark_run, "text_set", lambda _name, _tokenizer: tuple(TEXTS))
    model = AutoModelForSequenceClassification.from_pretrained(bert_encoder)
    published = publish_untrained(model, bert_encoder, tmp_path, "two small layers")
    told: list[str] = []
    machine = {"cores": 1, "processor": "?", "family": "?", "instruction_sets": [], "memory_gib": 1, "system": "?"}
    machine |= {"date": "?", "load_before": 0, "versions": {}}
    results = Results("packaged", published.description, machine, {"seconds": 0.02, "repeats": 2})

    run = Run(published, results, tmp_path, seconds=0.02, repeats=2, progress=told.append)
    command.measure(run, ["engine"], tmp_path / "out")

    saved = json.loads((tmp_path / "out" / "results.json").read_text())
    packed = [item for item in saved["measurements"] if item["name"] == PACKED]
    assert {item["group"].split()[0] for item in packed} == set(runtimes())
    assert all(len(item["figures"]["texts_per_s"]) == 2 for item in packed)
    table = (tmp_path / "out" / "results.md").read_text()
    assert "packed ÷ padded" in table
    assert all(way in table for way in WAYS)
    assert (tmp_path / "out" / "engine.png").read_bytes().startswith(b"\x89PNG")
    assert not results.notes
    assert any("2/2" in line for line in told)
