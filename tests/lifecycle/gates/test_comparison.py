"""The comparison gate: chance fails no candidate, and neither a small sure loss nor a lost slice passes."""

import numpy as np
import pytest

from lifecycle.gates.comparison import (
    LEAST_SLICE_TEXTS,
    Indices,
    PairedAnswers,
    few_flips,
    not_worse,
    not_worse_on_slices,
)
from trainer.evaluation import LARGEST_LOSS


def _targets(texts: int) -> Indices:
    return np.array([0, 1] * (texts // 2), dtype=np.int64)


def _wrong(targets: Indices, positions: range) -> Indices:
    """Right answers but for those at some positions."""
    answers: Indices = targets.copy()
    answers[list(positions)] = 1 - answers[list(positions)]
    return answers


def test_the_same_answers_pass_without_a_difference() -> None:
    targets = _targets(400)
    answers = _wrong(targets, range(60))
    verdict = not_worse(PairedAnswers(targets, answers, answers.copy()))
    assert verdict.passed
    for figure in ("accuracy", "macro F1"):
        assert verdict.figures[figure]["difference"] == 0
        assert verdict.figures[figure]["interval"] == [0, 0]
    assert verdict.figures["accuracy"]["champion"] == pytest.approx(0.85)


def test_a_candidate_that_guesses_fails() -> None:
    targets = _targets(400)
    guessed = np.random.default_rng(1).permutation(targets)
    verdict = not_worse(PairedAnswers(targets, _wrong(targets, range(60)), guessed))
    assert not verdict.passed
    assert verdict.message.startswith("Worse than the deployed version on 400 texts: accuracy 0.8500 →")


@pytest.mark.parametrize(
    ("texts", "champion_wrong", "candidate_wrong", "passes"),
    [
        # Both wrong as often, each on texts of its own.
        (1_000, range(100), range(100, 200), True),
        # Worse by what may be chance.
        (1_000, range(100), range(100, 200 + 8), True),
        # Worse by more than may be lost, though it may be chance.
        (1_000, range(100), range(100, 200 + 12), False),
        # Worse by less, and surely: never right where the champion is wrong.
        (4_000, range(100), range(120), False),
        # Better.
        (1_000, range(100), range(50, 100), True),
    ],
)
def test_a_loss_must_be_small_and_explained_by_chance(
    texts: int, champion_wrong: range, candidate_wrong: range, passes: bool
) -> None:
    targets = _targets(texts)
    verdict = not_worse(PairedAnswers(targets, _wrong(targets, champion_wrong), _wrong(targets, candidate_wrong)))
    assert verdict.passed == passes
    loss = (len(candidate_wrong) - len(champion_wrong)) / texts
    assert verdict.figures["accuracy"]["difference"] == pytest.approx(-loss)
    assert LARGEST_LOSS == 0.01


def test_answers_with_labels_that_nobody_knows_are_wrong() -> None:
    targets = _targets(200)
    verdict = not_worse(PairedAnswers(targets, targets, np.full(200, -1)))
    assert not verdict.passed
    assert verdict.figures["macro F1"]["candidate"] == 0


@pytest.mark.parametrize(("texts", "passes"), [(LEAST_SLICE_TEXTS, False), (LEAST_SLICE_TEXTS - 1, True)])
def test_a_slice_with_enough_texts_must_not_collapse_though_the_whole_is_better(texts: int, passes: bool) -> None:
    targets = _targets(1_000)
    in_slice = np.arange(1_000) < texts
    answers = PairedAnswers(targets, _wrong(targets, range(600, 1_000)), _wrong(targets, range(texts)))
    assert not_worse(answers).passed
    verdict = not_worse_on_slices(
        answers, (), {"short texts": in_slice, "others": ~in_slice, "empty": in_slice & ~in_slice}
    )
    assert verdict.passed == passes
    assert set(verdict.figures) == ({"others"} if passes else {"short texts", "others"})
    assert ("Worse on short texts 1.0000 → 0.0000" in verdict.message) == (not passes)
    assert verdict.figures["others"]["texts"] == 1_000 - texts


def test_a_label_must_not_be_found_worse_but_may_be_given_less_often() -> None:
    targets = _targets(1_000)
    always = np.ones(1_000, dtype=np.int64)
    even = _wrong(targets, range(200))
    # The champion misses no text of the second label, for it gives no other; the candidate misses some of both.
    assert not_worse_on_slices(PairedAnswers(targets, always, even), ("a", "b"), {}).passed
    lost = not_worse_on_slices(PairedAnswers(targets, even, always), ("a", "b"), {})
    assert not lost.passed
    assert "label a 0.8000 → 0.0000" in lost.message
    assert lost.figures["label b"]["candidate"] == pytest.approx(2 / 3)


def test_a_label_of_few_texts_is_not_held_against_a_candidate() -> None:
    targets = np.arange(1_000) // 960
    assert set(not_worse_on_slices(PairedAnswers(targets, targets, targets), ("a", "b"), {}).figures) == {"label a"}


@pytest.mark.parametrize(
    ("texts", "taken_back", "passes"),
    [(400, 0, True), (400, 40, True), (400, 50, True), (400, 60, False), (40, 8, True)],
    ids=["none", "at the limit", "above it by what may be chance", "surely above it", "few texts"],
)
def test_answers_that_are_taken_back_are_counted_whatever_is_won(texts: int, taken_back: int, passes: bool) -> None:
    targets = _targets(texts)
    champion, candidate = _wrong(targets, range(texts // 2, texts)), _wrong(targets, range(taken_back))
    verdict = few_flips(PairedAnswers(targets, champion, candidate), limit=0.1)
    assert verdict.passed == passes
    assert verdict.message.startswith(f"{taken_back} of {texts} texts ({taken_back / texts:.1%}; with chance, ")
    assert f"and {texts // 2} the other way" in verdict.message
    assert ("SENTIMENT_MAX_NEGATIVE_FLIPS" in verdict.message) == (not passes)
    low, high = verdict.figures["interval"]
    assert low <= verdict.figures["share"] == taken_back / texts <= high
