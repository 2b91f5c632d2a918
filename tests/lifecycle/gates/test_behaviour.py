"""The behaviour gate: whoever unlearns negation, or minds names or typos, fails; labels may be called anything."""

import re
from collections.abc import Sequence

import pytest

from lifecycle.gates.behaviour import LARGEST_LOSS, SUITE, behaves, shares_that_hold

BAD = ("bad", "terribl", "awful", "bor", "broke", "stop", "wast", "useless", "worst")
NEGATED = re.compile(r"\bnot\b|n't\b")


class Rules:
    """A model of word beginnings; in what it does badly, one may choose."""

    def __init__(
        self, labels: tuple[str, str] = ("Negative", "Positive"), ignores_negation: bool = False, minds: str = ""
    ) -> None:
        self._labels = labels
        self._ignores_negation = ignores_negation
        self._minds = minds

    def __call__(self, texts: Sequence[str]) -> list[str]:
        return [self._labels[self._is_good(text)] for text in texts]

    def _is_good(self, text: str) -> bool:
        is_bad = any(word.startswith(BAD) for word in text.lower().split())
        is_negated = bool(NEGATED.search(text)) and not self._ignores_negation
        is_minded = bool(self._minds and re.search(self._minds, text))
        return (is_bad == is_negated) != is_minded


GOOD = shares_that_hold(Rules())
TYPOS = r"pictrue|realy|storry|wonderfull"


def test_a_model_that_follows_the_rules_passes_all_checks() -> None:
    assert GOOD == {"negation": 1, "names": 1, "typos": 1}
    assert behaves(GOOD, GOOD).passed


@pytest.mark.parametrize(
    ("kind", "candidate"),
    [
        ("negation", Rules(ignores_negation=True)),
        ("names", Rules(minds="Mohammed|DeShawn")),
        ("typos", Rules(minds=TYPOS)),
    ],
)
def test_a_model_that_is_worse_in_one_kind_of_checks_fails_against_one_that_is_not(kind: str, candidate: Rules) -> None:
    shares = shares_that_hold(candidate)
    assert [other for other in SUITE if shares[other] < 1] == [kind]
    assert not behaves(GOOD, shares).passed
    # It is held against the champion, and not against a number.
    assert behaves(shares, shares).passed
    assert behaves(shares, GOOD).passed


def test_the_verdict_says_what_was_tried_and_what_to_do() -> None:
    told = behaves(GOOD, GOOD).message
    for kind, words in (("negation", "a negation changes"), ("names", "another name keeps"), ("typos", "a typo keeps")):
        pairs = len(SUITE[kind][0])
        assert f"{words} the label in {pairs} of {pairs} ({pairs} with the deployed version)" in told
    assert "retrain" not in told
    told = behaves(GOOD, GOOD | {"names": 8 / 16}).message
    assert "another name keeps the label in 8 of 16 (16 with the deployed version)" in told
    assert "For names, that is over 15 percentage points fewer" in told
    assert "Look for wrong labels" in told
    few = GOOD | {"typos": 0.4}
    assert "in 10 of 10 (4 with the deployed version, which is too few to compare)" in behaves(few, GOOD).message


def test_a_few_checks_may_be_lost() -> None:
    assert 2 / 16 < LARGEST_LOSS < 3 / 16
    assert behaves(GOOD, GOOD | {"names": 14 / 16}).passed
    assert not behaves(GOOD, GOOD | {"names": 13 / 16}).passed


@pytest.mark.parametrize("labels", [("0", "1"), ("schlecht", "gut"), ("Positive", "Negative")])
def test_labels_may_be_called_anything(labels: tuple[str, str]) -> None:
    assert shares_that_hold(Rules(labels)) == GOOD
    assert not behaves(GOOD, shares_that_hold(Rules(labels, ignores_negation=True))).passed


def test_a_model_with_one_answer_for_all_fails() -> None:
    shares = shares_that_hold(lambda texts: ["Positive"] * len(texts))
    assert shares == {"negation": 0, "names": 1, "typos": 1}
    assert not behaves(GOOD, shares).passed
