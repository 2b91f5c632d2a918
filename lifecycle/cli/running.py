"""What commands need that ask the deployed model."""

from common.errors import NotDeployedError, PipelineError
from common.settings import Settings
from serving.client.sockets import is_listening
from serving.model_repo.repository import ModelRepository


def require_running(settings: Settings) -> None:
    """Check that a model is deployed and that the bundled Triton runs. An external Triton may have other models.

    Raises:
        NotDeployedError: no version was ever deployed.
        PipelineError: the pipeline does not run.
    """
    if settings.triton_url is not None:
        return
    if not ModelRepository(settings.model_repository).has_record:
        raise NotDeployedError
    if not is_listening(settings.bundled_triton):
        raise PipelineError(
            "The pipeline does not run, so the deployed model cannot be asked. Start it with `python app.py` in "
            'another terminal, and wait for its line "Ready".'
        )
