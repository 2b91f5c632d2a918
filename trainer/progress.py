"""One line that says how far the training is, how well it goes, and when it will be done."""

import sys
import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

_SECONDS_BETWEEN_LINES = 15.0
"""Pause between lines where they cannot be overwritten (a log file)."""
_STEPS_BEFORE_AN_ESTIMATE = 5


class ProgressLine(TrainerCallback):
    """Reports to standard error; rewrites one line on a terminal, prints now and then elsewhere."""

    def __init__(self) -> None:
        """Start silent; the first report comes with the first step."""
        self._on_terminal = sys.stderr.isatty()
        self._started = self._last_report = 0.0
        self._first_step = 0
        self._loss = self._quality = ""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Remember when, and at which step, this process began."""
        self._started = time.monotonic()
        self._first_step = state.global_step

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Keep the newest loss."""
        logs: dict[str, float] = kwargs["logs"]
        if "loss" in logs:
            self._loss = f"  loss {logs['loss']:.3f}"

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Report progress, not too often."""
        pause = 0.2 if self._on_terminal else _SECONDS_BETWEEN_LINES
        enough_to_estimate = state.global_step - self._first_step >= _STEPS_BEFORE_AN_ESTIMATE
        if enough_to_estimate and time.monotonic() - self._last_report >= pause:
            self._report(state)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Report the quality just measured on a line that stays."""
        metrics: dict[str, float] = kwargs["metrics"]
        self._quality = f"  accuracy {metrics['eval_accuracy']:.3f}  macro F1 {metrics['eval_macro_f1']:.3f}"
        self._report(state, end="\n")

    def _report(self, state: TrainerState, end: str = "") -> None:
        self._last_report = time.monotonic()
        steps = state.global_step - self._first_step
        left = (self._last_report - self._started) / max(1, steps) * (state.max_steps - state.global_step)
        line = (
            f"epoch {state.epoch or 0:.1f} of {state.num_train_epochs}  step {state.global_step} of {state.max_steps}"
            f"{self._loss}{self._quality}  {_duration(left)} left"
        )
        print(
            f"\r\x1b[K{line}{end}" if self._on_terminal else line,
            end="" if self._on_terminal else "\n",
            file=sys.stderr,
        )
        sys.stderr.flush()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
