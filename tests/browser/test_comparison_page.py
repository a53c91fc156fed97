"""The page of a comparison in Chromium: its style and pictures pass its own policy, and no text of a row runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page

from pipeline.results.comparison import Comparison
from pipeline.results.comparison_page import write_page
from tests.finished_runs import detection, finished_run, image
from tests.pictures import encoded, gradient

NASTY = '"><script>alert(1)</script><img src=x onerror=alert(2)><style>body{display:none}</style>'


def test_pictures_are_shown_and_nothing_runs(open_page: Callable[..., Page], tmp_path: Path) -> None:
    runs = []
    for name, note in (("one", NASTY), ("two", "fine")):
        run = finished_run(tmp_path / name, [image(NASTY)], [detection(NASTY, note=note, crop="crops/x.jpg")])
        (run.folder / "crops").mkdir()
        (run.folder / "crops" / "x.jpg").write_bytes(encoded(gradient(120, 80)))
        runs.append(run)
    write_page(Comparison(*runs), tmp_path / "page.html")
    page = open_page(tmp_path / "page.html", beside=tmp_path)
    pictures = page.locator(".sides img")
    assert pictures.count() == 2
    widths = pictures.evaluate_all("all => all.map(each => each.naturalWidth)")
    assert widths == [120, 120]
    assert page.locator("script").count() == 0
    assert page.locator(".changed").first.evaluate("it => getComputedStyle(it).fontWeight") == "600"
