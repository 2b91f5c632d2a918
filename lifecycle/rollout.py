"""Has every Triton serve a version, all from one moment on.

1. Each loads the version beside the one that it answers with, and waits (`serving.switch`). One that cannot load it
   holds all of them back and is named; nothing has changed then but that memory was used for a while. One that dies
   meanwhile loads it again when it is back, if another has shown that the version can be loaded: otherwise the version
   may be what killed it. One that did not run to begin with is passed over; it loads what the record says at its start.
2. The record of what is deployed is replaced, and all that wait turn to the version within hundredths of a second.
   Before, all answer by the version before; afterwards, all by the new one; in between, each says by which it does.
3. Each is asked for an answer. One that gives another version's, say because it started just before the switch, is
   given the right one (`align`, every few seconds by the processes that serve). Gateways do not ask it until then.

Who is killed on the way leaves an intention in the database, and tickets; `promotion.reconcile` takes these away.
"""

import asyncio
import logging
from collections.abc import Sequence

from errors import PipelineError
from serving.repository import ModelRepository
from serving.switch import BEAT_S, Switch
from serving.triton_client import LoadRefusedError, TritonClient, TritonTimeoutError, TritonUnavailableError

LOAD_TIMEOUT_S = 300.0
"""Until all have loaded the version."""
RETURN_S = 60.0
"""For a Triton that died while it loaded, to come back."""
_LIVE_TIMEOUT_S = 5.0
"""Only where nothing comes back at all: a machine that is off, or one that is very busy."""
_TURN_S = 30.0
_ANSWER_TIMEOUT_S = 10.0
_LOOK_S = 0.02

log = logging.getLogger(__name__)


class RolloutError(PipelineError):
    """A Triton does not serve the version, and so none does; the message names it."""


def roll_out(addresses: Sequence[str], repository: ModelRepository, version: int) -> int:
    """Replace the record of what is deployed when all Tritons are ready for `version`; returns how many serve it then.

    Raises:
        RolloutError: one is not, or the repository's disk is full; all serve what they did before.
    """
    try:
        return asyncio.run(_Rollout(addresses, repository, version).run())
    except OSError as error:
        raise RolloutError(f"{repository.model} cannot be written to: {error.strerror}") from error


def strays(addresses: Sequence[str], repository: ModelRepository) -> list[str]:
    """The running Tritons that serve another version than the deployed one, or none."""
    return asyncio.run(_strays(addresses, repository.named()))


def align(addresses: Sequence[str], repository: ModelRepository) -> dict[str, str]:
    """Have such Tritons load what is deployed; returns what went wrong at which, empty where nothing did."""

    async def load(address: str) -> str:
        client = TritonClient(address)
        try:
            await client.load_model(LOAD_TIMEOUT_S)
        except TritonUnavailableError as error:
            return str(error)
        finally:
            await client.close()
        return ""

    async def load_all() -> dict[str, str]:
        found = await _strays(addresses, repository.named())
        return dict(zip(found, await asyncio.gather(*map(load, found)), strict=True))

    return asyncio.run(load_all())


async def _strays(addresses: Sequence[str], deployed: int | None) -> list[str]:
    async def is_stray(address: str) -> bool:
        client = TritonClient(address)
        try:
            return await client.loaded_versions() != {deployed}
        except TritonUnavailableError:
            return False
        finally:
            await client.close()

    found = await asyncio.gather(*map(is_stray, addresses))
    return [address for address, stray in zip(addresses, found, strict=True) if stray and deployed is not None]


class _Triton:
    """One of those that are to serve the version."""

    def __init__(self, address: str) -> None:
        self.client = TritonClient(address)
        self.ticket = ""
        self.load: asyncio.Task[None] | None = None
        """The call with which it loads the version; none while no Triton has been seen to run there."""

    @property
    def is_lost(self) -> bool:
        """Whether it had begun to load, and no longer does."""
        return self.load is not None and self.load.done() and self.load.exception() is not None

    def told(self, problem: object) -> str:
        """A problem with its address."""
        return f"Triton at {self.client.address}: {problem}"


class _Rollout:
    def __init__(self, addresses: Sequence[str], repository: ModelRepository, version: int) -> None:
        self._repository = repository
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
            except asyncio.TimeoutError:
                late = [triton.told("loads still") for triton in self._running if not self._is_ready(triton)]
                raise RolloutError(f"{'; '.join(late)} after {LOAD_TIMEOUT_S:.0f} s") from None
            beating.cancel()
            if not all(map(self._is_ready, self._running)):
                raise RolloutError("this process was held up for so long that the Tritons gave up waiting for it")
            self._repository.deploy(self._version)
            problems = await self._see_them_turn()
            if problems and len(problems) == len(self._running) and before is not None:
                self._repository.deploy(before)
                raise RolloutError("; ".join(problems))
            for problem in problems:
                log.error("Version %d is deployed, but not served by all yet. %s", self._version, problem)
            return len(self._running) - len(problems)
        finally:
            beating.cancel()
            self._switch.end()
            await self._end()

    @property
    def _running(self) -> list[_Triton]:
        return [triton for triton in self._tritons if triton.load is not None]

    async def _prepare(self) -> None:
        """Return when each Triton that runs has the version, and waits."""
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
                raise RolloutError("; ".join(triton.told(result) for triton, result in failed))

    async def _beat(self) -> None:
        while True:
            self._switch.beat()
            await asyncio.sleep(BEAT_S)

    async def _is_there(self, triton: _Triton) -> bool:
        """Whether a Triton runs there; one that did is waited for."""
        given_up_at = asyncio.get_running_loop().time() + RETURN_S
        while not await triton.client.is_live(_LIVE_TIMEOUT_S):
            if triton.load is None:
                return False
            if asyncio.get_running_loop().time() > given_up_at:
                raise RolloutError(triton.told(f"it ended while it loaded, and was not back in {RETURN_S:.0f} s"))
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
        """What is wrong with those that were ready, after the switch."""
        await self._wait_for_loads()
        problems = await asyncio.gather(*(self._problem(triton) for triton in self._running))
        return [problem for problem in problems if problem]

    async def _problem(self, triton: _Triton) -> str:
        try:
            answered = (await triton.client.classify(["I love this product!"], _ANSWER_TIMEOUT_S)).version
        except (TritonUnavailableError, TritonTimeoutError) as error:
            return triton.told(error)
        return "" if answered == self._version else triton.told(f"it answers by version {answered}")

    async def _end(self) -> None:
        await self._wait_for_loads()
        for triton in self._tritons:
            await triton.client.close()  # ends a call that hangs
        await self._wait_for_loads()

    async def _wait_for_loads(self) -> None:
        loads = [triton.load for triton in self._tritons if triton.load is not None]
        if loads:
            await asyncio.wait(loads, timeout=_TURN_S)
