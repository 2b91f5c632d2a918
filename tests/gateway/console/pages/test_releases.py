"""A version that is tried on live texts, in the console: begun, told of, ended, and what it labels differently."""

import re

import pytest

from storage import releases
from storage.feedback import text_hash
from storage.releases import DifferingText
from storage.tables import Feedback, Release
from tests.gateway.console.conftest import INJECTED, Page
from tests.gateway.console.pages.test_versions import CONFIRM, VERSIONS, change, console, newest, without_triton
from tests.gateway.routes.test_feedback import Gateway

__all__ = ["console", "without_triton"]
DIFFERENCES = f"{VERSIONS}/differences"
PART = {"texts": 200, "differ": 30, "champion": 170.0, "challenger": 184.0}


def links_to_changes(page: Page) -> list[str]:
    return re.findall(r"change=(\w+)&version=2", " ".join(str(link["href"]) for link in page.all("a")))


def test_a_shadow_goes_on_as_a_canary_and_is_ended_each_after_it_was_said_what_will_happen(console: Gateway) -> None:
    asked = Page(console.http.get(f"{CONFIRM}?change=shadow&version=2"))
    assert "25 % of the live texts are also sent to it. Its predictions are compared" in asked.text
    assert "The gates were never run on it." in asked.text
    assert newest(console.database, Release) is None, "nothing is done yet"

    done = change(console, "shadow", version=2)
    assert (done.status_code, done.headers["location"]) == (303, f"{VERSIONS}?done=shadow")
    page = Page(console.http.get(VERSIONS))
    assert "Shadow beside version 1: it classifies the same texts, and no client gets its predictions" in page.text
    assert "No live text was compared yet." in page.text
    assert links_to_changes(page) == ["promote", "canary", "stop"]

    asked = Page(console.http.get(f"{CONFIRM}?change=canary&version=2"))
    assert "It answers 5 %, then 25 %, then 50 % of the live texts. Each step takes at least 10 minutes." in asked.text
    change(console, "canary", version=2)
    assert newest(console.database, Release).reason == "by the console (admin)"
    assert "Canary beside version 1: it answers 5 % of the live texts" in Page(console.http.get(VERSIONS)).text

    assert "Version 1 answers all requests again" in Page(console.http.get(f"{CONFIRM}?change=stop&version=2")).text
    assert change(console, "stop", version=2).headers["location"] == f"{VERSIONS}?done=stop"
    page = Page(console.http.get(VERSIONS))
    assert "Canary beside version 1, stopped: by the console (admin)" in page.text
    assert links_to_changes(page) == ["promote", "shadow", "canary"]


def test_what_was_found_is_told_and_who_may_say_which_is_right_does(console: Gateway) -> None:
    change(console, "shadow", version=2)
    found = {
        "calls": 50,
        "champion_ms": 500.0,
        "challenger_ms": 750.0,
        "answered": 199,
        "failed": 1,
        "parts": {"all": PART},
    }
    differing = [
        DifferingText(INJECTED, ("Positive", 0.91), ("Negative", 0.72)),
        DifferingText("not bad at all", ("Negative", 0.6), ("Positive", 0.8)),
    ]
    release = newest(console.database, Release)
    releases.add_findings(console.database, release.id, found, differing, True)

    page = Page(console.http.get(VERSIONS))
    assert "1 text of 200 failed. A call took 15.0 ms; with version 1 10.0 ms." in page.text
    assert "all texts 200 15.0 % 92.0 % 85.0 %" in page.text

    page = Page(console.http.get(f"{DIFFERENCES}?version=2"))
    assert "The newest 2 live texts that it labels differently from version 1" in page.text
    assert "not bad at all Negative 60.0 % says version 1 Positive 80.0 % says version 2" in page.text
    assert INJECTED.split("{{")[0] in page.text
    assert page.runs_nothing_but_files()

    told = console.http.post("/console/feedback", data={"text": INJECTED, "label": "Negative"})
    assert told.status_code == 200
    assert newest(console.database, Feedback).text_hash == text_hash(INJECTED)
    with console.database.reading() as session:
        assert releases.right_by_feedback(session, release.id, "console") == (0, 1)


def test_of_a_text_that_is_not_kept_there_is_a_hash_and_nothing_to_say(console: Gateway) -> None:
    change(console, "shadow", version=2)
    release = newest(console.database, Release)
    differing = DifferingText("kept as a hash", ("Positive", 0.91), ("Negative", 0.72))
    releases.add_findings(console.database, release.id, {"answered": 1}, [differing], False)
    page = Page(console.http.get(f"{DIFFERENCES}?version=2"))
    assert f"not stored; its hash is {text_hash('kept as a hash')[:12]}" in page.text
    assert not [button for button in page.all("button") if button.get("name") == "label"]


@pytest.mark.parametrize(("query", "status"), [("version=1", 404), ("version=9", 404), ("version=x", 422), ("", 422)])
def test_a_version_that_was_never_tried_has_no_such_texts(console: Gateway, query: str, status: int) -> None:
    response = console.http.get(f"{DIFFERENCES}?{query}")
    assert response.status_code == status
    assert Page(response).runs_nothing_but_files()
