"""Takes the pictures of the console that are in docs/images, of a gateway that runs and tries a version on live texts:

python -m tests.e2e.console_pictures http://127.0.0.1:8000 "$(cat .sentiment/admin_key)" docs/images
"""

import sys
from pathlib import Path

from playwright.sync_api import Browser, Page, expect

from tests.e2e.browser import chromium, opened, sign_in

SIZES = {"desktop": (1280, 860), "phone": (390, 844)}
TEXT = "The screen is bright and the battery lasts all day, but it broke after a week and nobody answers my mails."
VIEWS = ("health", "quality", "versions", "label", "events")


def main(url: str, key: str, directory: Path) -> None:
    """Write a picture of each view, in light and dark, on a desktop and a phone."""
    directory.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        for scheme in ("light", "dark"):
            for size in SIZES:
                take(browser, url, key, directory, scheme, size)


def take(browser: Browser, url: str, key: str, directory: Path, scheme: str, size: str) -> None:
    """Those of one kind of visitor."""
    width, height = SIZES[size]
    with opened(browser, url, width, height, scheme) as page:

        def shoot(name: str) -> None:
            page.screenshot(path=directory / f"console-{name}-{scheme}-{size}.png", full_page=True)

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
    page.get_by_label("A text, or many").fill(TEXT)
    page.get_by_role("button", name="Classify").click()
    expect(page.locator(".words")).to_be_visible()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
