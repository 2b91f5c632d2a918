"""Runs all gates on a candidate; the candidate and the champion each run in a Triton of their own."""

import logging
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.errors import PipelineError
from common.progress import under_way
from common.settings import Settings
from common.wording import counted
from lifecycle.gates.batch_predict import Answers, batch_predict
from lifecycle.gates.behaviour import behaves, sentences, shares_that_hold
from lifecycle.gates.comparison import FLIPS, PairedAnswers, few_flips, not_worse, not_worse_on_slices
from lifecycle.gates.evaluation_data import EvaluationData, results, shortfalls
from lifecycle.gates.trial import Trial, base_model_change, trial, within_budget
from serving.model_repo.bundle import Bundle, Proof
from serving.model_repo.repository import ModelRepository
from storage.tables import Figures
from storage.versions import GateVerdict

MOST_FLIPS = 5
"""Maximum number of negative flips that a mail shows."""
MOST_DIFFERING = 40
"""Maximum number of stored example texts that the candidate and the champion label differently."""
_SHOWN_CHARACTERS = 300
NEED_TEXTS = ("thresholds", "comparison", "slices", FLIPS)
"""Gates that cannot judge without validation texts or held-out feedback."""

log = logging.getLogger(__name__)


def run_gates(
    settings: Settings,
    repository: ModelRepository,
    data: EvaluationData,
    champion: int,
    candidate: int,
    directory: Path,
) -> list[GateVerdict]:
    """Run both versions in `directory`, compare them, and return a verdict for each gate.

    Without texts in `data`, the gates of `NEED_TEXTS` are left out, and the sentences of the gate `behaviour` are run.

    Raises:
        PipelineError: the champion cannot be run.
    """
    with ExitStack() as stack:
        reference = stack.enter_context(trial(settings, repository, champion, directory / "champion"))
        texts = data.texts or sentences()
        with under_way(f"classifying {len(texts):,} texts with version {champion}"):
            champion_answers = batch_predict(reference.address, texts)
        try:
            tried = stack.enter_context(trial(settings, repository, candidate, directory / "candidate"))
            with under_way(f"classifying {len(texts):,} texts with version {candidate}"):
                answers = batch_predict(tried.address, texts)
        except PipelineError as error:
            return [_told(GateVerdict("trial", False, str(error), {}))]
        differing = _differing(data, champion_answers, answers)
        verdicts = [
            _tried(data, champion_answers, answers, differing),
            _parity(Bundle.load(repository.version_directory(candidate))),
        ]
        if data.texts:
            verdicts.append(meets_thresholds(settings, data, champion_answers, answers))
            paired = PairedAnswers(data.targets(), champion_answers.indices(data.labels), answers.indices(data.labels))
            verdicts.append(not_worse(paired))
            verdicts.append(not_worse_on_slices(paired, data.labels, slices(data)))
            flips = few_flips(paired, settings.max_negative_flips)
            lost = [item for item in differing if item["champion"] == item["right"]]
            verdicts.append(replace(flips, figures=flips.figures | {"examples": lost[:MOST_FLIPS]}))
        verdicts.append(behaves(_behaviour(reference), _behaviour(tried)))
        change = base_model_change(repository, champion, candidate)
        verdicts.append(within_budget(reference, tried, texts, change))
    return [_told(verdict) for verdict in verdicts]


def slices(data: EvaluationData) -> dict[str, npt.NDArray[np.bool_]]:
    """Return the slices on which a candidate must not be worse: by origin, and short and long texts.

    Short and long texts are the quarters with the fewest and the most words.
    """
    words = np.array([len(text.split()) for text in data.texts])
    from_file = np.arange(len(words)) < len(data.val.texts)
    low, high = np.quantile(words, (0.25, 0.75))
    return {
        "validation file": from_file,
        "feedback": ~from_file,
        "short texts": words <= low,
        "long texts": words >= high,
    }


def _tried(data: EvaluationData, champion: Answers, candidate: Answers, differing: list[Figures]) -> GateVerdict:
    """Return the passed gate `trial`, with the first of the `differing` validation texts."""
    figures: Figures = {
        "champion": champion.version,
        "validation texts": len(data.val.texts),
        "differ": len(differing),
        "examples": differing[:MOST_DIFFERING],
    }
    return GateVerdict(
        "trial", True, f"A separate Triton loaded it and classified {len(candidate.labels):,} texts.", figures
    )


def _differing(data: EvaluationData, champion: Answers, candidate: Answers) -> list[Figures]:
    """Return the validation texts whose labels differ; first those where both versions are sure."""
    sure = np.minimum(champion.confidence, candidate.confidence)
    places = [place for place in range(len(data.val.texts)) if champion.labels[place] != candidate.labels[place]]
    return [
        {
            "text": data.val.texts[place][:_SHOWN_CHARACTERS],
            "right": data.val.labels[place],
            "champion": champion.labels[place],
            "candidate": candidate.labels[place],
        }
        for place in sorted(places, key=lambda place: -sure[place])
    ]


def meets_thresholds(settings: Settings, data: EvaluationData, champion: Answers, candidate: Answers) -> GateVerdict:
    """Gate: the candidate reaches the thresholds, or is better than a champion that misses them as well."""
    found, before = results(data.evaluate(candidate)), results(data.evaluate(champion))
    told = "; ".join(
        f"accuracy {item['accuracy']:.4f}, macro F1 {item['macro_f1']:.4f} on {name}" for name, item in found.items()
    )
    figures: Figures = {name: dict(item) for name, item in found.items()}
    under = shortfalls(settings, found)
    if not under:
        return GateVerdict("thresholds", True, f"The thresholds are met: {told}.", figures)
    message = f"Under a threshold: {'; '.join(under)}."
    old, new = data.evaluate_all(champion), data.evaluate_all(candidate)
    change = (
        f"over all texts, accuracy {old.accuracy:.4f} → {new.accuracy:.4f}, macro F1 {old.macro_f1:.4f} → "
        f"{new.macro_f1:.4f}"
    )
    if faults := shortfalls(settings, found, before):
        message += f" Version {champion.version} reaches this or is over a point better: {'; '.join(faults)}."
    elif new.accuracy + new.macro_f1 > old.accuracy + old.macro_f1:
        passes = f" Version {champion.version} misses it as well, and the candidate is better: {change}."
        return GateVerdict("thresholds", True, message + passes, figures)
    else:
        message += f" Version {champion.version} misses it as well, but the candidate is not better: {change}."
    message += (
        " If this is good enough, lower SENTIMENT_MIN_ACCURACY or SENTIMENT_MIN_MACRO_F1, and run "
        f"`python app.py promote {candidate.version}`."
    )
    return GateVerdict("thresholds", False, message, figures)


def _parity(bundle: Bundle) -> GateVerdict:
    """Return the gate `parity` from the export's proofs: at least one variant agrees with the trained model."""
    proven = [proof for proof in bundle.proofs if not proof.refused]
    found = [str(proof.variant) + _agreement(proof) for proof in proven]
    refused = [f"{proof.variant} is refused: {proof.refused}" for proof in bundle.proofs if proof.refused]
    message = f"{'Agrees' if proven else 'No graph agrees'} with the trained model: {'; '.join([*found, *refused])}."
    figures: Figures = {str(proof.variant): asdict(proof) for proof in bundle.proofs}
    if not bundle.metrics:  # there were no validation texts
        for item in figures.values():
            del item["accuracy"], item["macro_f1"]
    return GateVerdict("parity", bool(proven), message, figures)


def _agreement(proof: Proof) -> str:
    if proof.differing is None:  # a bundle of an older release
        return f" ({proof.label_agreement:.2%} of the labels are the same)"
    besides = f", besides {counted(proof.near_ties, 'near tie')}" if proof.near_ties else ""
    differing = f"{proof.differing:,}" if proof.differing else "none"
    return f" ({differing} of {counted(proof.texts, 'text')} get another label{besides})"


def _behaviour(tried: Trial) -> dict[str, float]:
    return shares_that_hold(lambda texts: batch_predict(tried.address, texts).labels)


def _told(verdict: GateVerdict) -> GateVerdict:
    log.log(
        logging.INFO if verdict.passed else logging.WARNING,
        "Gate %s: %s. %s",
        verdict.gate,
        "passed" if verdict.passed else "NOT passed",
        verdict.message,
    )
    return verdict
