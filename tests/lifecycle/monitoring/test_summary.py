"""What a check tells people in a sentence."""

from datetime import datetime

import pytest

from lifecycle.monitoring.estimation import Estimate, EstimatedQuality
from lifecycle.monitoring.live_quality import ALL, LiveQuality
from lifecycle.monitoring.summary import summary
from trainer.evaluation import Evaluation


def found(accuracy: float) -> Evaluation:
    return Evaluation(300, accuracy, accuracy, {}, 0.0, [])


def live(low: float, high: float, disagree: bool = False) -> LiveQuality:
    estimate = Estimate((low + high) / 2, low, high)
    found = EstimatedQuality(500, estimate, estimate, {}, disagree=disagree)
    return LiveQuality(datetime.min, datetime.max, {ALL: found})


FINE = "is fine: accuracy 87.6% on validation; "
UNDER = ["accuracy on feedback is 0.5838, under 0.7 (173 texts)"]


@pytest.mark.parametrize(
    ("problems", "estimated", "foreseen", "drifted", "told"),
    [
        (
            [],
            None,
            [],
            None,
            f"{FINE}too few live texts to estimate how it does on them.",
        ),
        (
            [],
            live(0.84, 0.88),
            [],
            [],
            f"{FINE}its accuracy on live texts looks like 84% to 88%; no drift.",
        ),
        (
            [],
            live(0.70, 0.75),
            ["estimated accuracy is low"],
            ["labels"],
            f"{FINE}its accuracy on live texts looks like 70% to 75%, less than required; drift of labels.",
        ),
        (
            UNDER,
            live(0.84, 0.88),
            [],
            ["texts", "lengths"],
            f"is under a threshold: {UNDER[0]}; its accuracy on live texts looks like 84% to 88%, but they are unlike "
            "the known texts, so it may be lower; drift of texts and lengths.",
        ),
        (
            [],
            live(0.55, 0.87, disagree=True),
            [],
            ["texts"],
            f"{FINE}its accuracy on live texts looks like 55% to 87% (the estimates differ; labels for some live texts "
            "would settle it); drift of texts.",
        ),
    ],
    ids=["few texts", "all is well", "probably bad", "known to be bad", "nobody knows"],
)
def test_it_says_how_a_version_stands(
    problems: list[str],
    estimated: LiveQuality | None,
    foreseen: list[str],
    drifted: list[str] | None,
    told: str,
) -> None:
    evaluations = {"validation": found(0.876)}
    assert summary(3, problems, evaluations, estimated, foreseen, drifted) == f"Version 3 {told}"


def test_each_set_of_known_texts_is_named() -> None:
    told = summary(3, [], {"validation": found(0.876), "feedback": found(0.9)}, None, [], None)
    assert told.startswith("Version 3 is fine: accuracy 87.6% on validation and 90.0% on feedback; ")
