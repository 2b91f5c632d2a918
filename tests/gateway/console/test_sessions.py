"""Signing in: who may see and do what, and what forged requests get."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

import gateway.known_keys
from gateway.admission import UnderWay
from gateway.console.sessions import LIFETIME_S
from gateway.main import create_app
from serving.call_statistics import CallStatistics
from settings import Settings
from storage.api_keys import Scope, add_key, revoke_key
from storage.storage import Storage
from tests.gateway.conftest import ADMIN_KEY, served, until
from tests.gateway.console.conftest import OWN, PART, Page
from tests.gateway.fake_triton import FakeTriton
from tests.gateway.test_access import Gateway

SIGN_IN = "/console/sign-in"
HEALTH = "/console/health"
TRY = ("POST", "/console/try", {"text": "a"})
VIEWS = {"/": Scope.PREDICT, HEALTH: Scope.READ, "/console/events": Scope.READ, "/console/events.csv": Scope.READ}


@pytest.fixture
def closed(triton: FakeTriton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    """A gateway that needs keys."""
    monkeypatch.setattr(gateway.known_keys, "REFRESH_S", 0.05)
    with run(triton, tmp_path) as running:
        yield running


@contextmanager
def run(triton: FakeTriton, directory: Path, admin_key: str = ADMIN_KEY) -> Iterator[Gateway]:
    settings = Settings(
        triton_url=f"127.0.0.1:{triton.port}",
        state_dir=directory / "state",
        model_repository=directory / "triton_repo",
        access="keys",
        admin_key=SecretStr(admin_key),
    )
    storage = Storage(settings)
    with (
        served(create_app(settings, storage, CallStatistics(), UnderWay())) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, headers=OWN) as http,
    ):
        yield Gateway(http, storage.open())
    storage.close()


def sign_in(closed: Gateway, key: str = ADMIN_KEY, **form: str) -> httpx.Response:
    return closed.http.post(SIGN_IN, data={"key": key, "next": "/", **form})


def token(closed: Gateway) -> str:
    match = re.search(r'name="csrf" value="(\w+)"', closed.http.get("/").text)
    assert match is not None
    return match[1]


def ask(closed: Gateway, **headers: str) -> httpx.Response:
    method, path, form = TRY
    return closed.http.request(method, path, data=form, headers=headers)


def test_strangers_are_asked_to_sign_in(closed: Gateway) -> None:
    for path in VIEWS:
        response = closed.http.get(path)
        assert response.status_code == 401
        page = Page(response)
        assert "Sign in with an API key for" in page.text
        assert f"/console/sign-in?next={path}" in [link["href"] for link in page.all("a")]
    assert ask(closed, **PART).status_code == 401
    assert closed.http.get(SIGN_IN).status_code == 200
    assert closed.http.get("/", headers={"X-API-Key": ADMIN_KEY}).status_code == 401, "a page is for sessions"


def test_the_admin_key_opens_everything_and_is_in_no_answer(closed: Gateway) -> None:
    response = sign_in(closed, next=f"{HEALTH}?x=1")
    assert (response.status_code, response.headers["location"]) == (303, f"{HEALTH}?x=1")
    cookie = response.headers["set-cookie"]
    assert re.fullmatch(rf"sentiment_8000=[\w~.-]+; Path=/; Max-Age={LIFETIME_S}; HttpOnly; SameSite=Strict", cookie)
    assert ADMIN_KEY not in cookie
    for path in VIEWS:
        shown = closed.http.get(path)
        assert shown.status_code == 200
        assert ADMIN_KEY not in shown.text
    assert "Sign out (admin)" in Page(closed.http.get("/")).text
    # The cookie is for pages alone: no other site can use it to have the API do something.
    assert closed.http.get("/models").status_code == 401
    assert closed.http.post("/retrain").status_code == 401


def test_each_key_opens_what_it_is_for(closed: Gateway) -> None:
    for scope in (Scope.PREDICT, Scope.FEEDBACK, Scope.READ):
        key = add_key(closed.database, f"the-{scope.value}", [scope])
        until(lambda key=key: sign_in(closed, key).status_code == 303)  # type: ignore[misc]
        for path, needed in VIEWS.items():
            response = closed.http.get(path)
            assert response.status_code == (200 if needed == scope else 403)
            if needed != scope:
                assert f"The key the-{scope.value} is for {scope.value}; this needs {needed.value}." in response.text
        closed.http.cookies.clear()


@pytest.mark.parametrize("key", ["", " ", "wrong", ADMIN_KEY + "x", "ключ", "k" * 5_000])
def test_a_wrong_key_signs_nobody_in(closed: Gateway, key: str) -> None:
    response = sign_in(closed, key)
    assert response.status_code == 401
    assert "set-cookie" not in response.headers
    page = Page(response)
    assert "This is no valid API key." in page.text
    assert key.strip() not in page.text or not key.strip()
    assert [field["type"] for field in page.all("input") if field.get("name") == "key"] == ["password"]


def test_a_session_ends_with_its_key(closed: Gateway) -> None:
    key = add_key(closed.database, "web", [Scope.READ])
    until(lambda: sign_in(closed, key).status_code == 303)
    assert closed.http.get(HEALTH).status_code == 200
    revoke_key(closed.database, "web")
    until(lambda: closed.http.get(HEALTH).status_code == 401)
    again = add_key(closed.database, "web", [Scope.READ])
    until(lambda: closed.http.get("/models", headers={"X-API-Key": again}).status_code != 401)
    assert closed.http.get(HEALTH).status_code == 401, "another key by the same name opens no old session"


def test_who_signs_out_is_out_whoever_has_the_cookie(closed: Gateway) -> None:
    sign_in(closed)
    name, value = next(iter(closed.http.cookies.items()))
    response = closed.http.post("/console/sign-out", data={"csrf": token(closed)})
    assert response.status_code == 303
    assert "Max-Age=0" in response.headers["set-cookie"]
    closed.http.cookies.set(name, value)
    assert closed.http.get(HEALTH).status_code == 401


def test_no_cookie_can_be_made_up_or_changed(closed: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    sign_in(closed)
    name, value = next(iter(closed.http.cookies.items()))
    ends, nonce, who, signature = value.split("~")
    add_key(closed.database, "other", [Scope.READ])
    closed.http.cookies.clear()
    for changed in (
        "",
        "~",
        "~~~",
        f"{int(ends) + 1}~{nonce}~{who}~{signature}",
        f"{ends}~{nonce}x~{who}~{signature}",
        f"{ends}~{nonce}~other~{signature}",
        f"{ends}~{nonce}~{who}~{signature[:-1]}0"
        if signature[-1] != "0"
        else f"{ends}~{nonce}~{who}~{signature[:-1]}1",
        f"{ends}~{nonce}~{who}~",
        f"{'9' * 5_000}~{nonce}~{who}~{signature}",
    ):
        assert closed.http.get(HEALTH, headers={"Cookie": f"{name}={changed}"}).status_code == 401, changed[:80]
    assert closed.http.get(HEALTH, headers={"Cookie": f"{name}={value}"}).status_code == 200
    monkeypatch.setattr("gateway.console.sessions.time.time", lambda: int(ends) + 1.0)
    assert closed.http.get(HEALTH, headers={"Cookie": f"{name}={value}"}).status_code == 401


def test_a_change_needs_the_token_of_the_session(closed: Gateway) -> None:
    sign_in(closed)
    right = token(closed)
    assert ask(closed).status_code == 403
    assert ask(closed, **{"X-CSRF-Token": "x" * 64}).status_code == 403
    assert ask(closed, **{"X-CSRF-Token": right}).status_code == 200
    sign_in(closed, csrf=right)
    assert ask(closed, **{"X-CSRF-Token": right}).status_code == 403, "that of another session"


def test_a_page_of_another_site_can_send_nothing(closed: Gateway, triton: FakeTriton) -> None:
    sign_in(closed)
    right = {"X-CSRF-Token": token(closed)}
    host = closed.http.base_url.netloc.decode()
    del closed.http.headers["Sec-Fetch-Site"]
    for sent, status in (
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": f"http://{host}"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({}, 403),
        ({"Origin": f"http://{host}"}, 200),
    ):
        assert ask(closed, **right, **sent).status_code == status, sent
        assert (len(triton.calls) == 1) == (status == 200)


@pytest.mark.parametrize(
    "target",
    [
        "https://evil.example/",
        "//evil.example",
        "/\\evil.example",
        "javascript:alert(1)",
        "/\n/evil.example",
        "evil",
        "",
    ],
)
def test_signing_in_leads_to_no_other_site(closed: Gateway, target: str) -> None:
    assert sign_in(closed, next=target).headers["location"] == "/"


def test_over_https_the_cookie_goes_nowhere_else() -> None:
    from gateway.console.sessions import Sessions

    class Keys:
        def find(self, _: bytes) -> Any:
            return gateway.known_keys.Caller("admin", frozenset(Scope))

    sessions = Sessions(Keys(), "k", 443, is_https=True)  # type: ignore[arg-type]
    session = sessions.begin(b"x")
    assert session is not None
    header = sessions.set_cookie(session)
    assert header.startswith("__Host-sentiment_443=")
    assert header.endswith("; Path=/; Max-Age=43200; HttpOnly; SameSite=Strict; Secure")


def test_gateways_with_one_admin_key_know_each_others_sessions(triton: FakeTriton, tmp_path: Path) -> None:
    with (
        run(triton, tmp_path / "a") as first,
        run(triton, tmp_path / "b") as same,
        run(triton, tmp_path / "c", admin_key="another-admin-key") as other,
    ):
        sign_in(first)
        cookies = "; ".join(f"{name}={value}" for name, value in first.http.cookies.items())
        for asked, status in ((same, 200), (other, 401)):
            assert asked.http.get(HEALTH, headers={"Cookie": cookies}).status_code == status
