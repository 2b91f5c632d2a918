"""The full training that follows a quick first version."""

from common.errors import PipelineError
from common.settings import Settings
from serving.model_repo.bundle import Bundle
from serving.model_repo.repository import ModelRepository
from storage import deployments, jobs
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
    return f"version {deployed} is a quick first version; this is the full training"


def request_full_training(settings: Settings, database: Database) -> None:
    """Enqueue the full training if a quick first version is deployed, and none was requested since it is.

    A failed one is requested again, because this is called at each start, and what failed may be mended. While the
    pipeline runs, the checks decide when to try again.
    """
    if not (reason := reason_for_full_training(settings)):
        return
    with database.reading() as session:
        deployment = deployments.serving(session)
    if deployment is not None and not jobs.has_retraining_since(database, deployment.started_at):
        jobs.enqueue(database, jobs.RETRAIN, reason)
