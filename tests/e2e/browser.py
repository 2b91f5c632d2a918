"""A browser for the tests of the console: the system's Chromium, or none where it is not installed."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Dialog, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WAIT_MS = 60_000
"""Generous: beside training, a page takes seconds."""
OTHER_NAME = "gateway"
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium), so the console is not tried in it"
)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run Chromium in the block."""
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        # As another machine names the gateway, over HTTP: browsers trust such a name less than 127.0.0.1.
        names = f"--host-resolver-rules=MAP {OTHER_NAME} 127.0.0.1"
        # Its sandbox needs privileges that a container has not, and root may not use it at all.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*arguments, names, "--disable-dev-shm-usage"]
        )
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Browser, url: str, width: int = 1280, height: int = 800, scheme: str = "light") -> Iterator[Page]:
    """A page of a visitor of its own; what goes wrong in it fails the test."""
    context = browser.new_context(
        base_url=url,
        viewport={"width": width, "height": height},
        color_scheme="dark" if scheme == "dark" else "light",
    )
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))

    def refuse(dialog: Dialog) -> None:
        faults.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    page.on("dialog", refuse)
    page.on("console", lambda message: faults.extend([message.text] if message.type == "error" else []))
    try:
        yield page
    finally:
        context.close()
    # An answer that is no success is told there, too; the tests look at those themselves.
    assert not [fault for fault in faults if "Failed to load resource" not in fault], faults


def sign_in(page: Page, key: str, target: str = "/") -> None:
    """As an operator does."""
    page.goto(f"/console/sign-in?next={target}")
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(re.compile(rf"^[^?]*{re.escape(target)}$"))
