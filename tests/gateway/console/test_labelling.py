"""The view Label: texts are suggested, escaped, and get their labels as feedback; each state says what it is."""

import pytest

from errors import PipelineError
from gateway import suggester
from lifecycle.suggestions import suggest
from settings import Settings
from storage.database import Database
from storage.feedback import is_held_out, text_hash
from storage.tables import Figures
from tests.gateway.console.conftest import INJECTED, OWN, PART, Page
from tests.gateway.test_feedback import Gateway
from tests.sampled_texts import asked

LABEL = "/console/label"


@pytest.fixture(autouse=True)
def found_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found for one test is nothing to the next; it is found in this process, which is quicker."""

    def find(settings: Settings, _: object) -> Figures:
        database = Database(settings.database)
        found = suggest(settings, database)
        database.close()
        return found.figures()

    monkeypatch.setattr(suggester, "FRESH_S", 0.0)
    monkeypatch.setattr(suggester, "suggest_apart", find)


def learnt_from(text: str) -> str:
    """The text, with a number such that it is not held out."""
    return next(found for number in range(100) if not is_held_out(text_hash(found := f"{text} {number}")))


def hidden(page: Page, name: str) -> list[str | None]:
    return [field.get("value") for field in page.all("input") if field.get("name") == name]


def test_the_page_comes_at_once_and_fetches_the_texts(console: Gateway) -> None:
    page = Page(console.http.get(LABEL))
    assert "Looking for the texts that would teach most." in page.text
    (holder,) = [element for element in page.all("div") if element.get("id") == "to-label"]
    assert (holder["hx-get"], holder["hx-trigger"]) == (LABEL, "load")
    assert page.runs_nothing_but_files()


def test_each_text_is_shown_escaped_with_a_key_for_each_label(console: Gateway) -> None:
    text = learnt_from(INJECTED)
    asked(console.database, [text])
    part = Page(console.http.get(LABEL, headers=PART))
    assert hidden(part, "text") == [text]
    assert "Text 1 of 1" in part.text
    assert "Here because the model is unsure." in part.text
    buttons = [button for button in part.all("button") if button.get("name") == "label"]
    assert [(button["value"], button["aria-keyshortcuts"]) for button in buttons] == [
        ("Negative", "1"),
        ("Positive", "2"),
    ]
    assert part.runs_nothing_but_files()
    assert Page(console.http.get(LABEL, params={"texts": 1})).all("html"), "without scripts, as a page"


def test_a_label_is_kept_as_feedback_and_its_text_goes(console: Gateway) -> None:
    first, second = learnt_from("a grand day"), learnt_from("the lamp is broken")
    asked(console.database, [first, second])
    answer = console.http.post(LABEL, data={"text": first, "label": "Negative"}, headers=PART)
    assert answer.status_code == 200
    assert "kept as Negative" in Page(answer).text
    (row,) = console.kept()
    assert (row.text, row.label, row.held_out, row.source) == (first, "Negative", False, "console")
    assert hidden(Page(console.http.get(LABEL, headers=PART)), "text") == [second]
    answer = console.http.post(LABEL, data={"text": second, "label": "Positive"}, follow_redirects=True)
    assert "Nothing is to be labelled now" in Page(answer).text, "without scripts, on to what is left"


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


def test_what_cannot_be_found_out_is_told(console: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Figures:
        raise PipelineError("It cannot be found out.")

    monkeypatch.setattr(suggester, "suggest_apart", fail)
    answer = console.http.get(LABEL, headers=PART)
    assert answer.status_code == 503
    assert "It cannot be found out." in Page(answer).text
