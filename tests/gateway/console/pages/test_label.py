"""The view Label: texts are suggested, escaped, and get their labels as feedback; each state says what it is."""

import pytest
from sqlalchemy.exc import OperationalError

from common.settings import Settings
from common.source_names import is_trusted
from gateway.monitoring.sampling import INTERVAL_S
from storage.api_keys import Scope, add_key
from storage.feedback import is_held_out, text_hash
from tests.gateway.conftest import until
from tests.gateway.console.conftest import INJECTED, OWN, PART, Page, sign_in
from tests.gateway.routes.test_feedback import Gateway
from tests.sampled_texts import asked

LABEL = "/console/label"


def learnt_from(text: str) -> str:
    """The text, with a number such that it is not held out."""
    return next(found for number in range(100) if not is_held_out(text_hash(found := f"{text} {number}")))


def hidden(page: Page, name: str) -> list[str | None]:
    return [field.get("value") for field in page.all("input") if field.get("name") == name]


@pytest.fixture
def labeller(console: Gateway) -> Gateway:
    """Signed in by a key with which a person may see users' texts and label them."""
    key = add_key(console.database, "anna", [Scope.TEXTS, Scope.FEEDBACK])
    sign_in_by_new_key(console, key)
    return console


def sign_in_by_new_key(console: Gateway, key: str) -> None:
    """Sign in as soon as the gateway knows the key."""
    until(lambda: console.http.get("/models", headers={"X-API-Key": key}).status_code == 200)
    sign_in(console.http, key)


def test_each_text_is_shown_escaped_with_a_key_for_each_label(labeller: Gateway) -> None:
    text = learnt_from(INJECTED)
    asked(labeller.database, [text])
    page = Page(labeller.http.get(LABEL))
    assert hidden(page, "text") == [text]
    assert "Text 1 of 1" in page.text
    assert INTERVAL_S == 10
    assert "Texts arrive up to ten seconds after their prediction" in page.text
    buttons = [button for button in page.all("button") if button.get("name") == "label"]
    assert [(button["value"], button["aria-keyshortcuts"]) for button in buttons] == [
        ("Negative", "1"),
        ("Positive", "2"),
    ]
    assert page.runs_nothing_but_files()


def test_a_label_of_a_signed_in_labeller_is_trusted_and_its_text_goes(labeller: Gateway) -> None:
    first, second = learnt_from("a grand day"), learnt_from("the lamp is broken")
    asked(labeller.database, [first, second])
    form = {"text": first, "label": "Negative"}
    answer = labeller.http.post(LABEL, data=form, headers=PART)
    assert answer.status_code == 200
    assert "stored as Negative" in Page(answer).text
    (row,) = labeller.kept()
    assert (row.text, row.label, row.held_out, row.source) == (first, "Negative", False, "console:anna")
    assert is_trusted(row.source, Settings().trusted_sources)
    assert hidden(Page(labeller.http.get(LABEL)), "text") == [second]
    answer = labeller.http.post(LABEL, data={**form, "text": second}, follow_redirects=True)
    assert "No text is waiting for a label" in Page(answer).text, "without scripts, on to what is left"


def test_who_signs_in_with_a_key_for_feedback_alone_is_no_trusted_source(console: Gateway) -> None:
    key = add_key(console.database, "program", [Scope.FEEDBACK])
    sign_in_by_new_key(console, key)
    form = {"text": "fine", "label": "Positive"}
    assert console.http.post(LABEL, data=form, headers=PART).status_code == 200
    (row,) = console.kept()
    assert row.source == "key:program"
    assert not is_trusted(row.source, Settings().trusted_sources)


def test_nobody_sees_users_texts_without_signing_in(console: Gateway) -> None:
    asked(console.database, [learnt_from("a private letter")])
    for headers in ({}, PART):
        answer = console.http.get(LABEL, headers=headers)
        assert answer.status_code == 401
        assert "private letter" not in answer.text


@pytest.mark.parametrize(
    "form", [{"text": "good", "label": "Neutral"}, {"text": " ", "label": "Positive"}, {"text": "good"}], ids=str
)
def test_what_is_no_feedback_is_refused(console: Gateway, form: dict[str, str]) -> None:
    assert console.http.post(LABEL, data=form, headers=PART).status_code == 422
    assert console.kept() == []


def test_another_site_can_label_nothing(console: Gateway) -> None:
    form = {"text": "good", "label": "Positive"}
    assert console.http.post(LABEL, data=form, headers={**OWN, "Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert console.kept() == []


def test_a_database_that_does_not_answer_is_told(labeller: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OperationalError("select", {}, Exception("disk I/O error"))

    monkeypatch.setattr("lifecycle.monitoring.suggestions.newest_sample", fail)
    answer = labeller.http.get(LABEL)
    assert answer.status_code == 503
    assert "see the server's log" in Page(answer).text
