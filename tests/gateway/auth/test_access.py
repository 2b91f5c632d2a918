"""Who may ask what: keys and their scopes, a gateway that is open and one that is not, and headers for browsers."""

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

import gateway.auth.key_cache
import gateway.routes.admin
from common.errors import PipelineError
from common.settings import Settings
from gateway.auth.access import check_access, is_loopback
from gateway.console import api_page
from gateway.load_control.admission import UnderWay
from gateway.main import create_app
from serving.client.call_statistics import CallStatistics
from storage.api_keys import Scope, add_key, revoke_key
from storage.database import Database
from storage.lazy_database import Storage
from tests.gateway.conftest import ADMIN_KEY, served, until
from tests.gateway.fake_triton import FakeTriton
from tests.gateway.routes.test_wrong_requests import assert_problem
from tests.storage.conftest import database_away, postgres_server, postgres_url

__all__ = ["postgres_server", "postgres_url"]

PREDICT = ("POST", "/predict/live", {"text": "a"})
BATCH = ("POST", "/predict/batch", {"texts": ["a"]})
FEEDBACK = ("POST", "/feedback", {"text": "a"})
ADMIN = ("POST", "/retrain", None)
READ = ("GET", "/models", None)
NEEDED = {
    PREDICT[:2]: "predict",
    BATCH[:2]: "predict",
    FEEDBACK[:2]: "feedback",
    ("GET", "/models"): "read",
    ("GET", "/events"): "read",
    ("GET", "/jobs/1"): "read",
    ("POST", "/models/2/promote"): "admin",
    ("POST", "/models/2/shadow"): "admin",
    ("POST", "/models/2/canary"): "admin",
    ("POST", "/models/2/stop"): "admin",
    ("GET", "/models/2/differences"): "texts",
    ("GET", "/feedback"): "texts",
    ("GET", "/labelling"): "texts",
    ("POST", "/labelling/{text}/skip"): "feedback",
    ("GET", "/feedback/sources"): "read",
    ("POST", "/feedback/sources/quarantine"): "admin",
    ("POST", "/feedback/sources/release"): "admin",
    ("POST", "/feedback/withdraw"): "admin",
    ("POST", "/models/rollback"): "admin",
    ("POST", "/check"): "admin",
    ("POST", "/retrain"): "admin",
    ("POST", "/jobs/1/cancel"): "admin",
}
BODIES: dict[tuple[str, str], Any] = {PREDICT[:2]: PREDICT[2], BATCH[:2]: BATCH[2], FEEDBACK[:2]: FEEDBACK[2]}


@dataclass
class Gateway:
    http: httpx.Client
    database: Database

    def ask(self, method: str, path: str, json: Any = None, key: str = "", **headers: str) -> httpx.Response:
        return self.http.request(method, path, json=json, headers=headers | ({"X-API-Key": key} if key else {}))


@pytest.fixture(autouse=True)
def _hurried_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway.auth.key_cache, "REFRESH_S", 0.05)
    monkeypatch.setattr(gateway.routes.admin, "CHECK_WAIT_S", 0.0)


def make(triton: FakeTriton, directory: Path, **given: Any) -> Settings:
    return Settings(
        triton_url=f"127.0.0.1:{triton.port}",
        state_dir=directory / "state",
        model_repository=directory / "triton_repo",
        admin_key=SecretStr(ADMIN_KEY),
        **given,
    )


@contextmanager
def run(settings: Settings) -> Iterator[Gateway]:
    storage = Storage(settings)
    app = create_app(settings, storage, CallStatistics(), UnderWay())
    with served(app) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
        yield Gateway(http, storage.open())
    storage.close()


@pytest.fixture
def closed(triton: FakeTriton, tmp_path: Path) -> Iterator[Gateway]:
    with run(make(triton, tmp_path, access="keys")) as gateway:
        yield gateway


@pytest.fixture
def opened(triton: FakeTriton, tmp_path: Path) -> Iterator[Gateway]:
    with run(make(triton, tmp_path)) as gateway:
        yield gateway


def test_without_a_key_a_closed_gateway_tells_its_health_and_its_api_alone(closed: Gateway, triton: FakeTriton) -> None:
    until(lambda: closed.ask("GET", "/health/ready").is_success)
    for path in ("/health/live", "/docs", "/openapi.json"):
        assert closed.ask("GET", path).status_code == 200
    for method, path in [*NEEDED, ("GET", "/nothing"), ("GET", "/predict/live"), ("POST", "/docs/../feedback")]:
        problem = assert_problem(closed.ask(method, path), 401, "key-needed")
        assert problem["detail"] == "The header X-API-Key is missing; this needs an API key."
    # The console's pages check scopes themselves, and a browser gets a page also where there is none.
    assert closed.ask("GET", "/console/nothing").status_code == 404
    assert not triton.calls


def test_what_each_scope_allows(closed: Gateway) -> None:
    for scope in Scope:
        key = add_key(closed.database, f"the-{scope.value}", [scope])
        until(lambda key=key: closed.ask("GET", "/nothing", key=key).status_code == 404)  # type: ignore[misc]
        for (method, path), needed in NEEDED.items():
            response = closed.ask(method, path, BODIES.get((method, path)), key)
            if scope.value in (needed, "admin"):
                assert response.status_code not in (401, 403), (scope, path)
            else:
                problem = assert_problem(response, 403, "key-not-allowed")
                assert problem["detail"] == f"The key the-{scope.value} lacks the scope {needed}; it has {scope.value}."


def test_keys_are_rotated_without_a_restart_and_without_a_refused_request(closed: Gateway) -> None:
    old = add_key(closed.database, "web-1", [Scope.PREDICT])
    until(lambda: closed.ask(*PREDICT, key=old).is_success)
    new = add_key(closed.database, "web-2", [Scope.PREDICT])
    until(lambda: closed.ask(*PREDICT, key=new).is_success)
    assert closed.ask(*PREDICT, key=old).is_success
    revoke_key(closed.database, "web-1")
    until(lambda: closed.ask(*PREDICT, key=old).status_code == 401)
    assert closed.ask(*PREDICT, key=new).is_success


def test_a_key_may_come_as_a_bearer_token(closed: Gateway) -> None:
    assert closed.ask(*PREDICT, authorization=f"Bearer {ADMIN_KEY}").status_code == 200
    assert closed.ask(*PREDICT, authorization=f"bearer  {ADMIN_KEY}").status_code == 200
    for wrong in (f"Basic {ADMIN_KEY}", "Bearer", f"Bearer {ADMIN_KEY}x", ADMIN_KEY):
        assert_problem(closed.ask(*PREDICT, authorization=wrong), 401, "key-needed")


def test_a_refused_request_is_not_read(closed: Gateway) -> None:
    def body() -> Iterator[bytes]:
        yield b'{"text": "'
        raise AssertionError("the server reads on")

    with pytest.raises((AssertionError, httpx.TransportError)):
        closed.http.post("/predict/live", content=body(), headers={"content-type": "application/json"})
    response = closed.http.post("/predict/live", content=b"[" * 1_000_000)
    assert_problem(response, 401, "key-needed")


def test_an_open_gateway_needs_keys_for_changes_and_for_users_texts(opened: Gateway) -> None:
    weak = add_key(opened.database, "weak", [Scope.FEEDBACK])
    until(lambda: opened.ask(*READ, key=weak).status_code not in (401, 429))
    for (method, path), needed in NEEDED.items():
        anonymous = opened.ask(method, path, BODIES.get((method, path)))
        with_key = opened.ask(method, path, BODIES.get((method, path)), weak)
        if needed in ("admin", "texts"):
            assert_problem(anonymous, 401, "key-needed")
            assert_problem(with_key, 403, "key-not-allowed")
        else:
            assert anonymous.status_code == with_key.status_code
            assert anonymous.status_code not in (401, 403)
    assert_problem(opened.ask(*PREDICT, key="no-key-at-all"), 401, "key-needed")
    assert opened.ask("GET", "/health/live", key="no-key-at-all").status_code == 200


def test_a_database_that_goes_away_takes_no_key_away(triton: FakeTriton, tmp_path: Path, postgres_url: str) -> None:
    settings = make(triton, tmp_path, access="keys", database_url=SecretStr(postgres_url))
    with closing(Database(postgres_url)) as before:
        key = add_key(before, "web", [Scope.PREDICT])
    with run(settings) as asked:
        assert asked.ask(*PREDICT, key=key).is_success
        with database_away(postgres_url):
            until(lambda: asked.ask(*READ, key=ADMIN_KEY).status_code == 503)
            assert asked.ask(*PREDICT, key=key).is_success
            assert_problem(asked.ask(*PREDICT, key=key + "x"), 401, "key-needed")
        until(lambda: asked.ask(*READ, key=ADMIN_KEY).status_code != 503)
        with_more = add_key(asked.database, "more", [Scope.PREDICT])
        until(lambda: asked.ask(*PREDICT, key=with_more).is_success)


def test_keys_that_could_never_be_read_are_a_fault_of_the_service(triton: FakeTriton, tmp_path: Path) -> None:
    settings = make(
        triton, tmp_path, access="keys", database_url=SecretStr("postgresql+psycopg://me:secret@127.0.0.1:1/none")
    )
    app = create_app(settings, Storage(settings), CallStatistics(), UnderWay())
    with served(app) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}") as http:
        response = http.post("/predict/live", json={"text": "a"}, headers={"X-API-Key": "perhaps right"})
        assert_problem(response, 503, "storage-unavailable")
        assert http.post("/predict/live", json={"text": "a"}, headers={"X-API-Key": ADMIN_KEY}).status_code == 200
        assert_problem(http.post("/predict/live", json={"text": "a"}), 401, "key-needed")


@pytest.mark.parametrize(
    ("host", "answered"),
    [
        ("localhost:8000", True),
        ("127.0.0.1", True),
        ("[::1]:8000", True),
        ("gateway", True),
        ("me.localhost", True),
        ("10.0.0.7:80", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example:8000", False),
        ("evil.example.", False),
        ("a" * 300, False),
    ],
)
def test_a_page_cannot_reach_an_open_gateway_through_a_name_of_its_own(
    opened: Gateway, host: str, answered: bool
) -> None:
    """DNS rebinding: the browser takes the page's server and this one for the same."""
    response = opened.ask(*PREDICT, host=host)
    if answered:
        assert response.status_code == 200
    else:
        assert_problem(response, 421, "host-refused")


@pytest.mark.parametrize("access", ["keys", "open"])
def test_any_host_is_answered_where_the_setting_says_who_may_ask(
    triton: FakeTriton, tmp_path: Path, access: str
) -> None:
    with run(make(triton, tmp_path, access=access)) as asked:
        assert asked.ask(*PREDICT, key=ADMIN_KEY, host="api.example").is_success


ANSWERS = [
    (*PREDICT, 200),
    ("GET", "/predict/live", None, 405),
    ("GET", "/nothing", None, 404),
    ("POST", "/retrain", None, 401),
    ("POST", "/predict/live", {"text": ""}, 422),
    ("GET", "/health/live", None, 200),
    ("GET", "/openapi.json", None, 200),
    ("GET", "/models", None, 500),
]


@pytest.mark.parametrize(("method", "path", "body", "status"), ANSWERS)
def test_each_answer_tells_browsers_what_it_is_not_for(
    opened: Gateway, monkeypatch: pytest.MonkeyPatch, method: str, path: str, body: Any, status: int
) -> None:
    def break_down(*_: Any) -> Any:
        raise RuntimeError("the-secret")

    monkeypatch.setattr("gateway.routes.admin.describe_models", break_down)
    response = opened.ask(method, path, body, origin="https://evil.example")
    assert response.status_code == status
    assert "the-secret" not in response.text
    for name, value in (
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-resource-policy", "same-origin"),
        ("cache-control", "no-store"),
    ):
        assert response.headers.get_list(name) == [value]
    (policy,) = response.headers.get_list("content-security-policy")
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert not [name for name in response.headers if name.startswith("access-control-")]


def test_no_page_of_another_site_may_ask(opened: Gateway) -> None:
    response = opened.http.options(
        "/predict/live", headers={"origin": "https://evil.example", "access-control-request-method": "POST"}
    )
    assert response.status_code == 405
    assert not [name for name in response.headers if name.startswith("access-control-")]


def test_the_page_of_the_docs_runs_nothing_but_files_of_the_gateway(opened: Gateway) -> None:
    response = opened.ask("GET", "/docs")
    assert response.headers.get_list("content-security-policy") == [api_page.CONTENT_POLICY]
    assert "script-src 'self';" in api_page.CONTENT_POLICY
    files = re.findall(r'<script src="([^"]+)"', response.text)
    assert len(files) == response.text.count("<script") == 2
    assert all(opened.ask("GET", file).is_success for file in files)


def test_the_pages_that_describe_the_api_can_be_left_out(triton: FakeTriton, tmp_path: Path) -> None:
    with run(make(triton, tmp_path, docs=False)) as asked:
        for path in ("/docs", "/redoc", "/openapi.json"):
            assert_problem(asked.ask("GET", path), 404, "about:blank")


def test_other_machines_need_a_key_or_a_word(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path, host="0.0.0.0")
    with pytest.raises(PipelineError, match="keys add NAME --scope predict`, or allow predictions without a key"):
        check_access(settings)
    for access in ("keys", "open"):
        check_access(settings.model_copy(update={"access": access}))
    check_access(settings.model_copy(update={"host": "localhost"}))
    with closing(Database(settings.database)) as database:
        add_key(database, "web", [Scope.PREDICT])
    check_access(settings)
    with pytest.raises(PipelineError, match="SENTIMENT_ADMIN_KEY is shorter than 16"):
        check_access(settings.model_copy(update={"admin_key": SecretStr("guessed")}))


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("no.such.host.invalid", False),
    ],
)
def test_which_addresses_only_this_machine_reaches(host: str, is_local: bool) -> None:
    assert is_loopback(host) == is_local
