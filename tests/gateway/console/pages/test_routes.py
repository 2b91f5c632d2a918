"""Paths of the console that have no page: browsers get one all the same."""

import pytest

import gateway.console.pages.quality
from tests.gateway.console.conftest import SIGN_IN, Page, sign_in
from tests.gateway.routes.test_feedback import Gateway


@pytest.mark.parametrize(
    ("path", "status", "told"),
    [
        ("/console/nothing", 404, "Not found There is no page at this path."),
        ("/console/", 404, "There is no page at this path."),
        ("/console/static/old.0123456789ab.css", 404, "There is no page at this path."),
        ("/console/try", 405, "This path only accepts what a page sends."),
        ("/console/promote", 405, "This path only accepts what a page sends."),
    ],
)
def test_a_browser_gets_a_page_with_the_way_to_all_others(console: Gateway, path: str, status: int, told: str) -> None:
    sign_in(console.http)
    response = console.http.get(path)
    assert response.status_code == status
    assert response.headers.get("allow") == ("POST" if status == 405 else None)
    page = Page(response)
    assert told in page.text
    assert {"/", "/console/health", "/console/label"} <= {link["href"] for link in page.all("a")}
    assert "Sign out (admin)" in page.text
    assert page.runs_nothing_but_files()
    (policy,) = response.headers.get_list("content-security-policy")
    assert "style-src 'self'" in policy, "the page may load its style sheet"


def test_an_unexpected_error_is_a_page_too(console: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway.console.pages.quality, "_read", lambda _: 1 / 0)
    response = console.http.get("/console/quality")
    assert response.status_code == 500
    assert "see the server’s log" in Page(response).text or "see the server's log" in Page(response).text


def test_signing_in_leads_back_to_the_page_and_never_to_what_only_takes_forms(console: Gateway) -> None:
    shown = Page(console.http.get("/console/confirm", params={"change": "check"}))
    assert {"name": "next", "value": "/console/confirm?change=check", "type": "hidden"} in shown.all("input")
    referer = {"Referer": f"{console.http.base_url}/console/confirm?change=check"}
    sent = Page(console.http.post("/console/check", headers=referer))
    assert "/console/sign-in?next=/console/confirm%3Fchange%3Dcheck" in [link["href"] for link in sent.all("a")]


def test_the_page_to_sign_in_says_where_the_admin_key_is(console: Gateway) -> None:
    assert "is the value of SENTIMENT_ADMIN_KEY" in Page(console.http.get(SIGN_IN)).text


def test_other_paths_are_answered_as_programs_expect(console: Gateway) -> None:
    for path in ("/nothing", "/consolers", "/predict/live"):
        response = console.http.get(path, headers={"Accept": "text/html"})
        assert response.headers["content-type"] == "application/problem+json"
        assert response.headers["content-security-policy"].startswith("default-src 'none'")
