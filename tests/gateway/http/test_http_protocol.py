"""Bounds of what a connection may send, in bytes and in time."""

import contextlib
import socket
import threading
import time
from http.client import HTTPResponse

import pytest

import gateway.http.http_protocol
from gateway.http.http_protocol import MAX_HEAD_BYTES
from tests.gateway.fake_triton import FakeTriton

HEAD = b"POST /predict/live HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n"
BODY = b'{"text": "a"}'
REQUEST = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY


def received(connection: socket.socket) -> bytes:
    answers = b""
    while part := connection.recv(65_536):
        answers += part
    return answers


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


@pytest.mark.usefixtures("triton")
def test_a_head_may_be_as_long_as_the_bound(port: int) -> None:
    with connect(port) as connection:
        padding = b"a" * (MAX_HEAD_BYTES - len(HEAD) - 200)
        connection.sendall(HEAD + b"X-A: " + padding)
        time.sleep(0.1)  # so that it comes in two reads
        connection.sendall(b"\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY)
        assert received(connection).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("begins", [b"GET /", HEAD + b"X-A: ", HEAD + b"X", HEAD + b"X-A: 1\r\nX-B: "])
def test_a_head_without_an_end_is_refused_before_it_fills_the_memory(port: int, begins: bytes) -> None:
    with connect(port) as connection:
        sending = threading.Thread(target=send_on, args=(connection, begins))
        sending.start()
        answer = received_until_closed(connection)
        sending.join()
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert (b"at most 16,384 bytes are" if begins == b"GET /" else b"at most 65,536 bytes are") in answer
    assert b"x-content-type-options: nosniff\r\n" in answer


def send_on(connection: socket.socket, begins: bytes) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(begins)
        for _ in range(1_000):
            connection.sendall(b"a" * 1_000)


def received_until_closed(connection: socket.socket) -> bytes:
    answer = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65_536):
            answer += part
    return answer


@pytest.mark.parametrize("sent", [b"", HEAD, HEAD + b"Content-Length: 100\r\n\r\n{", REQUEST + HEAD], ids=len)
@pytest.mark.usefixtures("triton")
def test_a_request_that_does_not_come_whole_in_time_is_refused(
    port: int, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(gateway.http.http_protocol, "RECEIVE_S", 0.3)
    with connect(port) as connection:
        connection.sendall(sent)
        answers = received(connection)
    assert answers[answers.rindex(b"HTTP/1.1 ") :].startswith(b"HTTP/1.1 408 ")


@pytest.mark.usefixtures("triton")
def test_a_connection_that_asks_now_and_then_stays(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway.http.http_protocol, "RECEIVE_S", 0.2)
    with connect(port) as connection:
        for _ in range(5):
            connection.sendall(REQUEST)
            answer = HTTPResponse(connection)
            answer.begin()
            answer.read()
            assert answer.status == 200
            time.sleep(0.15)


def test_a_long_answer_is_not_cut_by_the_bound(port: int, triton: FakeTriton, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway.http.http_protocol, "RECEIVE_S", 0.1)
    triton.delay_s = 0.5
    with connect(port) as connection:
        connection.sendall(REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert received(connection).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET\r\n\r\n",
        b"\0" * 100,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_is_not_http_is_told_so_and_fills_no_log(port: int, caplog: pytest.LogCaptureFixture, data: bytes) -> None:
    with connect(port) as connection:
        connection.sendall(data)
        answer = received_until_closed(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"urn:sentiment:problem:malformed-request" in answer
    assert caplog.records == []


@pytest.mark.usefixtures("triton")
def test_another_protocol_is_not_gone_over_to(port: int) -> None:
    upgrade = b"Connection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==\r\n"
    with connect(port) as connection:
        connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: gateway\r\n" + upgrade + b"\r\n")
        assert received(connection).startswith(b"HTTP/1.1 200 ")
