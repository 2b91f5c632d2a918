"""`localhost` is the gateway's on IPv6 too, or it is told that it is not."""

import socket

import pytest

from gateway.http.localhost import hold_localhost
from tests.e2e.conftest import free_ports


def listen(port: int) -> socket.socket:
    server = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        server.bind(("::1", port))
        server.listen()
    except OSError:
        server.close()
        raise
    return server


@pytest.fixture
def port() -> int:
    try:
        listen(0).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    return free_ports()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_nobody_else_can_listen_there_and_nobody_is_kept_waiting(host: str, port: int) -> None:
    held = hold_localhost(host, (port, port + 1))
    for taken in (port, port + 1):
        with pytest.raises(OSError, match="in use"):
            listen(taken)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("::1", taken), timeout=5)
    with socket.create_server((host, port)):  # the gateway's own place is free
        pass
    for one in held:
        one.close()
    listen(port).close()


@pytest.mark.parametrize("host", ["::1", "::"])
def test_where_the_gateway_listens_there_itself_it_is_left_alone(host: str, port: int) -> None:
    assert hold_localhost(host, (port,)) == []
    listen(port).close()


def test_another_program_that_listens_there_is_told(port: int, caplog: pytest.LogCaptureFixture) -> None:
    other = listen(port)
    assert hold_localhost("127.0.0.1", (port,)) == []
    assert f"Another program listens on [::1]:{port}." in caplog.text
    other.close()
