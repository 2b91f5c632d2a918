"""One training from the data files to `./model` and a registered version in MLflow."""

import errno
import fcntl
import logging
import os
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common.errors import PipelineError
from common.settings import Settings
from common.wording import counted
from serving.model_repo.bundle import RowCounts
from serving.model_repo.repository import ModelRepository
from trainer.advice import TrainingFacts, near_chance, not_better
from trainer.base_tokenizer import BaseTokenizer, load_base_tokenizer
from trainer.baseline import evaluate_baseline
from trainer.confident_learning import find_suspects
from trainer.data_report import DataReport, data_report
from trainer.dataset import DatasetError, check_data, load_dataset
from trainer.evaluation import at_bound, calibrated, evaluate, fit_temperature, under_thresholds
from trainer.fine_tune import FineTuned, fine_tune
from trainer.first_version import sampled
from trainer.hyperparameters import usual_learning_rate
from trainer.record import TrainingRecord, training_key
from trainer.suspects import SuspectList, write_suspects
from trainer.tracking import Run, Tracking, Validated
from trainer.update import save_learnt

_ABANDONED_S = 7 * 86_400.0
"""Age of its last checkpoint from which an interrupted training is not expected to resume."""

log = logging.getLogger(__name__)


def train(
    settings: Settings,
    counts: dict[str, RowCounts] | None = None,
    own_rows: Collection[tuple[str, str]] | None = None,
    *,
    quick: bool = False,
    deployed: Path | None = None,
    unlabelled: Sequence[str] = (),
) -> TrainingRecord:
    """Check the data, fine-tune, calibrate, record in MLflow, and save to the model directory.

    A `quick` training takes bounded time (`first_version`), and lists no suspicious labels. `deployed` is the directory
    of the deployed model, which is updated if possible (`update`); an update lists no suspicious labels either, and
    also learns from `unlabelled` texts.

    `counts` are recorded as the rows of the data files. If they are missing, those of the files read here are. The list
    of suspicious labels contains only `own_rows`, pairs of text and label, because feedback may be erased later, and no
    data file contains it; all rows if they are missing.

    The model directory is replaced by renaming, when the version is registered, so a failed training keeps the old one.
    The list of suspicious labels follows: if it fails, the training still succeeds.

    Raises:
        PipelineError: there is a problem with the data, the base model, MLflow or the disk.
    """
    with _alone(settings.model_dir):
        return _train(settings, counts, own_rows, quick=quick, deployed=deployed, unlabelled=unlabelled)


@contextmanager
def _alone(model_dir: Path) -> Iterator[None]:
    """Lock the directory around `model_dir` during the block: two trainings would write the same checkpoints and model.

    Raises:
        PipelineError: another process has locked it.
    """
    with ExitStack() as stack:
        try:
            model_dir.parent.mkdir(parents=True, exist_ok=True)
            directory = os.open(model_dir.parent, os.O_RDONLY)
            stack.callback(os.close, directory)
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PipelineError(
                f"Another process is training the model in {model_dir}. Wait for its end, or end it first."
            ) from error
        except OSError as error:  # some network file systems cannot lock a directory; other faults show when saving
            log.debug("%s cannot be locked: %s", model_dir.parent, error)
        yield


def _train(
    settings: Settings,
    counts: dict[str, RowCounts] | None,
    own_rows: Collection[tuple[str, str]] | None,
    *,
    quick: bool,
    deployed: Path | None,
    unlabelled: Sequence[str],
) -> TrainingRecord:
    started = time.monotonic()
    found = check_data(settings)
    if found.dataset is None:
        raise DatasetError(found.problems)
    dataset = sampled(found.dataset) if quick else found.dataset
    base = load_base_tokenizer(settings)
    report = data_report(found, base)
    _log(report)
    tracking = Tracking(settings)
    baseline = evaluate_baseline(dataset)
    log.info(
        "Baseline (TF-IDF with logistic regression) on %s: accuracy %.4f, macro F1 %.4f.",
        counted(baseline.texts, "validation text"),
        baseline.accuracy,
        baseline.macro_f1,
    )
    tuned = fine_tune(settings, dataset, quick=quick, deployed=deployed, unlabelled=unlabelled)
    if base is None or base.name != tuned.base_model:  # the training has just downloaded the encoder
        tokenizer = Tokenizer.from_str(tuned.tokenizer.backend_tokenizer.to_str())  # a copy, because it is changed
        report = data_report(found, BaseTokenizer(tuned.base_model, tokenizer, tuned.max_length))
        _log(report)

    temperature = fit_temperature(tuned.selection_logits, tuned.selection_targets)
    probabilities = calibrated(tuned.val_logits, temperature)
    evaluation = evaluate(probabilities, tuned.val_targets, dataset.labels)
    log.info("%s", evaluation.summary(temperature))
    if (warning := at_bound(temperature)) and not quick:
        log.warning("%s (calibration error %.3f on the validation texts).", warning, evaluation.calibration_error)
    facts = TrainingFacts(
        texts=len(dataset.train.texts),
        steps=tuned.steps,
        learning_rate=tuned.hyperparameters["learning_rate"],
        usual_learning_rate=usual_learning_rate(tuned.model.config.hidden_size),
        unknown=report.tokens.unknown if report.tokens else 0.0,
    )
    warning = near_chance(evaluation, baseline, facts) or not_better(evaluation.metrics(), baseline.metrics(), facts)
    if warning and not quick:
        log.warning("%s", warning)
    if not quick and (problems := under_thresholds(settings, evaluation.metrics(), "validation")):
        log.warning(
            "The model misses a threshold of the checks: %s. More or better data help, or another encoder. If this is "
            "good enough, lower SENTIMENT_MIN_ACCURACY or SENTIMENT_MIN_MACRO_F1.",
            "; ".join(problems),
        )

    staging = save_beside(settings.model_dir, tuned.model, tuned.tokenizer)
    texts = len(dataset.train.texts)
    kind = "quick training" if quick else "update" if tuned.updates else "training"
    run_id = tracking.record_run(
        staging,
        Run(
            name=f"{kind} of {tuned.base_model} on {texts:,} texts",
            command="train",
            hyperparameters=tuned.hyperparameters | {"temperature": temperature, "train_texts": texts},
            validated=Validated(evaluation, probabilities, tuned.val_targets),
            dataset=dataset,
            tags={
                "data_fingerprint": dataset.fingerprint,
                "train_data": str(settings.train_data),
                "val_data": str(settings.val_data),
                "training_minutes": f"{(time.monotonic() - started) / 60:.1f}",
            },
            history=tuned.history,
            baseline=baseline.metrics(),
        ),
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
        baseline=baseline.metrics(),
        training_key=training_key(settings, dataset.fingerprint, quick=quick),
        data=counts or dataset.counts,
        quick=quick,
        updates=tuned.updates,
    )
    tracking.save_record(record)
    record.save(staging)
    save_learnt(staging, dataset.train)  # not in MLflow, which would keep it
    replace_directory(settings.model_dir, staging)
    shutil.rmtree(tuned.checkpoints)
    _remove_abandoned(tuned.checkpoints.parent)
    log.info(
        "Trained version %d in %.1f min. Saved it to %s and recorded it in MLflow at %s.",
        record.version,
        (time.monotonic() - started) / 60,
        settings.model_dir,
        tracking.uri,
    )
    suspects = (
        None if quick or tuned.updates else _list_suspects(settings, tuned, temperature, dataset.labels, own_rows)
    )
    tracking.record_data(run_id, replace(report, suspects=suspects).as_json(), suspects.path if suspects else None)
    return record


def take_part(settings: Settings) -> None:
    """Take part in a training as a process other than the first, which runs `train`.

    Raises:
        PipelineError: `fine_tune` fails.
    """
    logging.disable(logging.WARNING)  # the first process logs for all
    fine_tune(settings, load_dataset(settings, write_list=False))


def _remove_abandoned(directory: Path) -> None:
    """Remove the checkpoints of other trainings, in `directory`, that wrote none for `_ABANDONED_S` seconds."""
    for other in directory.iterdir():
        with suppress(OSError):  # its training has just ended
            if time.time() - other.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(other)


def _log(report: DataReport) -> None:
    log.log(logging.WARNING if report.warnings else logging.INFO, "The data:\n%s", report.as_text())


def _list_suspects(
    settings: Settings,
    tuned: FineTuned,
    temperature: float,
    labels: tuple[str, ...],
    own_rows: Collection[tuple[str, str]] | None,
) -> SuspectList | None:
    """Write the list of labels that are probably wrong, and log its path; None if that fails."""
    try:
        selection, val = (calibrated(logits, temperature) for logits in (tuned.selection_logits, tuned.val_logits))
        found = find_suspects(tuned.learnt, (tuned.selection, selection), (tuned.val, val), labels)
        own = [each for each in found if own_rows is None or (each.text, each.label) in own_rows]
        listed = write_suspects(settings, own)
    except Exception as error:  # the list is only advice: nothing about it may fail a training
        log.warning("Labels that are probably wrong cannot be listed: %s: %s", type(error).__name__, error)
        return None
    if not listed.rows:
        log.info("No label is probably wrong.")
        return listed
    log.info(
        "Labels that are probably wrong: %s. %s lists them, the most suspicious first. No row was removed: correct the "
        "data files where the list is right.",
        f"the {listed.rows} most suspicious, which is the limit" if listed.is_full else listed.rows,
        listed.path,
    )
    return listed


def save_beside(model_dir: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Save a trained model and its tokenizer in a new directory beside `model_dir`, and return it.

    Raises:
        PipelineError: the disk refuses it; nothing stays.
    """
    staging = model_dir.with_name(f".{model_dir.name}.new-{os.getpid()}")
    for left_over in model_dir.parent.glob(f".{model_dir.name}.new-*"):
        shutil.rmtree(left_over)
    try:
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise PipelineError(
            f"The trained model cannot be saved beside {model_dir}: {error}. "
            "Free some space, then run it again: a training resumes."
        ) from error
    return staging


def replace_directory(target: Path, replacement: Path) -> None:
    """Replace `target` with `replacement`. A kill between the two renames leaves both under other names."""
    target = target.resolve()  # a link, such as to a larger disk, stays
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    try:
        replacement.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # Copy completely before the rename, so that no half-copied directory appears at `target`.
        copy = target.with_name(f".{target.name}.copy")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(replacement, copy)
        copy.rename(target)
        shutil.rmtree(replacement)
    shutil.rmtree(old, ignore_errors=True)
