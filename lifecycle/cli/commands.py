"""The commands `python app.py check`, `retrain`, `promote`, `models` and others: actions and output."""

import argparse
import logging
import re
import time
from collections.abc import Sequence

from sqlalchemy.exc import OperationalError

from common.errors import PipelineError
from common.progress import StatusLine, duration
from common.settings import Settings
from common.wording import counted
from lifecycle.cli.printing import print_json, print_table
from lifecycle.cli.running import require_running
from lifecycle.deployment import promotion
from lifecycle.deployment.version_report import describe_models
from lifecycle.jobs import mlflow_alias
from lifecycle.jobs.job_process import LEASE_LOST, BusyError, run_job
from lifecycle.monitoring.digest import digest
from serving.model_repo.repository import ModelRepository
from storage import events, jobs
from storage.database import Database
from storage.tables import Figures, Job

_POLL_S = 0.5

log = logging.getLogger(__name__)


def check(settings: Settings, options: argparse.Namespace) -> None:
    """Check the deployed model; print its figures, then the verdict, then what follows from it."""
    logging.getLogger("lifecycle.jobs.check").setLevel(logging.WARNING)  # its lines say the same as the output
    require_running(settings)  # a job that must fail would be recorded as a failure of the pipeline
    if not options.json:
        print("Checking the deployed version; this takes some seconds, or a minute on a busy machine.", flush=True)
    job = _do(settings, jobs.CHECK)
    if options.json:
        print_json(job.result)
        return
    if job.state == jobs.SKIPPED:
        print(f"No check: {job.result['reason']}.")
        return
    rows = [
        [name, f"{found['texts']:,.0f}"]
        + [f"{found[figure]:.4f}" for figure in ("accuracy", "macro_f1", "calibration_error")]
        + [", ".join(f"{label} {f1:.4f}" for label, f1 in found["f1_by_label"].items())]
        for name in ("validation", "feedback")
        if (found := job.result.get(name))
    ]
    print_table(["data", "texts", "accuracy", "macro F1", "calibration error", "F1 by label"], rows)
    if live := job.result.get("live"):
        print(f"Estimated without labels on live texts from {live['from']} to {live['to']}, with 95% intervals:")
        rows = [
            [
                name,
                f"{part['texts']:,.0f}",
                _interval(part["accuracy"]),
                _interval(part["macro_f1"]),
                ", ".join(f"{label} {_interval(f1)}" for label, f1 in part["f1_by_label"].items()),
            ]
            for name, part in live["parts"].items()
        ]
        print_table(["texts", "number", "accuracy", "macro F1", "F1 by label"], rows)
        if live["parts"]["all"]["disagree"]:
            methods = [f"{value:.0%} by {name}" for name, value in live["parts"]["all"]["methods"].items()]
            print(
                f"The estimates of the accuracy differ: {', '.join(methods)}. The interval is wider for it; labels for "
                "some live texts settle it (`python app.py label`)."
            )
        elif job.result["drift"].get("texts", {}).get("alarm"):
            print("These texts differ from the training data, so the estimate may be far off.")
        for problem in live["problems"]:
            print(f"Warning: {problem}.")
    if quiet := [kind for kind, item in job.result["drift"].items() if not item["alarm"]]:
        print(f"No drift of {' and of '.join(quiet)} was found.")
    for kind, item in job.result["drift"].items():
        if item["alarm"]:
            measure = f"ROC AUC {_interval(item['auc'])}" if "auc" in item else f"distance {item['distance']:.4f}"
            print(f"Drift of {kind}: {item['alarm']} ({measure}).")
    print(job.result["summary"])
    if decision := job.result.get("decision"):
        print(decision + _what_became(settings, decision))


def retrain(settings: Settings, options: argparse.Namespace) -> None:
    """Retrain now; promote a candidate that passes every gate, or start its shadow or canary."""
    ModelRepository(settings.model_repository).require_deployed()  # as for a check
    job = _do(settings, jobs.RETRAIN)
    if options.json:
        print_json(jobs.as_json(job))
    elif "tried" in job.result:
        print(f"Version {job.result['version']} passed every gate; its {job.result['tried']} has started.")
    elif job.state == jobs.SUCCEEDED:
        print(f"Version {job.result['version']} passed every gate and is deployed.")
    elif job.state == jobs.REJECTED:
        print(f"Version {job.result['version']} was rejected by {', '.join(job.result['gates'])}.")
    else:
        print(f"No retraining: {job.result['reason']}.")


def cancel(settings: Settings, options: argparse.Namespace) -> None:
    """Cancel a job."""
    job = jobs.request_cancel(_open(settings), options.job)
    if job is None:
        raise PipelineError(f"There is no job {options.job}.")
    ends = "is being cancelled" if job.cancel_requested else "deploys its version and can no longer be cancelled"
    if job.ended_at is not None:
        ends = f"is {job.state}"
    print(f"Job {job.id} ({job.kind}) {ends}.")


def promote(settings: Settings, options: argparse.Namespace) -> None:
    """Deploy a version, whatever the verdicts of the gates."""
    database = _open(settings)
    promotion.promote(settings, database, options.version, "by command")
    print(f"Version {options.version} is deployed.")
    _set_alias(settings, database)


def rollback(settings: Settings, _: argparse.Namespace) -> None:
    """Deploy the previous version again."""
    database = _open(settings)
    version = promotion.roll_back(settings, database, "by command")
    print(f"Version {version} is deployed.", flush=True)
    _set_alias(settings, database)


def models(settings: Settings, options: argparse.Namespace) -> None:
    """Print all versions."""
    found = describe_models(settings, _open(settings))
    if options.json:
        print_json(found)
        return
    rows = [
        [
            str(model["version"]),
            ", ".join([*model["aliases"], *["quick version"] * model["quick"]]),
            *(
                f"{metrics[name]:.4f}" if name in metrics else "–"
                for metrics, name in (
                    (model["metrics"], "accuracy"),
                    (model["metrics"], "macro_f1"),
                    (model["feedback_metrics"], "accuracy"),
                )
            ),
            _gates(model["gates"]),
            "; ".join(f"{_short(time['from'])} – {_short(time['to'])}" for time in model["served"])
            # The start of the pipeline records the deployment of an export or import.
            or ("from the next start on" if "champion" in model["aliases"] else "never"),
            "yes" if model["published"] else "removed",
        ]
        for model in found
    ]
    columns = ["version", "alias", "accuracy", "macro F1", "on feedback", "gates", "deployed (UTC)", "on disk"]
    print_table(columns, rows, "No versions yet.")
    if any(model["feedback_metrics"] for model in found):
        print("Accuracy and macro F1 are on the validation texts; `on feedback` is accuracy on held-out feedback.")
    for model in found:
        if model["quick"] and "texts" in model["metrics"]:
            texts = counted(int(model["metrics"]["texts"]), "validation text")
            print(f"Version {model['version']} is a quick one: its accuracy and macro F1 are on {texts}.")


def show_digest(settings: Settings, _: argparse.Namespace) -> None:
    """Print the digest of the last seven days."""
    print(digest(_open(settings)))


def list_events(settings: Settings, options: argparse.Namespace) -> None:
    """Print the newest events, the latest last."""
    kinds = [kind.value for kind in events.EventKind]
    if options.kind is not None and options.kind not in kinds:
        raise PipelineError(f"--kind {options.kind}: there is no such kind of event. Choose one of {', '.join(kinds)}.")
    found = events.newest(_open(settings), options.limit, options.kind)[::-1]
    if options.json:
        print_json([events.as_json(event) for event in found])
        return
    print_table(
        ["when (UTC)", "event", "what happened"],
        [[f"{event.at:%m-%d %H:%M:%S}", event.kind, event.message.partition("\n")[0]] for event in found],
    )


def run_waiting_job(settings: Settings, options: argparse.Namespace) -> None:
    """Run a queued job; the scheduler starts this command."""
    try:
        job = run_job(settings, _open(settings), options.job, resumes=True)
    except BusyError as busy:  # not a failure: another process has started the job first
        log.info("%s", busy)
        return
    except OperationalError as error:
        reason = str(error.orig).partition("\n")[0]
        log.critical("Job %d ends here and resumes later: the database cannot be used (%s).", options.job, reason)
        raise SystemExit(LEASE_LOST) from error
    if job.state == jobs.FAILED:
        log.error("Job %d (%s) failed: %s", job.id, job.kind, job.error)


def name_champion(settings: Settings, _: argparse.Namespace) -> None:
    """Set MLflow's alias `champion` to the deployed version."""
    version = mlflow_alias.set_alias(settings, _open(settings))
    log.info("MLflow's alias champion now points to version %d.", version)


def _open(settings: Settings) -> Database:
    return Database(settings.database)


def _what_became(settings: Settings, decision: str) -> str:
    """Return how the job that a check requested has ended in the meantime; empty if it has not, or there is none."""
    requested = re.search(r"job (\d+)\.$", decision)
    database = _open(settings)
    job = jobs.get(database, int(requested[1])) if requested else None
    return f" It has ended meanwhile: {job.state}." if job is not None and job.ended_at is not None else ""


def _do(settings: Settings, kind: jobs.Kind) -> Job:
    """Run a job here, or wait until another process has run it; return the job if it ended well."""
    database = _open(settings)
    job = jobs.enqueue(database, kind, "by command")
    try:
        job = run_job(settings, database, job.id)
    except BusyError:
        job = _wait(database, job)
    if job.state in (jobs.FAILED, jobs.CANCELLED):
        raise PipelineError(f"Job {job.id} ({kind}) {job.state}: {job.error or 'its cancellation was requested'}")
    return job


def _wait(database: Database, job: Job) -> Job:
    """Show the steps of a job that another process runs, until it has ended; return it."""
    log.info(
        "Another process, usually the scheduler of the running pipeline, does job %d. This command shows its steps "
        "until it ends. Ctrl-C ends only the waiting: the job continues, and `python app.py cancel %d` cancels it.",
        job.id,
        job.id,
    )
    line, began, shown = StatusLine(), time.monotonic(), ""
    while job.ended_at is None:
        now = f"job {job.id} ({job.kind})  {job.step or job.state}"
        if now != shown or line.is_due():
            line.show(f"{now}  waiting for {duration(time.monotonic() - began)}")
            shown = now
        time.sleep(_POLL_S)
        job = jobs.get(database, job.id) or job
    line.show(f"job {job.id} ({job.kind})  {job.state} after {duration(time.monotonic() - began)}", stays=True)
    return job


def _set_alias(settings: Settings, database: Database) -> None:
    try:
        mlflow_alias.set_alias(settings, database)
    except PipelineError as error:
        log.warning("Cannot set MLflow's alias champion now; the scheduler tries again: %s", error)


def _gates(verdicts: Sequence[Figures]) -> str:
    failed = [verdict["gate"] for verdict in verdicts if not verdict["passed"]]
    if failed:
        return f"failed: {', '.join(failed)}"
    return f"all {len(verdicts)} passed" if verdicts else "not run"


def _interval(estimate: Sequence[float]) -> str:
    value, low, high = estimate
    return f"{value:.4f} ({low:.4f}–{high:.4f})"


def _short(time_: str | None) -> str:
    return time_[5:16].replace("T", " ") if time_ else "now"
