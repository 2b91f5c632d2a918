"""The console in a browser, against a real `serve`: what an operator does, what a stranger tries, who cannot see it."""

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Response, expect
from sqlalchemy import select

from lifecycle.monitoring.labelling import LEAST_TEXTS
from storage import events, jobs, releases
from storage.database import Database, now
from storage.events import EventKind
from storage.jobs import Outcome
from storage.releases import DifferingText
from storage.tables import Feedback, Job
from storage.versions import GateVerdict, add_verdicts
from tests.e2e.browser import OTHER_NAME, chromium, needs_chromium, opened, sign_in
from tests.e2e.conftest import wait_for
from tests.lifecycle.conftest import ADMIN_KEY, Served, make_served, serving
from tests.lifecycle.learning import learning_settings, write_data
from tests.sampled_texts import asked, unlike

pytestmark = [pytest.mark.full, needs_chromium]

INJECTED = "<img src=x onerror=\"document.title='broken in'\"><script>document.title='broken in'</script>'\"&"
VIEWS = ["/", "/console/health", "/console/quality", "/console/versions", "/console/label", "/console/events"]
VIEWS += ["/console/sign-in"]
DIFFERENCES = "/console/versions/differences?version=2"
PART = {"texts": 200, "differ": 30, "champion": 170.0, "challenger": 184.0}
DRAWN = unlike(LEAST_TEXTS, "My new phone:")
MOST_BYTES = 300_000
BEGINS_MS = 240_000
"""A process that has torch to import, on a machine that does other things too."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, bert_bundle: Path) -> Iterator[Served]:
    """Two versions of a small random model, and data that a third is learnt from."""
    directory = tmp_path_factory.mktemp("console")
    write_data(directory)
    served = make_served(directory, bert_bundle, versions=2, **learning_settings(directory))
    with serving(served):
        database = served.database()
        asked(database, DRAWN, positive=0.9)
        database.close()
        yield served


@pytest.fixture(scope="module")
def database(running: Served) -> Iterator[Database]:
    opened = running.database()
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, running: Served) -> Iterator[Page]:
    with opened(browser, running.url) as page:
        yield page


def test_an_operator_tries_corrects_retrains_promotes_and_goes_back(
    page: Page, running: Served, database: Database
) -> None:
    page.goto("/")
    page.get_by_label("One or more texts").fill("The battery lasts all day, what a waste.")
    page.get_by_role("button", name="Classify").click()
    answer = page.locator(".answer")
    expect(answer.get_by_role("heading", level=2)).to_contain_text(re.compile("(Negative|Positive) [0-9.]+ %"))
    expect(answer.locator(".words")).to_have_text("The battery lasts all day, what a waste.")
    expect(page.locator("#answers .meta")).to_contain_text("· version 1")

    answer.get_by_text("That’s wrong").click()
    right = answer.locator(".correct button")
    label = right.inner_text()
    right.click()
    expect(page.get_by_text(f"stored as {label}")).to_be_visible()
    with database.reading() as session:
        assert [(row.text, row.label) for row in session.scalars(select(Feedback))] == [
            ("The battery lasts all day, what a waste.", label)
        ]

    sign_in(page, ADMIN_KEY, "/console/versions")
    page.get_by_role("link", name="Retrain").click()
    expect(page.get_by_role("heading", name="What will happen")).to_be_visible()
    page.get_by_role("button", name="Retrain").click()
    progress = page.locator("#progress")
    expect(progress).to_contain_text("by the console (admin)")
    step = re.compile("collecting|training|exporting|trying")
    expect(progress.locator("[aria-current=step]")).to_have_text(step, timeout=BEGINS_MS)
    page.get_by_role("button", name="Cancel job").click()
    expect(progress).to_contain_text("a retrain, which was cancelled", timeout=BEGINS_MS)

    page.get_by_role("link", name="Promote version 2").click()
    expect(page.get_by_text("The gates were never run on it.")).to_be_visible()
    page.get_by_role("button", name="Promote version 2").click()
    expect(page.get_by_text("the version is deployed")).to_be_visible()
    expect(page.locator("article", has_text="Version 2").first).to_contain_text("deployed")
    assert running.version() == 2

    page.get_by_role("link", name="Roll back").click()
    page.get_by_role("button", name="Roll back to version 1").click()
    expect(page.get_by_text("the previous version is deployed again")).to_be_visible()
    assert running.version() == 1

    page.get_by_role("link", name="Events", exact=True).click()
    page.get_by_label("Kind").select_option("rolled-back")
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_text("Rolled back from version 2 to 1: by the console (admin).")).to_be_visible()
    page.get_by_role("button", name=re.compile("Sign out")).click()
    expect(page.get_by_role("link", name="Sign in")).to_be_visible()


def test_a_program_on_another_port_gets_the_cookie_and_can_change_nothing(page: Page, running: Served) -> None:
    """Browsers send the cookies of a host to each of its ports, and keep what pages store apart by port."""
    sign_in(page, ADMIN_KEY, "/console/versions")
    taken: list[str] = []

    class Thief(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            taken.append(self.headers.get("Cookie", ""))
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<title>other</title>")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Thief) as thief:
        threading.Thread(target=thief.serve_forever, daemon=True).start()
        other = page.context.new_page()
        other.goto(f"http://127.0.0.1:{thief.server_port}/")
        stored = other.evaluate("Object.keys(localStorage)")
        other.close()
        thief.shutdown()
    headers = {"Cookie": taken[0], "Sec-Fetch-Site": "same-origin"}
    with httpx.Client(base_url=running.url, headers=headers, timeout=60) as client:
        assert "Sign out" in client.get("/console/health").text
        answer = client.post("/console/retrain", data={"a": "b"})
    assert stored == []
    assert (answer.status_code, "The API key is needed again" in answer.text) == (403, True)

    # The same happens to a browser that has lost the token; it can give the key instead.
    page.evaluate("localStorage.clear()")
    page.goto("/console/confirm?change=check")
    page.get_by_role("button", name="Check").click()
    expect(page.get_by_role("heading", name="The API key is needed again")).to_be_visible()
    assert_accessible(page, "the key, once more")
    page.get_by_label("API key").fill(ADMIN_KEY)
    page.get_by_role("button", name="Confirm").click()
    expect(page.get_by_text("A check was requested.")).to_be_visible()


def no_job_is_left(database: Database) -> bool:
    """Cancel the jobs of earlier tests, such as a check and the retraining that it may ask for."""
    with database.reading() as session:
        active = [job.id for job in jobs.active(session)]
    for number in active:
        jobs.request_cancel(database, number)
    return not active


def test_what_changes_elsewhere_is_shown_without_loading_again(page: Page, database: Database) -> None:
    sign_in(page, ADMIN_KEY, "/console/versions")
    # One of an earlier test would end after this job, and be shown in its place.
    wait_for(lambda: no_job_is_left(database), 120, "the jobs under way to end")
    with database.transaction() as session:
        job = Job(kind=jobs.RETRAIN, state=jobs.RUNNING, reason="elsewhere", created_at=now(session), result={})
        session.add(job)
        session.flush()
        jobs.end(session, job.id, Outcome(jobs.REJECTED, {"version": 2, "gates": ["slices"]}))
    add_verdicts(database, 2, [GateVerdict("slices", False, "Worse on short texts.", {})])
    expect(page.locator("#progress")).to_contain_text("was rejected")
    expect(page.locator("#versions")).to_contain_text("0 of 1 passed")


def test_nothing_that_is_typed_is_run(page: Page, database: Database) -> None:
    with database.transaction() as session:
        events.record(session, EventKind.CHECKED, INJECTED, {INJECTED: INJECTED})
    page.goto("/")
    for lines in (False, True):
        page.get_by_label("One or more texts").fill(f"{INJECTED}\n{INJECTED}")
        page.get_by_label("Each line is a separate text").set_checked(lines)
        page.get_by_role("button", name="Classify").click()
        expect(page.locator("#answers h2").first).to_be_visible()
        expect(page.locator("#answers")).to_contain_text("<script>")
    page.get_by_text("That’s wrong").first.click()
    page.locator(".correct button").first.click()
    expect(page.get_by_text("Thank you")).to_be_visible()
    page.goto("/console/events")
    page.get_by_label("With the words").fill(INJECTED)
    page.get_by_role("button", name="Filter").click()
    expect(page.locator(".message")).to_have_text(INJECTED)
    expect(page.get_by_label("With the words")).to_have_value(INJECTED)
    for query in ("events?kind=", "versions?done=", "versions/compare?left=", "sign-in?next=", "events?before="):
        page.goto(f"/console/{query}{INJECTED}")
        assert "broken in" not in page.title()
    page.goto("/console/sign-in")
    page.get_by_label("API key").fill(INJECTED)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_text("This is not a valid API key.")).to_be_visible()
    assert "broken in" not in page.title()
    assert not page.locator("img[src=x]").count()


def was_tried(database: Database, version: int) -> None:
    """Have a version been in the shadow of version 1, and have differed."""
    figures = {"answered": 200, "calls": 50, "champion_ms": 500.0, "challenger_ms": 750.0, "parts": {"all": PART}}
    differing = [DifferingText("not bad at all", ("Negative", 0.6), ("Positive", 0.8))]
    with database.transaction() as session:
        number = releases.begin(session, version, 1, releases.SHADOW, [], "for its pages").id
    releases.add_findings(database, number, figures, differing, keeps_texts=True)
    with database.transaction() as session:
        # The pipeline may have ended it already, for such a version is not loaded.
        if (release := releases.locked(session, number)) is not None:
            releases.end(session, release, releases.STOPPED, "enough is seen")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser: Browser, running: Served, database: Database, scheme: str) -> None:
    with database.transaction() as session:
        events.record(session, EventKind.PROMOTED, "Version 2 was promoted.", {"before": {"accuracy": 0.8}})
    check_once(database)
    was_tried(database, version=2)
    with opened(browser, running.url, scheme=scheme) as page:
        sign_in(page, ADMIN_KEY)
        for view in [*VIEWS, DIFFERENCES]:
            page.goto(view)
            assert_accessible(page, view)
        page.goto("/console/versions")
        page.get_by_text("Shadow beside version 1").click()
        expect(page.get_by_role("cell", name="15.0 %")).to_be_visible()
        assert_accessible(page, "trial")
        page.goto("/console/label")
        expect(page.locator(".label-card:visible")).to_have_count(1)
        assert_accessible(page, "label")
        page.goto("/console/confirm?change=promote&version=2")
        assert_accessible(page, "confirm")
        page.goto("/console/versions/compare?left=1&right=2")
        assert_accessible(page, "compare")
        page.goto("/")
        page.get_by_label("One or more texts").fill("What a waste of two hours.\nThe screen is bright.")
        for lines in (False, True):
            page.get_by_label("Each line is a separate text").set_checked(lines)
            page.get_by_role("button", name="Classify").click()
            expect(page.locator("#answers .stacked" if lines else "#answers .answer")).to_be_visible()
            page.get_by_text("That’s wrong").first.click()
            assert_accessible(page, "answers")
        page.get_by_label("One or more texts").fill(" ")
        page.get_by_role("button", name="Classify").click()
        expect(page.get_by_role("alert").get_by_text("is empty")).to_be_visible()
        assert_accessible(page, "problem")


def check_once(database: Database) -> None:
    """A check's result, so that there is something to see."""
    figures = {
        "texts": 200,
        "accuracy": 0.9,
        "macro_f1": 0.9,
        "calibration_error": 0.02,
        "f1_by_label": {"Negative": 0.9, "Positive": 0.9},
        "confusion": [[90, 10], [10, 90]],
    }
    with database.transaction() as session:
        job = Job(kind=jobs.CHECK, state=jobs.RUNNING, reason="a test", created_at=now(session), result={})
        session.add(job)
        session.flush()
        jobs.end(
            session,
            job.id,
            Outcome(jobs.SUCCEEDED, {"version": 1, "stale": False, "problems": [], "validation": figures}),
        )


def test_a_chart_tells_the_newest_values_without_a_pointer(page: Page, database: Database) -> None:
    for _ in range(2):  # the first one has no chart
        check_once(database)
    page.goto("/console/quality")
    legend = page.locator(".u-legend tr")
    expect(legend.nth(0)).to_contain_text("newest")
    expect(legend.filter(has_text="accuracy, validation")).to_contain_text("0.9000")
    page.goto("/console/health")
    expect(legend.filter(has_text="requests")).to_contain_text(re.compile(r"\d\.\d /s"))


def test_the_page_of_the_api_is_shown_without_the_internet(page: Page) -> None:
    page.goto("/docs")
    expect(page.get_by_text("/predict/live", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="Authorize")).to_be_visible()


def test_a_page_that_does_not_exist_looks_like_the_others(page: Page) -> None:
    page.goto("/console/nothing")
    expect(page.get_by_role("heading", name="Not found")).to_be_visible()
    assert_accessible(page, "not found")
    page.get_by_role("link", name="Health").click()
    expect(page.get_by_role("heading", name="Health")).to_be_visible()


def test_fields_do_not_look_disabled(page: Page) -> None:
    """In the grey of the page they did."""
    page.goto("/")
    for label in ("One or more texts", "Drop or choose a CSV or JSON Lines file"):
        expect(page.get_by_label(label)).to_have_css("background-color", "rgb(255, 255, 255)")
    expect(page.locator("body")).not_to_have_css("background-color", "rgb(255, 255, 255)")


def assert_accessible(page: Page, what: str) -> None:
    found = Axe().run(page).response["violations"]
    serious = [
        (item["id"], [node["html"] for node in item["nodes"]])
        for item in found
        if item["impact"] in ("serious", "critical")
    ]
    assert not serious, (what, serious)


def test_all_can_be_reached_and_done_by_keyboard(page: Page) -> None:
    page.goto("/")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    reached = set()
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.textContent.trim() || document.activeElement.id"))
    assert {"Try", "Health", "Quality", "Versions", "Events", "Sign in", "text", "Classify"} <= reached
    page.get_by_label("One or more texts").focus()
    page.keyboard.type("The plot makes no sense.")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".answer")).to_be_visible()
    summary = page.get_by_text("That’s wrong")
    summary.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Thank you")).to_be_visible()


def labels_told(database: Database) -> dict[str, str]:
    with database.reading() as session:
        return {row.text: row.label for row in session.scalars(select(Feedback)) if row.text in DRAWN}


def test_texts_are_labelled_skipped_and_undone_with_a_key_each(page: Page, database: Database) -> None:
    sign_in(page, ADMIN_KEY, "/console/label")
    card = page.locator(".label-card:visible")
    text = card.locator("blockquote")
    expect(card).to_have_count(1)
    expect(card.locator("h2")).to_be_focused()
    first = text.inner_text()
    page.keyboard.press("2")
    expect(text).not_to_have_text(first)
    second = text.inner_text()
    page.keyboard.press("u")
    expect(text).to_have_text(first)
    expect(page.get_by_text("Undone.")).to_be_visible()
    page.keyboard.press("1")
    expect(text).to_have_text(second)
    page.keyboard.press("s")
    expect(text).not_to_have_text(second)
    third = text.inner_text()
    assert not labels_told(database).get(second)
    page.keyboard.press("2")
    expect(text).not_to_have_text(third)
    page.goto("/console/health")  # what is held back goes when the page does
    expect(page.get_by_role("heading", name="Health")).to_be_visible()
    wait_for(lambda: labels_told(database).keys() >= {first, third}, 60, "both labels")
    told = labels_told(database)
    assert (told[first], told[third]) == ("Negative", "Positive"), "the label that was undone was never told"
    assert second not in told
    page.goto("/console/label")
    expect(card).to_have_count(1)
    left = [part.strip() for part in page.locator(".label-card blockquote").all_text_contents()]
    assert not {first, second, third} & set(left), "what was left out does not come again"


def test_a_label_that_is_not_kept_is_told_and_its_text_comes_again(page: Page, database: Database) -> None:
    sign_in(page, ADMIN_KEY, "/console/label")
    text = page.locator(".label-card:visible blockquote")
    first = text.inner_text()
    page.route("**/console/label", lambda route: route.abort())
    page.get_by_role("button", name="Positive").click()
    page.get_by_role("button", name="I cannot tell").click()
    expect(page.get_by_role("alert")).to_contain_text("A label was not kept: The gateway cannot be reached.")
    assert first not in labels_told(database)
    page.unroute("**/console/label")
    while text.inner_text() != first:
        page.get_by_role("button", name="I cannot tell").click()
    page.get_by_role("button", name="Negative").click()
    wait_for(lambda: labels_told(database).get(first) == "Negative", 60, "the label")


def test_true_labels_are_given_until_the_page_stops_by_itself_and_a_check_follows(
    page: Page, database: Database
) -> None:
    """All predictions are positive, and one text in four is."""
    positive = set(DRAWN[::4])
    sign_in(page, ADMIN_KEY, "/console/label")
    page.get_by_role("button", name="Draw anew").click()
    card = page.locator(".label-card:visible")
    decided = page.locator("[data-decided]")
    for _ in range(60):
        expect(card.or_(decided).first).to_be_visible()
        if decided.count():
            break
        text = card.locator("blockquote").inner_text()
        page.keyboard.press("2" if text in positive else "1")
        expect(card.locator("blockquote").filter(has_text=text)).to_have_count(0)
    expect(page.get_by_text("Decided: the accuracy of version 1 on these texts is under 80 %.")).to_be_visible()
    expect(card).to_have_count(0)
    assert 0 < len(labels_told(database)) < len(DRAWN) / 2

    def problems() -> str:
        last = jobs.last_ended(database, jobs.CHECK)
        return "" if last is None else "; ".join(last.result.get("problems", []))

    wait_for(lambda: "accuracy on live texts by random labels is" in problems(), 240, "a check that names the labels")


def test_a_file_that_is_dropped_comes_back_scored_or_with_its_faults(page: Page) -> None:
    page.goto("/")
    chooser = page.get_by_label("Drop or choose a CSV or JSON Lines file")
    with page.expect_download() as download:
        chooser.set_input_files({"name": "new.csv", "mimeType": "text/csv", "buffer": b"id;text\n7;good\n8;bad\n9\n"})
    assert download.value.suggested_filename == "scored-new.csv"
    lines = Path(download.value.path()).read_text().splitlines()
    assert lines[0] == "id,text,label,score,version"
    assert [
        re.fullmatch(r"(7,good|8,bad),(Negative|Positive),0\.\d{4},\d+", line) is not None for line in lines[1:]
    ] == [
        True,
        True,
    ]
    expect(
        page.get_by_text("2 rows, scored with version 1. Left out, because they cannot be classified: 1.")
    ).to_be_visible()
    expect(page.get_by_text("the delimiter is a semicolon")).to_be_visible()
    expect(page.get_by_text("line 4: wrong number of fields")).to_be_visible()
    assert_accessible(page, "a file's result")
    wrong = f'text\n"{INJECTED.replace(chr(34), chr(34) * 2)}",2\n'.encode()
    chooser.set_input_files({"name": "wrong.csv", "mimeType": "text/csv", "buffer": wrong})
    expect(page.get_by_role("alert").filter(has_text="line 2")).to_contain_text(
        "wrong number of fields: 2 instead of 1"
    )
    assert_accessible(page, "a file's faults")


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_is_wider_than_the_screen(browser: Browser, running: Served, database: Database, width: int) -> None:
    check_once(database)
    was_tried(database, version=2)
    with opened(browser, running.url, width=width) as page:
        sign_in(page, ADMIN_KEY)
        compare = "/console/versions/compare?left=2&right=1"
        for view in [*VIEWS, DIFFERENCES, "/console/confirm?change=retrain", compare]:
            page.goto(view)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, view


@pytest.mark.parametrize("view", VIEWS)
def test_a_page_is_small_with_all_that_it_loads(browser: Browser, running: Served, view: str) -> None:
    answers: list[Response] = []
    with opened(browser, running.url) as page:
        page.on("response", lambda answer: answers.append(answer))
        page.goto(view, wait_until="load")
        loaded = [answer for answer in answers if answer.request.resource_type != "eventsource"]
        assert all(answer.url.startswith(running.url) for answer in loaded)
        assert 0 < sum(len(answer.body()) for answer in loaded) < MOST_BYTES


def test_from_another_machine_over_http_it_does_the_same(browser: Browser, running: Served) -> None:
    with opened(browser, f"http://{OTHER_NAME}:{running.port}") as page:
        sign_in(page, ADMIN_KEY)
        page.get_by_label("One or more texts").fill("good")
        page.get_by_role("button", name="Classify").click()
        expect(page.locator(".answer h2")).to_be_visible()


def test_without_scripts_it_does_the_same(browser: Browser, running: Served) -> None:
    context = browser.new_context(base_url=running.url, java_script_enabled=False)
    page = context.new_page()
    page.goto("/")
    page.get_by_label("One or more texts").fill("good")
    page.get_by_role("button", name="Classify").click()
    expect(page.locator(".answer h2")).to_be_visible()
    sign_in(page, ADMIN_KEY, "/console/versions")
    page.get_by_role("link", name="Check now").click()
    page.get_by_role("button", name="Check").click()
    # No script, so nobody kept the token.
    page.get_by_label("API key").fill(ADMIN_KEY)
    page.get_by_role("button", name="Confirm").click()
    expect(page.get_by_text("A check was requested.")).to_be_visible()
    context.close()
