"""Takes the pictures of the console that are in docs/images: `python -m tests.e2e.console_pictures docs/images`.

The tutorial's loop is closed first. Then the version that served before is in the shadow, and some random texts get
labels, so that every view has something to show. It takes about ten minutes on two cores.
"""

import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path

import httpx
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from lifecycle.monitoring.labelling import MOST_TEXTS
from tests.e2e.browser import chromium, opened, sign_in
from tests.e2e.closing_the_loop import Api, close_the_loop, read_tweets
from tests.e2e.conftest import tutorial_pipeline

SIZES = {"desktop": (1280, 860), "phone": (390, 844)}
TEXT = "The screen is bright and the battery lasts all day, but it broke after a week and nobody answers my mails."
VIEWS = ("health", "quality", "versions", "label", "events")
ENOUGH_DIFFERENCES = 12
LABELLED = 15
"""Texts with a label on the page Label: some, and too few to decide."""
MOST_PIXELS_HIGH = 2_000
"""Of a picture; lists go on as they begin."""
PAUSE_S = 0.02
"""Between two tweets, so that the charts of live requests show some."""
SETTINGS = {"SENTIMENT_SAMPLE_PER_MINUTE": "60000", "SENTIMENT_PRECISION": "float32"}
"""Every tweet is sampled, so that texts to label are drawn from tweets alone, and not from the loop's load. Variants of
a graph are on no picture, and would take minutes."""
CONNECTIONS = 8
"""Of the loop's load."""
SAMPLED_S = 15
"""Longer than a live text takes until it is in the sample."""


def main(directory: Path) -> None:
    """Write a picture of each view, in light and dark, on a desktop and a phone."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as checkout, tutorial_pipeline(Path(checkout), **SETTINGS) as pipeline:
        close_the_loop(pipeline, least_gain=0, largest_loss=1, connections=CONNECTIONS)
        key = (pipeline.checkout / ".sentiment" / "admin_key").read_text()
        api = Api(pipeline.url, key)
        tweets = {f"RT {tweet.text}".strip(): tweet.label for tweet in read_tweets(pipeline.checkout / "tweets.csv")}
        try_the_first(api, tweets)
        time.sleep(SAMPLED_S)
        label_some(api, tweets)
        with chromium() as browser:
            for scheme in ("light", "dark"):
                for size in SIZES:
                    take(browser, pipeline.url, key, directory, scheme, size)


def try_the_first(api: Api, tweets: Iterable[str]) -> None:
    """Have the first version in the shadow, and ask for tweets that it labels differently, and enough to be labelled.

    Answers to the tweets of the loop are known already, and known ones are not compared.
    """
    api.ask("POST", "/models/1/shadow")
    with httpx.Client(base_url=api.url, timeout=30) as client:
        for tweet in islice(tweets, MOST_TEXTS + 200):
            client.post("/predict/live", json={"text": tweet}).raise_for_status()
            time.sleep(PAUSE_S)
    assert len(api.ask("GET", "/models/1/differences")) >= ENOUGH_DIFFERENCES


def label_some(api: Api, tweets: Mapping[str, str]) -> None:
    """Give some of the random texts their right labels."""
    for text in api.ask("GET", "/labelling", params={"limit": LABELLED})["texts"]:
        api.ask("POST", "/feedback", json={"text": text["text"], "label": tweets[text["text"]]})


def take(browser: Browser, url: str, key: str, directory: Path, scheme: str, size: str) -> None:
    """Those of one kind of visitor."""
    width, height = SIZES[size]
    with opened(browser, url, width, height, scheme) as page:

        def shoot(name: str) -> None:
            path = directory / f"console-{name}-{scheme}-{size}.png"
            page.screenshot(path=path, full_page=True)
            with Image.open(path) as picture:
                begin = picture.crop((0, 0, picture.width, min(picture.height, MOST_PIXELS_HIGH)))
            begin.quantize(dither=Image.Dither.NONE).save(path, optimize=True)

        sign_in(page, key)
        ask(page)
        shoot("try")
        for name in VIEWS:
            page.goto(f"/console/{name}")
            if name == "health":
                page.wait_for_timeout(6_000)  # for a chart that shows something
            if name == "label":
                expect(page.locator(".label-card:visible")).to_have_count(1)
            shoot(name)
        page.goto("/console/versions")
        page.get_by_role("button", name="Compare").click()
        expect(page.get_by_role("heading", name="Texts on which they differ")).to_be_visible()
        shoot("compare")
        page.goto("/console/versions")
        page.get_by_role("link", name="Texts that it labels differently").first.click()
        expect(page.get_by_role("heading", name="labels differently")).to_be_visible()
        shoot("differences")
        page.goto("/console/versions")
        page.get_by_role("link", name="Promote version").first.click()
        shoot("confirm")


def ask(page: Page) -> None:
    """Have a text explained."""
    page.get_by_label("One or more texts").fill(TEXT)
    page.get_by_role("button", name="Classify").click()
    expect(page.locator(".words")).to_be_visible()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
