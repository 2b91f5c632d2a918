"""Fine-tunes the base model on the checked data, in one or several processes. An interrupted training resumes."""

import gc
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import cross_entropy
from transformers import (
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    set_seed,
)

from common.errors import PipelineError
from common.progress import duration
from common.settings import Settings
from serving.backend.cpu import usable_cores
from trainer.base_model import load_base_model
from trainer.batches import NO_TARGET, TokenizedTexts, longest_first
from trainer.consistency import LEAST_TEXTS, UnlabelledTexts
from trainer.dataset import Dataset, LabelledTexts
from trainer.evaluation import evaluate
from trainer.first_version import LEAST_STEPS, MOST_SELECTION_TEXTS, TRAINING_S
from trainer.hyperparameters import WARMUP_RATIO, WEIGHT_DECAY, Hyperparameters, choose_hyperparameters
from trainer.processes import Processes
from trainer.progress import ProgressLine
from trainer.resumable_trainer import (
    PAD_TO,
    EarlyStopping,
    ResumableTrainer,
    SaveInTime,
    bf16,
    last_whole_checkpoint,
    training_arguments,
)
from trainer.selection import MOST_TEXTS, hold_out
from trainer.step_budget import affordable_steps
from trainer.update import average, plan_update

PATIENCE = 2
"""Consecutive evaluations without a better score after which training stops: one epoch, if there are up to four."""
TIE_BREAK = 1e-3
"""Weight of the log loss in the score that chooses the best state. It decides only between equal macro F1, which is
common if few texts are held out."""
LEAST_GAIN = 1e-6
"""Smallest gain of the score that counts for early stopping, or rounding errors of the log loss would count."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FineTuned:
    """A fine-tuned classifier: the state with the best macro F1 on the held-out training texts (`hold_out`).

    Among states with the same macro F1, it is the one with the lowest log loss.
    """

    base_model: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    learnt: LabelledTexts
    """The training texts that are not held out."""
    val: LabelledTexts
    val_logits: npt.NDArray[np.float32]
    """[validation texts, labels], in the order of `val`"""
    val_targets: npt.NDArray[np.int64]
    """[validation texts], in the order of `val`"""
    selection: LabelledTexts
    """The held-out training texts."""
    selection_logits: npt.NDArray[np.float32]
    """[held-out training texts, labels], in the order of `selection`"""
    selection_targets: npt.NDArray[np.int64]
    """[held-out training texts], in the order of `selection`"""
    history: list[dict[str, float]]
    """Metrics logged during training; each entry has a `step`."""
    steps: int
    """Number of training steps, until early stopping."""
    hyperparameters: dict[str, Any]
    checkpoints: Path
    """Directory of checkpoints for resuming; to be removed when the result is saved."""
    updates: int = 0
    """As in `TrainingRecord`."""


def fine_tune(
    settings: Settings,
    dataset: Dataset,
    *,
    quick: bool = False,
    deployed: Path | None = None,
    unlabelled: Sequence[str] = (),
) -> FineTuned:
    """Fine-tune the base model. An interrupted training with the same data and settings resumes.

    A `quick` training ends after the steps that fit in `first_version.TRAINING_S`, at least `LEAST_STEPS`, if its
    epochs have more. Its last state is taken, and no other is evaluated.

    `deployed` is the directory of the deployed model. It is updated, which is shorter, if `plan_update` allows it. An
    update also learns from `unlabelled` texts (`consistency`), if there are at least `LEAST_TEXTS`.

    If `torchrun` has started several processes, each calls this and gets the same result. It equals the result of one
    process, except for rounding and for which units dropout removes.

    Raises:
        PipelineError: the base model cannot be loaded, the disk is full, or another process has ended.
    """
    processes = Processes.started()
    torch.set_num_threads(max(1, usable_cores() // processes.here))
    set_seed(settings.seed)
    learnt, held_out = hold_out(dataset.train, MOST_SELECTION_TEXTS if quick else MOST_TEXTS)
    update = plan_update(settings, deployed, dataset, learnt) if deployed else None
    base = update.base if update else load_base_model(settings, dataset.labels)
    learnt = update.texts if update else learnt
    held_out, validation = longest_first(held_out), longest_first(dataset.val)
    train, selection, val = (
        TokenizedTexts(part, dataset.labels, base.tokenizer, base.max_length) for part in (learnt, held_out, validation)
    )
    chosen = choose_hyperparameters(settings, base.model.config.hidden_size, len(train))
    old = {}
    if update:
        chosen = replace(chosen, steps=update.steps)
        old = {name: values.detach().clone() for name, values in base.model.named_parameters()}
    if not update or len(unlabelled) < LEAST_TEXTS or base.tokenizer.mask_token_id is None:
        unlabelled = ()
    hyperparameters = {
        "base_model": base.name,
        "epochs": chosen.epochs,
        "max_steps": chosen.steps,
        "batch_size": chosen.batch_size,
        "learning_rate": chosen.learning_rate,
        "max_length": base.max_length,
        "seed": settings.seed,
        "weight_decay": WEIGHT_DECAY,
        "warmup_ratio": WARMUP_RATIO,
        "bf16": bf16(),
        "selection_texts": len(selection),
        **({"quick": True} if quick else {}),
        **(update.facts() if update else {}),
        **({"unlabelled_texts": len(unlabelled)} if unlabelled else {}),
    }
    checkpoints = settings.state_dir / "training" / _key(dataset.fingerprint, hyperparameters)
    collator = DataCollatorWithPadding(base.tokenizer, pad_to_multiple_of=PAD_TO)
    if quick:
        _lighten(base.model)
        affordable = affordable_steps(
            checkpoints, base.model, train, chosen.batch_size, settings.seed, collator, PAD_TO, bf16(), TRAINING_S
        )
        least = min(LEAST_STEPS, chosen.steps)
        if affordable < least:
            log.warning(
                "This machine is slow or busy (load %.1f on %d cores): only %d training steps fit in %.0f s. At least "
                "%d are needed, which take about %s; export and start follow.",
                os.getloadavg()[0],
                usable_cores(),
                affordable,
                TRAINING_S,
                least,
                duration(TRAINING_S * least / affordable),
            )
        chosen = replace(chosen, steps=max(least, min(affordable, chosen.steps)))
        hyperparameters["max_steps"] = chosen.steps
    epochs = round(chosen.steps / chosen.steps_per_epoch, 2)
    log.info(
        "Fine-tuning %s (%.1fM parameters) on %s texts, with %s for %s, for %s steps%s, "
        "with a learning rate of %g, %d threads%s, in %s.",
        base.name,
        base.model.num_parameters() / 1e6,
        f"{len(train):,}",
        f"{len(selection):,}",
        "calibration" if quick or update else "choosing the best state",
        f"{chosen.steps:,}",
        "" if quick else f" ({epochs:g} {'epoch' if epochs == 1 else 'epochs'})",  # of a quick one, a small part
        chosen.learning_rate,
        torch.get_num_threads(),
        f" in each of {processes.count} processes" if processes.count > 1 else "",
        "bf16" if hyperparameters["bf16"] else "float32",
    )
    with processes.together():
        trainer = _trainer(
            settings.seed,
            chosen,
            processes,
            checkpoints,
            base.model,
            collator,
            train,
            selection,
            dataset.labels,
            UnlabelledTexts(unlabelled, base.tokenizer, base.max_length, collator, settings.seed)
            if unlabelled
            else None,
            last=quick or update is not None,
        )
        if processes.as_first_finds(lambda: checkpoints.name) != checkpoints.name:
            raise PipelineError(
                f"Process {processes.rank} of the training has other data or settings than the first one. "
                "All need the same files and the same SENTIMENT_… variables."
            )
        checkpoint = processes.as_first_finds(lambda: last_whole_checkpoint(checkpoints))
        if checkpoint:
            done = int(checkpoint.name.rpartition("-")[2])
            log.info(
                "Resuming the interrupted training at step %s of %s (epoch %.1f).",
                f"{done:,}",
                f"{chosen.steps:,}",
                done / chosen.steps_per_epoch,
            )
        if not processes.is_first:
            set_seed(settings.seed + processes.rank)  # otherwise dropout would remove the same units in all
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if update:
            average(base.model, old)
        selected, validated = trainer.predict(selection), trainer.predict(val)
        steps = trainer.state.global_step
        history = [{key: float(value) for key, value in entry.items()} for entry in trainer.state.log_history]
        # The gradient averaging must go before the process group: it would wait for gloo's threads while it holds
        # Python's lock, which these threads need (github.com/pytorch/pytorch/issues/56297).
        del trainer
        gc.collect()
    return FineTuned(
        base_model=base.name,
        model=base.model,
        tokenizer=base.tokenizer,
        max_length=base.max_length,
        learnt=learnt,
        val=validation,
        val_logits=np.asarray(validated.predictions, dtype=np.float32),
        val_targets=val.targets,
        selection=held_out,
        selection_logits=np.asarray(selected.predictions, dtype=np.float32),
        selection_targets=selection.targets,
        history=history,
        steps=steps,
        hyperparameters=hyperparameters,
        checkpoints=checkpoints,
        updates=update.record.updates + 1 if update else 0,
    )


def _lighten(model: PreTrainedModel) -> None:
    """Make steps of the packaged encoder cheaper: drop no unit, and train only the upper half of its layers.

    A part of an epoch does not overfit. The embeddings and lower layers, which learn least in fine-tuning (Lee et al.
    2019, "What Would Elsa Do? Freezing Layers During Transformer Fine-Tuning"), need neither gradients nor updates.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    encoder: Any = model.base_model  # the modules of transformers are untyped
    layers = encoder.encoder.layer
    for part in (encoder.embeddings, *layers[: len(layers) // 2]):
        part.requires_grad_(False)


def _loss(outputs: Any, targets: torch.Tensor, num_items_in_batch: torch.Tensor) -> torch.Tensor:
    """This process's part of the mean loss over a batch; the trainer averages over the processes.

    The models' own loss is the mean over a share of any size, and the trainer would scale it twice.
    """
    return cross_entropy(outputs["logits"], targets, ignore_index=NO_TARGET, reduction="sum") / num_items_in_batch


def _trainer(
    seed: int,
    chosen: Hyperparameters,
    processes: Processes,
    checkpoints: Path,
    model: PreTrainedModel,
    collator: DataCollatorWithPadding,
    train: TokenizedTexts,
    selection: TokenizedTexts,
    labels: tuple[str, ...],
    unlabelled: UnlabelledTexts | None,
    *,
    last: bool,
) -> Trainer:
    """Return the trainer. With `last`, the last state is taken instead of the best one, and no other is evaluated."""

    def metrics(prediction: EvalPrediction) -> dict[str, float]:
        logits = torch.from_numpy(np.asarray(prediction.predictions, dtype=np.float32))
        targets = np.asarray(prediction.label_ids)
        figures = evaluate(torch.softmax(logits, dim=1).numpy(), targets, labels)
        log_loss = float(cross_entropy(logits, torch.from_numpy(targets)))
        return {
            "accuracy": figures.accuracy,
            "macro_f1": figures.macro_f1,
            "score": figures.macro_f1 - TIE_BREAK * log_loss,
        }

    return ResumableTrainer(
        processes,
        _loss,
        unlabelled,
        model=model,
        args=training_arguments(
            checkpoints,
            chosen.steps,
            processes.share(chosen.batch_size),
            chosen.learning_rate,
            seed,
            per_device_eval_batch_size=64,
            eval_strategy="no" if last else "steps",
            eval_steps=chosen.evaluate_every,
            save_strategy="steps",
            save_steps=-(-chosen.steps // 2) if last else chosen.evaluate_every,
            load_best_model_at_end=not last,
            # Restores the remaining patience of early stopping.
            restore_callback_states_from_checkpoint=True,
            metric_for_best_model="score",
            greater_is_better=True,
            ddp_find_unused_parameters=False,
        ),
        train_dataset=train,
        eval_dataset=selection,
        data_collator=collator,
        compute_metrics=metrics,
        callbacks=[EarlyStopping(PATIENCE, LEAST_GAIN)] * (chosen.may_stop_early and not last)
        + [ProgressLine()] * processes.is_first
        # Of several processes, each would decide by its own clock.
        + [SaveInTime()] * (processes.count == 1),
    )


def _key(fingerprint: str, hyperparameters: dict[str, Any]) -> str:
    """Directory name for the checkpoints of one data set with one set of hyperparameters."""
    return hashlib.sha256(json.dumps([fingerprint, hyperparameters], sort_keys=True).encode()).hexdigest()[:16]
