"""Hyperparameters that are not set fit the encoder's size and the number of texts."""

import pytest

from common.settings import Settings
from trainer.hyperparameters import (
    EPOCHS,
    LEAST_STEPS,
    MOST_EVALUATIONS,
    choose_hyperparameters,
    usual_learning_rate,
)

PACKAGED, BASE, LARGE = 384, 768, 1024
"""Hidden sizes."""


def test_many_texts_are_learnt_for_the_usual_epochs() -> None:
    chosen = choose_hyperparameters(Settings(), PACKAGED, 12_000)
    assert (chosen.epochs, chosen.steps, chosen.steps_per_epoch) == (EPOCHS, EPOCHS * 375, 375)
    assert chosen.evaluate_every == 375 // 2
    assert chosen.may_stop_early


@pytest.mark.parametrize("texts", [9, 27, 108, 1_800, 3_100])
def test_few_texts_get_the_least_number_of_steps_and_little_more(texts: int) -> None:
    chosen = choose_hyperparameters(Settings(), PACKAGED, texts)
    assert LEAST_STEPS <= chosen.steps < LEAST_STEPS + chosen.steps_per_epoch
    assert chosen.steps == chosen.epochs * chosen.steps_per_epoch
    assert chosen.steps // chosen.evaluate_every <= MOST_EVALUATIONS
    assert not chosen.may_stop_early


def test_what_the_settings_name_is_used() -> None:
    chosen = choose_hyperparameters(Settings(epochs=1, batch_size=8, learning_rate=1e-5), PACKAGED, 30)
    assert (chosen.epochs, chosen.steps, chosen.batch_size, chosen.learning_rate) == (1, 4, 8, 1e-5)
    assert chosen.may_stop_early
    assert choose_hyperparameters(Settings(epochs=1), PACKAGED, 30).learning_rate == 2e-4


@pytest.mark.parametrize(("size", "rate"), [(128, 3e-4), (PACKAGED, 2e-4), (BASE, 5e-5), (LARGE, 2.8e-5)])
def test_the_learning_rate_falls_with_the_size_of_the_encoder(size: int, rate: float) -> None:
    assert usual_learning_rate(size) == rate
