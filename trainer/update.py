"""An update of the deployed model: it learns new texts beside known ones, and moves half of the way.

Known texts are replayed, so that they are not forgotten (Robins 1995, "Catastrophic Forgetting, Rehearsal and
Pseudorehearsal"). The mean of the weights before and after takes back fewer right labels than the weights after
(Schumann et al. 2023, "Backward Compatibility During Data Updates by Weight Interpolation").
"""

import hashlib
import logging
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from common.errors import PipelineError
from common.settings import DEFAULT_BASE_MODEL, Settings
from trainer.base_model import BaseModel, is_replaceable, load_trained
from trainer.dataset import Dataset, LabelledTexts
from trainer.hyperparameters import BASE_HIDDEN_SIZE, choose_hyperparameters
from trainer.record import TrainingRecord, training_key

OLD_SHARE = 0.5
"""Share of the deployed weights in the mean."""
REPLAYED = 3
"""Known texts that are learnt beside each new one."""
LEAST_STEPS = 60
"""Minimum number of steps, which known texts fill, unless a full training has fewer."""
MOST_IN_A_ROW = 5
"""Updates after which a full training comes, because each update may lose as much as the gates allow."""
MOST_CHANGED = 0.01
"""Maximum share of texts that are gone or have another label: an update goes on from a model that has learnt them."""
LEARNT_FILE = "learnt.npy"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Update:
    """What an update of the deployed model starts from, and what it learns."""

    record: TrainingRecord
    """The record of the deployed model."""
    base: BaseModel
    """The deployed model."""
    texts: LabelledTexts
    """The new texts, and known ones beside them."""
    new: int
    """Number of new texts among them."""
    steps: int
    full_steps: int
    """Steps of a full training."""

    def facts(self) -> dict[str, Any]:
        """Return what is recorded about the update beside its hyperparameters."""
        return {
            "update_of": self.record.version,
            "new_texts": self.new,
            "old_share": OLD_SHARE,
            "steps_of_full_training": self.full_steps,
        }


def save_learnt(directory: Path, texts: LabelledTexts) -> None:
    """Write to `directory` hashes of all training texts and their labels, by which an update tells what is new.

    If the disk refuses it, log that; the next retraining is a full one.
    """
    try:
        np.save(directory / LEARNT_FILE, _hashes(texts))
    except OSError as error:
        (directory / LEARNT_FILE).unlink(missing_ok=True)
        log.warning("The list of learnt texts cannot be written (%s); the next retraining is a full one.", error)


def plan_update(settings: Settings, model_dir: Path, dataset: Dataset, learnt: LabelledTexts) -> Update | None:
    """Return how the deployed model, in `model_dir`, is updated to the data; None, with the reason logged, if not.

    `learnt` are the training texts that are not held out.
    """
    update = _update(settings, model_dir, dataset, learnt)
    if isinstance(update, str):
        log.info("This is a full training, because %s.", update)
        return None
    log.info(
        "Version %d is updated with %s new texts and %s that it knows, in %s steps; a full training has %s.",
        update.record.version,
        f"{update.new:,}",
        f"{len(update.texts.texts) - update.new:,}",
        f"{update.steps:,}",
        f"{update.full_steps:,}",
    )
    return update


def _update(settings: Settings, model_dir: Path, dataset: Dataset, learnt: LabelledTexts) -> Update | str:
    try:
        record = TrainingRecord.load(model_dir)
        known = np.load(model_dir / LEARNT_FILE)
    except (PipelineError, OSError, ValueError):  # by an older release, or damaged
        return "the deployed model has no list of the texts that it has learnt"
    if record.quick:
        return f"version {record.version} is a quick first version"
    if record.training_key != training_key(settings, record.data_fingerprint):
        return f"version {record.version} was trained with other settings"
    if record.labels != dataset.labels:
        return f"version {record.version} has other labels"
    if record.updates >= MOST_IN_A_ROW:
        return f"the last {record.updates} trainings were updates"
    if is_replaceable(settings, record.base_model):
        return f"{DEFAULT_BASE_MODEL} can be loaded now, which {record.base_model} had replaced"
    changed = len(np.setdiff1d(known, _hashes(dataset.train)))
    if changed > MOST_CHANGED * len(known):
        return f"{changed:,} texts that version {record.version} has learnt are gone or have another label"
    is_new = ~np.isin(_hashes(learnt), known)
    new, old = np.flatnonzero(is_new).tolist(), np.flatnonzero(~is_new).tolist()
    if not 0 < len(new) <= len(old):
        return f"{len(new):,} of {len(learnt.texts):,} texts are new"
    replayed = min(len(old), max(REPLAYED * len(new), LEAST_STEPS * settings.batch_size - len(new)))
    full_steps = choose_hyperparameters(settings, BASE_HIDDEN_SIZE, len(learnt.texts)).steps  # as for any encoder
    steps = min(full_steps, max(LEAST_STEPS, math.ceil((len(new) + replayed) / settings.batch_size)))
    try:
        base = load_trained(model_dir, record)
    except PipelineError as error:
        return str(error)
    chosen = sorted(new + random.Random(settings.seed).sample(old, replayed))
    return Update(record, base, learnt.at(chosen), len(new), steps, full_steps)


def average(model: torch.nn.Module, old: dict[str, torch.Tensor]) -> None:
    """Replace the parameters of `model` by the mean of them and the `old` ones, with `OLD_SHARE`."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.lerp_(old[name].to(parameter.device), OLD_SHARE)


def _hashes(texts: LabelledTexts) -> npt.NDArray[np.uint64]:
    """Return a hash of each text with its label, [texts]. Letter case and blanks do not count, as in feedback."""
    rows = (f"{label}\0{' '.join(text.split()).casefold()}" for text, label in texts.pairs())
    digests = (hashlib.blake2b(row.encode("utf-8", "surrogatepass"), digest_size=8).digest() for row in rows)
    return np.frombuffer(b"".join(digests), dtype=np.uint64)
