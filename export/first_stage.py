"""Adds a first stage to an exported version: a smaller model that decides the texts it is sure of.

The first stage is distilled from what the full model predicts in the variant that will run it, exported and proven like
any model, and certified on validation texts, which neither was trained on. Without a certificate, or if it makes the
version hardly faster, the version has one stage.
"""

import logging
import random
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common.errors import PipelineError
from common.progress import under_way
from common.settings import Settings
from export.graph import GraphError, export_graph
from export.int8 import CALIBRATION_TEXTS, calibration_inputs
from export.parity import FloatArray, reference_probabilities
from export.variants import Validation, prove_variants
from serving.backend.audit import LEAST_GAIN
from serving.backend.certificate import Risk, least_texts, safest_share
from serving.backend.cpu import usable_cores
from serving.backend.engine import Engine
from serving.backend.variant_choice import Wanted, arithmetic_of, choose_variant
from serving.model_repo.bundle import FIRST_STAGE, TOKENIZER, Bundle, Certificate
from serving.model_repo.variants import FLOAT_GRAPH, Variant
from trainer.architectures import why_unpacked
from trainer.changed_texts import changed_texts
from trainer.dataset import Dataset, LabelledTexts
from trainer.distillation import Student, checkpoints_of, choose_student, distil
from trainer.evaluation import calibrated, fit_temperature, logits_of, targets_of
from trainer.selection import hold_out

SPEED_ROUNDS = 3
SPEED_TEXTS = 512
THRESHOLDS = 400
"""Number of thresholds that are tried: quantiles of the first stage's confidence on the selection."""

AT_ONCE = 4_096
"""Number of texts that an engine gets at once. It keeps the tokens of all its texts in memory, and a training file may
have millions."""

log = logging.getLogger(__name__)


def add_first_stage(
    settings: Settings,
    bundle: Bundle,
    directory: Path,
    variant: Variant,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    unlabelled: Sequence[str],
) -> Bundle:
    """Return the bundle with a certificate, if a first stage makes it faster within the limit; else the bundle itself.

    The first stage learns from the training texts, from changed ones, and from `unlabelled` texts. One that fails, such
    as one whose graph disagrees with torch, is left out.

    `variant` will run the full model, whose bundle is complete in `directory`. The first stage is written there too.

    Raises:
        PipelineError: the disk is full.
    """
    limit = settings.max_disagreement
    if not limit:
        return bundle
    if len(dataset.val.texts) < (least := least_texts(limit)):
        log.warning(
            "The version has one stage: %s validation texts cannot show that at most %.1f %% of texts get another "
            "label (SENTIMENT_MAX_DISAGREEMENT); at least %s are needed.",
            f"{len(dataset.val.texts):,}",
            100 * limit,
            f"{least:,}",
        )
        return bundle
    learnt, selection = hold_out(dataset.train)
    checkpoints: Path | None = None
    try:
        student = choose_student(settings, model, tokenizer, bundle.labels, bundle.max_length, len(learnt.texts))
        if student is None:
            return bundle
        checkpoints = checkpoints_of(settings, student, f"{bundle.mlflow_run} {variant}")
        certified = _certified(
            settings, bundle, directory, variant, student, learnt, unlabelled, selection, dataset.val.texts, checkpoints
        )
    except Exception as error:  # of many kinds: those of the training, of the graph and of the runtimes
        if isinstance(error, OSError) or (isinstance(error, PipelineError) and not isinstance(error, GraphError)):
            raise  # the disk is full: the version could not be written either
        log.debug("The first stage failed.", exc_info=True)
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        log.warning("The version has one stage, because the first one failed: %s", reason)
        shutil.rmtree(directory / FIRST_STAGE, ignore_errors=True)
        bundle.save(directory)
        certified = None
    if checkpoints is not None:
        shutil.rmtree(checkpoints, ignore_errors=True)
    return bundle if certified is None else _kept_if_faster(certified, bundle, directory)


def _certified(
    settings: Settings,
    bundle: Bundle,
    directory: Path,
    variant: Variant,
    student: Student,
    learnt: LabelledTexts,
    unlabelled: Sequence[str],
    selection: LabelledTexts,
    val: Sequence[str],
    checkpoints: Path,
) -> Bundle:
    """Train and export the first stage; return the bundle with its certificate, or the bundle itself without one.

    It is trained on the texts `learnt` and `unlabelled`; those of `selection` calibrate it and give the thresholds, and
    those of `val` certify it.
    """
    with Engine(directory, variant, usable_cores()) as full:
        # As many as the training reads, so that it reads hardly any text twice.
        wanted = student.steps * settings.batch_size - len(learnt.texts) - len(unlabelled)
        judging = {*selection.texts, *val}
        changed = [text for text in changed_texts(learnt.texts, wanted, settings.seed) if text not in judging]
        texts = [*learnt.texts, *unlabelled, *changed]
        with under_way(f"classifying {len(texts):,} texts, which a smaller model learns to imitate"):
            targets = _classify(full, texts)
        labels = (bundle.labels[label] for label in targets[len(learnt.texts) :].argmax(axis=1))
        imitated = LabelledTexts(texts, [*learnt.labels, *labels])
        distil(settings, student, imitated, bundle.labels, targets, bundle.max_length, checkpoints)
        own = directory / FIRST_STAGE
        chosen = _export(settings, student, bundle, own, learnt, selection)
        with (
            under_way("comparing the smaller model's predictions with the full model's"),
            Engine(own, chosen, usable_cores()) as first,
        ):
            confidence = first.classify(selection.texts).values.max(axis=1)
            thresholds = np.quantile(confidence, np.linspace(0, 1, THRESHOLDS))
            answers = _classify(first, val)
            differs = answers.argmax(axis=1) != _classify(full, val).argmax(axis=1)
        risk = safest_share(answers.max(axis=1), differs, thresholds, limit := settings.max_disagreement)
        if risk is None:
            return bundle
        certificate = _certificate(risk, len(differs), limit, student.origin, chosen, variant)
        replace(bundle, first_stage=certificate).save(directory)
        with (
            under_way("measuring the speed of both models together"),
            Engine(directory, variant, usable_cores()) as pair,
        ):
            gain = _gain(pair, full, val)
    return replace(bundle, first_stage=replace(certificate, gain=gain))


def _classify(engine: Engine, texts: Sequence[str]) -> FloatArray:
    """Return the probabilities [texts, labels] of any number of texts; the engine gets them in parts to save memory."""
    parts = [engine.classify(texts[start : start + AT_ONCE]).values for start in range(0, len(texts), AT_ONCE)]
    return np.concatenate(parts)


def _export(
    settings: Settings,
    student: Student,
    full: Bundle,
    directory: Path,
    learnt: LabelledTexts,
    selection: LabelledTexts,
) -> Variant:
    """Calibrate the student, write its bundle to `directory`, prove its variants, and return the chosen one."""
    model, tokenizer = student.model, student.tokenizer
    with under_way(f"classifying {len(selection.texts):,} texts with the smaller model in torch"):
        logits = logits_of(reference_probabilities(model, tokenizer, selection.texts, full.max_length, 1.0))
    targets = targets_of(selection.labels, full.labels)
    temperature = fit_temperature(logits, targets)
    directory.mkdir()
    with under_way("writing the smaller model's ONNX graph"):
        export_graph(model, temperature, directory / FLOAT_GRAPH)
    tokenizer.backend_tokenizer.save(str(directory / TOKENIZER))
    bundle = replace(
        full, padding_token=tokenizer.pad_token_id, proofs=(), packed=not why_unpacked(model.config.to_dict())
    )
    bundle.save(directory)
    reference = calibrated(logits, temperature).astype(np.float32)
    validation = Validation(selection.texts, targets, bundle.labels, reference)
    chosen = random.Random(1).sample(learnt.texts, min(len(learnt.texts), CALIBRATION_TEXTS))
    wanted = Wanted(settings.runtime, settings.precision)
    calibration = list(calibration_inputs(chosen, directory / TOKENIZER, bundle))
    bundle = replace(bundle, proofs=prove_variants(directory, validation, calibration, wanted))
    bundle.save(directory)
    return choose_variant(bundle, wanted).variant


def _certificate(risk: Risk, texts: int, limit: float, origin: str, first: Variant, full: Variant) -> Certificate:
    return Certificate(
        threshold=risk.threshold,
        disagreement=risk.bound,
        limit=limit,
        texts=texts,
        differing=risk.differing,
        share=risk.share,
        gain=0.0,
        origin=origin,
        first=first,
        full=full,
        arithmetic=arithmetic_of(full),
    )


def _gain(pair: Engine, full: Engine, texts: Sequence[str]) -> float:
    """Return the speed of both stages relative to the full model: the median of rounds in which both take turns."""
    texts = texts[:SPEED_TEXTS]
    ratios = []
    for _ in range(SPEED_ROUNDS):
        started = time.perf_counter()
        full.classify(texts)
        between = time.perf_counter()
        pair.classify(texts)
        ratios.append((between - started) / (time.perf_counter() - between))
    return statistics.median(ratios)


def _kept_if_faster(certified: Bundle, single: Bundle, directory: Path) -> Bundle:
    """Log the certificate, and return the bundle to publish; without a use for it, the first stage is removed."""
    certificate = certified.first_stage
    if certificate is not None and certificate.gain >= LEAST_GAIN:
        log.info(
            "The version has two stages: a smaller model (%s) decides the %.0f %% of the texts that it is sure of, and "
            "the full model the others. With 95 %% confidence (%s texts), at most %.2f %% of all texts get another "
            "label than by the full model alone. Both together are %.2f times as fast.",
            certificate.origin,
            100 * certificate.share,
            f"{certificate.texts:,}",
            100 * certificate.limit,
            certificate.gain,
        )
        certified.save(directory)
        return certified
    shutil.rmtree(directory / FIRST_STAGE)
    single.save(directory)
    if certificate is None:
        log.info(
            "The version has one stage, because no threshold of the first one meets SENTIMENT_MAX_DISAGREEMENT. The "
            "full model decides every text."
        )
    else:
        log.info(
            "The version has one stage, because two would be only %.2f times as fast; %g are needed. The full "
            "model decides every text.",
            certificate.gain,
            LEAST_GAIN,
        )
    return single
