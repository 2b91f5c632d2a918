"""Tries each way to run a version on this machine, and proves which may serve."""

import logging
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from errors import PipelineError
from export.int8 import Inputs, quantize
from export.parity import FloatArray, check_parity
from serving.bundle import Proof
from serving.choice import Wanted
from serving.engine import Engine
from serving.processor import arithmetic, usable_cores
from serving.runtime import FLOAT_GRAPH, INT8, Variant, float_variants, int8_variants
from trainer.evaluation import evaluate

LEAST_AGREEMENT = 0.995
"""Of a float graph's labels with torch's."""
LEAST_INT8_AGREEMENT = 0.975
LEAST_CONFIDENT_INT8_AGREEMENT = 0.995
"""Of an int8 graph's labels with the float graph's: of all texts, and of those that it is confident of."""
LEAST_STEADY_INT8 = 0.99
"""Of texts, those that an int8 graph answers alike whatever shares their run. A runtime that is wrong for rows of one
shape is wrong for lone texts of one length, and of all labels hardly any tells."""
LARGEST_F1_LOSS = 0.005
LEAST_INT8_GAIN = 1.1
"""int8 must be so many times as fast as the fastest float variant, or it costs accuracy for nothing."""
SPEED_ROUNDS = 3
SPEED_TEXTS = 256

log = logging.getLogger(__name__)


class ParityError(PipelineError):
    """A graph does not answer as the model does that it was made of."""


@dataclass(frozen=True)
class Validation:
    """The texts that variants are tried on."""

    texts: Sequence[str]
    targets: npt.NDArray[np.int64]
    """[texts], positions in `labels`."""
    labels: tuple[str, ...]
    reference: FloatArray
    """Torch's answers, [texts, labels]."""


def prove_variants(
    directory: Path, validation: Validation, calibration: Sequence[Inputs], wanted: Wanted
) -> tuple[Proof, ...]:
    """Try the wanted variants of the bundle in `directory`; int8 graphs that may serve are added to it.

    float32 in ONNX Runtime is always tried, because it shows that the graph itself is right.

    Raises:
        ParityError: a float graph does not answer as torch does.
    """
    with ExitStack() as stack:
        # All stay loaded, so that their speeds are measured in turns: what else the machine does slows all the same.
        engines: dict[Variant, Engine] = {}
        proofs: list[Proof] = []
        float_answers = validation.reference
        reference, *others = float_variants()
        for variant in (reference, *filter(wanted.allows, others)):
            engines[variant] = stack.enter_context(Engine(directory, variant, usable_cores()))
            proof, answers = _try(engines[variant], validation, validation.reference)
            if proof.label_agreement < LEAST_AGREEMENT:
                raise ParityError(
                    f"The version is not published: through {variant} the graph gives torch's label on "
                    f"{proof.label_agreement:.2%} of {proof.texts} texts, and at least {LEAST_AGREEMENT:.1%} are "
                    "needed."
                )
            if not proofs:
                float_answers = answers
            proofs.append(proof)
        for variant in filter(wanted.allows, int8_variants()):
            log.info("Making the int8 graph for %s.", variant.runtime)
            quantize(variant, directory / FLOAT_GRAPH, calibration, directory)
            engines[variant] = stack.enter_context(Engine(directory, variant, usable_cores()))
            proofs.append(_try(engines[variant], validation, float_answers)[0])
        speeds = measure_speeds(engines, validation.texts)
    proofs = [replace(proof, tokens_per_s=speeds[proof.variant]) for proof in proofs]
    floats = [proof for proof in proofs if proof.precision != INT8]
    fastest_float = max(floats, key=lambda proof: proof.tokens_per_s)
    judged = floats + [
        replace(proof, refused=_refusal(proof, floats[0], fastest_float)) for proof in proofs if proof not in floats
    ]
    for proof in judged:
        _tell(proof)
        if proof.refused:
            for file in directory.glob(f"{Path(proof.variant.graph).stem}.*"):
                file.unlink()
    return tuple(judged)


def measure_speeds(engines: Mapping[Variant, Engine], texts: Sequence[str]) -> dict[Variant, float]:
    """Tokens a second of each engine, the median of rounds in which all take turns."""
    texts = texts[:SPEED_TEXTS]
    rates: dict[Variant, list[float]] = {variant: [] for variant in engines}
    tokens = next(iter(engines.values())).count_tokens(texts)  # one version, so one tokenizer
    for _ in range(SPEED_ROUNDS):
        for variant, engine in engines.items():
            started = time.perf_counter()
            engine.classify(texts)
            rates[variant].append(tokens / (time.perf_counter() - started))
    return {variant: statistics.median(rounds) for variant, rounds in rates.items()}


def _try(engine: Engine, validation: Validation, reference: FloatArray) -> tuple[Proof, FloatArray]:
    """How the engine answers, but for its speed; and its answers."""
    answers = engine.classify(validation.texts).values
    parity = check_parity(lambda texts: engine.classify(texts).values, validation.texts, reference)
    evaluation = evaluate(answers, validation.targets, validation.labels)
    proof = Proof(
        runtime=engine.variant.runtime,
        precision=engine.variant.precision,
        arithmetic=arithmetic(),
        accuracy=evaluation.accuracy,
        macro_f1=evaluation.macro_f1,
        tokens_per_s=0.0,
        **asdict(parity),
    )
    return proof, answers


def _refusal(int8: Proof, reference: Proof, fastest_float: Proof) -> str:
    """Why an int8 graph may not serve; empty where it may."""
    reasons = []
    if int8.label_agreement < LEAST_INT8_AGREEMENT:
        reasons.append(f"labels agree on {int8.label_agreement:.2%}, and {LEAST_INT8_AGREEMENT:.1%} are needed")
    if int8.confident_agreement < LEAST_CONFIDENT_INT8_AGREEMENT:
        reasons.append(
            f"of confident labels {int8.confident_agreement:.2%} agree, "
            f"and {LEAST_CONFIDENT_INT8_AGREEMENT:.1%} are needed"
        )
    if int8.steady < LEAST_STEADY_INT8:
        reasons.append(
            f"{int8.steady:.1%} of texts are answered alike whatever shares their run, and "
            f"{LEAST_STEADY_INT8:.1%} are needed"
        )
    if reference.macro_f1 - int8.macro_f1 > LARGEST_F1_LOSS:
        reasons.append(f"macro F1 falls from {reference.macro_f1:.4f} to {int8.macro_f1:.4f}")
    if slow := too_slow(int8, fastest_float):
        reasons.append(slow)
    return "; ".join(reasons)


def too_slow(int8: Proof, fastest_float: Proof) -> str:
    """Why an int8 graph does not pay; empty where it does."""
    gain = int8.tokens_per_s / fastest_float.tokens_per_s
    if gain >= LEAST_INT8_GAIN:
        return ""
    return f"it is {gain:.2f} times as fast as {fastest_float.variant}, and {LEAST_INT8_GAIN} are needed"


def _tell(proof: Proof) -> None:
    log.info(
        "%s: %s label on %.2f %% of %d texts, in the worst of %d mixes of batch-mates (%.2f %% of the confident ones); "
        "macro F1 %.4f; %s tokens/s.%s",
        proof.variant,
        "the float graph's" if proof.precision == INT8 else "torch's",
        100 * proof.label_agreement,
        proof.texts,
        proof.mixes,
        100 * proof.confident_agreement,
        proof.macro_f1,
        f"{proof.tokens_per_s:,.0f}",
        f" Refused: {proof.refused}." if proof.refused else "",
    )
