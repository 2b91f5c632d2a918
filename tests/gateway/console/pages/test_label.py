"""The view Label: random texts get labels as feedback until these decide; each state says what it is."""

from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from common.settings import Settings
from common.source_names import is_trusted
from gateway.console.pages.label import SHOWN
from gateway.monitoring.sampling import INTERVAL_S
from lifecycle.monitoring.labelling import LEAST_TEXTS
from storage import jobs, label_draws
from storage.api_keys import Scope, add_key
from tests.gateway.conftest import until
from tests.gateway.console.conftest import INJECTED, OWN, PART, Page, sign_in
from tests.gateway.fake_triton import FakeTriton
from tests.gateway.routes.test_feedback import Gateway, gateway_with_models
from tests.sampled_texts import asked, unlike

LABEL = "/console/label"
FORM = "application/x-www-form-urlencoded"


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


def test_texts_are_shown_escaped_with_a_key_for_each_label_and_no_prediction(labeller: Gateway) -> None:
    texts = [f"{INJECTED} {number}" for number in range(LEAST_TEXTS)]
    asked(labeller.database, texts, positive=0.987)
    page = Page(labeller.http.get(LABEL))
    shown = hidden(page, "text")
    assert len(set(shown)) == SHOWN
    assert set(shown) <= set(texts)
    assert "The predictions are hidden, because people who see them agree with them too often." in page.text
    assert "No label yet" in page.text
    assert "0.98" not in page.text
    assert "98.7" not in page.text
    buttons = [button for button in page.all("button") if button.get("name") in ("label", "skip")][:3]
    assert [(button["name"], button["value"], button["aria-keyshortcuts"]) for button in buttons] == [
        ("label", "Negative", "1"),
        ("label", "Positive", "2"),
        ("skip", "yes", "s"),
    ]
    assert page.runs_nothing_but_files()


def test_too_few_texts_are_told_with_how_many_are_needed(labeller: Gateway) -> None:
    asked(labeller.database, unlike(LEAST_TEXTS - 1))
    page = Page(labeller.http.get(LABEL))
    assert hidden(page, "text") == []
    assert f"{LEAST_TEXTS} of this version are needed" in page.text
    assert INTERVAL_S == 10
    assert "Texts arrive up to ten seconds after their prediction" in page.text


def test_a_label_of_a_signed_in_labeller_is_trusted_and_counts(labeller: Gateway) -> None:
    asked(labeller.database, unlike(LEAST_TEXTS), positive=0.9)
    first, second, third = hidden(Page(labeller.http.get(LABEL)), "text")[:3]
    answer = labeller.http.post(LABEL, data={"text": first, "label": "Negative"}, headers=PART)
    assert answer.status_code == 200
    assert "0 % (0 to " in Page(answer).text
    assert "after 1 label" in Page(answer).text
    (row,) = labeller.kept()
    assert (row.text, row.label, row.source) == (first, "Negative", "console:anna")
    assert is_trusted(row.source, Settings().trusted_sources)
    answer = labeller.http.post(f"{LABEL}/skip", data={"text": second}, headers=PART)
    assert "1 text left out" in Page(answer).text
    form = {"text": third, "label": "Positive"}
    page = Page(labeller.http.post(LABEL, data=form, follow_redirects=True))
    assert "50 % (" in page.text, "without scripts, on to what is left"
    assert not {first, second, third} & set(hidden(page, "text"))
    assert labeller.http.post(f"{LABEL}/skip", data={"text": "unknown"}, headers=PART).status_code == 422


def test_labels_that_decide_end_it_and_request_a_check_until_one_draws_anew(labeller: Gateway) -> None:
    asked(labeller.database, unlike(LEAST_TEXTS), positive=0.9)
    for text in hidden(Page(labeller.http.get(LABEL)), "text"):
        answer = labeller.http.post(LABEL, data={"text": text or "", "label": "Negative"}, headers=PART)
    assert [item for item in Page(answer).all("p") if "data-decided" in item]
    assert "the accuracy of version 1 on these texts is under 80 %. A check follows." in Page(answer).text
    page = Page(labeller.http.get(LABEL))
    assert hidden(page, "text") == []
    assert "A check follows." in page.text
    assert jobs.waiting(labeller.database, jobs.CHECK) is not None
    page = Page(labeller.http.post(f"{LABEL}/new", headers={"Content-Type": FORM}, follow_redirects=True))
    assert len(hidden(page, "text")) == SHOWN


def test_who_may_only_read_texts_keeps_none_from_others_and_changes_nothing(
    fake_triton: FakeTriton, bert_bundle: Path, tmp_path: Path
) -> None:
    with gateway_with_models(fake_triton, tmp_path, bert_bundle, access="keys") as reader:
        reader.http.headers.update(OWN)
        asked(reader.database, unlike(LEAST_TEXTS))
        sign_in_by_new_key(reader, add_key(reader.database, "reader", [Scope.TEXTS, Scope.READ]))
        page = Page(reader.http.get(LABEL))
        assert hidden(page, "text") == []
        assert "Sign in with a key that has the scopes texts and feedback" in page.text
        for path, form in (("", {"label": "Positive"}), ("/skip", {}), ("/new", {})):
            answer = reader.http.post(f"{LABEL}{path}", data={"text": "good", **form}, headers=PART)
            assert answer.status_code == 403, path
        assert label_draws.read_series(reader.database, "") is None


def test_who_signs_in_with_a_key_for_feedback_alone_is_no_trusted_source(console: Gateway) -> None:
    key = add_key(console.database, "program", [Scope.FEEDBACK])
    sign_in_by_new_key(console, key)
    form = {"text": "fine", "label": "Positive"}
    assert console.http.post(LABEL, data=form, headers=PART).status_code == 200
    (row,) = console.kept()
    assert row.source == "key:program"
    assert not is_trusted(row.source, Settings().trusted_sources)


def test_nobody_sees_users_texts_without_signing_in(console: Gateway) -> None:
    asked(console.database, unlike(LEAST_TEXTS, "a private letter"))
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

    monkeypatch.setattr("lifecycle.monitoring.labelling.newest_sample", fail)
    answer = labeller.http.get(LABEL)
    assert answer.status_code == 503
    assert "see the server's log" in Page(answer).text
