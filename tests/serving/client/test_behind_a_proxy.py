"""Tritons are called directly, whatever proxies the environment names."""

import asyncio
import socket
import threading
from collections.abc import Iterator

import pytest

from serving.client.client import Client
from serving.client.triton_client import TritonClient
from tests.gateway.fake_triton import FakeTriton


@pytest.fixture
def asked_proxy() -> Iterator[tuple[str, list[bytes]]]:
    """The URL of a proxy that refuses everything, and what it was asked."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def refuse() -> None:
            while True:
                connection, _ = server.accept()
                with connection:
                    request = connection.recv(1_000)
                    if request == b"end":
                        return
                    asked.append(request)

        thread = threading.Thread(target=refuse)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", asked
        with socket.create_connection(server.getsockname()) as ending:
            ending.sendall(b"end")
        thread.join()


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy", "all_proxy", "HTTP_PROXY"])
def test_a_triton_is_called_directly(
    variable: str, asked_proxy: tuple[str, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, asked = asked_proxy
    for name in ("no_grpc_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, url)
    triton = FakeTriton()
    triton.start()
    address = f"127.0.0.1:{triton.port}"

    async def ask() -> bool:
        client = TritonClient(address)
        try:
            return await client.is_live(20)
        finally:
            await client.close()

    try:
        assert asyncio.run(ask())
        with Client(address, timeout_s=20) as client:
            assert client.predict(["good"]).labels == ["Positive"]
    finally:
        triton.stop()
    assert asked == []
