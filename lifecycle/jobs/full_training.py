"""The full training that follows a quick first version."""

from common.errors import PipelineError
from common.settings import Settings
from lifecycle.jobs.circumstances import other_circumstances
from serving.model_repo.bundle import Bundle
from serving.model_repo.repository import ModelRepository
from storage import deployments, jobs
from storage.database import Database
from storage.tables import Job


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

    This is called at each start. A failed one is requested again, because what failed may be mended, and a rejected one
    if settings or data files have changed. While the pipeline runs, the checks decide when to try again.
    """
    if not (reason := reason_for_full_training(settings)):
        return
    with database.reading() as session:
        deployment = deployments.serving(session)
    if deployment is None:
        return
    requested = jobs.retrainings_since(database, deployment.started_at)
    if all(job.state == jobs.FAILED or _may_succeed_now(settings, job) for job in requested):
        jobs.enqueue(database, jobs.RETRAIN, reason)


def _may_succeed_now(settings: Settings, job: Job) -> bool:
    return job.state in (jobs.REJECTED, jobs.SKIPPED) and other_circumstances(settings, job)
