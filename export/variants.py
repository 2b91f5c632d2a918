"""Tries each runtime and precision on this machine, and proves which may be used."""

import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.progress import under_way
from export.float16 import halve
from export.graph import GraphError
from export.int8 import Inputs, quantize
from export.parity import FloatArray, check_parity
from serving.backend.cpu import usable_cores
from serving.backend.engine import Engine
from serving.backend.runtime import float_variants, gpu_variants, int8_variants
from serving.backend.variant_choice import Wanted, arithmetic_of
from serving.model_repo.bundle import Proof
from serving.model_repo.variants import FLOAT32, FLOAT_GRAPH, INT8, OPENVINO, Variant
from trainer.evaluation import evaluate

LEAST_AGREEMENT = 0.995
"""Minimum share of texts to which a float graph gives torch's label. Near ties do not count here and below."""
LEAST_INT8_AGREEMENT = 0.975
LEAST_CONFIDENT_INT8_AGREEMENT = 0.995
"""Minimum shares of texts to which an int8 graph gives the float graph's label: of all texts, and of confident ones."""
LEAST_STEADY_INT8 = 0.99
"""Minimum share of texts to which an int8 graph gives the same prediction whichever texts share their run. A runtime
that is wrong for rows of one shape is wrong for single texts of one length, which few labels show."""
LARGEST_F1_LOSS = 0.005
LEAST_INT8_GAIN = 1.1
"""Minimum speed of int8 relative to the fastest float variant; otherwise it is not worth its loss of accuracy."""
SPEED_ROUNDS = 3
SPEED_TEXTS = 256

log = logging.getLogger(__name__)


class ParityError(GraphError):
    """The predictions of every float variant differ too much from the model's."""


@dataclass(frozen=True)
class Validation:
    """The texts for trying variants."""

    texts: Sequence[str]
    targets: npt.NDArray[np.int64] | None
    """Right labels, [texts], as positions in `labels`; None for texts of random words."""
    labels: tuple[str, ...]
    reference: FloatArray
    """Torch's probabilities, [texts, labels]."""


def prove_variants(
    directory: Path, validation: Validation, calibration: Sequence[Inputs], wanted: Wanted
) -> tuple[Proof, ...]:
    """Try the wanted variants of the bundle in `directory`, and add the accepted int8 and float16 graphs to it.

    A variant that fails is refused, and the others are tried. float32 in ONNX Runtime is always tried, because it shows
    that the graph itself is correct; float32 in OpenVINO is tried in place of a refused variant.

    Raises:
        ParityError: no float variant agrees with torch.
    """
    with ExitStack() as stack:
        # All stay loaded, so that speeds are measured in turns and other load on the machine affects all equally.
        engines: dict[Variant, Engine] = {}
        proofs: list[Proof] = []
        float_answers: FloatArray | None = None
        reference, *others = float_variants()
        candidates = [reference, *filter(wanted.allows, others)]
        for variant in candidates:  # grows if one is refused
            proof, answers = _try(directory, variant, validation, validation.reference, stack, engines)
            proofs.append(proof)
            if not proof.refused and float_answers is None:
                float_answers = answers
            last = Variant(OPENVINO, FLOAT32)
            if proof.refused and last not in candidates and (variant == reference or wanted.allows(last)):
                candidates.append(last)
        if float_answers is None:
            reasons = "; ".join(f"{proof.variant}: {proof.refused}" for proof in proofs)
            raise ParityError(
                "The version is not published, because the exported graph does not agree with the trained model. "
                f"{reasons}."
            )
        for variant in filter(wanted.allows, gpu_variants()):
            make = partial(halve, directory)
            proofs.append(_try(directory, variant, validation, validation.reference, stack, engines, make)[0])
        for variant in filter(wanted.allows, int8_variants()):
            make = partial(quantize, variant, directory / FLOAT_GRAPH, calibration, directory)
            proofs.append(_try(directory, variant, validation, float_answers, stack, engines, make)[0])
        with under_way("measuring the speed of each way to run the graph"):
            speeds = measure_speeds(engines, validation.texts)
    proofs = [replace(proof, tokens_per_s=speeds.get(proof.variant, 0.0)) for proof in proofs]
    floats = [proof for proof in proofs if proof.precision != INT8 and not proof.refused]
    fastest = max(floats, key=lambda proof: proof.tokens_per_s)
    checked = [
        replace(proof, refused=proof.refused or _loss(proof, floats[0], fastest)) if proof.precision == INT8 else proof
        for proof in proofs
    ]
    for proof in checked:
        _log(proof, fastest, has_targets=validation.targets is not None)
        if proof.refused and proof.variant.graph != FLOAT_GRAPH:
            for file in directory.glob(f"{Path(proof.variant.graph).stem}.*"):
                file.unlink()
    return tuple(checked)


def measure_speeds(engines: Mapping[Variant, Engine], texts: Sequence[str]) -> dict[Variant, float]:
    """Tokens per second of each engine: the median of rounds in which all take turns."""
    texts = texts[:SPEED_TEXTS]
    rates: dict[Variant, list[float]] = {variant: [] for variant in engines}
    tokens = next(iter(engines.values())).count_tokens(texts)  # all engines have the same tokenizer
    for _ in range(SPEED_ROUNDS):
        for variant, engine in engines.items():
            started = time.perf_counter()
            engine.classify(texts)
            rates[variant].append(tokens / (time.perf_counter() - started))
    return {variant: statistics.median(rounds) for variant, rounds in rates.items()}


def _try(
    directory: Path,
    variant: Variant,
    validation: Validation,
    reference: FloatArray,
    stack: ExitStack,
    engines: dict[Variant, Engine],
    prepare: Callable[[], None] = lambda: None,
) -> tuple[Proof, FloatArray]:
    """Return the proof of a variant without its speed, and its predictions; add its engine to `engines`.

    The proof says why the variant is refused if it does not run, or does not agree with the `reference`.
    """
    try:
        with under_way(f"testing {variant} against the trained model"):
            prepare()
            engine = stack.enter_context(Engine(directory, variant, usable_cores()))
            answers = engine.classify(validation.texts).values
            if not np.isfinite(answers).all():
                raise ParityError("its predictions are not numbers")
            parity = check_parity(
                lambda texts: engine.classify(texts).values, validation.texts, reference, variant.precision
            )
    except Exception as error:  # runtimes and quantization raise exceptions of many kinds
        log.debug("%s failed.", variant, exc_info=True)
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        return unmeasured_proof(variant, f"it does not run: {reason}"), reference
    engines[variant] = engine
    refused = (
        parity.refusal("by the float graph", LEAST_INT8_AGREEMENT, LEAST_CONFIDENT_INT8_AGREEMENT, LEAST_STEADY_INT8)
        if variant.precision == INT8
        else parity.refusal("by torch", LEAST_AGREEMENT)
    )
    proof = replace(
        unmeasured_proof(variant, refused),
        texts=parity.texts,
        mixes=len(parity.labels),
        label_agreement=parity.label_agreement,
        confident_agreement=parity.confident_agreement,
        largest_difference=parity.largest_difference,
        largest_spread=parity.largest_spread,
        steady=parity.unsteady.share,
        differing=parity.differing,
        near_ties=parity.near_ties,
    )
    if validation.targets is not None:
        evaluation = evaluate(answers, validation.targets, validation.labels)
        proof = replace(proof, accuracy=evaluation.accuracy, macro_f1=evaluation.macro_f1)
    return proof, answers


def unmeasured_proof(variant: Variant, refused: str = "", tokens_per_s: float = 0.0) -> Proof:
    """Return a proof without measured agreement, which `texts=0` shows."""
    return Proof(
        runtime=variant.runtime,
        precision=variant.precision,
        arithmetic=arithmetic_of(variant),
        texts=0,
        mixes=0,
        label_agreement=0.0,
        confident_agreement=0.0,
        largest_difference=0.0,
        largest_spread=0.0,
        accuracy=0.0,
        macro_f1=0.0,
        tokens_per_s=tokens_per_s,
        refused=refused,
    )


def _loss(int8: Proof, reference: Proof, fastest_float: Proof) -> str:
    """Return why an int8 graph that agrees is not worth its use; empty if it is."""
    reasons = []
    if reference.macro_f1 - int8.macro_f1 > LARGEST_F1_LOSS:
        reasons.append(f"macro F1 falls from {reference.macro_f1:.4f} to {int8.macro_f1:.4f}")
    if slow := too_slow(int8, fastest_float):
        reasons.append(slow)
    return "; ".join(reasons)


def too_slow(int8: Proof, fastest_float: Proof) -> str:
    """The reason why an int8 graph is too slow; empty if it is fast enough."""
    gain = int8.tokens_per_s / fastest_float.tokens_per_s
    if gain >= LEAST_INT8_GAIN:
        return ""
    return f"it is {gain:.2f} times as fast as {fastest_float.variant}; {LEAST_INT8_GAIN} are needed"


def _log(proof: Proof, fastest_float: Proof, *, has_targets: bool) -> None:
    if proof.precision == INT8 and proof.refused and proof.refused == too_slow(proof, fastest_float):
        gain = proof.tokens_per_s / fastest_float.tokens_per_s
        log.info(
            "%s is not used, because it is %s (%.2f times as fast as %s; %g are needed).",
            proof.variant,
            "slower" if gain < 1 else "hardly faster",
            gain,
            fastest_float.variant,
            LEAST_INT8_GAIN,
        )
        return
    if proof.refused:
        log.warning("%s is refused: %s.", proof.variant, proof.refused)
        return
    log.info(
        "%s agrees with %s: of %s texts, in %d mixes of batches, %s get another label (near ties, which do not count: "
        "%s);%s %s tokens/s.",
        proof.variant,
        "the float graph" if proof.precision == INT8 else "the trained model",
        f"{proof.texts:,}",
        proof.mixes,
        proof.differing or "none",
        proof.near_ties,
        f" macro F1 on these texts {proof.macro_f1:.4f};" if has_targets else "",
        f"{proof.tokens_per_s:,.0f}",
    )
