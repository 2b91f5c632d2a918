"""Retraining, from the current data to a version that is promoted, on trial or rejected. An interrupted one resumes.

It updates the deployed model if possible. If the gates reject the update, a full training follows.
"""

import json
import logging
import shutil
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from common.errors import PipelineError
from common.settings import Settings
from common.stored_json import read_object
from export.export import export
from export.graph import check_exportable
from export.variants import ParityError
from lifecycle.deployment.promotion import promote, reconcile
from lifecycle.deployment.version_report import LEARNT_FROM
from lifecycle.gates.batch_predict import batch_predict
from lifecycle.gates.evaluation_data import evaluation_data, shortfalls
from lifecycle.gates.run_gates import run_gates
from lifecycle.gates.training_data import TRAIN_FILE, UNLABELLED_FILE, VAL_FILE, merge, unlabelled_texts, write
from lifecycle.gates.trial import trial
from lifecycle.jobs.candidate import costs, figures_of, from_sources, promotion_figures, reject, take_over, try_live
from lifecycle.jobs.check import learnt_before
from lifecycle.monitoring import quarantine
from serving.model_repo.bundle import Bundle, RowCounts
from serving.model_repo.repository import ModelRepository, replacing
from storage import events, jobs
from storage.database import Database
from storage.events import EventKind
from storage.releases import Mode
from storage.tables import Figures, Job
from storage.versions import GateVerdict, add_verdicts, add_version
from trainer.dataset import Dataset, load_dataset
from trainer.kept_data import keep
from trainer.record import TrainingRecord, training_key
from trainer.tracking import Tracking
from trainer.train import train

_STARTED = "retraining.json"
_DATA = "data"
"""Key in this file: the counts of rows of the data files."""
_FULL = "full"
"""Key in this file: whether the gates have rejected an update, so that a full training follows."""
_DONE, _MODE = "done", "mode"
"""Keys in this file: the version that has been promoted or has begun its trial, and the kind of trial or null."""
_LATELY = 20
"""Rejected candidates that are remembered."""
_MODEL = "model"

log = logging.getLogger(__name__)


class Step(Protocol):
    """A function that is called at the beginning of each step of a job."""

    def __call__(self, name: str, *, can_cancel: bool = True) -> None:
        """Begin the step `name`. Without `can_cancel`, the job can no longer be cancelled from here on."""


def retrain(settings: Settings, database: Database, job: Job, step: Step) -> jobs.Outcome:
    """Train a candidate, run the gates, and promote it or start its trial; `step` is called at each step.

    Raises:
        PipelineError: the data are not valid, no version is deployed, or the disk or MLflow fails.
    """
    reconcile(settings, database)
    repository = ModelRepository(settings.model_repository)
    directory = _directory(settings, job)
    _remove_left_over(database, directory.parent)
    dataset = load_dataset(settings)
    repository.require_deployed()  # before the training, which takes long
    dataset.log_notes()
    step("collecting training data")
    if not (directory / _STARTED).exists():
        _examine_sources(settings, database, repository, dataset, directory / "examination")
    skipped = _begin(settings, database, job, dataset, directory)
    if skipped is not None:
        return skipped
    # The paths differ from a first training, so the files of the deployed model are not touched.
    own = settings.model_copy(
        update={
            "train_data": directory / TRAIN_FILE,
            "val_data": directory / VAL_FILE,
            "model_dir": directory / _MODEL,
            # `write` writes the usual columns, and labels that have their names.
            "text_column": None,
            "label_column": None,
            "label_names": "",
            "max_rejected": 1.0,
        }
    )
    started = _started(directory)
    # Absent if an older release of the pipeline began the job.
    learnt = started.get(LEARNT_FROM, {})
    counts = {name: read_object(RowCounts, rows) for name, rows in started.get(_DATA, {}).items()}
    if _DONE in started:
        return _finish(settings, database, job, started[_DONE], learnt, started[_MODE])
    while True:
        step("training")
        record = _train(settings, database, own, directory, counts, {*dataset.train.pairs(), *dataset.val.pairs()})
        champion = repository.require_deployed()
        if champion == record.version:
            return _finish(settings, database, job, record.version, learnt)
        step(f"exporting version {record.version}")
        verdicts = _publish(own, database, repository, record.version, _unlabelled(directory))
        if not verdicts:
            step(f"testing version {record.version}")
            data = evaluation_data(settings, database, dataset)
            verdicts = run_gates(settings, repository, data, champion, record.version, directory / "trial")
        add_verdicts(database, record.version, verdicts)
        tracking = Tracking(settings)
        tracking.record_verdicts(record.version, {verdict.gate: verdict.passed for verdict in verdicts})
        tracking.record_sources(record.version, learnt)
        failed = [verdict for verdict in verdicts if not verdict.passed]
        if not failed:
            break
        if record.updates:
            _note(directory, started | {_FULL: True})  # first, so that a kill here repeats neither gates nor event
        reject(settings, database, record.version, champion, failed, learnt, job.id, is_update=bool(record.updates))
        if not record.updates:
            shutil.rmtree(directory)
            gates = [verdict.gate for verdict in failed]
            return jobs.Outcome(jobs.REJECTED, {"version": record.version, "gates": gates, LEARNT_FROM: learnt})
    under = shortfalls(settings, figures_of(verdicts))
    reason = f"job {job.id} passed every gate" + (
        f". It is under a threshold, but better than version {champion}: {'; '.join(under)}" if under else ""
    )
    reason += costs(verdicts)
    if settings.release != "at-once":
        step(f"starting the {settings.release} of version {record.version}", can_cancel=False)
        try_live(settings, database, record.version, settings.release, reason)
        return _finish(settings, database, job, record.version, learnt, settings.release)
    step(f"promoting version {record.version}", can_cancel=False)
    before = Bundle.load(repository.version_directory(champion)).metrics
    promote(settings, database, record.version, reason, promotion_figures(before, verdicts))
    keep(settings, record.version, dataset)
    return _finish(settings, database, job, record.version, learnt)


def _directory(settings: Settings, job: Job) -> Path:
    """Return the directory with the data and the model of a retraining."""
    return settings.state_dir / "retraining" / str(job.id)


def _remove_left_over(database: Database, directory: Path) -> None:
    """Remove the directories, in `directory`, of retrainings that have failed or were cancelled. Nothing resumes them.

    Checkpoints are elsewhere: a new training with the same data goes on from them.
    """
    for left in directory.glob("*"):
        job = jobs.get(database, int(left.name)) if left.name.isdecimal() else None
        if job is not None and job.ended_at is not None:
            shutil.rmtree(left, ignore_errors=True)


def _examine_sources(
    settings: Settings, database: Database, repository: ModelRepository, dataset: Dataset, directory: Path
) -> None:
    """Put feedback sources that contradict known labels or the deployed model into quarantine, before the training."""
    deployed = repository.deployed()
    examination = quarantine.collect(settings, database, dataset)
    if deployed is None or examination is None:
        return
    data = evaluation_data(settings, database, dataset)
    with trial(settings, repository, deployed, directory) as tried:
        ask_deployed = partial(batch_predict, tried.address)
        quarantine.examine(database, examination, data, ask_deployed(data.texts), ask_deployed)
    shutil.rmtree(directory)


def _begin(settings: Settings, database: Database, job: Job, dataset: Dataset, directory: Path) -> jobs.Outcome | None:
    """Store the current training data unless an earlier attempt has; return an outcome if the job is to be skipped."""
    if (directory / _STARTED).exists():
        log.info("Job %d was interrupted; it goes on with %s.", job.id, _remaining(settings, directory))
        return None
    merged = merge(settings, database, dataset)
    key = training_key(settings, merged.fingerprint)
    # A check that has requested this very training wants more than an update has reached.
    fully = job.fingerprint == key or settings.retrain_from == "base"
    jobs.set_fingerprint(database, job.id, key)
    same = learnt_before(settings, database, key, fully=fully)
    if same:
        with database.transaction() as session:
            events.record(session, EventKind.RETRAINING_SKIPPED, f"No retraining: {same}.", job_id=job.id)
        return jobs.Outcome(jobs.SKIPPED, {"reason": same})
    write(merged, directory, unlabelled_texts(database, merged) if settings.learn_from_live else [])
    figures: Figures = {
        "texts": len(merged.train.texts),
        "feedback": merged.feedback_texts,
        "validation texts": len(merged.val.texts),
        LEARNT_FROM: merged.by_source,
    }
    with database.transaction() as session:
        message = (
            f"Retraining started (job {job.id}) on {figures['texts']:,} texts, {figures['feedback']:,} of them feedback"
            f"{from_sources(merged.by_source)}: {job.reason}."
        )
        events.record(session, EventKind.RETRAINING_STARTED, message, figures, job_id=job.id)
    log.info("%s", message)
    counts = {name: asdict(rows) for name, rows in dataset.counts.items()}
    started = {"key": key, LEARNT_FROM: merged.by_source, _DATA: counts, _FULL: _was_rejected(database, key)}
    _note(directory, started)
    return None


def _was_rejected(database: Database, key: str) -> bool:
    """Return whether the gates have rejected a version of the same data and settings, lately."""
    rejected = events.newest_of(database, {EventKind.REJECTED, EventKind.UPDATE_REJECTED}, _LATELY)
    found = [jobs.get(database, event.job_id) for event in rejected if event.job_id]
    return any(job is not None and job.fingerprint == key for job in found)


def _started(directory: Path) -> dict[str, Any]:
    """Return what is known about a retraining that has begun."""
    started: dict[str, Any] = json.loads((directory / _STARTED).read_text(encoding="utf-8"))
    return started


def _note(directory: Path, started: dict[str, Any]) -> None:
    """Replace what is known about a retraining."""
    with replacing(directory / _STARTED) as part:
        part.write_text(json.dumps(started), encoding="utf-8")


def _remaining(settings: Settings, directory: Path) -> str:
    """Return in words what an interrupted retraining, whose files are in `directory`, does next."""
    started = _started(directory)
    if _DONE in started:
        return f"what is left to do after version {started[_DONE]} passed every gate"
    record = TrainingRecord.load(directory / _MODEL) if (directory / _MODEL).exists() else None
    if record is None or (record.updates and started.get(_FULL)):
        return "the training"
    is_published = record.version in ModelRepository(settings.model_repository).published()
    return f"the {'gates' if is_published else 'export'} of version {record.version}, which is trained"


def _train(
    settings: Settings,
    database: Database,
    own: Settings,
    directory: Path,
    counts: dict[str, RowCounts],
    rows: Collection[tuple[str, str]],
) -> TrainingRecord:
    """Return the trained model of an earlier attempt, or train one, which updates the deployed one if possible.

    `own` are the settings of the training, `counts` the rows of the data files, and `rows` their texts with their
    labels.
    """
    is_full = bool(_started(directory).get(_FULL))
    if own.model_dir.exists():
        record = TrainingRecord.load(own.model_dir)
        if not (record.updates and is_full):
            return record
        own.model_dir.rename(directory / f"rejected-{record.version}")
    check_exportable(own)
    deployed = None if is_full else _deployed_model(settings, database)
    return train(own, counts, rows, deployed=deployed, unlabelled=_unlabelled(directory))


def _unlabelled(directory: Path) -> list[str]:
    """Return the sampled live texts that the retraining learns from."""
    texts: list[str] = []
    with suppress(FileNotFoundError):  # an older release of the pipeline began the job
        texts = json.loads((directory / UNLABELLED_FILE).read_text(encoding="utf-8"))
    return texts


def _deployed_model(settings: Settings, database: Database) -> Path | None:
    """Return the directory of the deployed model's weights; None, with the reason logged, if they are not updated."""
    reason = f"the model in {settings.model_dir} is not the deployed one"
    repository = ModelRepository(settings.model_repository)
    with suppress(PipelineError):
        deployed = repository.require_deployed()
        if (
            TrainingRecord.load(settings.model_dir).run_id
            == Bundle.load(repository.version_directory(deployed)).mlflow_run
        ):
            reason = "feedback that it may have learnt was withdrawn" if _has_withdrawn(database, deployed) else ""
    if settings.retrain_from == "base":
        reason = "SENTIMENT_RETRAIN_FROM is base"
    if reason:
        log.info("This is a full training, because %s.", reason)
    return None if reason else settings.model_dir


def _has_withdrawn(database: Database, version: int) -> bool:
    """Return whether feedback was withdrawn or put into quarantine since the retraining that made `version` began."""
    made_by = [job for job in jobs.ended_retrainings(database) if job.result.get("version") == version]
    if not made_by or made_by[0].started_at is None:
        return False  # a first version has learnt no feedback
    kinds = {EventKind.FEEDBACK_WITHDRAWN, EventKind.SOURCE_QUARANTINED}
    return bool(events.of_kinds_since(database, made_by[0].started_at, kinds))


def _publish(
    own: Settings, database: Database, repository: ModelRepository, version: int, unlabelled: Sequence[str]
) -> list[GateVerdict]:
    """Publish the trained version unless an earlier attempt has; return a failed verdict if its graph lacks parity."""
    if version not in repository.published():
        try:
            export(own, unlabelled=unlabelled)
        except ParityError as error:
            return [GateVerdict("parity", False, str(error), {})]
    with database.transaction() as session:
        add_version(session, Bundle.load(repository.version_directory(version)))
    return []


def _finish(
    settings: Settings, database: Database, job: Job, version: int, learnt: Figures, mode: Mode | None = None
) -> jobs.Outcome:
    """Finish a retraining, repeatably."""
    directory = _directory(settings, job)
    _note(directory, _started(directory) | {_DONE: version, _MODE: mode})  # the model moves out of the directory
    take_over(settings, database, version, directory / _MODEL, mode)
    for path in directory.iterdir():
        if path.name != _STARTED:  # which tells a job that is killed before its end is recorded that all is done
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return jobs.Outcome(jobs.SUCCEEDED, {"version": version, LEARNT_FROM: learnt, **({"tried": mode} if mode else {})})
