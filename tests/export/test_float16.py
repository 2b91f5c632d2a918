"""The float16 graph: made, proven and kept as on a GPU. Here a processor runs it, which computes in float32 between."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from export import variants
from export.parity import reference_probabilities
from export.variants import Validation, prove_variants
from serving.backend.engine import Engine
from serving.backend.variant_choice import Wanted
from serving.model_repo.variants import FLOAT16, FLOAT32, ONNXRUNTIME, Precision, Variant
from tests.conftest import ENCODERS, LABELS, MAX_LENGTH, REFERENCE, SENTENCES, make_bundle, make_encoder

TEXTS = [f"{sentence} {'good ' * (number % 11)}" for number, sentence in enumerate(SENTENCES * 2)]
HALF = Variant(ONNXRUNTIME, FLOAT16)


@pytest.fixture(autouse=True)
def tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "gpu_variants", lambda: [HALF])


def prove(directory: Path, encoder: Path, precision: Precision) -> dict[Variant, str]:
    """By variant, why it is refused."""
    model = AutoModelForSequenceClassification.from_pretrained(encoder)
    reference = reference_probabilities(model, AutoTokenizer.from_pretrained(encoder), TEXTS, MAX_LENGTH, 1.0)
    validation = Validation(TEXTS, reference.argmax(axis=1).astype(np.int64), LABELS, reference)
    proofs = prove_variants(directory, validation, [], Wanted(ONNXRUNTIME, precision))
    return {proof.variant: proof.refused for proof in proofs}


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[pytest.mark.full] * (name != "bert")) for name in ENCODERS]
)
def test_it_is_proven_and_answers_as_the_float_graph(family: str, tmp_path: Path) -> None:
    encoder = make_encoder(family, tmp_path / "encoder", weight_scale=4)
    bundle = make_bundle(encoder, tmp_path / "1")
    assert prove(bundle, encoder, FLOAT16) == {REFERENCE: "", HALF: ""}
    weights = onnx.load(str(bundle / HALF.graph)).graph.initializer
    kinds = {weight.data_type for weight in weights if weight.dims}
    assert TensorProto.FLOAT16 in kinds
    assert TensorProto.FLOAT not in kinds
    with Engine(bundle, REFERENCE, 2) as whole, Engine(bundle, HALF, 2) as half:
        difference = np.abs(half.classify(TEXTS).values - whole.classify(TEXTS).values).max()
    assert 0 < difference < 0.01


def test_one_that_is_not_wanted_or_is_refused_is_not_kept(
    bert_encoder: Path, bert_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Path(shutil.copytree(bert_bundle, tmp_path / "1"))
    assert HALF not in prove(bundle, bert_encoder, FLOAT32)

    def wrong(directory: Path) -> None:
        """The positive label's weights for the negative one."""
        (directory / HALF.graph).write_bytes(b"no graph")

    monkeypatch.setattr(variants, "halve", wrong)
    assert prove(bundle, bert_encoder, FLOAT16)[HALF].startswith("it does not run: ")
    assert not (bundle / HALF.graph).exists()
