"""The staleness check: asks the model as it is served, and holds its accuracy and F1 against the thresholds."""

import hashlib
import itertools
import json
import logging
from dataclasses import asdict, dataclass
from datetime import timedelta

from lifecycle.asking import ask
from lifecycle.evaluation_data import evaluation_data
from lifecycle.live_drift import LiveDrift, live_drift
from lifecycle.live_quality import LiveQuality, live_quality, live_sample
from lifecycle.training_data import merge
from settings import Settings
from storage import events, jobs
from storage.database import Database, now
from storage.events import EventKind
from storage.tables import Figures, Job
from trainer.dataset import load_dataset
from trainer.evaluation import Evaluation

FIRST_PAUSE = timedelta(hours=1)
LONGEST_PAUSE = timedelta(days=7)
"""After a retraining whose candidate was rejected, or which failed, before the next; doubled each time."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Findings:
    """What a check has found of a version."""

    settings: Settings
    version: int
    evaluations: dict[str, Evaluation]
    live: LiveQuality | None
    drift: LiveDrift

    @property
    def problems(self) -> list[str]:
        """Why it is stale."""
        return shortfalls(self.settings, self.evaluations)

    @property
    def foreseen(self) -> list[str]:
        """Why it seems to do badly where nobody has told labels."""
        return self.live.problems(self.settings) if self.live else []

    def reasons(self) -> list[str]:
        """Why to learn anew."""
        alarms = self.drift.alarms.values() if self.settings.retrain_on_drift else ()
        return [*(f"stale: {problem}" for problem in self.problems), *(f"drift: {alarm}" for alarm in alarms)]

    def result(self) -> Figures:
        """For the job."""
        result: Figures = {
            "version": self.version,
            "stale": bool(self.problems),
            "problems": self.problems,
            **{name: asdict(evaluation) for name, evaluation in self.evaluations.items()},
        }
        if self.live is not None:
            result["live"] = {**self.live.figures(), "problems": self.foreseen}
        return {**result, "drift": self.drift.figures()}


def check(settings: Settings, database: Database, job: Job) -> jobs.Outcome:
    """Judge what is served; where it is stale, ask for a retraining unless one would be in vain.

    Raises:
        PipelineError: the model does not answer, or the data files are not fit.
    """
    dataset = load_dataset(settings.train_data, settings.val_data)
    data = evaluation_data(settings, database, dataset)
    answers = ask(settings.triton_address, data.texts)
    sample = live_sample(database, answers.version)
    found = _Findings(
        settings,
        answers.version,
        data.evaluate(answers),
        live_quality(settings, answers, data, sample),
        live_drift(dataset, data, answers, sample),
    )
    result = found.result()
    last = _last_result(database, answers.version)
    if reasons := found.reasons():
        merged = merge(database, dataset)
        result["decision"] = _ask_for_retraining(database, retraining_key(settings, merged.fingerprint), reasons)
    news = _news(found, last, result.get("decision", ""))
    with database.transaction() as session:
        for kind, message, figures in news:
            events.record(session, kind, message, figures, version=answers.version, job_id=job.id)
    for _, message, _ in news:
        log.info("%s", message.partition("\n")[0])
    return jobs.Outcome(jobs.SUCCEEDED, result)


def shortfalls(settings: Settings, evaluations: dict[str, Evaluation]) -> list[str]:
    """What is under a threshold, in words; feedback counts from a number of texts on."""
    problems = []
    for name, evaluation in evaluations.items():
        if name == "feedback" and evaluation.texts < settings.min_feedback:
            continue
        for figure, value, least in (
            ("accuracy", evaluation.accuracy, settings.min_accuracy),
            ("macro F1", evaluation.macro_f1, settings.min_macro_f1),
        ):
            if value < least:
                problems.append(f"{figure} on {name} is {value:.4f}, under {least:g} ({evaluation.texts} texts)")
    return problems


def retraining_key(settings: Settings, fingerprint: str) -> str:
    """Names what a retraining learns from, and how: with the same key it would make the same model."""
    how = settings.model_dump(
        mode="json", include={"base_model", "max_length", "epochs", "batch_size", "learning_rate", "seed"}
    )
    return hashlib.sha256(json.dumps([fingerprint, how], sort_keys=True).encode()).hexdigest()


def _ask_for_retraining(database: Database, key: str, reasons: list[str]) -> str:
    """Ask for one unless it would be in vain; says what was decided."""
    reason = learnt_before(database, key) or _too_early(database)
    if reason:
        return f"No retraining: {reason}."
    job = jobs.enqueue(database, jobs.RETRAIN, "; ".join(reasons))
    return f"Retraining is job {job.id}."


def learnt_before(database: Database, key: str) -> str:
    """Which job has learnt the same, so that it would be in vain to do so again; empty where none has."""
    for job in jobs.ended_retrainings(database):
        if job.fingerprint == key and job.state != jobs.FAILED:
            return f"job {job.id} has learnt from the same data with the same settings, and was {job.state}"
    return ""


def _too_early(database: Database) -> str:
    """Why the next retraining must wait, after some in vain; empty where it need not."""
    in_vain = list(itertools.takewhile(lambda job: job.state != jobs.SUCCEEDED, jobs.ended_retrainings(database)))
    if not in_vain or in_vain[0].ended_at is None:
        return ""
    until = in_vain[0].ended_at + min(FIRST_PAUSE * 2.0 ** min(len(in_vain) - 1, 16), LONGEST_PAUSE)
    with database.reading() as session:
        if now(session) >= until:
            return ""
    times = "the last was" if len(in_vain) == 1 else f"the last {len(in_vain)} were"
    return f"{times} in vain, and the next may begin at {until:%Y-%m-%d %H:%M} UTC"


def _news(found: _Findings, last: Figures, decision: str) -> list[tuple[EventKind, str, Figures]]:
    """The events of a check: what was found, and what of it is new since the `last` one of the same version."""
    told = "; ".join(f"{name} {_told(evaluation)}" for name, evaluation in found.evaluations.items())
    if found.live is not None:
        told += f"; estimated accuracy {found.live.all.accuracy} on {found.live.all.texts} live texts"
    verdict = "stale" if found.problems else "good"
    figures: Figures = {name: evaluation.metrics() for name, evaluation in found.evaluations.items()}
    news = [(EventKind.CHECKED, f"Version {found.version} is {verdict}: {told}.", figures)]
    if found.problems and not last.get("stale"):
        message = f"Version {found.version} has become stale: {'; '.join(found.problems)}.\n{decision}"
        news.append((EventKind.STALE, message, figures))
    if found.live is not None and found.foreseen and not last.get("live", {}).get("problems"):
        message = f"Version {found.version} seems to do badly on live texts: {'; '.join(found.foreseen)}."
        estimates: Figures = {name: str(part.accuracy) for name, part in found.live.parts.items()}
        news.append((EventKind.ESTIMATED_LOW, message, estimates))
    known = {kind for kind, item in last.get("drift", {}).items() if item["alarm"]}
    if alarms := {kind: alarm for kind, alarm in found.drift.alarms.items() if kind not in known}:
        lines = [f"Drift of {', '.join(alarms)}, while version {found.version} serves.", *alarms.values()]
        lines += [decision] if found.settings.retrain_on_drift else []
        news.append((EventKind.DRIFT, "\n".join(lines), found.drift.figures()))
    return news


def _last_result(database: Database, version: int) -> Figures:
    """What the last check found, if it was of the same version."""
    last = jobs.last_ended(database, jobs.CHECK)
    return last.result if last is not None and last.result.get("version") == version else {}


def _told(evaluation: Evaluation) -> str:
    return f"accuracy {evaluation.accuracy:.4f}, macro F1 {evaluation.macro_f1:.4f} ({evaluation.texts} texts)"
