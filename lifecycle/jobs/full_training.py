"""The full training that follows a quick first version."""

from common.errors import PipelineError
from common.settings import Settings
from serving.model_repo.bundle import Bundle
from serving.model_repo.repository import ModelRepository
from storage import jobs
from storage.database import Database


def reason_for_full_training(settings: Settings) -> str:
    """Return why the deployed version is to be replaced by a full training; empty if it is not a quick one."""
    repository = ModelRepository(settings.model_repository)
    try:
        deployed = repository.deployed()
        if deployed is None or not Bundle.load(repository.version_directory(deployed)).quick:
            return ""
    except PipelineError:  # a damaged version is reported where it is loaded
        return ""
    return f"version {deployed} is a quick first version; this is the full training with {settings.base_model}"


def request_full_training(settings: Settings, database: Database) -> None:
    """Enqueue the full training after a quick first version, unless a retraining was requested before.

    If that one ends without a new version, the checks decide when to try again.
    """
    if (reason := reason_for_full_training(settings)) and not jobs.any_retraining(database):
        jobs.enqueue(database, jobs.RETRAIN, reason)
