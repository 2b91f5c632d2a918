"""Which calls are bulk, and the address of a caller."""

import asyncio
import math
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any

import pytest
from tritonclient.grpc import service_pb2

from gateway.grpc_port.guards import MOST_LIVE, GatewayGuard
from gateway.grpc_port.server import _BULK_PARAMETER
from gateway.http.callers import address_of_peer
from gateway.load_control.admission import UnderWay
from gateway.load_control.backlog import Backlog
from gateway.monitoring.metrics import Metrics
from serving.model_repo.protocol import BULK


def test_lists_and_many_calls_of_one_caller_are_bulk_whatever_they_say() -> None:
    """Else 60 calls at a time, of four texts each, held others' live requests up for seconds."""
    said = service_pb2.ModelInferRequest(parameters={BULK: service_pb2.InferParameter(bool_param=False)})
    sent = service_pb2.ModelInferRequest.FromString(said.SerializeToString() + _BULK_PARAMETER)
    assert sent.parameters[BULK].bool_param

    async def scenario() -> None:
        predictor: Any = SimpleNamespace(batch_backlog=Backlog(math.inf))
        unused: Any = None
        guard = GatewayGuard(unused, frozenset(), None, UnderWay(), unused, Metrics())
        guard.predictor = predictor

        async def is_bulk(stack: AsyncExitStack, caller: str, texts: int = 1) -> bool:
            turn = await stack.enter_async_context(guard.admitted(caller, "ipv4:127.0.0.1:5", [5] * texts, 5))
            return turn.is_bulk

        for _ in range(2):  # what has ended counts no longer
            async with AsyncExitStack() as stack:
                assert await is_bulk(stack, "list", 2)
                assert [await is_bulk(stack, "many") for _ in range(MOST_LIVE + 2)] == [False] * MOST_LIVE + [True] * 2
                assert not await is_bulk(stack, "other")
        assert not guard._live

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("peer", "address"), [("ipv4:127.0.0.1:50000", "127.0.0.1"), ("ipv6:%5B::1%5D:50000", "::1"), ("unix:", "")]
)
def test_the_address_of_a_peer(peer: str, address: str) -> None:
    assert address_of_peer(peer) == address
