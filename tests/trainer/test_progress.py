"""The progress line: what it says of a step is of that step."""

from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

import common.progress
from trainer.progress import ProgressLine


def test_the_quality_is_told_at_its_evaluation_and_not_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(common.progress, "_SECONDS_BETWEEN_LINES", 0)
    line, state = ProgressLine(), TrainerState(max_steps=2_000, num_train_epochs=1, global_step=1_980)
    given: Any = (TrainingArguments(report_to=[]), state, TrainerControl())
    line.on_train_begin(*given)
    for step in range(1, 21):
        state.global_step += 1
        line.on_log(*given, logs={"loss": 1 / step})
        line.on_step_end(*given)
        if step in (10, 20):
            line.on_evaluate(*given, metrics={"eval_accuracy": 0.4 + step / 100, "eval_macro_f1": step / 100})
    told = capsys.readouterr().err.splitlines()
    assert len(told) > 10
    assert [told_ for told_ in told if "accuracy" in told_] == [
        "epoch 0.0 of 1  step 1,990 of 2,000  loss 0.100  accuracy 0.500  macro F1 0.100  0 s left",
        "epoch 0.0 of 1  step 2,000 of 2,000  loss 0.050  accuracy 0.600  macro F1 0.200  0 s left",
    ]
