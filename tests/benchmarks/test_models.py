"""What a run serves is what the pipeline would serve of a trained model."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.models import refuse_slow_int8
from export.variants import unmeasured_proof
from serving.backend.variant_choice import Wanted, choose_variant
from serving.model_repo.bundle import Bundle
from serving.model_repo.variants import FLOAT32, INT8, ONNXRUNTIME, OPENVINO, Variant

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
