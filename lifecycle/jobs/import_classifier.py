"""Imports a classifier that was fine-tuned elsewhere, and deploys it or puts it through the gates."""

import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import PipelineError
from common.settings import Settings
from export.export import export
from export.own_model import import_classifier
from lifecycle.deployment.promotion import promote
from lifecycle.gates.evaluation_data import evaluation_data
from lifecycle.gates.run_gates import NEED_TEXTS, run_gates
from lifecycle.jobs.candidate import costs, promotion_figures, reject, take_over, try_live
from serving.model_repo.bundle import Bundle
from serving.model_repo.repository import ModelRepository
from storage import jobs, leases
from storage.database import Database
from storage.versions import add_verdicts, add_version
from trainer.kept_data import keep
from trainer.own_classifier import load_classifier
from trainer.tracking import Tracking

LEASE_S = 60.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Imported:
    """What became of an imported classifier."""

    version: int
    outcome: str
    """In words, to follow `Version N`."""
    rejected: bool = False


def import_version(settings: Settings, database: Database, source: str, labels: Sequence[str]) -> Imported:
    """Import the classifier `source` as a version, whose outputs have these `labels`, or those of its configuration.

    If no version is deployed, it is deployed. Otherwise it passes through the gates, as the candidate of a retraining
    does. Without texts to compare both versions on, nothing is promoted.

    Raises:
        PipelineError: it cannot be imported, exported or tried, or a retraining or another import runs.
    """
    directory = settings.state_dir / "import"
    with leases.held(database, jobs.RETRAIN, LEASE_S, on_loss=_die) as is_held:
        if not is_held:
            load_classifier(settings, source, labels)  # what is wrong with it is told now, not after the wait
            with database.reading() as session:
                retrainings = [job for job in jobs.active(session) if job.kind == jobs.RETRAIN]
                running = next((job for job in retrainings if job.state == jobs.RUNNING), None)
            raise PipelineError(
                f"A retraining runs, job {running.id}. Wait until it has ended, or end it with `python app.py cancel "
                f"{running.id}`; then import the classifier."
                if running
                else "Another import runs. Import the classifier when it has ended."
            )
        shutil.rmtree(directory, ignore_errors=True)  # left by a process that was killed
        try:
            return _import(settings, database, source, labels, directory)
        finally:
            shutil.rmtree(directory, ignore_errors=True)


def _die() -> None:
    log.critical("The lease for the import was lost. Another process may train or import, so this process ends.")
    os._exit(1)


def _import(settings: Settings, database: Database, source: str, labels: Sequence[str], directory: Path) -> Imported:
    repository = ModelRepository(settings.model_repository)
    champion = repository.deployed()
    directory.mkdir(parents=True)
    model = directory / "model"
    # The files of a deployed model stay until another takes its place.
    own = settings if champion is None else settings.model_copy(update={"model_dir": model})
    known = () if champion is None else Bundle.load(repository.version_directory(champion)).labels
    record, dataset = import_classifier(own, source, labels, repository.published(), known)
    version = record.version
    export(own, dataset)
    champion = repository.deployed()  # it may have changed meanwhile
    if champion is None or champion == version:
        return Imported(version, "is deployed; `python app.py` serves it")
    deployed = Bundle.load(repository.version_directory(champion))
    if set(deployed.labels) != set(record.labels):
        log.warning(
            "Version %d has the labels %s, and version %d, which is deployed, has %s. Once it is promoted, clients get "
            "the new ones; --labels keeps the names.",
            version,
            ", ".join(record.labels),
            champion,
            ", ".join(deployed.labels),
        )
    data = evaluation_data(settings, database, dataset)
    with database.transaction() as session:
        add_version(session, Bundle.load(repository.version_directory(version)))
    verdicts = run_gates(settings, repository, data, champion, version, directory / "trial")
    add_verdicts(database, version, verdicts)
    Tracking(settings).record_verdicts(version, {verdict.gate: verdict.passed for verdict in verdicts})
    if failed := [verdict for verdict in verdicts if not verdict.passed]:
        reject(settings, database, version, champion, failed, {})
        gates = ", ".join(verdict.gate for verdict in failed)
        return Imported(version, f"was rejected by {gates}; version {champion} stays deployed", rejected=True)
    if not data.texts:
        return Imported(
            version,
            f"passed the other gates, but without a validation file {', '.join(NEED_TEXTS)} cannot judge it, so "
            f"version {champion} stays deployed. `python app.py promote {version}` deploys it",
        )
    reason = f"{source} was imported and passed every gate{costs(verdicts)}"
    if settings.release != "at-once":
        try_live(settings, database, version, settings.release, reason)
        take_over(settings, database, version, model, settings.release)
        return Imported(version, f"passed every gate; its {settings.release} has started")
    figures = promotion_figures(deployed.metrics, verdicts)
    promote(settings, database, version, reason, figures, only_from=champion)
    keep(settings, version, dataset)
    take_over(settings, database, version, model, None)
    return Imported(version, "passed every gate and is deployed")
