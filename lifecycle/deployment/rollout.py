"""Rolls out a version to all Tritons at the same moment.

1. Each Triton loads the version beside its current one, and waits (`serving.model_repo.switch`). If one cannot load it,
   the rollout fails for all, and the error names that Triton. Nothing has changed then; memory was used for a while.
   A Triton that dies meanwhile loads the version again when it is back, if another Triton could load it. Otherwise the
   version may have killed it. A Triton that was not running is skipped; it loads the deployed version at its start.
2. The record of the deployed version is replaced, and all waiting Tritons switch within hundredths of a second.
   Before, all use the previous version; afterwards, the new one. In between, each response names its version.
3. Each Triton gets a test request. If one responds with another version, say because it started just before the
   switch, it is updated (`update_tritons`, every few seconds by the serving processes). No gateway uses it before.

A killed process leaves an intention in the database, and tickets; `promotion.reconcile` removes these.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from common.errors import PipelineError
from serving.client.errors import LoadRefusedError, TextRefusedError, TritonTimeoutError, TritonUnavailableError
from serving.client.triton_client import TritonClient
from serving.model_repo.protocol import MODEL_NAME
from serving.model_repo.repository import ModelRepository
from serving.model_repo.switch import BEAT_S, Switch

LOAD_TIMEOUT_S = 300.0
"""Maximum time until all Tritons have loaded the version."""
RETURN_S = 60.0
"""Maximum time until a Triton that died while loading is back."""
_LIVE_TIMEOUT_S = 5.0
"""Reached only without any response: the host is off or very busy."""
_TURN_S = 30.0
_ANSWER_TIMEOUT_S = 10.0
_LOOK_S = 0.02

Found = TypeVar("Found")

log = logging.getLogger(__name__)


class RolloutError(PipelineError):
    """The rollout failed, and the previous version stays deployed; the message names the Triton, if one is at fault."""


def roll_out(
    addresses: Sequence[str],
    repository: ModelRepository,
    version: int,
    before_switch: Callable[[], None] = lambda: None,
) -> int:
    """Replace the record of the deployed version when all Tritons are ready; return how many then use `version`.

    Raises:
        PipelineError: a Triton is not ready, the repository's disk is full, or `before_switch` raised this; all keep
            the previous version.
    """
    try:
        return asyncio.run(_Rollout(addresses, repository, version, before_switch).run())
    except OSError as error:
        raise RolloutError(f"Cannot write to {repository.model}: {error.strerror}") from error


def outdated_tritons(addresses: Sequence[str], repository: ModelRepository) -> list[str]:
    """Return the running Tritons that have loaded another version than the deployed one, or no version."""
    deployed = repository.named()

    async def is_outdated(client: TritonClient) -> bool:
        try:
            return await client.loaded_versions() != {deployed}
        except TritonUnavailableError:
            return False

    found = zip(addresses, for_each(addresses, is_outdated), strict=True)
    return [address for address, is_out in found if is_out and deployed is not None]


def update_tritons(addresses: Sequence[str], repository: ModelRepository) -> dict[str, str]:
    """Load the deployed version in outdated Tritons; return the error of each by address, empty if there is none."""

    async def load(client: TritonClient) -> str:
        try:
            await client.load_model(LOAD_TIMEOUT_S)
        except TritonUnavailableError as error:
            return str(error)
        return ""

    outdated = outdated_tritons(addresses, repository)
    return dict(zip(outdated, for_each(outdated, load), strict=True))


def for_each(
    addresses: Sequence[str], do: Callable[[TritonClient], Coroutine[Any, Any, Found]], model: str = MODEL_NAME
) -> list[Found]:
    """Call `do` for the `model` of each Triton, all at the same time; return the results in the addresses' order."""

    async def with_client(address: str) -> Found:
        client = TritonClient(address, model)
        try:
            return await do(client)
        finally:
            await client.close()

    async def all_of_them() -> list[Found]:
        return await asyncio.gather(*map(with_client, addresses))

    return asyncio.run(all_of_them())


class _Triton:
    """A Triton that takes part in the rollout."""

    def __init__(self, address: str) -> None:
        self.client = TritonClient(address)
        self.ticket = ""
        self.load: asyncio.Task[None] | None = None
        """The call that loads the version; None until the Triton was seen running."""

    @property
    def is_lost(self) -> bool:
        """True if the load call has ended with an error."""
        return self.load is not None and self.load.done() and self.load.exception() is not None

    def message(self, problem: object) -> str:
        """Prefix a problem with the Triton's address."""
        return f"Triton at {self.client.address}: {problem}"


class _Rollout:
    def __init__(
        self, addresses: Sequence[str], repository: ModelRepository, version: int, before_switch: Callable[[], None]
    ) -> None:
        self._repository = repository
        self._before_switch = before_switch
        self._switch = Switch(repository)
        self._version = version
        self._addresses = addresses
        self._tritons: list[_Triton] = []

    async def run(self) -> int:
        self._switch.begin()
        beating = asyncio.create_task(self._beat())
        self._tritons = [_Triton(address) for address in self._addresses]
        before = self._repository.deployed()
        try:
            try:
                await asyncio.wait_for(self._prepare(), LOAD_TIMEOUT_S)
            except TimeoutError:
                late = [triton.message("it is still loading") for triton in self._running if not self._is_ready(triton)]
                raise RolloutError(f"{'; '.join(late)} after {LOAD_TIMEOUT_S:.0f} s") from None
            beating.cancel()
            if not all(map(self._is_ready, self._running)):
                raise RolloutError(
                    "this process was stopped or slow for so long that the Tritons no longer wait for it; try again"
                )
            self._before_switch()
            self._repository.deploy(self._version)
            problems = await self._see_them_turn()
            if problems and len(problems) == len(self._running) and before is not None:
                self._repository.deploy(before)
                raise RolloutError("; ".join(problems))
            for problem in problems:
                log.error("Version %d is deployed, but not on every Triton yet. %s", self._version, problem)
            return len(self._running) - len(problems)
        finally:
            beating.cancel()
            self._switch.end()
            await self._end()

    @property
    def _running(self) -> list[_Triton]:
        return [triton for triton in self._tritons if triton.load is not None]

    async def _prepare(self) -> None:
        """Return when each running Triton has loaded the version and waits."""
        while pending := [triton for triton in self._tritons if triton.load is None or triton.is_lost]:
            live = await asyncio.gather(*(self._is_there(triton) for triton in pending))
            pending = [triton for triton, is_live in zip(pending, live, strict=True) if is_live]
            if not pending:
                return
            results = await asyncio.gather(*map(self._bring_up, pending), return_exceptions=True)
            failed = [(triton, result) for triton, result in zip(pending, results, strict=True) if result is not None]
            for _, result in failed:
                if not isinstance(result, TritonUnavailableError):
                    raise result
            is_proven = len(failed) < len(self._running)
            if any(isinstance(result, LoadRefusedError) for _, result in failed) or not is_proven:
                raise RolloutError("; ".join(triton.message(result) for triton, result in failed))

    async def _beat(self) -> None:
        while True:
            self._switch.beat()
            await asyncio.sleep(BEAT_S)

    async def _is_there(self, triton: _Triton) -> bool:
        """Return whether the Triton runs; wait up to `RETURN_S` seconds for one that died while loading."""
        given_up_at = asyncio.get_running_loop().time() + RETURN_S
        while not await triton.client.is_live(_LIVE_TIMEOUT_S):
            if triton.load is None:
                return False
            if asyncio.get_running_loop().time() > given_up_at:
                raise RolloutError(
                    triton.message(
                        f"it stopped while it loaded the version, and did not restart within {RETURN_S:.0f} s"
                    )
                )
            await asyncio.sleep(0.2)
        return True

    async def _bring_up(self, triton: _Triton) -> None:
        triton.ticket = self._switch.lay_ticket()
        configuration = self._repository.configuration(self._version, triton.ticket)
        triton.load = asyncio.create_task(triton.client.load_model(LOAD_TIMEOUT_S + _TURN_S, configuration))
        while not triton.load.done():
            if self._is_ready(triton):
                return
            await asyncio.sleep(_LOOK_S)
        triton.load.result()

    def _is_ready(self, triton: _Triton) -> bool:
        return self._switch.is_ready(triton.ticket)

    async def _see_them_turn(self) -> list[str]:
        """Return the problems of the participating Tritons after the switch."""
        await self._wait_for_loads()
        problems = await asyncio.gather(*(self._problem(triton) for triton in self._running))
        return [problem for problem in problems if problem]

    async def _problem(self, triton: _Triton) -> str:
        try:
            answered = (await triton.client.classify(["I love this product!"], _ANSWER_TIMEOUT_S)).version
        except TritonTimeoutError as error:
            # Other callers may have filled its queue during the switch. Then it has responded to some of them.
            with suppress(TritonUnavailableError):
                if await triton.client.answered_calls(self._version):
                    return ""
            return triton.message(error)
        except (TritonUnavailableError, TextRefusedError) as error:
            return triton.message(error)
        return "" if answered == self._version else triton.message(f"it responds with version {answered}")

    async def _end(self) -> None:
        await self._wait_for_loads()
        for triton in self._tritons:
            await triton.client.close()  # ends a call that hangs
        await self._wait_for_loads()

    async def _wait_for_loads(self) -> None:
        loads = [triton.load for triton in self._tritons if triton.load is not None]
        if loads:
            await asyncio.wait(loads, timeout=_TURN_S)
