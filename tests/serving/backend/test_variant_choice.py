"""What serves is the fastest variant that was proven on a processor like this one, or what was asked for."""

from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import PipelineError
from serving.backend import cpu, variant_choice
from serving.backend.cpu import arithmetic
from serving.backend.variant_choice import Wanted, choose_variant
from serving.model_repo.bundle import Bundle, Proof
from serving.model_repo.variants import FLOAT16, INT8, ONNXRUNTIME, OPENVINO, Precision, RuntimeName, Variant
from tests.conftest import REFERENCE


def proof(runtime: RuntimeName, precision: Precision, tokens_per_s: float, refused: str = "") -> Proof:
    return Proof(
        runtime=runtime,
        precision=precision,
        arithmetic=arithmetic(),
        texts=100,
        mixes=5,
        label_agreement=1.0,
        confident_agreement=1.0,
        largest_difference=0.0,
        largest_spread=0.0,
        accuracy=0.9,
        macro_f1=0.9,
        tokens_per_s=tokens_per_s,
        refused=refused,
    )


FLOAT = proof(ONNXRUNTIME, "float32", 1000)
FASTER = proof(OPENVINO, INT8, 3000)
FASTEST_BUT_REFUSED = proof(ONNXRUNTIME, INT8, 5000, refused="macro F1 falls from 0.9 to 0.8")


@pytest.fixture
def bundle(bert_bundle: Path) -> Bundle:
    return replace(Bundle.load(bert_bundle), proofs=(FLOAT, FASTER, FASTEST_BUT_REFUSED))


def test_the_fastest_that_was_proven_serves(bundle: Bundle) -> None:
    assert choose_variant(bundle, Wanted()).variant == Variant(OPENVINO, INT8)


def test_settings_narrow_the_choice(bundle: Bundle) -> None:
    assert choose_variant(bundle, Wanted(runtime=ONNXRUNTIME)).variant == REFERENCE
    assert choose_variant(bundle, Wanted(precision="float32")).variant == REFERENCE
    assert choose_variant(bundle, Wanted(OPENVINO, "float32")).variant == Variant(OPENVINO, "float32")


def test_another_proven_variant_serves_in_place_of_a_refused_one_that_was_asked_for(bundle: Bundle) -> None:
    choice = choose_variant(bundle, Wanted(ONNXRUNTIME, INT8))
    assert choice.variant == Variant(OPENVINO, INT8)
    assert choice.reason.startswith(
        "SENTIMENT_RUNTIME=onnxruntime with SENTIMENT_PRECISION=int8 cannot be used. onnxruntime int8 was refused: "
        "macro F1 falls from 0.9 to 0.8. Instead, openvino int8 is used, the fastest of 2 graphs that agree"
    )


def test_float32_that_was_refused_on_one_processor_is_used_on_none(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = replace(bundle, proofs=(replace(FLOAT, refused="its labels differ"), FASTER))
    monkeypatch.setattr(variant_choice, "arithmetic", lambda: "avx2 of tomorrow")
    assert choose_variant(bundle, Wanted()).variant.runtime == OPENVINO


def test_a_proof_holds_only_for_the_arithmetic_that_it_was_made_with(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variant_choice, "arithmetic", lambda: "avx2 of tomorrow")
    chosen = choose_variant(bundle, Wanted())
    assert chosen.variant == REFERENCE
    assert "nothing was proven on such a processor (avx2 of tomorrow)" in chosen.reason
    with pytest.raises(PipelineError, match=r"no int8 graph for this processor .* export again on this machine"):
        choose_variant(bundle, Wanted(precision=INT8))


def test_a_gpu_is_used_unless_something_else_is_asked_for(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variant_choice, "has_cuda", lambda: True)
    assert choose_variant(bundle, Wanted()).reason == "on the GPU"
    assert choose_variant(bundle, Wanted(precision=INT8)).variant == Variant(OPENVINO, INT8)
    refused = replace(FLOAT, arithmetic="cuda", refused="its labels differ")
    assert choose_variant(replace(bundle, proofs=(refused, FASTER)), Wanted()).variant == FASTER.variant


def test_a_quick_version_never_uses_a_graph_that_was_refused(bundle: Bundle) -> None:
    second = replace(proof(OPENVINO, "float32", 900), arithmetic="another")
    proofs = (replace(FLOAT, refused="its labels differ"), second)
    assert choose_variant(replace(bundle, proofs=proofs, quick=True), Wanted()).variant == second.variant


def test_on_a_gpu_float16_is_used_where_it_was_proven_there_and_is_faster(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, fast = (replace(proof(ONNXRUNTIME, FLOAT16, rate), arithmetic="cuda") for rate in (500, 5000))
    on_gpu = replace(FLOAT, arithmetic="cuda")
    half = Variant(ONNXRUNTIME, FLOAT16)
    assert choose_variant(replace(bundle, proofs=(on_gpu, fast, FASTER)), Wanted()).variant == FASTER.variant
    monkeypatch.setattr(variant_choice, "has_cuda", lambda: True)
    assert choose_variant(replace(bundle, proofs=(on_gpu, fast, FASTER)), Wanted()).variant == half
    assert choose_variant(replace(bundle, proofs=(on_gpu, slow)), Wanted()).variant == REFERENCE
    assert choose_variant(replace(bundle, proofs=(on_gpu, slow)), Wanted(precision=FLOAT16)).variant == half
    refused = replace(fast, refused="its labels differ")
    assert choose_variant(replace(bundle, proofs=(on_gpu, refused)), Wanted()).variant == REFERENCE
    assert choose_variant(replace(bundle, proofs=(on_gpu, fast)), Wanted(precision="float32")).variant == REFERENCE


def test_bfloat16_is_not_served_where_the_processor_has_none(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "instruction_sets", lambda: frozenset({"avx2"}))
    with pytest.raises(PipelineError, match="SENTIMENT_PRECISION=bfloat16 cannot run version 1 here"):
        choose_variant(replace(bundle, proofs=()), Wanted(precision="bfloat16"))
    here = tuple(replace(proof, arithmetic=arithmetic()) for proof in bundle.proofs)
    assert choose_variant(replace(bundle, proofs=here), Wanted(precision="bfloat16")).variant == Variant(OPENVINO, INT8)
