import csv
import io

import pytest

import storage.events
from common.errors import PipelineError
from common.settings import Settings
from lifecycle.deployment import promotion
from storage import events, jobs
from storage.events import EventKind
from storage.tables import Figures
from tests.gateway.console.conftest import INJECTED, Page
from tests.gateway.routes.test_feedback import Gateway

EVENTS = "/console/events"
EXPORT = "/console/events.csv"


def record(console: Gateway, *messages: str, kind: EventKind = EventKind.CHECKED) -> list[int]:
    with console.database.transaction() as session:
        return [events.record(session, kind, message, {"validation": {"accuracy": 0.9}}).id for message in messages]


def test_before_anything_has_happened_it_says_what_will_be_there(console: Gateway) -> None:
    assert "There are no events yet" in Page(console.http.get(EVENTS)).text


def test_the_first_deployment_is_an_event_with_its_figures(console: Gateway) -> None:
    root = console.repository.root
    settings = Settings(state_dir=root.parent / "state", model_repository=root)
    promotion.reconcile(settings, console.database)
    assert "deployed version 1 Version 1 is deployed (" in Page(console.http.get(EVENTS)).text
    promotion.reconcile(settings, console.database)
    assert Page(console.http.get(EVENTS)).text.count("Version 1 is deployed (") == 1, "only once"


def test_the_newest_come_first_with_their_figures(console: Gateway) -> None:
    record(console, "One.", "Two.\nBecause of three.")
    page = Page(console.http.get(EVENTS))
    assert page.text.index("Two.") < page.text.index("One.")
    assert "Because of three." in page.text
    assert "validation accuracy 0.9000" in page.text


def test_what_an_event_is_about_is_separated_and_numbers_are_readable(console: Gateway) -> None:
    with console.database.transaction() as session:
        job = jobs.enqueue(console.database, jobs.CHECK, "a test").id
        figures: Figures = {"rows": 12345, "share": 1234.5, "interval": [0.85, 0.9], "kept": True, "none": None}
        figures |= {"validation": {"texts": 1305.0, "macro_f1": 1.0, "f1_by_label": {"very_good": 0.5}}}
        events.record(session, EventKind.STALE, "Of a job.", figures, job_id=job)
        events.record(session, EventKind.CHECKED, "Of both.", version=3, job_id=job)
    text = Page(console.http.get(EVENTS)).text
    assert f"check version 3 · job {job} Of both." in text
    assert f"under a threshold job {job} Of a job." in text
    assert "rows 12,345 share 1,234.5000 interval 0.8500, 0.9000 kept yes none –" in text
    assert "validation texts 1,305 validation macro F1 1.0000 validation F1 by label very_good 0.5000" in text


def test_they_are_filtered_by_kind_and_words(console: Gateway) -> None:
    record(console, "Version 3 is good.", "Version 4 is 100% good.")
    record(console, "Version 3 was promoted.", kind=EventKind.PROMOTED)
    for query, told in (
        ({"kind": "promoted"}, {"Version 3 was promoted."}),
        ({"words": "VERSION 3"}, {"Version 3 is good.", "Version 3 was promoted."}),
        ({"kind": "checked", "words": "version 3"}, {"Version 3 is good."}),
        ({"words": "100%"}, {"Version 4 is 100% good."}),
        ({"words": "0_"}, set()),
    ):
        page = Page(console.http.get(EVENTS, params=query))
        all_ = {"Version 3 is good.", "Version 4 is 100% good.", "Version 3 was promoted."}
        assert {message for message in all_ if message in page.text} == told, query
        assert told or "No event matches" in page.text
        rows = list(csv.DictReader(io.StringIO(console.http.get(EXPORT, params=query).text)))
        assert {row["message"] for row in rows} == told


def test_kinds_are_told_in_words_and_asked_for_by_name(console: Gateway) -> None:
    record(console, "The data files cannot be used.", kind=EventKind.DATA_UNFIT)
    page = Page(console.http.get(EVENTS, params={"kind": "data-unfit"}))
    assert "UTC data files unusable The data files cannot be used." in page.text
    options = {option["value"]: option for option in page.all("option")}
    assert options.keys() == {"", *EventKind}
    assert "selected" in options["data-unfit"]
    assert "data-unfit" not in page.text


def test_older_ones_are_a_page_further(console: Gateway) -> None:
    record(console, *(f"Number {number}." for number in range(120)))
    seen = []
    address = EVENTS
    while address:
        page = Page(console.http.get(address))
        seen += [number for number in range(120) if f"Number {number}." in page.text]
        older = [link["href"] for link in page.all("a") if "before=" in (link["href"] or "")]
        address = older[0] or "" if older else ""
    assert sorted(seen) == list(range(120))
    assert seen[:50] == list(range(70, 120))


def test_the_file_has_all_of_them_and_no_formula(console: Gateway) -> None:
    record(console, "=HYPERLINK(1)", '"quoted", and\nin two lines', *(f"Number {number}." for number in range(120)))
    response = console.http.get(EXPORT)
    assert response.headers["content-disposition"] == 'attachment; filename="events.csv"'
    rows = list(csv.DictReader(io.StringIO(response.text)))
    assert len(rows) == 122
    assert rows[-1]["message"] == "'=HYPERLINK(1)"
    assert rows[-2]["message"] == '"quoted", and\nin two lines'
    assert rows[-1]["figures"] == '{"validation": {"accuracy": 0.9}}'


def test_whatever_is_in_an_event_or_asked_for_is_shown_as_text(console: Gateway) -> None:
    with console.database.transaction() as session:
        events.record(session, EventKind.CHECKED, INJECTED, {INJECTED: {"a": INJECTED}})
    page = Page(console.http.get(EVENTS, params={"words": INJECTED[:20]}))
    assert page.runs_nothing_but_files()
    assert INJECTED in page.text
    assert not [image for image in page.all("img") if image["src"] == "x"]


@pytest.mark.parametrize("query", [{"kind": "no-kind"}, {"words": "a" * 201}, {"words": "\0"}, {"before": "1 OR 1=1"}])
def test_what_cannot_be_asked_for_is_told(console: Gateway, query: dict[str, str]) -> None:
    for path in (EVENTS, EXPORT):
        response = console.http.get(path, params=query)
        assert response.status_code == 422
        assert Page(response).runs_nothing_but_files()


def test_while_the_database_is_down_the_page_says_so(console: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise PipelineError("secret")

    monkeypatch.setattr(storage.events, "newest", fail)
    response = console.http.get(EVENTS)
    assert response.status_code == 503
    assert "The database is not available now" in Page(response).text
    assert "secret" not in response.text
