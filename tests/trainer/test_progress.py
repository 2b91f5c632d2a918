"""The progress line: what it says of a step is of that step."""

import time
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

import common.progress
import trainer.progress
from trainer.progress import ProgressLine


def run(steps: range, most: int, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Train from the step before `steps`, with an evaluation after each tenth one; return the lines."""
    line, state = ProgressLine(), TrainerState(max_steps=most, num_train_epochs=2, global_step=steps[0] - 1)
    control = TrainerControl()
    given: Any = (TrainingArguments(report_to=[]), state, control)
    line.on_train_begin(*given)
    for step in steps:
        state.global_step = step
        line.on_log(*given, logs={"loss": 1 / step})
        control.should_evaluate = step % 10 == 0
        line.on_step_end(*given)
        if control.should_evaluate:
            line.on_evaluate(*given, metrics={"eval_accuracy": 0.4 + step / 100, "eval_macro_f1": step / 100})
    return capsys.readouterr().err.splitlines()


def test_each_step_is_told_once_and_the_quality_at_its_evaluation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(common.progress, "_SECONDS_BETWEEN_LINES", 0)
    told = run(range(1, 21), 20, capsys)
    assert len(told) == 21
    assert told[:2] == [
        "epoch 0.0 of 2  step 0 of 20  estimating the time left",
        "epoch 0.0 of 2  step 1 of 20  loss 1.000  estimating the time left",
    ]
    assert [line for line in told if "accuracy" in line] == [
        "epoch 0.0 of 2  step 10 of 20  loss 0.100  accuracy 0.500  macro F1 0.100  0 s left",
        "epoch 0.0 of 2  step 20 of 20  loss 0.050  accuracy 0.600  macro F1 0.200  0 s left",
    ]


def test_a_training_that_resumes_says_where(capsys: pytest.CaptureFixture[str]) -> None:
    told = run(range(1_981, 1_991), 2_000, capsys)
    start = "epoch 0.0 of 2  step 1,980 of 2,000 (resumed at 1,980)"
    assert told[0] == f"{start}  estimating the time left"


def test_the_evaluations_after_the_last_step_are_told_from_those_before(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(common.progress, "_SECONDS_BETWEEN_LINES", 0)
    line = ProgressLine()
    given: Any = (TrainingArguments(report_to=[]), TrainerState(max_steps=20, global_step=20), TrainerControl())
    line.on_prediction_step(*given, eval_dataloader=[0, 1])
    line.on_train_end(*given)
    line.on_prediction_step(*given, eval_dataloader=[0, 1])
    assert capsys.readouterr().err.splitlines() == [
        "step 20 of 20  evaluating on held-out texts: batch 1 of 2",
        "step 20 of 20  trained; evaluating the best state: batch 2 of 2",
    ]


def test_a_first_step_that_takes_long_is_explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trainer.progress, "_LONG_FIRST_STEP_S", 0.01)
    state: Any = TrainerState(max_steps=20, num_train_epochs=2)
    ProgressLine().on_train_begin(TrainingArguments(report_to=[]), state, TrainerControl())
    told = ""
    while "step 0 of 20  the first step takes long; load " not in told:
        told += capsys.readouterr().err
        time.sleep(0.01)
