"""Keeps MLflow's alias `champion` on the version that serves, however long MLflow was away."""

import os

from errors import PipelineError
from serving.repository import ModelRepository
from settings import Settings
from storage import deployments
from storage.database import Database


def is_behind(database: Database) -> bool:
    """Whether the alias is not known to name the version that serves."""
    with database.reading() as session:
        serving = deployments.serving(session)
        return serving is not None and not serving.alias_set


def set_alias(settings: Settings, database: Database) -> int:
    """Point the alias at the deployed version; returns it.

    Raises:
        PipelineError: nothing is deployed, or MLflow cannot be used.
    """
    # Who calls has something better to do than MLflow's own four minutes of retries, for it is tried again later.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    # Takes seconds to import, and the process that serves has no other use for it.
    from trainer.tracking import Tracking

    version = ModelRepository(settings.model_repository).deployed()
    if version is None:
        raise PipelineError("No model is deployed, so the alias has nothing to name.")
    Tracking(settings).set_champion(version)
    deployments.mark_alias_set(database, version)
    return version
