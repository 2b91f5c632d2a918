"""The progress line of a training: steps, quality and the time left."""

import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from common.progress import StatusLine, duration

_STEPS_BEFORE_AN_ESTIMATE = 5


class ProgressLine(TrainerCallback):
    """Reports steps, quality and the time left."""

    def __init__(self) -> None:
        """Print nothing until the first step."""
        self._line = StatusLine()
        self._started = 0.0
        self._first_step = 0
        self._loss = ""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Record the time and the step at which this process began."""
        self._started = time.monotonic()
        self._first_step = state.global_step

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Keep the newest loss."""
        logs: dict[str, float] = kwargs["logs"]
        if "loss" in logs:
            self._loss = f"  loss {logs['loss']:.3f}"

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Report progress at a limited rate."""
        enough_to_estimate = state.global_step - self._first_step >= _STEPS_BEFORE_AN_ESTIMATE
        if enough_to_estimate and self._line.is_due():
            self._report(state)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Report the new quality on a line that stays."""
        metrics: dict[str, float] = kwargs["metrics"]
        quality = f"  accuracy {metrics['eval_accuracy']:.3f}  macro F1 {metrics['eval_macro_f1']:.3f}"
        self._report(state, quality, stays=True)

    def _report(self, state: TrainerState, quality: str = "", stays: bool = False) -> None:
        """Show a line; `quality` is given only at the step of its evaluation, so no line repeats an old one."""
        steps = state.global_step - self._first_step
        left = (time.monotonic() - self._started) / max(1, steps) * (state.max_steps - state.global_step)
        self._line.show(
            f"epoch {state.epoch or 0:.1f} of {state.num_train_epochs}  "
            f"step {state.global_step:,} of {state.max_steps:,}{self._loss}{quality}  {duration(left)} left",
            stays,
        )
