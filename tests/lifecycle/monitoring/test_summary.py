"""What a check tells people in a sentence."""

from datetime import datetime

import pytest

from lifecycle.monitoring.estimation import Estimate, EstimatedQuality
from lifecycle.monitoring.labelling import Standing
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
    assert summary(3, problems, evaluations, estimated, foreseen, drifted, None) == f"Version 3 {told}"


def test_each_set_of_known_texts_is_named() -> None:
    told = summary(3, [], {"validation": found(0.876), "feedback": found(0.9)}, None, [], None, None)
    assert told.startswith("Version 3 is fine: accuracy 87.6% on validation and 90.0% on feedback; ")


@pytest.mark.parametrize(
    ("is_under", "problems", "told"),
    [
        (
            True,
            ["accuracy on live texts by random labels is 74 % (69 to 79) after 130 labels, below 0.8"],
            "Version 3 is under a threshold: accuracy on live texts by random labels is 74 % (69 to 79) after 130 "
            "labels, below 0.8; too few live texts",
        ),
        (
            False,
            [],
            "Version 3 is fine: accuracy 87.6% on validation; accuracy on live texts by random labels: 74 % (69 to 79) "
            "after 130 labels; decided: it is not under 80 %; ",
        ),
    ],
)
def test_it_says_what_random_labels_have_decided(is_under: bool, problems: list[str], told: str) -> None:
    time = datetime.min
    labelled = Standing(3, 2_000, time, time, 0.8, 130, 0, 0.74, 0.69, 0.79, 0.7, is_under, None)
    assert labelled.problem == "".join(problems)
    found_ = summary(3, problems, {"validation": found(0.876)}, None, [], None, labelled)
    assert found_.startswith(told)
