"""The int8 graphs of each family of encoders are proven, or refuse themselves and leave no file."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from export import variants
from export.int8 import calibration_inputs
from export.parity import reference_probabilities
from export.variants import Validation, prove_variants
from serving.backend.engine import Engine
from serving.backend.runtime import int8_variants
from serving.backend.variant_choice import Wanted
from serving.model_repo.bundle import TOKENIZER, Bundle
from serving.model_repo.variants import INT8, Variant
from tests.conftest import LABELS, MAX_LENGTH, REFERENCE, SENTENCES, make_bundle, make_encoder
from trainer.architectures import PACKED_FAMILIES

pytestmark = pytest.mark.full

TEXTS = [f"{sentence} {'good ' * (number % 11)}" for number, sentence in enumerate(SENTENCES * 8)]


@pytest.mark.parametrize("family", [*PACKED_FAMILIES, "megatron-bert"])
def test_int8_is_proven_or_refused(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def speeds(engines: Mapping[Variant, Engine], _texts: Sequence[str]) -> dict[Variant, float]:
        return {variant: 2000.0 if variant.precision == INT8 else 1000.0 for variant in engines}

    monkeypatch.setattr(variants, "measure_speeds", speeds)  # of such a small encoder they say nothing
    encoder = make_encoder(family, tmp_path / "encoder", weight_scale=4)
    bundle = make_bundle(encoder, tmp_path / "1")
    model = AutoModelForSequenceClassification.from_pretrained(encoder)
    reference = reference_probabilities(model, AutoTokenizer.from_pretrained(encoder), TEXTS, MAX_LENGTH, 1.0)
    validation = Validation(TEXTS, reference.argmax(axis=1).astype(np.int64), LABELS, reference)
    calibration = list(calibration_inputs(TEXTS, bundle / TOKENIZER, Bundle.load(bundle)))

    proofs = {proof.variant: proof for proof in prove_variants(bundle, validation, calibration, Wanted())}

    assert proofs[REFERENCE].refused == ""
    assert proofs.keys() >= set(int8_variants())
    for variant in int8_variants():
        assert (bundle / variant.graph).is_file() == (not proofs[variant].refused)
        assert "does not run" not in proofs[variant].refused
        if not proofs[variant].refused:
            with Engine(bundle, variant, cores=2) as engine:
                assert np.abs(engine.classify(TEXTS).values - reference).max() < 0.1
