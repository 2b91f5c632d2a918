"""Loads the version on trial into the Tritons, as a separate model beside the deployed one, and unloads it."""

from collections.abc import Sequence
from contextlib import suppress

from common.errors import PipelineError
from lifecycle.deployment.rollout import LOAD_TIMEOUT_S, for_each
from serving.client.errors import ControlRefusedError, LoadRefusedError, TritonUnavailableError
from serving.client.triton_client import TritonClient
from serving.model_repo.protocol import CHALLENGER_NAME
from serving.model_repo.repository import ModelRepository

_UNLOAD_TIMEOUT_S = 60.0


class ChallengerError(PipelineError):
    """A Triton cannot load the version; the message says why."""


class EndedLoadingError(ChallengerError):
    """A Triton ended while it loaded the version, perhaps because of the version."""


def load(addresses: Sequence[str], repository: ModelRepository, version: int) -> bool:
    """Load `version` as challenger in each running Triton that does not have it; return whether all Tritons have it.

    Raises:
        ChallengerError: a Triton refuses, or ends meanwhile, or the version is not complete.
    """

    async def has_it(client: TritonClient) -> bool | None:
        try:
            return await client.loaded_versions() == {version}
        except ControlRefusedError as error:
            raise ChallengerError(f"Triton at {client.address}: {error}") from error
        except TritonUnavailableError:
            return None  # it gets the version later, when it runs

    async def load_one(client: TritonClient) -> None:
        try:
            await client.load_model(LOAD_TIMEOUT_S)
        except LoadRefusedError as error:
            raise ChallengerError(f"Triton at {client.address} cannot load version {version}: {error}") from error
        except TritonUnavailableError as error:
            raise EndedLoadingError(f"Triton at {client.address} ended while it loaded version {version}") from error

    found = for_each(addresses, has_it, CHALLENGER_NAME)
    if False in found or not repository.has_challenger_of(version):
        try:
            repository.lay_challenger(version)
        except PipelineError as error:
            raise ChallengerError(str(error)) from error
    without = [address for address, has in zip(addresses, found, strict=True) if has is False]
    for_each(without, load_one, CHALLENGER_NAME)
    return None not in found


def is_loaded(addresses: Sequence[str]) -> bool:
    """Return whether any running Triton has loaded a challenger, of any version."""

    async def has_any(client: TritonClient) -> bool:
        try:
            return bool(await client.loaded_versions())
        except TritonUnavailableError:
            return False

    return any(for_each(addresses, has_any, CHALLENGER_NAME))


def unload(addresses: Sequence[str], repository: ModelRepository) -> None:
    """Unload the challenger from each running Triton; requests in progress still get their response."""

    async def unload_one(client: TritonClient) -> None:
        with suppress(TritonUnavailableError):  # a Triton that starts later loads no challenger
            if await client.loaded_versions():
                await client.unload_model(_UNLOAD_TIMEOUT_S)

    for_each(addresses, unload_one, CHALLENGER_NAME)
    repository.remove_challenger()
