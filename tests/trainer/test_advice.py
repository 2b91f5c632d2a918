"""A model that has learnt too little is told, with likely causes and the settings to change."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from trainer.advice import FEW_STEPS, FEW_TEXTS, MANY_UNKNOWN, TrainingFacts, near_chance, not_better
from trainer.evaluation import Evaluation, evaluate

LABELS = ("Negative", "Neutral", "Positive")
WITHOUT_FAULT = TrainingFacts(
    texts=FEW_TEXTS, steps=FEW_STEPS, learning_rate=2e-4, usual_learning_rate=2e-4, unknown=MANY_UNKNOWN - 0.01
)
NONE_FOUND = (
    "Likely causes: none of the usual ones was found, so try more epochs (SENTIMENT_EPOCHS), another learning rate "
    "(SENTIMENT_LEARNING_RATE) or another encoder (SENTIMENT_BASE_MODEL)."
)


def evaluation(confusion: list[list[int]]) -> Evaluation:
    """Evaluate predictions with this confusion matrix: rows are the right labels, columns the predicted ones."""
    pairs = [(row, column) for row, counts in enumerate(confusion) for column, n in enumerate(counts) for _ in range(n)]
    targets, predicted = np.array(pairs).T
    probabilities: npt.NDArray[np.float64] = np.eye(len(confusion))[predicted]
    return evaluate(probabilities, targets, LABELS[: len(confusion)])


GOOD = evaluation([[9, 1, 0], [1, 9, 0], [0, 1, 9]])
OF_SIX_STEPS = evaluation([[1, 9, 0], [0, 10, 0], [0, 9, 1]])
"""120 texts with three labels after six training steps: accuracy 0.40."""


def test_a_model_that_is_not_better_is_told_with_likely_causes() -> None:
    good, poor = {"accuracy": 0.905, "macro_f1": 0.9}, {"accuracy": 0.665, "macro_f1": 0.4}
    assert not_better(good, poor, WITHOUT_FAULT) == ""
    assert not_better({"accuracy": 1, "macro_f1": 1}, {"accuracy": 1, "macro_f1": 1}, WITHOUT_FAULT) == ""
    facts = TrainingFacts(texts=1_999, steps=299, learning_rate=5e-5, usual_learning_rate=2e-4, unknown=0.65)
    assert not_better(poor, good, facts) == (
        "The model is not better than the baseline: macro F1 0.4000 against 0.9000, accuracy 0.6650 against 0.9050. "
        "Likely causes: the encoder does not know 65% of the tokens, so choose one of this language or script "
        "(SENTIMENT_BASE_MODEL); there are only 1,999 training texts, so add more; there were only 299 training steps, "
        "so train longer (SENTIMENT_EPOCHS); the learning rate is 5e-05 (SENTIMENT_LEARNING_RATE), and for this "
        "encoder 0.0002 is usual."
    )
    assert not_better(poor, poor, WITHOUT_FAULT).endswith(NONE_FOUND)


@pytest.mark.parametrize(("rate", "told"), [(1e-4, False), (4e-4, False), (9e-5, True), (5e-4, True)])
def test_a_learning_rate_is_a_cause_only_if_it_is_unusual(rate: float, told: bool) -> None:
    assert ("(SENTIMENT_LEARNING_RATE), and" in replace(WITHOUT_FAULT, learning_rate=rate).likely_causes()) == told


def test_a_model_near_chance_is_told_beside_what_a_guess_would_have() -> None:
    facts = replace(WITHOUT_FAULT, texts=90)
    assert near_chance(OF_SIX_STEPS, GOOD, facts) == (
        "The model is near chance: its accuracy is 0.4000, and always predicting 'Negative' has 0.3333. Likely causes: "
        "there are only 90 training texts, so add more."
    )
    assert near_chance(GOOD, OF_SIX_STEPS, facts) == ""


def test_labels_that_the_baseline_cannot_tell_apart_either_are_to_be_checked() -> None:
    assert "check whether the labels fit the texts (suspicious_labels.csv). Likely" in near_chance(
        OF_SIX_STEPS, OF_SIX_STEPS, WITHOUT_FAULT
    )


@pytest.mark.parametrize(
    ("confusion", "told"),
    [
        pytest.param([[95, 0], [5, 0]], True, id="only the frequent label"),
        pytest.param([[94, 1], [2, 3]], False, id="the rare label too"),
        pytest.param([[5, 0, 0], [0, 60, 0], [20, 15, 0]], False, id="a label is missed"),
    ],
)
def test_unbalanced_labels_are_near_chance_only_if_rare_ones_are_not_told_apart(
    confusion: list[list[int]], told: bool
) -> None:
    found = near_chance(evaluation(confusion), GOOD, WITHOUT_FAULT)
    assert found.startswith("The model is near chance") == told
