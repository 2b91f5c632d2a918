"""The gate `thresholds`: a candidate is not kept out by a threshold that the champion misses as well."""

import numpy as np

from common.settings import Settings
from lifecycle.gates.batch_predict import Answers
from lifecycle.gates.evaluation_data import EvaluationData
from lifecycle.gates.run_gates import meets_thresholds
from storage.versions import GateVerdict
from trainer.dataset import LabelledTexts

LABELS = ("Negative", "Positive")
TEXTS = 1_000
SETTINGS = Settings(min_accuracy=0.8, min_macro_f1=0.8, min_feedback=100)
HINT = "lower SENTIMENT_MIN_ACCURACY or SENTIMENT_MIN_MACRO_F1, and run `python app.py promote 2`."


def judged(champion: float, candidate: float) -> GateVerdict:
    """The verdict on two versions with these accuracies on balanced texts."""
    texts = [f"text {number}" for number in range(TEXTS)]
    labels = [LABELS[number % 2] for number in range(TEXTS)]
    data = EvaluationData(LABELS, LabelledTexts(texts, labels), LabelledTexts([], []))

    def answers(version: int, accuracy: float) -> Answers:
        right = round(accuracy * TEXTS)
        told = [label if number < right else LABELS[1 - number % 2] for number, label in enumerate(labels)]
        return Answers(version, told, np.full(TEXTS, 0.9, np.float32), np.full((TEXTS, 2), 0.5, np.float32))

    return meets_thresholds(SETTINGS, data, answers(1, champion), answers(2, candidate))


def test_a_better_candidate_passes_though_both_are_under_the_thresholds() -> None:
    verdict = judged(0.695, 0.73)
    assert verdict.passed
    assert verdict.message == (
        "Under a threshold: accuracy on validation is 0.7300, under 0.8 (1,000 texts); "
        "macro F1 on validation is 0.7300, under 0.8 (1,000 texts). "
        "Version 1 misses it as well, and the candidate is better: "
        "over all texts, accuracy 0.6950 → 0.7300, macro F1 0.6950 → 0.7300."
    )
    assert verdict.figures["validation"]["accuracy"] == 0.73


def test_one_that_is_not_better_does_not_pass_and_the_message_says_what_helps() -> None:
    for accuracy in (0.695, 0.69):
        verdict = judged(0.695, accuracy)
        assert not verdict.passed
        assert (
            "Version 1 misses it as well, but the candidate is not better: over all texts, accuracy" in verdict.message
        )
        assert verdict.message.endswith(HINT)


def test_one_that_falls_under_a_threshold_does_not_pass() -> None:
    verdict = judged(0.85, 0.79)
    assert not verdict.passed
    assert verdict.message.startswith("Under a threshold: accuracy on validation is 0.7900, under 0.8")
    assert verdict.message.endswith(HINT)


def test_one_that_reaches_the_thresholds_passes() -> None:
    assert judged(0.85, 0.8).message == "The thresholds are met: accuracy 0.8000, macro F1 0.8000 on validation."
