"""Fine-tunes the base model on the checked data, and survives being killed."""

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import (
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerControl,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_pt_utils import LengthGroupedSampler

from errors import PipelineError
from serving.processor import has_bf16, usable_cores
from settings import Settings
from trainer.base_model import load_base_model
from trainer.dataset import Dataset, LabelledTexts
from trainer.evaluation import evaluate
from trainer.progress import ProgressLine

EVALUATIONS_PER_EPOCH = 2
PATIENCE = 2
"""Evaluations in a row without a better macro F1 before training stops: one epoch."""
WARMUP_RATIO = 0.06
WEIGHT_DECAY = 0.01
_TOKENIZE_CHUNK = 10_000

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FineTuned:
    """A fine-tuned classifier, the best of its training by macro F1 on the validation texts."""

    base_model: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    val_logits: npt.NDArray[np.float32]
    """[validation texts, labels]"""
    val_targets: npt.NDArray[np.int64]
    """[validation texts], in the order of the logits"""
    history: list[dict[str, float]]
    """What was logged during training; each entry has a `step`."""
    hyperparameters: dict[str, Any]
    checkpoints: Path
    """Where a killed training resumes from; to be removed once the result is safe."""


class TokenizedTexts(torch.utils.data.Dataset[dict[str, Any]]):
    """Texts as token ids in one flat array, so that a million of them fit in memory."""

    def __init__(
        self, data: LabelledTexts, labels: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> None:
        """Tokenize `data`, each text cut to `max_length` tokens."""
        index = {label: position for position, label in enumerate(labels)}
        self.targets = np.array([index[label] for label in data.labels], dtype=np.int64)
        chunks: list[npt.NDArray[np.int32]] = []
        lengths: list[int] = []
        for start in range(0, len(data.texts), _TOKENIZE_CHUNK):
            encoded: Sequence[Sequence[int]] = tokenizer(
                data.texts[start : start + _TOKENIZE_CHUNK], truncation=True, max_length=max_length
            )["input_ids"]
            lengths.extend(len(ids) for ids in encoded)
            chunks.append(np.fromiter((token for ids in encoded for token in ids), dtype=np.int32))
        self._tokens = np.concatenate(chunks)
        self._ends = np.cumsum(lengths)
        self.lengths = lengths
        """Tokens of each text."""

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.targets)

    def __getitem__(self, position: int) -> dict[str, Any]:
        """Token ids and target of one text."""
        start = self._ends[position - 1] if position else 0
        return {"input_ids": self._tokens[start : self._ends[position]].tolist(), "labels": int(self.targets[position])}


def fine_tune(settings: Settings, dataset: Dataset) -> FineTuned:
    """Fine-tune; a training of the same data and settings that was killed goes on where it was.

    Raises:
        PipelineError: the base model cannot be loaded, or the disk is full.
    """
    torch.set_num_threads(usable_cores())
    set_seed(settings.seed)
    base = load_base_model(settings, dataset.labels)
    train = TokenizedTexts(dataset.train, dataset.labels, base.tokenizer, base.max_length)
    val = TokenizedTexts(dataset.val, dataset.labels, base.tokenizer, base.max_length)
    hyperparameters = {
        "base_model": base.name,
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate,
        "max_length": base.max_length,
        "seed": settings.seed,
        "weight_decay": WEIGHT_DECAY,
        "warmup_ratio": WARMUP_RATIO,
        "bf16": _bf16(),
    }
    checkpoints = settings.state_dir / "training" / _key(dataset.fingerprint, hyperparameters)
    trainer = _trainer(settings, checkpoints, base.model, base.tokenizer, train, val, dataset.labels)
    log.info(
        "Fine-tuning %s (%.1fM parameters) on %d texts, validating on %d, with %d threads in %s.",
        base.name,
        base.model.num_parameters() / 1e6,
        len(train),
        len(val),
        torch.get_num_threads(),
        "bf16" if hyperparameters["bf16"] else "float32",
    )
    checkpoint = _last_whole_checkpoint(checkpoints)
    if checkpoint:
        log.info("Resuming the training that was cut off, from %s.", checkpoint.name)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    prediction = trainer.predict(val)
    return FineTuned(
        base_model=base.name,
        model=base.model,
        tokenizer=base.tokenizer,
        max_length=base.max_length,
        val_logits=np.asarray(prediction.predictions, dtype=np.float32),
        # Not val.targets: the evaluation groups texts by length too, and so changes their order.
        val_targets=np.asarray(prediction.label_ids, dtype=np.int64),
        history=[{key: float(value) for key, value in entry.items()} for entry in trainer.state.log_history],
        hyperparameters=hyperparameters,
        checkpoints=checkpoints,
    )


class _EpochSampler(LengthGroupedSampler):
    """Draws the order of an epoch from the seed and the epoch's number alone.

    So a training that resumes within an epoch passes over the texts that it has seen there; from the global random
    state, which a checkpoint restores as it was then, it would draw another order, with some texts twice and some
    not at all.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self._seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Have the next pass be that of `epoch`; the trainer calls it."""
        self.generator.manual_seed(self._seed + epoch)


class _EarlyStopping(EarlyStoppingCallback):
    """Early stopping that also stops a training which is resumed where it had stopped."""

    def on_train_begin(self, *arguments: Any, **named: Any) -> None:
        super().on_train_begin(*arguments, **named)  # type: ignore[no-untyped-call]
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control: TrainerControl = arguments[2]
            control.should_training_stop = True


class _ResumableTrainer(Trainer):
    """A trainer of `TokenizedTexts` whose checkpoints can be relied upon."""

    def _get_train_sampler(self, train_dataset: Any = None) -> _EpochSampler:
        texts = train_dataset or self.train_dataset
        assert isinstance(texts, TokenizedTexts)
        return _EpochSampler(self.args.train_batch_size, texts.lengths, self.args.seed)

    def _save_checkpoint(self, *arguments: Any, **named: Any) -> None:
        try:
            super()._save_checkpoint(*arguments, **named)
        except Exception as error:
            # A full disk is an OSError, a SafetensorError or a RuntimeError, as the file may be.
            raise PipelineError(
                f"The training could not write its checkpoint to {self.args.output_dir}: {error}. "
                "Make room or set SENTIMENT_STATE_DIR to another disk, then run it again: it resumes."
            ) from error


def _bf16() -> bool:
    return torch.cuda.is_bf16_supported() if torch.cuda.is_available() else has_bf16()


def _trainer(
    settings: Settings,
    checkpoints: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: TokenizedTexts,
    val: TokenizedTexts,
    labels: tuple[str, ...],
) -> Trainer:
    steps_per_epoch = -(-len(train) // settings.batch_size)
    evaluate_every = max(1, steps_per_epoch // EVALUATIONS_PER_EPOCH)

    def metrics(prediction: EvalPrediction) -> dict[str, float]:
        logits = torch.from_numpy(np.asarray(prediction.predictions, dtype=np.float32))
        probabilities = torch.softmax(logits, dim=1).numpy()
        figures = evaluate(probabilities, np.asarray(prediction.label_ids), labels)
        return {"accuracy": figures.accuracy, "macro_f1": figures.macro_f1}

    trainer = _ResumableTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(checkpoints),
            num_train_epochs=settings.epochs,
            per_device_train_batch_size=settings.batch_size,
            per_device_eval_batch_size=64,
            learning_rate=settings.learning_rate,
            warmup_steps=WARMUP_RATIO,
            weight_decay=WEIGHT_DECAY,
            seed=settings.seed,
            bf16=_bf16(),
            use_cpu=not torch.cuda.is_available(),
            train_sampling_strategy="group_by_length",  # for the evaluation; see _EpochSampler for the training
            eval_strategy="steps",
            eval_steps=evaluate_every,
            save_strategy="steps",
            save_steps=evaluate_every,
            save_total_limit=2,
            load_best_model_at_end=True,
            # With them the patience that early stopping had left.
            restore_callback_states_from_checkpoint=True,
            metric_for_best_model="macro_f1",
            greater_is_better=True,
            logging_steps=max(1, steps_per_epoch // 20),
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
        ),
        train_dataset=train,
        eval_dataset=val,
        data_collator=DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8),
        compute_metrics=metrics,
        callbacks=[_EarlyStopping(early_stopping_patience=PATIENCE), ProgressLine()],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _key(fingerprint: str, hyperparameters: dict[str, Any]) -> str:
    """Checkpoints belong to one data set and one set of hyperparameters."""
    return hashlib.sha256(json.dumps([fingerprint, hyperparameters], sort_keys=True).encode()).hexdigest()[:16]


def _last_whole_checkpoint(directory: Path) -> Path | None:
    """The newest checkpoint whose state, which is written last, can be read; half-written ones are removed."""
    found = sorted(directory.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    for checkpoint in found:
        try:
            json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
            return checkpoint
        except (OSError, ValueError):
            shutil.rmtree(checkpoint)
    return None
