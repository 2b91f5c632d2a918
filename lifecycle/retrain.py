"""A retraining: from the data as they are now to a promoted, tried or rejected version. Begun again, it goes on."""

import json
import logging
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from errors import PipelineError
from export.export import export
from export.variants import ParityError
from lifecycle import alias
from lifecycle.check import learnt_before, retraining_key
from lifecycle.evaluation_data import evaluation_data
from lifecycle.judge import judge
from lifecycle.promotion import DeploymentError, promote, reconcile
from lifecycle.release import start, stop
from lifecycle.retention import remove_old_versions
from lifecycle.training_data import TRAIN_FILE, VAL_FILE, merge, write
from serving.bundle import Bundle
from serving.repository import ModelRepository
from settings import Settings
from storage import events, jobs, releases
from storage.database import Database
from storage.events import EventKind
from storage.releases import Mode
from storage.tables import Figures, Job
from storage.versions import GateVerdict, add_verdicts, add_version
from trainer.dataset import Dataset, load_dataset
from trainer.record import TrainingRecord
from trainer.tracking import Tracking
from trainer.train import replace_directory, train

_STARTED = "retraining.json"

log = logging.getLogger(__name__)


def retrain(settings: Settings, database: Database, job: Job, step: Callable[[str], None]) -> jobs.Outcome:
    """Learn, prove, and promote what passes every gate; `step` is told what is done now.

    Raises:
        PipelineError: the data are not fit, nothing is deployed, or the disk or MLflow does not allow it.
    """
    reconcile(settings, database)
    repository = ModelRepository(settings.model_repository)
    dataset = load_dataset(settings.train_data, settings.val_data)
    directory = settings.state_dir / "retraining" / str(job.id)
    step("collecting what to learn from")
    skipped = _begin(settings, database, job, dataset, directory)
    if skipped is not None:
        return skipped
    # Everything is as in a first training but for where it lies, so what serves is not touched.
    own = settings.model_copy(
        update={
            "train_data": directory / TRAIN_FILE,
            "val_data": directory / VAL_FILE,
            "model_dir": directory / "model",
        }
    )
    step("training")
    record = _train(own)
    champion = repository.deployed()
    if champion is None:
        raise PipelineError("No model is deployed; run `python app.py` to train, export and serve one.")
    if champion != record.version:
        step(f"exporting version {record.version}")
        verdicts = _publish(own, database, repository, record.version)
        if not verdicts:
            step(f"trying version {record.version}")
            data = evaluation_data(settings, database, dataset)
            verdicts = judge(settings, data, champion, record.version, directory / "trial")
        add_verdicts(database, record.version, verdicts)
        Tracking(settings).record_verdicts(record.version, {verdict.gate: verdict.passed for verdict in verdicts})
        failed = [verdict for verdict in verdicts if not verdict.passed]
        if failed:
            return _reject(settings, database, job, record.version, champion, failed, directory)
        reason = f"job {job.id} passed every gate"
        if settings.release != "at-once":
            step(f"trying version {record.version} on live texts")
            _try_live(settings, database, record.version, settings.release, reason)
            return _finish(settings, database, own.model_dir, record.version, directory, mode=settings.release)
        step(f"promoting version {record.version}")
        before = Bundle.load(repository.version_directory(champion)).metrics
        figures: Figures = {"before": before, "after": _figures(verdicts)}
        promote(settings, database, record.version, reason, figures)
    return _finish(settings, database, own.model_dir, record.version, directory)


def _begin(settings: Settings, database: Database, job: Job, dataset: Dataset, directory: Path) -> jobs.Outcome | None:
    """Keep what is to be learnt as it is now, unless an earlier attempt has, or it was learnt before."""
    if (directory / _STARTED).exists():
        log.info("Going on with job %d where it was cut off.", job.id)
        return None
    merged = merge(database, dataset)
    key = retraining_key(settings, merged.fingerprint)
    jobs.set_fingerprint(database, job.id, key)
    same = learnt_before(database, key)
    if same:
        with database.transaction() as session:
            events.record(session, EventKind.RETRAINING_SKIPPED, f"No retraining: {same}.", job_id=job.id)
        return jobs.Outcome(jobs.SKIPPED, {"reason": same})
    write(merged, directory)
    figures: Figures = {
        "texts": len(merged.train.texts),
        "feedback": merged.feedback_texts,
        "validation texts": len(merged.val.texts),
    }
    with database.transaction() as session:
        message = (
            f"Retraining started (job {job.id}) on {figures['texts']} texts, {figures['feedback']} of them feedback: "
            f"{job.reason}."
        )
        events.record(session, EventKind.RETRAINING_STARTED, message, figures, job_id=job.id)
    log.info("%s", message)
    (directory / _STARTED).write_text(json.dumps({"key": key}), encoding="utf-8")
    return None


def _train(own: Settings) -> TrainingRecord:
    """The model of an earlier attempt, where it was trained to its end, or a new one."""
    if own.model_dir.exists():
        return TrainingRecord.load(own.model_dir)
    return train(own)


def _publish(own: Settings, database: Database, repository: ModelRepository, version: int) -> list[GateVerdict]:
    """Publish the trained version, unless an earlier attempt has; a verdict where its graph is not what was trained."""
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
    directory: Path,
) -> jobs.Outcome:
    gates = ", ".join(verdict.gate for verdict in failed)
    told = "\n".join(f"{verdict.gate}: {verdict.message}" for verdict in failed)
    with database.transaction() as session:
        message = f"Version {version} was rejected by {gates}; version {champion} serves still.\n{told}"
        figures: Figures = {verdict.gate: verdict.figures for verdict in failed}
        events.record(session, EventKind.REJECTED, message, figures, version=version, job_id=job.id)
    log.warning("%s", message)
    remove_old_versions(settings, database, Tracking(settings).aliased())
    shutil.rmtree(directory)
    return jobs.Outcome(jobs.REJECTED, {"version": version, "gates": [verdict.gate for verdict in failed]})


def _try_live(settings: Settings, database: Database, version: int, mode: Mode, reason: str) -> None:
    """Begin to try the version, unless an earlier attempt of the job has; it takes the place of another that is tried.

    Raises:
        PipelineError: it does not load.
    """
    with database.reading() as session:
        running, tried = releases.running(session), releases.last_of(session, version)
    if tried is not None:
        return
    if running is not None:
        with suppress(DeploymentError):  # it has just ended by itself
            stop(database, running.version, f"version {version} is tried instead")
    start(settings, database, version, mode, reason)


def _finish(
    settings: Settings, database: Database, model_dir: Path, version: int, directory: Path, mode: Mode | None = None
) -> jobs.Outcome:
    """What follows, and can be done again: the model's files, the alias, old versions, a check where it serves."""
    if model_dir.exists():
        replace_directory(settings.model_dir, model_dir)
    try:
        alias.set_alias(settings, database)
        remove_old_versions(settings, database, Tracking(settings).aliased())
    except PipelineError as error:
        log.warning("MLflow's alias will be set later: %s", error)
    if mode is None:
        jobs.enqueue(database, jobs.CHECK, f"version {version} was promoted")
    shutil.rmtree(directory)
    return jobs.Outcome(jobs.SUCCEEDED, {"version": version, **({"tried": mode} if mode else {})})


def _figures(verdicts: list[GateVerdict]) -> Figures:
    return next(verdict.figures for verdict in verdicts if verdict.gate == "thresholds")
