"""Loads the version on trial into the Tritons, as a separate model beside the deployed one, and unloads it."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

from common.errors import PipelineError
from lifecycle.deployment.rollout import LOAD_TIMEOUT_S
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

    found = _for_each(addresses, has_it)
    if False in found or not repository.has_challenger_of(version):
        try:
            repository.lay_challenger(version)
        except PipelineError as error:
            raise ChallengerError(str(error)) from error
    _for_each([address for address, has in zip(addresses, found, strict=True) if has is False], load_one)
    return None not in found


def is_loaded(addresses: Sequence[str]) -> bool:
    """Return whether any running Triton has loaded a challenger, of any version."""

    async def has_any(client: TritonClient) -> bool:
        try:
            return bool(await client.loaded_versions())
        except TritonUnavailableError:
            return False

    return any(_for_each(addresses, has_any))


def unload(addresses: Sequence[str], repository: ModelRepository) -> None:
    """Unload the challenger from each running Triton; requests in progress still get their response."""

    async def unload_one(client: TritonClient) -> None:
        with suppress(TritonUnavailableError):  # a Triton that starts later loads no challenger
            if await client.loaded_versions():
                await client.unload_model(_UNLOAD_TIMEOUT_S)

    _for_each(addresses, unload_one)
    repository.remove_challenger()


def _for_each(addresses: Sequence[str], do: Callable[[TritonClient], Coroutine[Any, Any, Any]]) -> list[Any]:
    async def with_client(address: str) -> Any:
        client = TritonClient(address, CHALLENGER_NAME)
        try:
            return await do(client)
        finally:
            await client.close()

    async def all_of_them() -> list[Any]:
        return await asyncio.gather(*map(with_client, addresses))

    return asyncio.run(all_of_them())
