"""Open a report in Chromium and use it as a person would, with a clock."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from playwright.sync_api import Page, sync_playwright

from tests.browser.chromium import executable

# What is timed, as a person would do it; each ends when the page is laid out.
ACTS = {
    "by score": "choose('sort', 'score')",
    "turned": "document.getElementById('turn').click()",
    "by answer": "choose('sort', rows.about.fields[0])",
    "by reason": "choose('sort', 'reason')",
    "by path": "choose('sort', '')",
    "answer": "document.querySelector('[data-field]').click()",
    "objects": "choose('view', 'objects')",
    "search": "search('999')",
    "nothing": "search('zzz')",
    "all": "document.getElementById('all').click()",
}

TIMED = """act => {
    const choose = (id, value) => {
        const control = document.getElementById(id);
        control.value = value;
        control.onchange();
    };
    const search = text => { wanted.text = text; refresh(); };
    const began = performance.now();
    eval(act);
    document.body.offsetHeight;
    return (performance.now() - began) / 1000;
}"""


@dataclass(frozen=True)
class Seen:
    """What a report cost in the browser."""

    first_s: float
    all_s: float
    acts_s: dict[str, float]
    memory_mb: float
    heap_mb: float


def renderers() -> dict[int, float]:
    """Megabytes of each page's process below this one."""
    children = psutil.Process().children(recursive=True)
    return {
        child.pid: child.memory_info().rss / 1e6 for child in children if "--type=renderer" in " ".join(child.cmdline())
    }


def act(page: Page) -> dict[str, float]:
    """Seconds of each of ACTS, in this order."""
    return {name: float(page.evaluate(TIMED, script)) for name, script in ACTS.items()}


def look(report: Path) -> Seen:
    """Open a report, use it, close it.

    Raises:
        playwright.sync_api.Error: it does not open.
    """
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1240, "height": 1000}, bypass_csp=True)
        began = time.perf_counter()
        page.goto(report.as_uri(), wait_until="commit")
        page.wait_for_selector("#cards figure")
        first_s = time.perf_counter() - began
        page.wait_for_selector("body[data-loaded]")
        all_s = time.perf_counter() - began
        acts_s = act(page)
        heap = page.evaluate("performance.memory.usedJSHeapSize") / 1e6
        memory = max(renderers().values())
        browser.close()
    return Seen(first_s, all_s, acts_s, memory, heap)
