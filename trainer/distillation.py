"""Trains a smaller classifier to imitate a trained one, from its probabilities.

Hinton et al. 2015, "Distilling the Knowledge in a Neural Network" (arXiv:1503.02531).
"""

import copy
import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from common.errors import PipelineError
from common.settings import PACKAGED, Settings
from serving.backend.cpu import usable_cores
from trainer.base_model import load_base_model
from trainer.batches import TokenizedTexts
from trainer.dataset import LabelledTexts
from trainer.hyperparameters import choose_hyperparameters, usual_learning_rate
from trainer.processes import Processes
from trainer.progress import ProgressLine
from trainer.resumable_trainer import PAD_TO, ResumableTrainer, SaveInTime, last_whole_checkpoint, training_arguments

PACKAGED_WEIGHTS = 10_600_000
"""Weights of the packaged encoder apart from its embeddings."""
MUCH_LARGER = 3.0
"""A model with so many times these weights is imitated by the packaged encoder; a smaller one by half of its layers."""
COST_OF_OWN_LAYERS, COST_OF_PACKAGED = 0.45, 0.15
"""Cost of a distillation, as a share of the full model's training. Predictions of all texts add some hundredths."""
SOFTNESS = 2.0
"""Temperature at which both models' probabilities are compared."""
SOFT_SHARE = 0.7
"""Share of the loss that compares with the full model's probabilities; the rest compares with the labels."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Student:
    """A smaller model that can imitate the full one."""

    origin: str
    """How it was made, for people."""
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    steps: int
    """Number of training steps that it may take."""


def choose_student(
    settings: Settings,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    labels: tuple[str, ...],
    max_length: int,
    texts: int,
) -> Student | None:
    """Choose the model that is to imitate `model` on so many `texts`; None if there is none.

    It is the packaged encoder for a much larger model, and the first half of the model's own layers otherwise.
    """
    steps = choose_hyperparameters(settings, model.config.hidden_size, texts).steps
    if _weights(model) >= MUCH_LARGER * PACKAGED_WEIGHTS:
        try:
            packaged = load_base_model(settings.model_copy(update={"base_model": PACKAGED}), labels)
        except PipelineError as error:
            log.warning("The packaged encoder cannot be the first stage: %s", error)
        else:
            if packaged.max_length == max_length:  # otherwise they would cut texts at different places
                affordable = max(1, round(steps * COST_OF_PACKAGED * _weights(model) / _weights(packaged.model)))
                return Student(f"the packaged encoder {packaged.name}", packaged.model, packaged.tokenizer, affordable)
    layers: int = model.config.num_hidden_layers
    own = _first_layers(model, layers // 2)
    if own is None:
        return None
    affordable = max(1, round(steps * COST_OF_OWN_LAYERS * _weights(model) / _weights(own)))
    return Student(f"the first {layers // 2} of {layers} layers", own, tokenizer, affordable)


def checkpoints_of(settings: Settings, student: Student, key: str) -> Path:
    """Return the directory of the checkpoints of a distillation; `key` names the full model."""
    what = [key, student.origin, student.steps, _learning_rate(student), settings.batch_size, settings.seed]
    return settings.state_dir / "training" / hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


def distil(
    settings: Settings,
    student: Student,
    texts: LabelledTexts,
    labels: tuple[str, ...],
    probabilities: npt.NDArray[np.float32],
    max_length: int,
    checkpoints: Path,
) -> None:
    """Train the student's model on `texts` to imitate the full model's `probabilities` [texts, labels].

    An interrupted distillation with the same directory of `checkpoints` resumes. The directory is to be removed when
    the result is saved.

    Raises:
        PipelineError: the disk is full.
    """
    torch.set_num_threads(usable_cores())
    set_seed(settings.seed)
    log.info(
        "Distilling a first stage from the model: %s, %s texts, %s steps.",
        student.origin,
        f"{len(texts.texts):,}",
        f"{student.steps:,}",
    )
    trainer = ResumableTrainer(
        Processes(),
        _imitation_loss,
        model=student.model,
        args=training_arguments(
            checkpoints,
            student.steps,
            settings.batch_size,
            _learning_rate(student),
            settings.seed,
            eval_strategy="no",
            save_strategy="no",  # only in time
        ),
        train_dataset=_ImitatedTexts(texts, labels, student.tokenizer, max_length, probabilities),
        data_collator=DataCollatorWithPadding(student.tokenizer, pad_to_multiple_of=PAD_TO),
        callbacks=[ProgressLine(), SaveInTime()],
    )
    checkpoint = last_whole_checkpoint(checkpoints)
    if checkpoint:
        log.info("Resuming the interrupted distillation from %s.", checkpoint.name)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    student.model.cpu()  # the training may leave it on a GPU, and the export reads it on the CPU


class _ImitatedTexts(TokenizedTexts):
    """Texts with the probabilities that are to be imitated; their targets are those and the label's index."""

    def __init__(
        self,
        data: LabelledTexts,
        labels: tuple[str, ...],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        probabilities: npt.NDArray[np.float32],
    ) -> None:
        super().__init__(data, labels, tokenizer, max_length)
        self._probabilities = probabilities

    def __getitem__(self, position: int) -> dict[str, Any]:
        item = super().__getitem__(position)
        return item | {"labels": [*map(float, self._probabilities[position]), float(item["labels"])]}


def _imitation_loss(outputs: Any, targets: torch.Tensor, num_items_in_batch: torch.Tensor) -> torch.Tensor:
    """A part's share of a batch's mean distillation loss; `targets` [texts, labels + 1] are as in `_ImitatedTexts`."""
    logits = outputs["logits"]
    imitated = torch.softmax(targets[:, :-1].clamp_min(1e-9).log() / SOFTNESS, dim=-1)
    soft = SOFTNESS**2 * cross_entropy(logits / SOFTNESS, imitated, reduction="sum")
    hard = cross_entropy(logits, targets[:, -1].long(), reduction="sum")
    texts = num_items_in_batch / targets.shape[1]
    return (SOFT_SHARE * soft + (1 - SOFT_SHARE) * hard) / texts


def _first_layers(model: PreTrainedModel, layers: int) -> PreTrainedModel | None:
    """Return a copy of the first `layers` of a classifier, with its embeddings and head; None if it has too few."""
    if layers < 1:
        return None
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = layers
    if kinds := getattr(config, "layer_types", None):
        config.layer_types = kinds[:layers]
    own: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    left_out = own.load_state_dict(model.state_dict(), strict=False)
    return None if left_out.missing_keys else own


def _learning_rate(student: Student) -> float:
    """Return half of the usual rate: at the same number of wrong labels, the student is then sure of more texts."""
    return usual_learning_rate(student.model.config.hidden_size) / 2


def _weights(model: PreTrainedModel) -> int:
    """Return the number of weights apart from the embeddings, to which the computation is about proportional."""
    return int(model.num_parameters(exclude_embeddings=True))
