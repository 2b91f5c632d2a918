"""Has the Tritons load the version that is tried, as a model of its own beside the one that serves, and forget it."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

from errors import PipelineError
from lifecycle.rollout import LOAD_TIMEOUT_S
from serving.protocol import CHALLENGER_NAME
from serving.repository import ModelRepository
from serving.triton_client import LoadRefusedError, TritonClient, TritonUnavailableError

_UNLOAD_TIMEOUT_S = 60.0


class ChallengerError(PipelineError):
    """A Triton cannot load the version, and says why."""


class EndedLoadingError(ChallengerError):
    """A Triton ended while it loaded the version, because of it or not."""


def load(addresses: Sequence[str], repository: ModelRepository, version: int) -> bool:
    """Have each Triton that runs, and has not loaded `version` as its challenger, do so; returns whether all have it.

    Raises:
        ChallengerError: one refuses, or ends meanwhile, or the version is not whole.
    """

    async def has_it(client: TritonClient) -> bool | None:
        try:
            return await client.loaded_versions() == {version}
        except TritonUnavailableError:
            return None  # it is given the version when it runs

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
    """Whether a Triton that runs has loaded a challenger, whichever."""

    async def has_any(client: TritonClient) -> bool:
        try:
            return bool(await client.loaded_versions())
        except TritonUnavailableError:
            return False

    return any(_for_each(addresses, has_any))


def unload(addresses: Sequence[str], repository: ModelRepository) -> None:
    """Have each Triton that runs forget its challenger; what it was asked before is answered."""

    async def unload_one(client: TritonClient) -> None:
        with suppress(TritonUnavailableError):  # one that starts loads none
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
