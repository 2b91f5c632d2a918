"""Checks that external Tritons accept model control (load and unload) from this process, and from nobody else.

Anyone who may load a model can run code as Triton's user. The bundled Triton has a private socket. An external Triton
must be started with `--grpc-restricted-protocol=…,model-repository:sentiment-key=SECRET`. The only proof of that is
that it refuses a call without the key.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from functools import partial

from common.periodic import run_periodically
from common.triton_addresses import UNIX
from serving.client import addresses
from serving.client.errors import ControlRefusedError, TritonUnavailableError
from serving.client.triton_client import TritonClient

INTERVAL_S = 15.0
OPEN = (
    "anyone who reaches it may load models, and so run code there. Start it with "
    "--grpc-restricted-protocol=shared-memory,trace,logging,model-repository:sentiment-key=SECRET, as the image of "
    "deploy/images does, and set SENTIMENT_TRITON_KEY to the same SECRET."
)

log = logging.getLogger(__name__)


class OpenControl:
    """Checks every INTERVAL_S seconds which external Tritons have open model control."""

    def __init__(self, url: str | None) -> None:
        """Check the Tritons of `url`, which `addresses` parses; None for no checks."""
        self._url = url
        self._told: dict[str, str] = {}
        self.open: list[str] = []
        """Addresses of the Tritons that let anyone load models."""

    async def watch(self) -> None:
        """Check periodically until cancelled; log each fault once, when it appears."""
        if self._url is not None:
            await run_periodically("Tritons' model control", partial(self._look, self._url), INTERVAL_S)

    def watch_in_thread(self) -> None:
        """Run `watch` in a daemon thread."""
        if self._url is not None:
            run: Callable[[], None] = lambda: asyncio.run(self.watch())  # noqa: E731
            threading.Thread(target=run, name="open-control", daemon=True).start()

    async def _look(self, url: str) -> None:
        found = await asyncio.to_thread(addresses.find, url)
        faults = dict(zip(found, await asyncio.gather(*map(_fault, found)), strict=True))
        self._tell({address: fault for address, fault in faults.items() if fault is not None})

    def _tell(self, faults: dict[str, str]) -> None:
        for address, fault in faults.items():
            if fault and self._told.get(address) != fault:
                log.error("Triton at %s: %s", address, fault)
            self._told[address] = fault
        self.open = [address for address, fault in self._told.items() if fault == OPEN]


async def _fault(address: str) -> str | None:
    """Return the fault of a Triton's model control; empty if there is none, None if the Triton is not reachable."""
    stranger = TritonClient(address, control_key="")
    own = TritonClient(address)
    try:
        if not address.startswith(UNIX) and await _lets_in(stranger):
            return OPEN
        return "" if await _lets_in(own) else str(ControlRefusedError())
    except TritonUnavailableError:
        return None
    finally:
        await stranger.close()
        await own.close()


async def _lets_in(client: TritonClient) -> bool:
    try:
        await client.loaded_versions()
    except ControlRefusedError:
        return False
    return True
