"""Retraining, from the current data to a version that is promoted, on trial or rejected. An interrupted one resumes."""

import json
import logging
import shutil
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Protocol

from common.errors import PipelineError
from common.settings import Settings
from export.export import export
from export.variants import ParityError
from lifecycle.canary.release import start, stop
from lifecycle.deployment.promotion import DeploymentError, promote, reconcile
from lifecycle.deployment.version_report import LEARNT_FROM
from lifecycle.gates.batch_predict import batch_predict
from lifecycle.gates.evaluation_data import evaluation_data, shortfalls
from lifecycle.gates.run_gates import run_gates
from lifecycle.gates.training_data import TRAIN_FILE, VAL_FILE, merge, write
from lifecycle.gates.trial import trial
from lifecycle.jobs import mlflow_alias
from lifecycle.jobs.check import learnt_before
from lifecycle.jobs.retention import remove_old_versions
from lifecycle.monitoring import quarantine
from serving.model_repo.bundle import Bundle, RowCounts
from serving.model_repo.repository import ModelRepository
from storage import events, jobs, releases
from storage.database import Database
from storage.events import EventKind
from storage.releases import Mode
from storage.tables import Figures, Job
from storage.versions import GateVerdict, add_verdicts, add_version
from trainer.dataset import Dataset, load_dataset
from trainer.kept_data import keep
from trainer.record import TrainingRecord, training_key
from trainer.tracking import Tracking
from trainer.train import replace_directory, train

_STARTED = "retraining.json"
_DATA = "data"
"""Key in this file: the counts of rows of the data files."""
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
    dataset = load_dataset(settings)
    repository.require_deployed()  # before the training, which takes long
    dataset.log_notes()
    directory = _directory(settings, job)
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
    started = json.loads((directory / _STARTED).read_text(encoding="utf-8"))
    # Both are absent if an older release of the pipeline began the job.
    learnt = started.get(LEARNT_FROM, {})
    counts = {name: RowCounts(**rows) for name, rows in started.get(_DATA, {}).items()}
    step("training")
    record = _train(own, counts, {*dataset.train.pairs(), *dataset.val.pairs()})
    champion = repository.require_deployed()
    if champion != record.version:
        step(f"exporting version {record.version}")
        verdicts = _publish(own, database, repository, record.version)
        if not verdicts:
            step(f"testing version {record.version}")
            data = evaluation_data(settings, database, dataset)
            verdicts = run_gates(settings, repository, data, champion, record.version, directory / "trial")
        add_verdicts(database, record.version, verdicts)
        tracking = Tracking(settings)
        tracking.record_verdicts(record.version, {verdict.gate: verdict.passed for verdict in verdicts})
        tracking.record_sources(record.version, learnt)
        failed = [verdict for verdict in verdicts if not verdict.passed]
        if failed:
            return _reject(settings, database, job, record.version, champion, failed, learnt)
        under = shortfalls(settings, _figures(verdicts))
        reason = f"job {job.id} passed every gate" + (
            f". It is under a threshold, but better than version {champion}: {'; '.join(under)}" if under else ""
        )
        if settings.release != "at-once":
            step(f"starting the {settings.release} of version {record.version}", can_cancel=False)
            _try_live(settings, database, record.version, settings.release, reason)
            return _finish(settings, database, job, record.version, learnt, settings.release)
        step(f"promoting version {record.version}", can_cancel=False)
        before = Bundle.load(repository.version_directory(champion)).metrics
        figures: Figures = {"before": before, "after": _figures(verdicts)}
        promote(settings, database, record.version, reason, figures)
        keep(settings, record.version, dataset)
    return _finish(settings, database, job, record.version, learnt)


def _directory(settings: Settings, job: Job) -> Path:
    """Return the directory with the data and the model of a retraining."""
    return settings.state_dir / "retraining" / str(job.id)


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
        log.info("Resuming job %d where it was interrupted.", job.id)
        return None
    merged = merge(settings, database, dataset)
    key = training_key(settings, merged.fingerprint)
    jobs.set_fingerprint(database, job.id, key)
    same = learnt_before(settings, database, key)
    if same:
        with database.transaction() as session:
            events.record(session, EventKind.RETRAINING_SKIPPED, f"No retraining: {same}.", job_id=job.id)
        return jobs.Outcome(jobs.SKIPPED, {"reason": same})
    write(merged, directory)
    figures: Figures = {
        "texts": len(merged.train.texts),
        "feedback": merged.feedback_texts,
        "validation texts": len(merged.val.texts),
        LEARNT_FROM: merged.by_source,
    }
    with database.transaction() as session:
        message = (
            f"Retraining started (job {job.id}) on {figures['texts']:,} texts, {figures['feedback']:,} of them feedback"
            f"{_from_sources(merged.by_source)}: {job.reason}."
        )
        events.record(session, EventKind.RETRAINING_STARTED, message, figures, job_id=job.id)
    log.info("%s", message)
    counts = {name: asdict(rows) for name, rows in dataset.counts.items()}
    started = {"key": key, LEARNT_FROM: merged.by_source, _DATA: counts}
    (directory / _STARTED).write_text(json.dumps(started), encoding="utf-8")
    return None


def _from_sources(by_source: Figures) -> str:
    rows = sorted(by_source.items(), key=lambda item: -item[1])
    return f" ({', '.join(f'{count} from {source}' for source, count in rows)})" if rows else ""


def _train(own: Settings, counts: dict[str, RowCounts], rows: Collection[tuple[str, str]]) -> TrainingRecord:
    """Return the trained model of an earlier attempt, or train one.

    `counts` are the rows of the data files, and `rows` their texts with their labels.
    """
    if own.model_dir.exists():
        return TrainingRecord.load(own.model_dir)
    return train(own, counts, rows)


def _publish(own: Settings, database: Database, repository: ModelRepository, version: int) -> list[GateVerdict]:
    """Publish the trained version unless an earlier attempt has; return a failed verdict if its graph lacks parity."""
    if version not in repository.published():
        try:
            export(own)
        except ParityError as error:
            return [GateVerdict("parity", False, str(error), {})]
    with database.transaction() as session:
        add_version(session, Bundle.load(repository.version_directory(version)))
    return []


def _reject(
    settings: Settings,
    database: Database,
    job: Job,
    version: int,
    champion: int,
    failed: list[GateVerdict],
    learnt: Figures,
) -> jobs.Outcome:
    gates = ", ".join(verdict.gate for verdict in failed)
    reasons = "\n".join(f"{verdict.gate}: {verdict.message}" for verdict in failed)
    with database.transaction() as session:
        message = f"Version {version} was rejected by {gates}; version {champion} stays deployed.\n{reasons}"
        if learnt:
            message += f"\nIt was trained on {sum(learnt.values())} rows of feedback{_from_sources(learnt)}."
        figures: Figures = {**{verdict.gate: verdict.figures for verdict in failed}, LEARNT_FROM: learnt}
        events.record(session, EventKind.REJECTED, message, figures, version=version, job_id=job.id)
    log.warning("%s", message)
    remove_old_versions(settings, database, Tracking(settings).aliased())
    shutil.rmtree(_directory(settings, job))
    gates_failed = [verdict.gate for verdict in failed]
    return jobs.Outcome(jobs.REJECTED, {"version": version, "gates": gates_failed, LEARNT_FROM: learnt})


def _try_live(settings: Settings, database: Database, version: int, mode: Mode, reason: str) -> None:
    """Start the shadow or canary of the version, unless an earlier attempt of the job has; stop another one first.

    Raises:
        PipelineError: the version does not load.
    """
    with database.reading() as session:
        running, tried = releases.running(session), releases.last_of(session, version)
    if tried is not None:
        return
    if running is not None:
        with suppress(DeploymentError):  # that one has just ended by itself
            stop(database, running.version, f"version {version} replaces it")
    start(settings, database, version, mode, reason)


def _finish(
    settings: Settings, database: Database, job: Job, version: int, learnt: Figures, mode: Mode | None = None
) -> jobs.Outcome:
    """Finish a retraining, repeatably: model files, MLflow alias, old versions, and a check if it is deployed."""
    directory = _directory(settings, job)
    if (directory / _MODEL).exists():
        replace_directory(settings.model_dir, directory / _MODEL)
    try:
        mlflow_alias.set_alias(settings, database)
        remove_old_versions(settings, database, Tracking(settings).aliased())
    except PipelineError as error:
        log.warning("Cannot set MLflow's alias champion now; the scheduler tries again: %s", error)
    if mode is None:
        jobs.enqueue(database, jobs.CHECK, f"version {version} was promoted")
    shutil.rmtree(directory)
    return jobs.Outcome(jobs.SUCCEEDED, {"version": version, LEARNT_FROM: learnt, **({"tried": mode} if mode else {})})


def _figures(verdicts: list[GateVerdict]) -> Figures:
    return next(verdict.figures for verdict in verdicts if verdict.gate == "thresholds")
