"""Keeps MLflow's alias `champion` on the deployed version, however long MLflow was unavailable."""

import os

from common.settings import Settings
from serving.model_repo.repository import ModelRepository
from storage import deployments
from storage.database import Database


def is_behind(database: Database) -> bool:
    """Return whether the alias still has to be set to the deployed version."""
    with database.reading() as session:
        serving = deployments.serving(session)
        return serving is not None and not serving.alias_set


def set_alias(settings: Settings, database: Database) -> int:
    """Point the alias at the deployed version; return that version.

    Raises:
        PipelineError: no version is deployed, or MLflow cannot be used.
    """
    # MLflow's own retries take four minutes. The caller need not wait for them: the scheduler tries again later.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    # The import takes seconds, and the serving process has no other use for it.
    from trainer.tracking import Tracking

    version = ModelRepository(settings.model_repository).require_deployed()
    Tracking(settings).set_champion(version)
    deployments.mark_alias_set(database, version)
    return version
