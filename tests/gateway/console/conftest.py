"""The console of a gateway over a database, and a repository with two versions of which the first serves."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest

import gateway.main
from gateway.console.page import ACTION_HEADER
from gateway.monitoring import recent_rates
from storage.tables import Table
from tests.gateway.conftest import ADMIN_KEY, until
from tests.gateway.fake_triton import FakeTriton
from tests.gateway.routes.test_feedback import Gateway, gateway_with_models

OWN = {"Sec-Fetch-Site": "same-origin"}
"""What browsers say of a request that a page of the gateway sends."""
SIGN_IN = "/console/sign-in"
PART = {"HX-Request": "true"}
INJECTED = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'>&{{7*7}}"


@pytest.fixture(scope="module")
def served_console(
    fake_triton: FakeTriton, bert_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gateway.main, "MAX_BYTES", 1_000_000)
        patch.setattr(recent_rates, "INTERVAL_S", 0.05)
        with gateway_with_models(fake_triton, tmp_path_factory.mktemp("console"), bert_bundle) as served:
            yield served


@pytest.fixture
def console(served_console: Gateway, triton: FakeTriton) -> Gateway:
    """As it was when it began, but for what it remembers of requests."""
    begin_anew(served_console)
    until(lambda: triton.probes > 0 and served_console.http.get("/health/ready").is_success)
    return served_console


def begin_anew(console: Gateway) -> None:
    """Forget who is signed in, and all that is in the database."""
    with console.database.transaction() as session:
        for table in reversed(Table.metadata.sorted_tables):
            session.execute(table.delete())
    console.repository.deploy(1)
    console.http.cookies.clear()
    console.http.headers.pop(ACTION_HEADER, None)
    console.http.headers.update(OWN)


def sign_in(http: httpx.Client, key: str = ADMIN_KEY, **form: str) -> str:
    """Sign in as a browser does, which keeps the cookie and the action token; returns the token."""
    response = http.post(SIGN_IN, data={"key": key, "next": "/", **form})
    assert response.status_code == 200
    token = action_token(response)
    http.headers[ACTION_HEADER] = token
    return token


def action_token(response: httpx.Response) -> str:
    """What the page that signing in leads to hands out."""
    (link,) = [link for link in Page(response).all("a") if "data-action-token" in link]
    return str(link["data-action-token"])


class Page(HTMLParser):
    """What a browser would make of an answer: its elements, and the text that is shown."""

    def __init__(self, response: httpx.Response) -> None:
        super().__init__()
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._text: list[str] = []
        self.feed(response.text)
        self.text = re.sub(r"\s+", " ", "".join(self._text))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._text.append(" ")

    def handle_endtag(self, _tag: str) -> None:
        self._text.append(" ")

    def handle_data(self, data: str) -> None:
        self._text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def runs_nothing_but_files(self) -> bool:
        """Whether no text has become an element that does something, or an attribute that is run."""
        scripts = [script for script in self.all("script") if script.get("type") != "application/json"]
        return all(script.get("src", "").startswith("/console/static/") for script in scripts) and not [  # type: ignore[union-attr]
            name for _, attributes in self.elements for name in attributes if name.startswith("on") or name == "style"
        ]
