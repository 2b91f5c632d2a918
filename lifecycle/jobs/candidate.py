"""What becomes of a candidate after the gates: it is rejected, tried on live texts, or takes over."""

import logging
from contextlib import suppress
from pathlib import Path

from common.errors import PipelineError
from common.settings import Settings
from lifecycle.canary.release import start, stop
from lifecycle.deployment.promotion import DeploymentError
from lifecycle.deployment.version_report import LEARNT_FROM
from lifecycle.gates.comparison import FLIPS
from lifecycle.gates.trial import BASE_MODEL_CHANGED
from lifecycle.jobs import mlflow_alias
from lifecycle.jobs.retention import remove_old_versions
from storage import events, jobs, releases
from storage.database import Database
from storage.events import EventKind
from storage.releases import Mode
from storage.tables import Figures
from storage.versions import GateVerdict
from trainer.tracking import Tracking
from trainer.train import replace_directory

log = logging.getLogger(__name__)


def reject(
    settings: Settings,
    database: Database,
    version: int,
    champion: int,
    failed: list[GateVerdict],
    learnt: Figures,
    job_id: int | None = None,
    *,
    is_update: bool = False,
) -> None:
    """Record that the gates rejected `version`, and remove old versions.

    `learnt` are its feedback rows by source. If `is_update`, a full training follows, and no mail is sent.
    """
    gates = ", ".join(verdict.gate for verdict in failed)
    reasons = "\n".join(f"{verdict.gate}: {verdict.message}" for verdict in failed)
    with database.transaction() as session:
        follows = " A full training follows this update." if is_update else ""
        message = f"Version {version} was rejected by {gates}; version {champion} stays deployed.{follows}\n{reasons}"
        if learnt:
            message += f"\nIt was trained on {sum(learnt.values())} rows of feedback{from_sources(learnt)}."
        figures: Figures = {**{verdict.gate: verdict.figures for verdict in failed}, LEARNT_FROM: learnt}
        kind = EventKind.UPDATE_REJECTED if is_update else EventKind.REJECTED
        events.record(session, kind, message, figures, version=version, job_id=job_id)
    log.warning("%s", message)
    remove_old_versions(settings, database, Tracking(settings).aliased())


def from_sources(by_source: Figures) -> str:
    """Return the rows of each source in words, in parentheses; empty without any."""
    rows = sorted(by_source.items(), key=lambda item: -item[1])
    return f" ({', '.join(f'{count} from {source}' for source, count in rows)})" if rows else ""


def try_live(settings: Settings, database: Database, version: int, mode: Mode, reason: str) -> None:
    """Start the shadow or canary of the version, unless it has had one; stop another one first.

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


def take_over(settings: Settings, database: Database, version: int, model: Path, mode: Mode | None) -> None:
    """Finish, repeatably, for an accepted version: model files, MLflow alias, old versions, and a check if deployed.

    `model` is the directory of its model, if it still has to be moved to that of the settings; `mode` is the trial that
    has started instead of a promotion.
    """
    if model.exists():
        replace_directory(settings.model_dir, model)
    try:
        mlflow_alias.set_alias(settings, database)
        remove_old_versions(settings, database, Tracking(settings).aliased())
    except PipelineError as error:
        log.warning("Cannot set MLflow's alias champion now; the scheduler tries again: %s", error)
    if mode is None:
        jobs.enqueue(database, jobs.CHECK, f"version {version} was promoted")


def costs(verdicts: list[GateVerdict]) -> str:
    """Return what another base model costs, to follow a reason; empty if the base model is the champion's."""
    found = (verdict.message for verdict in verdicts if verdict.message.startswith(BASE_MODEL_CHANGED))
    return next((f". {message.removesuffix('.')}" for message in found), "")


def promotion_figures(before: Figures, verdicts: list[GateVerdict]) -> Figures:
    """Return the figures of a promotion's event; `before` are the champion's metrics."""
    (flips,) = [verdict.figures for verdict in verdicts if verdict.gate == FLIPS]
    return {"before": before, "after": figures_of(verdicts), "negative flips": flips}


def figures_of(verdicts: list[GateVerdict]) -> Figures:
    """Return the candidate's figures on the evaluation data."""
    return next(verdict.figures for verdict in verdicts if verdict.gate == "thresholds")
