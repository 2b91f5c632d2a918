"""The staleness check: evaluates the deployed model, and compares its accuracy and F1 with the thresholds."""

import itertools
import logging
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial

from common.errors import PipelineError
from common.settings import Settings
from lifecycle.gates.batch_predict import batch_predict
from lifecycle.gates.evaluation_data import evaluation_data, results, shortfalls
from lifecycle.gates.training_data import merge
from lifecycle.jobs.circumstances import other_settings
from lifecycle.jobs.current_data import current_data
from lifecycle.jobs.full_training import reason_for_full_training
from lifecycle.monitoring import quarantine
from lifecycle.monitoring.first_stage import FirstStage, first_stage
from lifecycle.monitoring.labelling import Standing, standing
from lifecycle.monitoring.live_drift import LiveDrift, live_drift
from lifecycle.monitoring.live_quality import LiveQuality, live_quality, live_sample
from lifecycle.monitoring.summary import summary
from serving.model_repo.bundle import Bundle
from serving.model_repo.repository import ModelRepository
from storage import events, jobs
from storage.database import Database, now
from storage.events import EventKind
from storage.tables import Figures, Job
from trainer.dataset import DatasetError
from trainer.evaluation import Evaluation
from trainer.kept_data import keep, kept_facts
from trainer.record import training_key

FIRST_PAUSE = timedelta(hours=1)
LONGEST_PAUSE = timedelta(days=7)
"""Pause after a retraining that failed or whose candidate was rejected: from the first to the longest, doubled each
time."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Findings:
    """Results of a check of one version."""

    settings: Settings
    version: int
    evaluations: dict[str, Evaluation]
    live: LiveQuality | None
    drift: LiveDrift
    labelled: Standing | None
    stage: FirstStage | None

    @property
    def problems(self) -> list[str]:
        """Which figures are under a threshold; empty if the version is good."""
        by_labels = [self.labelled.problem] if self.labelled is not None and self.labelled.problem else []
        return [*shortfalls(self.settings, results(self.evaluations)), *by_labels]

    @property
    def foreseen(self) -> list[str]:
        """Which figures, estimated on live texts without labels, are under a threshold."""
        return self.live.problems(self.settings) if self.live else []

    @property
    def summary(self) -> str:
        """How the version stands, in a sentence."""
        drifted = self.drift.alarms if self.drift.found else None
        return summary(
            self.version, self.problems, self.evaluations, self.live, self.foreseen, drifted, self.labelled, self.stage
        )

    def reasons(self) -> list[str]:
        """Return the reasons to retrain; empty if there are none."""
        alarms = self.drift.alarms.values() if self.settings.retrain_on_drift else ()
        return [*self.problems, *(f"drift: {alarm}" for alarm in alarms)]

    def result(self) -> Figures:
        """Return the result of the job."""
        result: Figures = {
            "version": self.version,
            "summary": self.summary,
            "stale": bool(self.problems),
            "problems": self.problems,
            **{name: asdict(evaluation) for name, evaluation in self.evaluations.items()},
        }
        if self.live is not None:
            result["live"] = {**self.live.figures(), "problems": self.foreseen}
        if self.labelled is not None:
            result["labelled"] = self.labelled.figures()
        if self.stage is not None:
            result["first_stage"] = asdict(self.stage)
        return {**result, "drift": self.drift.figures()}


def check(settings: Settings, database: Database, job: Job) -> jobs.Outcome:
    """Evaluate the deployed model; enqueue a retraining if it is stale or, if so configured, on drift.

    A retraining is not enqueued if it would repeat an earlier one, comes too early after unsuccessful ones, or if the
    data files cannot be used. The data that were kept for the deployed version then take their place. A version that
    was imported without data is not checked before there are some.

    Raises:
        PipelineError: the model does not respond, or the data files are not valid and no data were kept.
    """
    try:
        current = current_data(settings, database, job)
    except DatasetError:
        if reason := _unmeasured(settings):
            log.info("No check: %s.", reason)
            return jobs.Outcome(jobs.SKIPPED, {"reason": reason})
        raise
    dataset = current.dataset
    data = evaluation_data(settings, database, dataset)
    answers = batch_predict(settings.triton_address, data.texts)
    if not current.problems:
        kept = kept_facts(settings)
        if kept is None or kept.version != answers.version:
            keep(settings, answers.version, dataset)
    sample = live_sample(database, answers.version)
    found = _Findings(
        settings,
        answers.version,
        data.evaluate(answers),
        live_quality(settings, answers, dataset, data, sample),
        live_drift(dataset, data, answers, sample),
        standing(settings, database, answers.version),
        first_stage(settings, answers.version),
    )
    result = found.result()
    if (examination := quarantine.collect(settings, database, dataset)) is not None:
        ask_deployed = partial(batch_predict, settings.triton_address)
        result["quarantined"] = quarantine.examine(database, examination, data, answers, ask_deployed)
    last = _last_result(database, answers.version)
    reasons = [reason for reason in (reason_for_full_training(settings), *found.reasons()) if reason]
    if current.problems:
        result["data_problems"] = current.problems
        result["decision"] = "No retraining: the data files cannot be used."
    elif reasons and not dataset.train.texts:
        result["decision"] = f"No retraining: there is no training file ({settings.train_data})."
    elif reasons:
        merged = merge(settings, database, dataset)
        result["decision"] = _ask_for_retraining(settings, database, merged.fingerprint, reasons)
    news = _news(found, last, result.get("decision", ""))
    with database.transaction() as session:
        for kind, message, figures in news:
            events.record(session, kind, message, figures, version=answers.version, job_id=job.id)
    for _, message, _ in news:
        log.info("%s", message.partition("\n")[0])
    return jobs.Outcome(jobs.SUCCEEDED, result)


def _unmeasured(settings: Settings) -> str:
    """Return why the deployed version cannot be checked, if it was imported without data; otherwise empty."""
    repository = ModelRepository(settings.model_repository)
    deployed = repository.deployed()
    if deployed is None or Bundle.load(repository.version_directory(deployed)).metrics:
        return ""
    return (
        f"version {deployed} was imported, and there are no data to evaluate it on. Add texts with right labels as "
        f"{settings.train_data} or {settings.val_data}"
    )


def _ask_for_retraining(settings: Settings, database: Database, fingerprint: str, reasons: list[str]) -> str:
    """Enqueue a retraining unless it would repeat an earlier one or is too early; return the decision in words."""
    key = training_key(settings, fingerprint)
    reason = (
        learnt_before(settings, database, key, fully=True)
        or _cancelled(database, key)
        or _too_early(settings, database)
    )
    if reason:
        return f"No retraining: {reason}."
    job = jobs.enqueue(database, jobs.RETRAIN, "; ".join(reasons), key)
    if job.state == jobs.RUNNING:  # an earlier one, of data that may have changed since
        return f"A retraining is running already: job {job.id}."
    return f"A retraining was requested: job {job.id}."


def learnt_before(settings: Settings, database: Database, key: str, *, fully: bool) -> str:
    """Return which job or version has trained on the same data with the same settings; empty if none has.

    With `fully`, updates do not count: a full training on the same data may be better.
    """
    repository = ModelRepository(settings.model_repository)
    published = repository.published()
    for job in jobs.ended_retrainings(database):
        # What a job has made may be gone, as after a start with a new model repository.
        is_lost = job.state == jobs.SUCCEEDED and job.result.get("version") not in {None, *published}
        if job.fingerprint != key or job.state == jobs.FAILED or is_lost or (fully and _is_update(repository, job)):
            continue
        # With other thresholds, a rejected version may pass.
        if not (job.state == jobs.REJECTED and other_settings(settings, job)):
            return f"job {job.id} ({job.state}) trained on the same data with the same settings"
    with suppress(PipelineError):  # a damaged version is reported where it is loaded
        deployed = repository.deployed()
        # The first version was trained without a job.
        bundle = Bundle.load(repository.version_directory(deployed)) if deployed else None
        if bundle and bundle.training_key == key and not (fully and bundle.updates):
            return f"version {deployed} was trained on the same data with the same settings"
    return ""


def _is_update(repository: ModelRepository, job: Job) -> bool:
    """Return whether the version that a retraining has made is an update; no if it cannot be read."""
    version = job.result.get("version") if job.state == jobs.SUCCEEDED else None
    with suppress(PipelineError):
        return version is not None and Bundle.load(repository.version_directory(version)).updates > 0
    return False


def _cancelled(database: Database, key: str) -> str:
    """Return which retraining with the same data and settings somebody has cancelled; empty if none."""
    job = jobs.cancelled_retraining(database, key)
    if job is None:
        return ""
    return f"job {job.id}, with the same data and settings, was cancelled; `python app.py retrain` begins it anyway"


def _too_early(settings: Settings, database: Database) -> str:
    """Return why the next retraining must wait after unsuccessful ones with these settings; empty if it need not."""
    in_vain = list(
        itertools.takewhile(
            lambda job: job.state != jobs.SUCCEEDED and not other_settings(settings, job),
            jobs.ended_retrainings(database),
        )
    )
    if not in_vain or in_vain[0].ended_at is None:
        return ""
    until = in_vain[0].ended_at + min(FIRST_PAUSE * 2.0 ** min(len(in_vain) - 1, 16), LONGEST_PAUSE)
    with database.reading() as session:
        # If the last one ended in the future, the clock was set back, and the pause could last for any time.
        if not in_vain[0].ended_at <= now(session) < until:
            return ""
    which = "the last one" if len(in_vain) == 1 else f"the last {len(in_vain)}"
    return f"{which} did not succeed; the next may start at {until:%Y-%m-%d %H:%M} UTC"


def _news(found: _Findings, last: Figures, decision: str) -> list[tuple[EventKind, str, Figures]]:
    """Return the events of a check: its findings, and problems that are new since the `last` result of this version."""
    details = "; ".join(f"{name} {_format_evaluation(item)}" for name, item in found.evaluations.items())
    if found.live is not None:
        details += f"; estimated accuracy {found.live.all.accuracy} on {found.live.all.texts:,} live texts"
    figures: Figures = {name: evaluation.metrics() for name, evaluation in found.evaluations.items()}
    news = [(EventKind.CHECKED, f"{found.summary}\nFigures: {details}.", figures)]
    if found.problems and not last.get("stale"):
        # Only a version that an earlier check found good has become stale.
        turn = "has become stale" if last else "is under a threshold"
        message = f"Version {found.version} {turn}: {'; '.join(found.problems)}.\n{decision}\n{found.summary}"
        news.append((EventKind.STALE, message, figures))
    if found.live is not None and found.foreseen and not last.get("live", {}).get("problems"):
        message = (
            f"Version {found.version} is probably worse than required on live texts: {'; '.join(found.foreseen)}.\n"
            f"{found.summary}"
        )
        estimates: Figures = {name: str(part.accuracy) for name, part in found.live.parts.items()}
        news.append((EventKind.ESTIMATED_LOW, message, estimates))
    if found.stage is not None and found.stage.is_on != last.get("first_stage", {}).get("is_on", True):
        kind = EventKind.FIRST_STAGE_ON if found.stage.is_on else EventKind.FIRST_STAGE_OFF
        news.append((kind, f"Version {found.version}: {found.stage}.", asdict(found.stage)))
    known = {kind for kind, item in last.get("drift", {}).items() if item["alarm"]}
    if alarms := {kind: alarm for kind, alarm in found.drift.alarms.items() if kind not in known}:
        lines = [f"Drift of {', '.join(alarms)}, while version {found.version} is deployed.", *alarms.values()]
        lines += [found.summary, *([decision] if found.settings.retrain_on_drift else [])]
        news.append((EventKind.DRIFT, "\n".join(lines), found.drift.figures()))
    return news


def _last_result(database: Database, version: int) -> Figures:
    """Return the result of the last check, or an empty one if it was of another version."""
    last = jobs.last_ended(database, jobs.CHECK)
    return last.result if last is not None and last.result.get("version") == version else {}


def _format_evaluation(evaluation: Evaluation) -> str:
    return f"accuracy {evaluation.accuracy:.4f}, macro F1 {evaluation.macro_f1:.4f} ({evaluation.texts:,} texts)"
