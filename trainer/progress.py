"""The progress line of a training: steps, quality and the time left."""

import os
import threading
import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from common.progress import StatusLine, duration
from serving.backend.cpu import usable_cores

_STEPS_BEFORE_AN_ESTIMATE = 5
_LONG_FIRST_STEP_S = 60.0
"""Seconds without a step after which the line says why; then one step is enough for an estimate."""


class ProgressLine(TrainerCallback):
    """Reports steps, quality and the time left."""

    def __init__(self) -> None:
        """Print nothing until the training begins."""
        self._line = StatusLine()
        self._started = 0.0
        self._first_step = 0
        self._loss = ""
        self._evaluated = 0
        self._evaluating = "evaluating on held-out texts"
        self._alarm: threading.Timer | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Record the time and the step at which this process began, and report that it has."""
        self._started = time.monotonic()
        self._first_step = state.global_step
        self._report(state)
        self._alarm = threading.Timer(_LONG_FIRST_STEP_S, self._explain, [state])
        self._alarm.daemon = True
        self._alarm.start()

    def _explain(self, state: TrainerState) -> None:
        """Say that the first step takes long. The trainer calls nothing before its end, so this is another thread."""
        self._line.show(
            f"step {state.global_step:,} of {state.max_steps:,}  the first step takes long; "
            f"load {os.getloadavg()[0]:.1f} on {usable_cores()} cores"
        )

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Keep the newest loss."""
        logs: dict[str, float] = kwargs["logs"]
        if "loss" in logs:
            self._loss = f"  loss {logs['loss']:.3f}"

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Report progress at a limited rate. After an evaluation of this step, another line follows anyway."""
        if self._alarm is not None:
            self._alarm.cancel()
        if self._line.is_due() and not control.should_evaluate:
            self._report(state)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show how far an evaluation is, which can take a minute on a busy machine."""
        batches = len(kwargs["eval_dataloader"])
        self._evaluated = self._evaluated % batches + 1
        if self._line.is_due():
            self._line.show(
                f"step {state.global_step:,} of {state.max_steps:,}  {self._evaluating}: "
                f"batch {self._evaluated:,} of {batches:,}"
            )

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Have the evaluations that follow be told from those of the steps."""
        self._evaluating = "trained; evaluating the best state"

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
        is_slow = steps and elapsed >= _LONG_FIRST_STEP_S
        if steps >= _STEPS_BEFORE_AN_ESTIMATE or is_slow or state.global_step >= state.max_steps:
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
