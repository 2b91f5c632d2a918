"""Section *stages*: how two stages answer reviews that the model does not know, and tweets, for which it was not made.

The certificate is tried on random splits of the reviews. A stream of reviews, then tweets, shows what the audit does.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from benchmarks.models import LIMIT
from benchmarks.rated_texts import Row, rated_texts
from benchmarks.results import Figures, Results, in_a_line
from benchmarks.run import Run
from benchmarks.texts import distinct_texts
from serving.backend.certificate import safest_share
from serving.backend.cpu import usable_cores
from serving.backend.engine import Engine
from serving.model_repo.bundle import FIRST_STAGE, Bundle, Certificate
from serving.model_repo.variants import Variant
from trainer.evaluation import macro_f1

SECTION = "stages"
TITLE = "Two stages, texts with labels by people"
STREAM = "stream, {} texts a step"
STEP = 500
"""Number of texts of the stream that are classified at once."""
TURNS = 4
"""Number of times that the tweets are in the stream, in other letter case; the model reads them alike."""
SPLITS = 200
_THRESHOLD_TEXTS, _CERTIFYING_TEXTS = 600, 1_305
"""Texts of each split that give the thresholds, and those that certify one of them, as in an export."""


class _Predictions(NamedTuple):
    """What both stages say of texts."""

    confidence: npt.NDArray[np.float32]
    """[texts], the probability that the first stage gives to its label"""
    first: npt.NDArray[np.int64]
    """[texts], the first stage's labels"""
    full: npt.NDArray[np.int64]
    """[texts], the full model's labels"""
    right: npt.NDArray[np.int64]
    """[texts], the labels by people"""


def measure(run: Run) -> None:
    """Measure the deployed version with both stages; a version with one stage is left out."""
    certificate = Bundle.load(run.model.directory).first_stage
    if certificate is None:
        run.results.notes.append(f"{SECTION}: the model has one stage.")
        return
    kinds = {"reviews": run.model.unknown, "tweets": list(rated_texts("tweet").values())}
    predicted = {}
    for name, rows in kinds.items():
        run.progress(f"{SECTION}: {len(rows):,} {name}, by each stage")
        predicted[name] = _predict(run, certificate, rows)
        _add(run, name, "as certified", _quality(predicted[name], certificate.threshold))
    for limit in (LIMIT, 2 * LIMIT):
        _add(run, f"reviews, {SPLITS} random splits", f"limit {limit:.0%}", _on_splits(predicted["reviews"], limit))
    _stream(run, certificate.full, kinds, predicted)


def _add(run: Run, group: str, name: str, figures: Figures) -> None:
    run.results.measurement(SECTION, group, name).add(figures)
    run.progress(f"{SECTION}: {group}, {name}: {in_a_line(figures)}")


def _predict(run: Run, certificate: Certificate, rows: Sequence[Row]) -> _Predictions:
    texts = [text for text, _ in rows]
    with Engine(run.model.directory / FIRST_STAGE, certificate.first, usable_cores()) as first:
        probabilities = first.classify(texts).values
    with Engine(run.model.alone, certificate.full, usable_cores()) as full:
        labels = full.classify(texts).values.argmax(axis=1)
        right = [full.bundle.labels.index(label) for _, label in rows]
    return _Predictions(probabilities.max(axis=1), probabilities.argmax(axis=1), labels, np.array(right))


def _quality(of: _Predictions, threshold: float) -> Figures:
    decided = of.confidence >= threshold
    pair = np.where(decided, of.first, of.full)
    return {
        "decided_share": float(decided.mean()),
        "differing_share": float((pair != of.full).mean()),
        "accuracy": float((pair == of.right).mean()),
        "accuracy_of_full": float((of.full == of.right).mean()),
        "macro_f1": macro_f1(pair, of.right),
        "macro_f1_of_full": macro_f1(of.full, of.right),
    }


def _on_splits(of: _Predictions, limit: float) -> Figures:
    """Certify a threshold on a part of each split; `over_limit` is how often it differs more on the other texts."""
    draw = np.random.default_rng(0)
    differs = of.first != of.full
    decided, realised = [], []
    for _ in range(SPLITS):
        texts = draw.permutation(len(differs))
        thresholds = np.quantile(of.confidence[texts[:_THRESHOLD_TEXTS]], np.linspace(0, 1, 400))
        certifying = texts[_THRESHOLD_TEXTS : _THRESHOLD_TEXTS + _CERTIFYING_TEXTS]
        others = texts[_THRESHOLD_TEXTS + _CERTIFYING_TEXTS :]
        if risk := safest_share(of.confidence[certifying], differs[certifying], thresholds, limit):
            sure = of.confidence[others] >= risk.threshold
            decided.append(float(sure.mean()))
            realised.append(float((sure & differs[others]).mean()))
    return {
        "certified": len(realised),
        "over_limit": sum(share > limit for share in realised),
        "decided_share": float(np.median(decided)) if decided else 0.0,
        "differing_share": float(np.median(realised)) if realised else 0.0,
    }


def _stream(run: Run, variant: Variant, kinds: dict[str, Sequence[Row]], predicted: dict[str, _Predictions]) -> None:
    """Classify the reviews, then the tweets, with the audit, and record each step's figures."""
    with Engine(run.model.directory, variant, usable_cores()) as engine:
        for name, turns in (("reviews", 1), ("tweets", TURNS)):
            known = [text for text, _ in kinds[name]]
            full = np.tile(predicted[name].full, turns)
            texts = distinct_texts(known)
            for start in range(0, len(full) - STEP + 1, STEP):
                step = [next(texts) for _ in range(STEP)]
                before, started = engine.totals(), time.perf_counter()
                labels = engine.classify(step).values.argmax(axis=1)
                took = time.perf_counter() - started
                after = engine.totals()
                figures = {
                    "texts_per_s": STEP / took,
                    "decided_share": (after.first_stage_texts - before.first_stage_texts) / STEP,
                    "differing_share": float((labels != full[start : start + STEP]).mean()),
                    "first_stage_on": after.first_stage_on,
                    "audited_texts": after.audited_texts - before.audited_texts,
                }
                _add(run, STREAM.format(STEP), f"{name}, from {start:,}", figures)


def plot(results: Results, file: Path) -> None:
    """Draw the stream over time, if it was measured."""
    steps = [item for item in results.of_section(SECTION) if item.group == STREAM.format(STEP)]
    if not steps:
        return
    at = np.arange(1, len(steps) + 1) * STEP
    tweets = STEP * sum(step.name.startswith("reviews") for step in steps)
    figure = Figure(figsize=(8, 6.5), layout="constrained")
    axes = figure.subplots(3, sharex=True)
    for axis, name, title in zip(
        axes,
        ("differing_share", "decided_share", "texts_per_s"),
        ("label differs from the\nfull model's, %", "decided by the\nfirst stage, %", "texts/s"),
        strict=True,
    ):
        values = np.array([step.figures[name][0] for step in steps])
        axis.plot(at, values * (1 if name == "texts_per_s" else 100), ".-", color="tab:blue")
        axis.axvline(tweets, color="grey", linestyle=":")
        axis.set_ylabel(title)
        axis.set_ylim(bottom=0)
    axes[0].axhline(100 * LIMIT, color="tab:red", linewidth=1, label="limit")
    axes[0].legend(loc="upper right")
    axes[0].set_title("reviews, then tweets (from the dotted line)")
    axes[-1].set_xlabel("texts")
    figure.savefig(file, dpi=120)
