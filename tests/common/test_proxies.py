"""Proxy variables as users set them: clients start, and nothing on this machine is called through a proxy."""

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
import requests

from common.proxies import prepare_proxies

DEAD = "http://127.0.0.1:9"


@pytest.fixture
def server() -> Iterator[str]:
    """The URL of a web server on this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


def set_variables(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    """Replace the environment's proxy variables by those given, and prepare them."""
    given = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")} | variables
    prepare_proxies(given)
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name, value in given.items():
        if name.lower().endswith("_proxy"):
            monkeypatch.setenv(name, value)


@pytest.mark.parametrize("lower", [True, False], ids=["lower case", "upper case"])
@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"NO_PROXY": "[::1]"},
        {"NO_PROXY": "10.0.0.0/8,fd00::/8,[fe80::1]:80"},
        {"NO_PROXY": "internal.example .lan"},
        {"NO_PROXY": "http://[::1"},
        {"NO_PROXY": "http://internal.example https://[fd00::1]:80/ http://"},
        {"ALL_PROXY": "socks://127.0.0.1:9"},
    ],
    ids=["proxies", "brackets", "networks", "blanks", "no host", "URLs", "socks"],
)
def test_clients_start_and_call_this_machine_directly(
    variables: dict[str, str], lower: bool, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"HTTP_PROXY": DEAD, "HTTPS_PROXY": DEAD} | variables
    set_variables(monkeypatch, {name.lower() if lower else name: value for name, value in given.items()})
    assert httpx.get(server).is_success
    assert requests.get(server, timeout=10).ok
    with pytest.raises(httpx.ConnectError):
        httpx.get("http://elsewhere.invalid/", timeout=10)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("", "localhost,127.0.0.1,::1"),
        ("*", "*"),
        ("mlflow, .example.com:8080, 10.0.0.0/8", "mlflow,.example.com:8080,10.0.0.0/8,localhost,127.0.0.1,::1"),
        ("[::1],[2001:db8::5],fd00::/8,::1/128,a/b", "::1,2001:db8::5,localhost,127.0.0.1"),
        ("http://a,https://b.c:80/,all://10.0.0.1,http://", "a,b.c:80,10.0.0.1,localhost,127.0.0.1,::1"),
    ],
)
def test_what_clients_can_match_is_kept(given: str, kept: str) -> None:
    environment = {"NO_PROXY": given}
    prepare_proxies(environment)
    assert environment["NO_PROXY"] == kept
    assert environment.get("no_proxy", "*") == kept


def test_a_proxy_for_all_stays_where_it_is_needed() -> None:
    environment = {"all_proxy": "socks5://127.0.0.1:9", "https_proxy": DEAD}
    prepare_proxies(environment)
    assert environment["all_proxy"] == "socks5://127.0.0.1:9"
