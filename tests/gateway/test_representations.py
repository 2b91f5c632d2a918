"""Objects that hold texts or keys do not show them in messages and tracebacks."""

import pytest

from gateway.auth.access import AccessLayer
from gateway.canary.shadow_compare import Comparer
from gateway.grpc_port.guards import GatewayGuard


@pytest.mark.parametrize("kind", [AccessLayer, Comparer, GatewayGuard])
def test_the_representation_has_no_fields(kind: type) -> None:
    assert "__repr__" not in vars(kind)
