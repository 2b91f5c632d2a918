"""Puts a candidate through all gates, beside the champion, each in a Triton of its own."""

import logging
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt

from errors import PipelineError
from lifecycle.asking import Answers, ask
from lifecycle.check import shortfalls
from lifecycle.evaluation_data import EvaluationData
from lifecycle.gates.behaviour import behaves, shares_that_hold
from lifecycle.gates.comparison import PairedAnswers, not_worse, not_worse_on_slices
from lifecycle.gates.trial import Trial, trial, within_budget
from serving.bundle import Bundle
from serving.repository import ModelRepository
from settings import Settings
from storage.tables import Figures
from storage.versions import GateVerdict

MOST_DIFFERING = 40
"""Texts that are kept with the verdicts on a version, of those on which it differs from the one that served."""
_SHOWN_CHARACTERS = 300

log = logging.getLogger(__name__)


def judge(
    settings: Settings, data: EvaluationData, champion: int, candidate: int, directory: Path
) -> list[GateVerdict]:
    """Try both versions in `directory`, and hold one against the other; a verdict for each gate.

    Raises:
        PipelineError: the champion cannot be tried.
    """
    with ExitStack() as stack:
        reference = stack.enter_context(trial(settings, champion, directory / "champion"))
        champion_answers = ask(reference.address, data.texts)
        try:
            tried = stack.enter_context(trial(settings, candidate, directory / "candidate"))
            answers = ask(tried.address, data.texts)
        except PipelineError as error:
            return [_told(GateVerdict("trial", False, str(error), {}))]
        verdicts = [
            _tried(data, champion_answers, answers),
            _parity(Bundle.load(ModelRepository(settings.model_repository).version_directory(candidate))),
            _thresholds(settings, data, answers),
        ]
        paired = PairedAnswers(data.targets(), champion_answers.indices(data.labels), answers.indices(data.labels))
        verdicts.append(not_worse(paired))
        verdicts.append(not_worse_on_slices(paired, data.labels, slices(data)))
        verdicts.append(behaves(_behaviour(reference), _behaviour(tried)))
        verdicts.append(within_budget(reference, tried, data.texts))
    return [_told(verdict) for verdict in verdicts]


def slices(data: EvaluationData) -> dict[str, npt.NDArray[np.bool_]]:
    """Parts of the texts that a candidate must not be worse on: where from, short and long.

    Short and long are the quarter with the fewest and the most words.
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


def _tried(data: EvaluationData, champion: Answers, candidate: Answers) -> GateVerdict:
    """That it answered, and some of the validation texts on which it differs, those first of which both are sure."""
    validated = len(data.val.texts)
    differ = [place for place in range(validated) if champion.labels[place] != candidate.labels[place]]
    sure = np.minimum(champion.confidence, candidate.confidence)
    shown = sorted(differ, key=lambda place: -sure[place])[:MOST_DIFFERING]
    figures: Figures = {
        "champion": champion.version,
        "validation texts": validated,
        "differ": len(differ),
        "examples": [
            {
                "text": data.val.texts[place][:_SHOWN_CHARACTERS],
                "right": data.val.labels[place],
                "champion": champion.labels[place],
                "candidate": candidate.labels[place],
            }
            for place in shown
        ],
    }
    return GateVerdict("trial", True, f"A Triton of its own answered {len(data.texts)} texts by it.", figures)


def _thresholds(settings: Settings, data: EvaluationData, answers: Answers) -> GateVerdict:
    evaluations = data.evaluate(answers)
    problems = shortfalls(settings, evaluations)
    told = "; ".join(
        f"accuracy {item.accuracy:.4f}, macro F1 {item.macro_f1:.4f} on {name}" for name, item in evaluations.items()
    )
    message = f"Under a threshold: {'; '.join(problems)}." if problems else f"The thresholds are met: {told}."
    return GateVerdict(
        "thresholds", not problems, message, {name: item.metrics() for name, item in evaluations.items()}
    )


def _parity(bundle: Bundle) -> GateVerdict:
    """The export refuses a graph that does not answer as torch does, so what was published has passed."""
    proven = [proof for proof in bundle.proofs if not proof.refused]
    told = ", ".join(f"{proof.variant} {proof.label_agreement:.2%}" for proof in proven)
    figures = {str(proof.variant): asdict(proof) for proof in bundle.proofs}
    return GateVerdict("parity", bool(proven), f"The graphs' labels agree: {told}.", figures)


def _behaviour(tried: Trial) -> dict[str, float]:
    return shares_that_hold(lambda texts: ask(tried.address, texts).labels)


def _told(verdict: GateVerdict) -> GateVerdict:
    log.log(
        logging.INFO if verdict.passed else logging.WARNING,
        "Gate %s: %s. %s",
        verdict.gate,
        "passed" if verdict.passed else "NOT passed",
        verdict.message,
    )
    return verdict
