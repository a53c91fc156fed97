"""The machine's Chromium, without a window; where it or npm is missing, the test run says so."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Dialog, Page, Request, sync_playwright

from tests.browser import mermaid

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def executable() -> str | None:
    """The browser; None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def missing() -> list[str]:
    """What the tests of pages need and this machine does not have."""
    return [*([] if executable() else ["Chromium"]), *([] if shutil.which("npm") else ["npm"])]


def pytest_report_header() -> str:
    """Whether pages are tested."""
    return f"pages: left out, no {' and no '.join(missing())}" if missing() else "pages: tested in Chromium"


# Not longer than a file's tests: while Playwright runs, no other event loop can run in this thread, and others' tests
# need one.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium; its own sandbox needs rights that a container's root does not have."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable(), args=["--no-sandbox"])
        yield browser
        browser.close()


Open = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Open a file in a page of its own; at the test's end, whatever a page said in its console, asked for (but for
    `pictures`, the end of their addresses) or opened fails it."""
    said: list[str] = []
    pages: list[Page] = []

    def load(
        path: Path, width: int = 1240, scheme: Literal["light", "dark"] = "light", beside: Path | None = None
    ) -> Page:
        """`beside`: a folder or file that the page may load too."""

        def note_request(asked: Request) -> None:
            if asked.url != path.as_uri() and not (beside and asked.url.startswith(beside.as_uri())):
                said.append(f"asks for {asked.url}")

        def note_dialog(dialog: Dialog) -> None:
            said.append(f"dialog: {dialog.message}")
            dialog.dismiss()

        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        pages.append(page)
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("request", note_request)
        page.on("dialog", note_dialog)
        page.goto(path.as_uri())
        return page

    yield load
    for page in pages:
        page.close()
    assert said == []


@pytest.fixture(scope="session")
def mermaid_script(cache_dir: Path) -> Path:
    """The Mermaid library."""
    return mermaid.fetch(cache_dir)
