"""Open a report in Chromium and use it as a person would, with a clock."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from playwright.sync_api import Browser

# A person looks before the first click.
IDLE_MS = 1000
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
    """From the address to the first pictures, by the clock of the room."""
    all_s: float
    """To all rows."""
    cpu_s: float
    """CPU time of the page's main thread until then."""
    acts_s: dict[str, float]
    acts_cpu_s: dict[str, float]
    memory_mb: float
    heap_mb: float


def renderers() -> dict[int, float]:
    """Megabytes of each page's process below this one."""
    children = psutil.Process().children(recursive=True)
    return {
        child.pid: child.memory_info().rss / 1e6 for child in children if "--type=renderer" in " ".join(child.cmdline())
    }


def look(browser: Browser, report: Path) -> Seen:
    """Open a report, use it, close it.

    Raises:
        playwright.sync_api.Error: it does not open.
    """
    page = browser.new_page(viewport={"width": 1240, "height": 1000}, bypass_csp=True)  # for `eval`
    tools = page.context.new_cdp_session(page)
    tools.send("Performance.enable", {"timeDomain": "threadTicks"})

    def cpu_s() -> float:
        metrics = tools.send("Performance.getMetrics")["metrics"]
        return float(next(each["value"] for each in metrics if each["name"] == "TaskDuration"))

    began = time.perf_counter()
    page.goto(report.as_uri(), wait_until="commit")
    page.wait_for_selector("#cards figure")
    first_s = time.perf_counter() - began
    page.wait_for_selector("body[data-loaded]")
    all_s, opened_cpu_s = time.perf_counter() - began, cpu_s()
    page.wait_for_timeout(IDLE_MS)
    acts_s, acts_cpu_s = {}, {}
    for name, script in ACTS.items():
        before = cpu_s()
        acts_s[name] = float(page.evaluate(TIMED, script))
        acts_cpu_s[name] = cpu_s() - before
    heap = page.evaluate("performance.memory.usedJSHeapSize") / 1e6
    memory = max(renderers().values())
    page.close()
    return Seen(first_s, all_s, opened_cpu_s, acts_s, acts_cpu_s, memory, heap)
