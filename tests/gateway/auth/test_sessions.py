"""Signing in: who may see and do what, and what forged requests get."""

import hashlib
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from itsdangerous import URLSafeTimedSerializer
from pydantic import SecretStr

import gateway.auth.key_cache
from common.errors import PipelineError
from common.settings import Settings
from gateway.auth.sessions import LIFETIME_S, _fingerprint
from gateway.console.forms import MEDIA_TYPE as FORM
from gateway.console.page import ACTION_HEADER
from gateway.load_control.admission import UnderWay
from gateway.main import create_app
from serving.client.call_statistics import CallStatistics
from storage.api_keys import Scope, add_key, hash_key, revoke_key
from storage.ended_sessions import end_session, ended_sessions
from storage.lazy_database import Storage
from tests.gateway.auth.test_access import Gateway
from tests.gateway.conftest import ADMIN_KEY, served, until
from tests.gateway.console.conftest import OWN, PART, SIGN_IN, Page, action_token
from tests.gateway.fake_triton import FakeTriton

HEALTH = "/console/health"
TRY = ("POST", "/console/try", {"text": "a"})
VIEWS = {"/": Scope.PREDICT, HEALTH: Scope.READ, "/console/events": Scope.READ, "/console/events.csv": Scope.READ}


@pytest.fixture
def closed(triton: FakeTriton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    """A gateway that needs keys."""
    monkeypatch.setattr(gateway.auth.key_cache, "REFRESH_S", 0.05)
    with run(triton, tmp_path) as running:
        yield running


@contextmanager
def run(triton: FakeTriton, directory: Path, admin_key: str = ADMIN_KEY, **given: Any) -> Iterator[Gateway]:
    settings = Settings(
        triton_url=f"127.0.0.1:{triton.port}",
        state_dir=directory / "state",
        model_repository=directory / "triton_repo",
        access="keys",
        admin_key=SecretStr(admin_key),
        **given,
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
    return action_token(sign_in(closed))


def target_of(response: httpx.Response) -> object:
    return next(link["href"] for link in Page(response).all("a") if "data-action-token" in link)


def ask(closed: Gateway, **headers: str) -> httpx.Response:
    method, path, form = TRY
    return closed.http.request(method, path, data=form, headers=headers)


def test_strangers_are_asked_to_sign_in(closed: Gateway) -> None:
    for path in VIEWS:
        response = closed.http.get(path)
        assert response.status_code == 401
        page = Page(response)
        assert "an API key that has the scope" in page.text
        assert "failed" not in page.text, "it is no fault, and there is a field for the key"
        assert {"next": path} in [{item["name"]: item.get("value")} for item in page.all("input")]
    assert ask(closed, **PART).status_code == 401
    assert closed.http.get(SIGN_IN).status_code == 200
    assert closed.http.get("/", headers={"X-API-Key": ADMIN_KEY}).status_code == 401, "a page is for sessions"


def test_the_admin_key_opens_everything_and_is_in_no_answer(closed: Gateway) -> None:
    response = sign_in(closed, next=f"{HEALTH}?x=1")
    assert (response.status_code, target_of(response)) == (200, f"{HEALTH}?x=1")
    cookie = response.headers["set-cookie"]
    assert re.fullmatch(rf"sentiment_8000=[\w.-]+; Path=/; Max-Age={LIFETIME_S}; HttpOnly; SameSite=Strict", cookie)
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
        until(lambda key=key: sign_in(closed, key).status_code == 200)  # type: ignore[misc]
        for path, needed in VIEWS.items():
            response = closed.http.get(path)
            assert response.status_code == (200 if needed == scope else 403)
            if needed != scope:
                assert (
                    f"The key the-{scope.value} lacks the scope {needed.value}; it has {scope.value}." in response.text
                )
        closed.http.cookies.clear()


@pytest.mark.parametrize("key", ["", " ", "wrong", ADMIN_KEY + "x", "ключ", "k" * 1_500])
def test_a_wrong_key_signs_nobody_in(closed: Gateway, key: str) -> None:
    response = sign_in(closed, key)
    assert response.status_code == 401
    assert "set-cookie" not in response.headers
    page = Page(response)
    assert "This is not a valid API key." in page.text
    assert key.strip() not in page.text or not key.strip()
    assert [field["type"] for field in page.all("input") if field.get("name") == "key"] == ["password"]


def test_a_session_ends_with_its_key(closed: Gateway) -> None:
    key = add_key(closed.database, "web", [Scope.READ])
    until(lambda: sign_in(closed, key).status_code == 200)
    assert closed.http.get(HEALTH).status_code == 200
    revoke_key(closed.database, "web")
    until(lambda: closed.http.get(HEALTH).status_code == 401)
    again = add_key(closed.database, "web", [Scope.READ])
    until(lambda: closed.http.get("/models", headers={"X-API-Key": again}).status_code not in (401, 429))
    assert closed.http.get(HEALTH).status_code == 401, "another key by the same name opens no old session"


def test_who_signs_out_is_out_at_every_gateway_and_after_a_restart(triton: FakeTriton, tmp_path: Path) -> None:
    with run(triton, tmp_path) as here, run(triton, tmp_path) as there:
        sign_in(here)
        name, value = next(iter(here.http.cookies.items()))
        cookie = {"Cookie": f"{name}={value}"}
        # A signature's last letter has bits that nobody reads: the same session by another cookie.
        letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        respelt = {"Cookie": f"{name}={value[:-1]}{letters[letters.index(value[-1]) ^ 1]}"}
        assert there.http.get(HEALTH, headers=cookie).status_code == 200
        response = here.http.post("/console/sign-out", headers={"Content-Type": FORM})
        assert response.status_code == 303
        assert "Max-Age=0" in response.headers["set-cookie"]
        for given in (cookie, respelt):
            assert here.http.get(HEALTH, headers=given).status_code == 401
        until(lambda: there.http.get(HEALTH, headers=cookie).status_code == 401)
        assert there.http.get(HEALTH, headers=respelt).status_code == 401
    with run(triton, tmp_path) as anew:
        for given in (cookie, respelt):
            assert anew.http.get(HEALTH, headers=given).status_code == 401


def test_signing_out_while_the_database_is_down_says_what_that_means(
    closed: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise PipelineError("down")

    sign_in(closed)
    name, value = next(iter(closed.http.cookies.items()))
    monkeypatch.setattr("gateway.console.sign_in.end_session", fail)
    response = closed.http.post("/console/sign-out", headers={"Content-Type": FORM})
    assert response.status_code == 503
    assert "other gateways may accept the session until it expires" in Page(response).text
    assert "Max-Age=0" in response.headers["set-cookie"]
    assert closed.http.get(HEALTH, headers={"Cookie": f"{name}={value}"}).status_code == 401


def test_ended_sessions_are_forgotten_once_they_are_over(closed: Gateway) -> None:
    for days in (1, -1):
        end_session(closed.database, f"session{days}", datetime.now(UTC) + timedelta(days=days))
    assert ended_sessions(closed.database) == {"session1", "session-1"}
    for _ in range(2):
        end_session(closed.database, "another", datetime.now(UTC) + timedelta(days=1))
    assert ended_sessions(closed.database) == {"session1", "another"}


def test_no_cookie_can_be_made_up_or_changed(closed: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    sign_in(closed)
    name, value = next(iter(closed.http.cookies.items()))
    content, begun, signature = value.split(".")
    other = add_key(closed.database, "other", [Scope.READ])
    until(lambda: closed.http.get("/models", headers={"X-API-Key": other}).status_code not in (401, 429))
    closed.http.cookies.clear()
    of_other = URLSafeTimedSerializer("the-wrong-secret").dumps(["other", "0" * 32, "x"])
    # Who has a cookie could else try thought-up keys, a billion a second.
    of_plain_key = URLSafeTimedSerializer(
        ADMIN_KEY,
        salt="session of the console",
        signer_kwargs={"digest_method": hashlib.sha256, "key_derivation": "hmac"},
    ).dumps(["admin", _fingerprint(hash_key(ADMIN_KEY.encode())), "x"])
    for changed in (
        "",
        str(of_plain_key),
        ".",
        "..",
        "...",
        of_other,
        f"{of_other.split('.')[0]}.{begun}.{signature}",
        f"{content}.{begun[:-1]}{'A' if begun[-1] != 'A' else 'B'}.{signature}",
        f"{content}.{begun}.{'A' if signature[0] != 'A' else 'B'}{signature[1:]}",
        f"{content}.{begun}.",
        f"{content}.{begun}.{signature}" * 20,
    ):
        assert closed.http.get(HEALTH, headers={"Cookie": f"{name}={changed}"}).status_code == 401, changed[:80]
    for cookies in (f"{name}={value}", f"a=b; {name}={value}; c=d", f"x{name}=y;{name}={value}"):
        assert closed.http.get(HEALTH, headers={"Cookie": cookies}).status_code == 200
    now = time.time()
    monkeypatch.setattr("itsdangerous.timed.time.time", lambda: now + LIFETIME_S + 2)
    assert closed.http.get(HEALTH, headers={"Cookie": f"{name}={value}"}).status_code == 401


def test_a_change_needs_the_token_of_the_session(closed: Gateway) -> None:
    right = token(closed)
    assert ask(closed).status_code == 403
    assert ask(closed, **{ACTION_HEADER: "x" * 43}).status_code == 403
    assert ask(closed, **{ACTION_HEADER: right}).status_code == 200
    by_form = closed.http.post(TRY[1], data={**TRY[2], "action_token": right})
    assert by_form.status_code == 200
    file = {"content": b"text\na\n", "headers": {"Content-Type": "text/csv"}}
    assert closed.http.post("/console/score", **file).status_code == 403  # type: ignore[arg-type]
    sign_in(closed)
    assert ask(closed, **{ACTION_HEADER: right}).status_code == 403, "that of another session"


def test_a_page_of_another_site_can_send_nothing(closed: Gateway, triton: FakeTriton) -> None:
    right = {ACTION_HEADER: token(closed)}
    host = closed.http.base_url.netloc.decode()
    del closed.http.headers["Sec-Fetch-Site"]
    for sent, status in (
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": f"http://{host}"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Origin": "http://"}, 403),
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
        "//[",
        "/" + "a" * 1_001,
        "evil",
        "",
    ],
)
def test_signing_in_leads_to_no_other_site(closed: Gateway, target: str) -> None:
    assert target_of(sign_in(closed, next=target)) == "/"
    asked = Page(closed.http.get(SIGN_IN, params={"next": target}))
    assert [field["value"] for field in asked.all("input") if field.get("name") == "next"] == ["/"]


@pytest.mark.parametrize(("public_url", "is_secure"), [("https://a.example", True), ("http://a.example", False)])
def test_where_browsers_come_by_https_the_cookie_goes_nowhere_else(
    triton: FakeTriton, tmp_path: Path, public_url: str, is_secure: bool
) -> None:
    """Also behind a proxy that ends TLS, which the gateway itself does not see."""
    with run(triton, tmp_path, public_url=public_url) as behind_proxy:
        response = sign_in(behind_proxy)
        cookie = response.headers["set-cookie"]
        assert cookie.startswith("__Host-sentiment_8000=" if is_secure else "sentiment_8000=")
        assert cookie.endswith("; SameSite=Strict" + is_secure * "; Secure")
        assert ("strict-transport-security" in response.headers) == is_secure
        # Browsers too old for Sec-Fetch-Site, through a proxy that passes on a Host of its own.
        del behind_proxy.http.headers["Sec-Fetch-Site"]
        for origin, status in ((public_url, 200), ("https://evil.example", 403)):
            response = behind_proxy.http.post(SIGN_IN, data={"key": ADMIN_KEY}, headers={"Origin": origin})
            assert response.status_code == status


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
