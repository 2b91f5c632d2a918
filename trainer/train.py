"""One training from the two CSV files to `./model` and a registered version in MLflow."""

import errno
import logging
import os
import shutil
import time
from pathlib import Path

import torch
from safetensors import SafetensorError

from errors import PipelineError
from serving.repository import ModelRepository
from settings import Settings
from trainer.dataset import load_dataset
from trainer.evaluation import evaluate, fit_temperature
from trainer.fine_tune import FineTuned, fine_tune
from trainer.record import TrainingRecord
from trainer.tracking import Tracking

log = logging.getLogger(__name__)


def train(settings: Settings) -> TrainingRecord:
    """Check the data, fine-tune, calibrate, record in MLflow, save to the model directory.

    The model directory is replaced last, by renaming, so that a failed training leaves the old one.

    Raises:
        PipelineError: the data, the base model, MLflow or the disk does not allow it.
    """
    started = time.monotonic()
    dataset = load_dataset(settings.train_data, settings.val_data)
    for repair in dataset.repairs:
        log.warning("%s", repair)
    tracking = Tracking(settings)
    tuned = fine_tune(settings, dataset)

    temperature = fit_temperature(tuned.val_logits, tuned.val_targets)
    probabilities = torch.softmax(torch.from_numpy(tuned.val_logits) / temperature, dim=1).numpy()
    evaluation = evaluate(probabilities, tuned.val_targets, dataset.labels)
    log.info(
        "Validation: accuracy %.4f, macro F1 %.4f, calibration error %.3f (temperature %.2f).",
        evaluation.accuracy,
        evaluation.macro_f1,
        evaluation.calibration_error,
        temperature,
    )

    staging = _save_beside(settings.model_dir, tuned)
    run_id = tracking.record_run(
        staging,
        tuned.hyperparameters | {"temperature": temperature, "train_texts": len(dataset.train.texts)},
        tuned.history,
        evaluation,
        {
            "data_fingerprint": dataset.fingerprint,
            "train_data": str(settings.train_data),
            "val_data": str(settings.val_data),
            "training_minutes": f"{(time.monotonic() - started) / 60:.1f}",
        },
    )
    record = TrainingRecord(
        version=tracking.register(run_id, taken=ModelRepository(settings.model_repository).published()),
        run_id=run_id,
        base_model=tuned.base_model,
        labels=dataset.labels,
        max_length=tuned.max_length,
        temperature=temperature,
        data_fingerprint=dataset.fingerprint,
        metrics=evaluation.metrics(),
    )
    tracking.save_record(record)
    record.save(staging)
    replace_directory(settings.model_dir, staging)
    shutil.rmtree(tuned.checkpoints)
    log.info(
        "Trained version %d in %.1f min; saved to %s, recorded in MLflow at %s.",
        record.version,
        (time.monotonic() - started) / 60,
        settings.model_dir,
        tracking.uri,
    )
    return record


def take_part(settings: Settings) -> None:
    """Learn with the first process of a training, which does what `train` does.

    Raises:
        PipelineError: as `fine_tune` does.
    """
    logging.disable(logging.WARNING)  # the first one says what all would
    fine_tune(settings, load_dataset(settings.train_data, settings.val_data))


def _save_beside(model_dir: Path, tuned: FineTuned) -> Path:
    staging = model_dir.with_name(f".{model_dir.name}.new-{os.getpid()}")
    for left_over in model_dir.parent.glob(f".{model_dir.name}.new-*"):
        shutil.rmtree(left_over)
    try:
        tuned.model.save_pretrained(staging)
        tuned.tokenizer.save_pretrained(staging)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise PipelineError(
            f"The trained model could not be saved beside {model_dir}: {error}. "
            "Make room, then run it again: it resumes."
        ) from error
    return staging


def replace_directory(target: Path, replacement: Path) -> None:
    """Put `replacement` in `target`'s place; a kill between the two renames leaves both, under other names."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    try:
        replacement.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # Complete before it is seen, as by a rename, and there twice until then.
        copy = target.with_name(f".{target.name}.copy")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(replacement, copy)
        copy.rename(target)
        shutil.rmtree(replacement)
    shutil.rmtree(old, ignore_errors=True)
