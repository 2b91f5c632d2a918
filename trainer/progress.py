"""The progress line of a training: steps, quality and the time left."""

import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from common.progress import StatusLine, duration

_STEPS_BEFORE_AN_ESTIMATE = 5


class ProgressLine(TrainerCallback):
    """Reports steps, quality and the time left."""

    def __init__(self) -> None:
        """Print nothing until the training begins."""
        self._line = StatusLine()
        self._started = 0.0
        self._first_step = 0
        self._loss = ""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Record the time and the step at which this process began, and report that it has."""
        self._started = time.monotonic()
        self._first_step = state.global_step
        self._report(state)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Keep the newest loss."""
        logs: dict[str, float] = kwargs["logs"]
        if "loss" in logs:
            self._loss = f"  loss {logs['loss']:.3f}"

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Report progress at a limited rate. After an evaluation of this step, another line follows anyway."""
        if self._line.is_due() and not control.should_evaluate:
            self._report(state)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Show that an evaluation is under way, which can take a minute on a busy machine."""
        if self._line.is_due():
            self._line.show(f"step {state.global_step:,} of {state.max_steps:,}  evaluating on held-out texts")

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
        steps, elapsed = state.global_step - self._first_step, time.monotonic() - self._started
        if steps >= _STEPS_BEFORE_AN_ESTIMATE or state.global_step >= state.max_steps:
            time_left = f"{duration(elapsed / max(1, steps) * (state.max_steps - state.global_step))} left"
        else:
            time_left = "estimating the time left"
        # Of a quick training, which ends within an epoch, the steps alone tell how far it is.
        epoch = f"epoch {state.epoch or 0:.1f} of {state.num_train_epochs}  " if state.num_train_epochs > 1 else ""
        resumed = f" (resumed at {self._first_step:,})" if self._first_step else ""
        self._line.show(
            f"{epoch}step {state.global_step:,} of {state.max_steps:,}{resumed}{self._loss}{quality}  {time_left}",
            stays,
        )
