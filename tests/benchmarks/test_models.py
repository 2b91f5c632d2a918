"""What a run serves is what the pipeline would serve of a trained model."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import models
from benchmarks.models import make_model, refuse_slow_int8
from benchmarks.rated_texts import write_sample_part
from export.variants import unmeasured_proof
from serving.backend.variant_choice import Wanted, choose_variant
from serving.model_repo.bundle import FIRST_STAGE, Bundle
from serving.model_repo.repository import ModelRepository
from serving.model_repo.variants import FLOAT32, INT8, ONNXRUNTIME, OPENVINO, Variant
from tests.serving.backend.test_two_stages import directory as directory  # a fixture

FLOATS = (Variant(ONNXRUNTIME, FLOAT32), Variant(OPENVINO, FLOAT32))
INT8S = (Variant(OPENVINO, INT8), Variant(ONNXRUNTIME, INT8))


@pytest.mark.parametrize(
    ("int8_speeds", "refused", "served"),
    [
        ((260.0, 240.0), (), INT8S[0]),
        ((215.0, 240.0), (INT8S[0],), INT8S[1]),
        ((215.0, 90.0), INT8S, FLOATS[1]),
    ],
)
def test_int8_serves_where_it_is_faster_than_the_fastest_float(
    int8_speeds: tuple[float, ...], refused: tuple[Variant, ...], served: Variant, bert_bundle: Path
) -> None:
    speeds = dict(zip((*FLOATS, *INT8S), (100.0, 200.0, *int8_speeds), strict=True))
    proofs = refuse_slow_int8([unmeasured_proof(variant, tokens_per_s=speed) for variant, speed in speeds.items()])
    assert tuple(proof.variant for proof in proofs if proof.refused) == refused
    assert choose_variant(replace(Bundle.load(bert_bundle), proofs=proofs), Wanted()).variant == served


def test_a_trained_model_with_two_stages_is_served_beside_itself_with_one(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "TRAINED", trained := tmp_path / "trained")
    monkeypatch.setattr(models, "train_once", lambda settings, *_, **__: write_sample_part(settings, 300, seed=1))
    repository = ModelRepository(trained / "triton_repo")
    staging = repository.staging_directory(1)
    shutil.copytree(directory, staging, dirs_exist_ok=True)
    repository.publish(staging, 1)
    repository.deploy(1)
    made = make_model("base-trained", tmp_path / "run", lambda _: None)
    assert made.directory == repository.version_directory(1)
    assert Bundle.load(made.directory).first_stage
    assert (made.directory / FIRST_STAGE).is_dir()
    assert made.one_stage is not None
    assert made.one_stage.deployed() == 1
    assert Bundle.load(made.alone).first_stage is None
    assert not (made.alone / FIRST_STAGE).exists()
    assert len(made.unknown) > 11_000
    assert made.choice().variant == choose_variant(Bundle.load(made.directory), Wanted()).variant
