"""A trainer of tokenized texts whose interrupted trainings resume from whole checkpoints."""

import json
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainingArguments,
)

from common.errors import PipelineError
from serving.backend.cpu import instruction_sets
from trainer.batches import EpochSampler, TokenizedTexts, parts_of
from trainer.consistency import UnlabelledTexts, consistency_loss
from trainer.hyperparameters import WARMUP_RATIO, WEIGHT_DECAY
from trainer.processes import Processes

PAD_TO = 8
"""Rows are padded to a multiple of so many tokens."""
SAVE_EVERY_S = 120.0


class EarlyStopping(EarlyStoppingCallback):
    """Early stopping that also stops a training that resumes after early stopping."""

    def on_train_begin(self, *arguments: Any, **named: Any) -> None:
        """Stop at once if the patience is spent."""
        super().on_train_begin(*arguments, **named)  # type: ignore[no-untyped-call]
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control: TrainerControl = arguments[2]
            control.should_training_stop = True


class SaveInTime(TrainerCallback):
    """Saves a checkpoint every `SAVE_EVERY_S` seconds, also between evaluations, so that a kill loses little."""

    def __init__(self) -> None:
        """Wait for the first step."""
        self._saved_at = time.monotonic()

    def on_step_end(self, *arguments: Any, **_: Any) -> None:
        """Request a checkpoint if the last one is old."""
        control: TrainerControl = arguments[2]
        if time.monotonic() - self._saved_at >= SAVE_EVERY_S:
            control.should_save = True

    def on_save(self, *_: Any, **__: Any) -> None:
        """Record the time of a checkpoint."""
        self._saved_at = time.monotonic()


class ResumableTrainer(Trainer):
    """A trainer of `TokenizedTexts` with reliable checkpoints."""

    def __init__(
        self,
        processes: Processes,
        loss: Callable[..., torch.Tensor],
        unlabelled: UnlabelledTexts | None = None,
        **named: Any,
    ) -> None:
        """Train with `loss`, which gets the outputs and targets of a part, and the number of targets in the batch.

        The losses of the parts add up to the loss of the batch. One process may also learn from `unlabelled` texts.
        """
        super().__init__(compute_loss_func=loss, **named)
        self.remove_callback(PrinterCallback)
        self._processes = processes
        self._unlabelled = unlabelled

    def get_train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """This process's share of each batch; accelerate must not divide it again."""
        texts = self.train_dataset
        assert isinstance(texts, TokenizedTexts)
        share = self.args.train_batch_size
        loader = DataLoader(
            texts,
            batch_size=share,
            sampler=EpochSampler(share * self._processes.count, texts.lengths, self.args.seed, self._processes),
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )
        prepared: DataLoader[dict[str, Any]] = prepare_data_loader(
            loader, self.args.device, num_processes=1, process_index=0, put_on_device=True
        )
        return prepared

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Pass a batch in parts of at most `MOST_TOKENS` (`parts_of`); the gradients of the parts add up."""
        losses = []
        parts = parts_of(inputs)
        for part in parts:
            # Several processes add up their gradients once, in the last part.
            with nullcontext() if part is parts[-1] else self.accelerator.no_sync(model):
                losses.append(super().training_step(model, part, num_items_in_batch))
        if self._unlabelled is not None:
            batch = self._unlabelled.batch(self.state.global_step)
            for part in parts_of(batch):
                with self.compute_loss_context_manager():
                    loss = consistency_loss(model, self._prepare_inputs(part), len(batch["input_ids"]))
                self.accelerator.backward(loss)
        return torch.stack(losses).sum()

    def _save_checkpoint(self, *arguments: Any, **named: Any) -> None:
        try:
            super()._save_checkpoint(*arguments, **named)
        except Exception as error:
            # A full disk raises an OSError, a SafetensorError or a RuntimeError, depending on the file.
            raise PipelineError(
                f"The training cannot write its checkpoint to {self.args.output_dir}: {error}. "
                "Free some space or set SENTIMENT_STATE_DIR to another disk, then run it again: it resumes."
            ) from error


def training_arguments(
    checkpoints: Path, steps: int, batch_size: int, learning_rate: float, seed: int, **more: Any
) -> TrainingArguments:
    """Return the arguments of a training of so many `steps` in this process, with batches of `batch_size` texts.

    `more` are arguments by the names of `transformers`.
    """
    return TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        warmup_steps=WARMUP_RATIO,
        weight_decay=WEIGHT_DECAY,
        seed=seed,
        bf16=bf16(),
        use_cpu=not torch.cuda.is_available(),
        save_total_limit=2,
        logging_steps=max(1, steps // 40),
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        **more,
    )


def bf16() -> bool:
    """Return whether bfloat16 is faster: on a CPU only with AMX.

    On a Xeon with AVX-512 BF16 and no AMX, a step took 1.3 to 1.7 times as long as in float32.
    """
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    return "amx_bf16" in instruction_sets()


def last_whole_checkpoint(directory: Path) -> Path | None:
    """The newest complete checkpoint. Its state is written last; checkpoints without a readable state are deleted."""
    found = sorted(directory.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    for checkpoint in found:
        try:
            json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
            return checkpoint
        except (OSError, ValueError):
            shutil.rmtree(checkpoint)
    return None
