"""The commands of the loop: what `python app.py check`, `models` and the others do and print."""

import argparse
import csv
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from errors import PipelineError
from lifecycle import alias, promotion
from lifecycle.job_process import BusyError, run_job
from lifecycle.models import describe_models
from lifecycle.printing import print_json, print_table
from lifecycle.suggesting import MOST_SUGGESTIONS
from serving.bundle import Bundle
from serving.repository import ModelRepository
from serving.texts import FORMULA_STARTS
from settings import Settings
from storage import events, jobs
from storage.database import Database
from storage.events import EventKind
from storage.feedback import LabelledText, add_feedback
from storage.tables import Figures, Job

_POLL_S = 0.5

log = logging.getLogger(__name__)


def check(settings: Settings, options: argparse.Namespace) -> None:
    """Check what is served; print its figures."""
    job = _do(settings, jobs.CHECK)
    if options.json:
        print_json(job.result)
        return
    rows = [
        [name, str(found["texts"])]
        + [f"{found[figure]:.4f}" for figure in ("accuracy", "macro_f1", "calibration_error")]
        + [", ".join(f"{label} {f1:.4f}" for label, f1 in found["f1_by_label"].items())]
        for name in ("validation", "feedback")
        if (found := job.result.get(name))
    ]
    print_table(["on", "texts", "accuracy", "macro F1", "calibration error", "F1 by label"], rows)
    if live := job.result.get("live"):
        print(f"Estimated without labels, on live texts from {live['from']} to {live['to']}, with intervals:")
        rows = [
            [
                name,
                str(part["texts"]),
                _interval(part["accuracy"]),
                _interval(part["macro_f1"]),
                ", ".join(f"{label} {_interval(f1)}" for label, f1 in part["f1_by_label"].items()),
            ]
            for name, part in live["parts"].items()
        ]
        print_table(["on", "texts", "accuracy", "macro F1", "F1 by label"], rows)
        if job.result["drift"].get("texts", {}).get("alarm"):
            print("These texts are unlike those that the model learnt from, so the estimate may be far off.")
        for problem in live["problems"]:
            print(f"Foreseen: {problem}.")
    for kind, item in job.result["drift"].items():
        measure = f"ROC AUC {_interval(item['auc'])}" if "auc" in item else f"distance {item['distance']:.4f}"
        print(f"Drift of {kind}: {measure}{', ' + item['alarm'] if item['alarm'] else ', no alarm'}.")
    for problem in job.result["problems"]:
        print(f"Stale: {problem}.")
    print(job.result.get("decision", f"Version {job.result['version']} is good."))


def retrain(settings: Settings, options: argparse.Namespace) -> None:
    """Retrain now; promotes what passes every gate."""
    job = _do(settings, jobs.RETRAIN)
    if options.json:
        print_json(jobs.as_json(job))
    elif "tried" in job.result:
        print(f"Version {job.result['version']} passed every gate and is tried on live texts ({job.result['tried']}).")
    elif job.state == jobs.SUCCEEDED:
        print(f"Version {job.result['version']} passed every gate and serves.")
    elif job.state == jobs.REJECTED:
        print(f"Version {job.result['version']} was rejected by {', '.join(job.result['gates'])}.")
    else:
        print(f"No retraining: {job.result['reason']}.")


def cancel(settings: Settings, options: argparse.Namespace) -> None:
    """Have a job end."""
    job = jobs.request_cancel(_open(settings), options.job)
    if job is None:
        raise PipelineError(f"There is no job {options.job}.")
    ends = "is being cancelled" if job.state == jobs.RUNNING else f"is {job.state}"
    print(f"Job {job.id} ({job.kind}) {ends}.")


def promote(settings: Settings, options: argparse.Namespace) -> None:
    """Have a version serve, whatever the gates said of it."""
    database = _open(settings)
    promotion.promote(settings, database, options.version, "by command")
    print(f"Version {options.version} serves.")
    _set_alias(settings, database)


def rollback(settings: Settings, _: argparse.Namespace) -> None:
    """Have the version serve that did before."""
    database = _open(settings)
    version = promotion.roll_back(settings, database, "by command")
    print(f"Version {version} serves.", flush=True)
    _set_alias(settings, database)


def models(settings: Settings, options: argparse.Namespace) -> None:
    """Print every version."""
    found = describe_models(settings, _open(settings))
    if options.json:
        print_json(found)
        return
    rows = [
        [
            str(model["version"]),
            ", ".join(model["aliases"]),
            f"{model['metrics'].get('accuracy', 0):.4f}",
            f"{model['metrics'].get('macro_f1', 0):.4f}",
            _gates(model["gates"]),
            "; ".join(f"{_short(time['from'])} – {_short(time['to'])}" for time in model["served"]) or "never",
            "yes" if model["published"] else "removed",
        ]
        for model in found
    ]
    print_table(["version", "alias", "accuracy", "macro F1", "gates", "served (UTC)", "on disk"], rows)


def list_events(settings: Settings, options: argparse.Namespace) -> None:
    """Print what the loop did, the newest last."""
    found = events.newest(_open(settings), options.limit, options.kind)[::-1]
    if options.json:
        print_json([events.as_json(event) for event in found])
        return
    print_table(
        ["when (UTC)", "event", "what happened"],
        [[f"{event.at:%m-%d %H:%M:%S}", event.kind, event.message.partition("\n")[0]] for event in found],
    )


def import_feedback(settings: Settings, options: argparse.Namespace) -> None:
    """Import a CSV file of feedback, all of it or nothing."""
    rows = _read_feedback(options.file, _known_labels(settings))
    database = _open(settings)
    add_feedback(database, rows, source=options.file.name)
    counted = f"{len(rows):,} rows of feedback were" if len(rows) > 1 else "One row of feedback was"
    message = f"{counted} imported from {options.file.name}."
    with database.transaction() as session:
        events.record(session, EventKind.FEEDBACK_IMPORTED, message, {"rows": len(rows)})
    print(message)


def suggest(settings: Settings, options: argparse.Namespace) -> None:
    """Print what to label next, or write it to a CSV file for a person to fill in."""
    from lifecycle import suggestions

    if not 1 <= options.limit <= MOST_SUGGESTIONS:
        raise PipelineError(f"--limit is {options.limit}; 1 to {MOST_SUGGESTIONS} texts can be suggested.")
    found = suggestions.suggest(settings, _open(settings), options.limit)
    if options.out is not None:
        _write_to_label(options.out, [item.text for item in found.texts])
        counted = f"{len(found.texts):,} texts are" if len(found.texts) != 1 else "One text is"
        print(f"{counted} in {options.out}: fill in the labels, then `python app.py feedback {options.out}`.")
    elif options.json:
        print_json(found.figures())
    else:
        rows = [
            [
                f"{item.uncertainty:.2f}",
                "–" if item.drift is None else f"{item.drift:.2f}",
                f"{item.label} {item.score:.2f}",
                item.text,
            ]
            for item in found.texts
        ]
        print_table(["uncertain", "new", "the model says", "text"], rows)
        print(f"Of {found.considered:,} sampled texts that have no label and are not held out.")


def run_waiting_job(settings: Settings, options: argparse.Namespace) -> None:
    """Do a job that waits; the scheduler starts this."""
    try:
        run_job(settings, _open(settings), options.job)
    except BusyError as busy:  # a command was quicker, which is no failure
        log.info("%s", busy)


def name_champion(settings: Settings, _: argparse.Namespace) -> None:
    """Have MLflow's alias `champion` name the version that serves."""
    version = alias.set_alias(settings, _open(settings))
    log.info("MLflow's alias champion names version %d.", version)


def _open(settings: Settings) -> Database:
    return Database(settings.database)


def _do(settings: Settings, kind: jobs.Kind) -> Job:
    """Do a job here, or wait until another process has; returns it when it has ended well."""
    database = _open(settings)
    job = jobs.enqueue(database, kind, "by command")
    try:
        job = run_job(settings, database, job.id)
    except BusyError:
        log.info("Job %d is being done by another process; waiting for it.", job.id)
        while job.ended_at is None:
            time.sleep(_POLL_S)
            job = jobs.get(database, job.id) or job
    if job.state in (jobs.FAILED, jobs.CANCELLED):
        raise PipelineError(f"Job {job.id} ({kind}) {job.state}: {job.error or 'it was asked to end'}")
    return job


def _set_alias(settings: Settings, database: Database) -> None:
    try:
        alias.set_alias(settings, database)
    except PipelineError as error:
        log.warning("MLflow's alias is set later: %s", error)


def _known_labels(settings: Settings) -> tuple[str, ...]:
    repository = ModelRepository(settings.model_repository)
    deployed = repository.deployed()
    if deployed is None:
        raise PipelineError("No model is deployed, so no label is known; run `python app.py` first.")
    return Bundle.load(repository.version_directory(deployed)).labels


def _read_feedback(path: Path, labels: tuple[str, ...]) -> list[LabelledText]:
    from trainer.dataset import read_labelled_texts

    texts = read_labelled_texts(path, labels)
    return [LabelledText(text, label) for text, label in zip(texts.texts, texts.labels, strict=True)]


def _write_to_label(path: Path, texts: Sequence[str]) -> None:
    """A file that the import reads, once its labels are there."""
    if path.exists():
        raise PipelineError(f"{path} is there already, perhaps with labels; name another file.")
    with path.open("w", newline="", encoding="utf-8-sig") as file:  # with the mark by which spreadsheets know UTF-8
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(("text", "label"))
        # Strangers wrote them. After a blank, which the import takes away, no spreadsheet takes one for a formula.
        writer.writerows((f" {text}" if text.startswith(FORMULA_STARTS) else text, "") for text in texts)


def _gates(verdicts: Sequence[Figures]) -> str:
    failed = [verdict["gate"] for verdict in verdicts if not verdict["passed"]]
    if failed:
        return f"not {', '.join(failed)}"
    return f"all {len(verdicts)}" if verdicts else "none tried"


def _interval(estimate: Sequence[float]) -> str:
    value, low, high = estimate
    return f"{value:.4f} ({low:.4f}–{high:.4f})"


def _short(time_: str | None) -> str:
    return time_[5:16].replace("T", " ") if time_ else "now"
