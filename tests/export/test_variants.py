"""A variant is used only if it agrees with the trained model; one that does not is refused, and the others stay."""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from export import variants
from export.int8 import Inputs, calibration_inputs, quantize
from export.parity import MIXED_TEXTS, Count, FloatArray, Parity, check_parity, reference_probabilities
from export.variants import (
    LEAST_AGREEMENT,
    LEAST_CONFIDENT_INT8_AGREEMENT,
    LEAST_INT8_AGREEMENT,
    LEAST_STEADY_INT8,
    ParityError,
    Validation,
    prove_variants,
)
from serving.backend.cpu import arithmetic
from serving.backend.engine import Engine
from serving.backend.requests import Probabilities
from serving.backend.runtime import float_variants
from serving.backend.variant_choice import Wanted, choose_variant
from serving.model_repo.bundle import TOKENIZER, Bundle
from serving.model_repo.variants import (
    BFLOAT16,
    FLOAT32,
    FLOAT_GRAPH,
    INT8,
    ONNXRUNTIME,
    OPENVINO,
    Precision,
    RuntimeName,
    Variant,
)
from tests.conftest import LABELS, MAX_LENGTH, REFERENCE, SENTENCES, make_bundle, make_encoder

TEXTS = [f"{sentence} {'good ' * (number % 11)}" for number, sentence in enumerate(SENTENCES * 8)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With weights no larger than a trained one's, for int8 rounds what random ones of many sizes compute."""
    return make_encoder("bert", tmp_path_factory.mktemp("encoder"), weight_scale=4)


@pytest.fixture(scope="module")
def exported(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(encoder, tmp_path_factory.mktemp("exported") / "1")


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    return shutil.copytree(exported, tmp_path / "1")


@pytest.fixture
def calibration(bundle: Path) -> list[Inputs]:
    return list(calibration_inputs(TEXTS, bundle / TOKENIZER, Bundle.load(bundle)))


@pytest.fixture
def validation(encoder: Path) -> Validation:
    model = AutoModelForSequenceClassification.from_pretrained(encoder)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    reference = reference_probabilities(model, tokenizer, TEXTS, MAX_LENGTH, temperature=1.0)
    return Validation(TEXTS, reference.argmax(axis=1).astype(np.int64), LABELS, reference)


@pytest.mark.parametrize(
    "runtime",
    [
        ONNXRUNTIME,
        pytest.param(
            OPENVINO,
            marks=pytest.mark.xfail(
                "amx_int8" in arithmetic(),
                reason="With AMX, OpenVINO's int8 is wrong for some texts in a short row; there the gates tell.",
            ),
        ),
    ],
)
def test_int8_graph_answers_nearly_as_the_float_graph_whatever_shares_a_texts_run(
    bundle: Path, calibration: list[Inputs], runtime: RuntimeName
) -> None:
    variant = Variant(runtime, INT8)
    quantize(variant, bundle / FLOAT_GRAPH, calibration, bundle)
    with Engine(bundle, REFERENCE, 2) as engine:
        reference = engine.classify(TEXTS).values
    with Engine(bundle, variant, 2) as engine:
        parity = check_parity(lambda texts: engine.classify(texts).values, TEXTS, reference, INT8)
    assert 0 < parity.largest_difference < 0.1, "rounded, but not much"
    assert parity.largest_spread < 0.02


def test_texts_whose_answer_depends_on_what_shares_their_run_are_told() -> None:
    """Though all labels are right: a runtime that is wrong for rows of one shape is so for the texts that fill them."""
    first = set(TEXTS[:10])
    right, shift = np.array([0.4, 0.6], np.float32), np.array([-0.06, 0.06], np.float32)

    def wrong_alone(texts: Sequence[str]) -> FloatArray:
        return np.tile(right + (shift if len(texts) == 1 and texts[0] in first else 0), (len(texts), 1))

    parity = check_parity(wrong_alone, TEXTS, np.tile(right, (len(TEXTS), 1)), FLOAT32)
    assert parity.label_agreement == 1.0
    assert parity.unsteady == Count(sum(text in first for text in TEXTS[:MIXED_TEXTS]), len(TEXTS[:MIXED_TEXTS]))
    assert parity.unsteady.failed > 0


def compared(margins: Sequence[float], wrong: int, precision: Precision, only_alone: bool = False) -> Parity:
    """Two labels, the reference's probabilities of which are `margins` apart; the first `wrong` texts get the other
    label, in batches of any size or only in batches of one."""
    texts = [f"text {number}" for number in range(len(margins))]
    reference = np.array([[0.5 + margin / 2, 0.5 - margin / 2] for margin in margins], np.float32)

    def classify(asked: Sequence[str]) -> FloatArray:
        numbers = [int(text.split()[1]) for text in asked]
        exchanged = [number < wrong and (len(asked) == 1 or not only_alone) for number in numbers]
        return np.where(np.array(exchanged)[:, None], reference[numbers][:, ::-1], reference[numbers])

    return check_parity(classify, texts, reference, precision)


def test_near_ties_of_an_audited_export_do_not_refuse_bfloat16() -> None:
    """Of 4,960 tweets' 2,000 validation texts, 3 near ties differed, 2 of them among the 200 of the other mixes."""
    parity = compared([0.006] * 3 + [0.9] * 1_997, 3, BFLOAT16)
    assert (parity.differing, parity.near_ties) == (0, 3)
    assert parity.label_agreement == pytest.approx(197 / 200)
    assert parity.refusal("by torch", LEAST_AGREEMENT) == ""
    # float32 resolves more, and is still not refused for 3 texts, because the count may be chance.
    parity = compared([0.006] * 3 + [0.9] * 1_997, 3, FLOAT32)
    assert (parity.differing, parity.near_ties) == (3, 0)
    assert parity.refusal("by torch", LEAST_AGREEMENT) == ""


@pytest.mark.parametrize(
    ("texts", "wrong", "refused"),
    [(10, 1, ""), (30, 1, ""), (30, 3, "3 of 30 texts"), (200, 2, ""), (200, 6, "6 of 200 texts"), (2_000, 2, "")],
)
def test_texts_that_differ_are_counted_with_their_uncertainty(texts: int, wrong: int, refused: str) -> None:
    message = compared([0.5] * texts, wrong, BFLOAT16).refusal("by torch", LEAST_AGREEMENT)
    share = f"({1 - wrong / texts:.2%} agree; near ties do not count)"
    told = f"{refused} get another label than by torch {share}, and at least 99.5% must agree"
    assert message == (told if refused else "")


def test_labels_that_differ_only_in_one_mix_are_judged_by_the_texts_of_that_mix() -> None:
    parity = compared([0.5] * 2_000, 9, BFLOAT16, only_alone=True)
    assert parity.differing == 9
    assert parity.refusal("by torch", LEAST_AGREEMENT).startswith("9 of 200 texts get another label")


def test_int8_is_refused_for_confident_labels_and_for_unsteady_predictions() -> None:
    least = LEAST_INT8_AGREEMENT, LEAST_CONFIDENT_INT8_AGREEMENT, LEAST_STEADY_INT8
    assert compared([0.5] * 500, 8, INT8).refusal("by the float graph", *least) == ""
    assert compared([0.9] * 500, 10, INT8).refusal("by the float graph", *least) == (
        "10 of 200 texts with a confident label get another label than by the float graph (95.00% agree; near ties do "
        "not count), and at least 99.5% must agree"
    )
    assert compared([0.1] * 500, 10, INT8, only_alone=True).refusal("by the float graph", *least) == (
        "10 of 200 texts get another prediction depending on which texts share their run, and 99.0% must get the same"
    )


class Faulty:
    """An engine whose `broken` variants give the labels in the opposite order, or do not load."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *broken: Variant, loads: bool = True) -> None:
        class FaultyEngine(Engine):
            def __init__(self, directory: Path, variant: Variant, cores: int) -> None:
                if variant in broken and not loads:
                    raise RuntimeError("Unsupported operation\nin a long trace")
                super().__init__(directory, variant, cores)

            def classify(self, texts: Sequence[str]) -> Probabilities:
                answer = super().classify(texts)
                return replace(answer, values=answer.values[:, ::-1]) if self.variant in broken else answer

        monkeypatch.setattr(variants, "Engine", FaultyEngine)


OPENVINO_FLOAT32 = Variant(OPENVINO, FLOAT32)


@pytest.mark.parametrize("loads", [True, False])
def test_a_variant_that_fails_is_refused_and_the_next_serves(
    bundle: Path, validation: Validation, monkeypatch: pytest.MonkeyPatch, loads: bool
) -> None:
    Faulty(monkeypatch, *float_variants()[1:], loads=loads)
    proofs = prove_variants(bundle, validation, [], Wanted(precision=float_variants()[1].precision))
    by_variant = {proof.variant: proof for proof in proofs}
    assert by_variant[REFERENCE].refused == ""
    # The second variant is bfloat16 where the processor has it, and near ties then do not count.
    expected = r"4\d of 48 texts get another label than by torch" if loads else "it does not run: Unsupported operation"
    assert re.match(expected, by_variant[float_variants()[1]].refused)
    proven = replace(Bundle.load(bundle), proofs=proofs)
    proven.save(bundle)
    assert choose_variant(Bundle.load(bundle), Wanted()).variant.precision == FLOAT32


def test_float32_of_the_other_runtime_serves_if_the_first_fails(
    bundle: Path, validation: Validation, monkeypatch: pytest.MonkeyPatch
) -> None:
    Faulty(monkeypatch, REFERENCE)
    wanted = Wanted(ONNXRUNTIME, FLOAT32)
    proofs = prove_variants(bundle, validation, [], wanted)
    assert [(proof.variant, bool(proof.refused)) for proof in proofs] == [(REFERENCE, True), (OPENVINO_FLOAT32, False)]
    choice = choose_variant(replace(Bundle.load(bundle), proofs=proofs), wanted)
    assert choice.variant == OPENVINO_FLOAT32
    assert "SENTIMENT_RUNTIME=onnxruntime with SENTIMENT_PRECISION=float32 cannot be used" in choice.reason


def test_nothing_is_published_if_no_float_variant_agrees(
    bundle: Path, validation: Validation, monkeypatch: pytest.MonkeyPatch
) -> None:
    Faulty(monkeypatch, *float_variants(), OPENVINO_FLOAT32)
    with pytest.raises(ParityError, match=r"onnxruntime float32: 48 of 48 texts .*openvino "):
        prove_variants(bundle, validation, [], Wanted())


class Speeds:
    """Tokens a second that variants are told to have, in place of what this small encoder happens to reach."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, int8: float) -> None:
        def speeds(engines: Mapping[Variant, Engine], _texts: Sequence[str]) -> dict[Variant, float]:
            return {variant: int8 if variant.precision == INT8 else 1000.0 for variant in engines}

        monkeypatch.setattr(variants, "measure_speeds", speeds)


def loosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gates that a random encoder passes."""
    monkeypatch.setattr(variants, "LEAST_INT8_AGREEMENT", 0.5)
    monkeypatch.setattr(variants, "LARGEST_F1_LOSS", 0.5)
    monkeypatch.setattr(variants, "LEAST_CONFIDENT_INT8_AGREEMENT", 0.5)
    monkeypatch.setattr(variants, "LEAST_STEADY_INT8", 0.5)


def test_int8_that_is_right_and_faster_is_kept(
    bundle: Path, calibration: list[Inputs], validation: Validation, monkeypatch: pytest.MonkeyPatch
) -> None:
    Speeds(monkeypatch, int8=2000.0)
    loosen(monkeypatch)
    proofs = prove_variants(bundle, validation, calibration, Wanted())
    assert [proof.refused for proof in proofs] == [""] * len(proofs)
    for proof in proofs:
        assert (bundle / proof.variant.graph).is_file()
    assert proofs[0].label_agreement == 1.0


def test_int8_that_is_not_faster_is_refused_and_leaves_no_file(
    bundle: Path, calibration: list[Inputs], validation: Validation, monkeypatch: pytest.MonkeyPatch
) -> None:
    Speeds(monkeypatch, int8=1050.0)
    loosen(monkeypatch)
    # NNCF sets the level of pytest's own handlers.
    told: list[str] = []
    monkeypatch.setattr(variants.log, "info", lambda message, *values: told.append(message % values))
    monkeypatch.setattr(variants.log, "warning", lambda message, *_: pytest.fail(message))
    before = {file.name for file in bundle.iterdir()}
    refused = [proof for proof in prove_variants(bundle, validation, calibration, Wanted()) if proof.precision == INT8]
    assert refused
    assert all("1.05 times as fast as" in proof.refused for proof in refused)
    why = "is not used, because it is hardly faster (1.05 times as fast as"
    assert len([message for message in told if why in message]) == len(refused)
    assert {file.name for file in bundle.iterdir()} == before


def test_only_what_the_settings_allow_is_tried_beside_the_reference(
    bundle: Path, calibration: list[Inputs], validation: Validation
) -> None:
    proofs = prove_variants(bundle, validation, calibration, Wanted(OPENVINO, "float32"))
    assert {(proof.runtime, proof.precision) for proof in proofs} <= {(ONNXRUNTIME, "float32"), (OPENVINO, "float32")}
    assert proofs[0].variant == REFERENCE
