"""Which replies of a Triton show that it is broken; a real one that hangs or dies is in `test_supervisor.py`."""

import asyncio
import subprocess
from collections.abc import Iterator

import grpc
import pytest

from serving.client.triton_client import TritonClient
from serving.host import watchdog
from serving.host.watchdog import FAILED_PROBES, until_broken
from tests.gateway.fake_triton import FakeTriton


@pytest.fixture
def triton() -> Iterator[FakeTriton]:
    fake = FakeTriton()
    fake.start()
    yield fake
    fake.stop()


@pytest.mark.parametrize(
    ("error", "details", "is_broken"),
    [
        (grpc.StatusCode.INTERNAL, "Stub process is not healthy.", True),
        (grpc.StatusCode.INTERNAL, "Failed to increase the shared memory pool size", False),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "no room", False),
    ],
)
def test_one_that_is_full_is_not_broken(
    triton: FakeTriton, monkeypatch: pytest.MonkeyPatch, error: grpc.StatusCode, details: str, is_broken: bool
) -> None:
    monkeypatch.setattr(watchdog, "PROBE_INTERVAL_S", 0.05)
    triton.inference_error, triton.error_details = error, details

    async def watch() -> str | None:
        client = TritonClient(f"127.0.0.1:{triton.port}")
        try:
            return await asyncio.wait_for(until_broken(client, childless.pid, lambda: None), 3)
        except TimeoutError:
            return None
        finally:
            await client.close()

    # Not this process, in which a child of another test may just have ended.
    childless = subprocess.Popen(["sleep", "60"])
    try:
        assert asyncio.run(watch()) == (details if is_broken else None)
    finally:
        childless.kill()
        childless.wait()
    assert len(triton.calls) == FAILED_PROBES if is_broken else len(triton.calls) > FAILED_PROBES
