"""The report of a run in Chromium, from the disk and from a web server: what it shows, and that nothing of it runs."""

from __future__ import annotations

import contextlib
import functools
import http.server
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page

from pipeline import tables
from pipeline.output.annotate import annotated, copies_in, place
from pipeline.output.report import write_report
from tests.browser.chromium import Open
from tests.browser.look_at_report import look
from tests.large_run import write_large_run
from tests.pictures import encoded, gradient, rotated_by_exif

NASTY = [
    "<img src=x onerror=\"document.title='ran'\">",
    "</script><script>document.title='ran'</script>",
    "'); document.title='ran'; ('",
    "\\'); document.title='ran'; //",
    "\" autofocus onfocus=\"document.title='ran'",
    "javascript:document.title='ran'",
    "\u2028document.title='ran'\u2029",
    "{{7*7}} ${document.title='ran'} &lt;b&gt;",
]
PROPERTIES: dict[str, Any] = {
    "kind": {"type": "string"},
    "damaged": {"type": "boolean"},
    "doors": {"type": "integer"},
    "note": {"type": "string"},
}
KINDS = ("van", "sedan", NASTY[0])
IMAGES = 80


def rows() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Images with no object, one that failed, and cars; names and answers are nasty here and there."""
    images: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for number in range(IMAGES):
        name = NASTY[number].replace("/", "_") if number < len(NASTY) else f"photo {number:03}%.jpg"
        image = {"path": name, "key": f"{number:032x}", "outcome": "detected", "width": 320, "height": 240}
        image |= {"inputs": json.dumps({"asked": NASTY[1], "n": number})}
        cars = 2 if number % 4 else 0
        if number == 40:
            image |= {"outcome": "failed", "stage": "read", "reason": f"no picture: {NASTY[1]}"}
        elif not cars:
            image |= {"outcome": "no_object"}
        images.append(image)
        for index in range(0 if number == 40 else cars):
            row = {"path": name, "key": image["key"], "index": index, "label": ("car", "bus")[index]}
            row |= {"box": [10.0 + 100 * index, 20.0, 90.0 + 100 * index, 120.0], "score": 0.9 - number / 100}
            row |= {"crop": f"crops/{image['key']}-{index}.jpg", "outcome": "answered", "kind": KINDS[number % 3]}
            row |= {"damaged": number % 2 == 0, "doors": number % 5, "note": f"{NASTY[number // 2 % 8]} note {number}"}
            if number == 41:
                row |= dict.fromkeys(PROPERTIES) | {"outcome": "failed", "stage": "ask", "reason": NASTY[0]}
                row |= {"raw_answer": f"{NASTY[1]} cut"}
            found.append(row)
    return sorted(images, key=lambda row: row["path"]), sorted(found, key=lambda row: (row["path"], row["index"]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with crops, its pictures in `photos` beside it; the copies of all but one of them are drawn."""
    home = tmp_path_factory.mktemp("report")
    run, photos = home / "run", home / "photos"
    for each in (photos, run / "crops", run / "annotated"):
        each.mkdir(parents=True)
    images, found = rows()
    for image in images:
        (photos / image["path"]).write_bytes(encoded(gradient()))
        mine = [{"box": row["box"], "caption": "x"} for row in found if row["path"] == image["path"]]
        (run / place(image["path"])).write_bytes(annotated(encoded(gradient()), mine))
    for row in found:
        (run / row["crop"]).write_bytes(encoded(gradient(80, 100)))
    written = {"images": pa.Table.from_pylist(images, schema=tables.IMAGES)}
    written["detections"] = pa.Table.from_pylist(found, schema=tables.detections_schema(PROPERTIES)).append_column(
        "kind_confidence", pa.array([number / 1000 for number in range(len(found))])
    )
    manifest = {
        "run": NASTY[1],
        "status": "complete",
        "seconds": 1.0,
        "starts": [],
        "left_out": [],
        "several_frames": 0,
        "job": {"name": NASTY[0], "description": NASTY[1], "summary": "kind", "labels": {"car": None, "bus": 0.5}},
        "services": {"model": {"name": NASTY[2]}, "detector": {"name": NASTY[3]}},
        "versions": {"spotter": "0"},
        "counts": {
            "images": {"total": IMAGES, "detected": 60, "no_object": 19, "failed": 1, "not_reached": 0},
            "detections": {"total": 120, "answered": 118, "failed": 2},
        },
        "failures": [{"stage": "ask", "reason": NASTY[0], "rows": 2}],
        "accuracy": {"kind": {"rows": 118, "right": 59, "no_answer": 2, "without_truth": 0, "share": 0.5}},
        "cost": {"usd": 1.25},
    }
    write_report(run, manifest, written, copies_in(run), photos)
    return run


@pytest.fixture
def page(open_page: Open, folder: Path) -> Page:
    """The report, with all of its rows."""
    opened = open_page(folder / "report.html", beside=folder.parent)
    opened.wait_for_selector("body[data-loaded]")
    return opened


def found(page: Page) -> str:
    """How many rows fit, as the page says it."""
    return page.inner_text("#found")


def until(page: Page, condition: str) -> None:
    """Wait for a condition. Playwright's own wait evaluates text, which the page's policy forbids."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(condition)


def captions(page: Page) -> list[str]:
    return page.locator("#cards figcaption").all_inner_texts()


def test_nothing_of_a_row_is_executed_or_becomes_markup(page: Page) -> None:
    title = page.title()
    assert title == f"{NASTY[0]}: {NASTY[1]}"
    assert page.inner_text("h1") == NASTY[1]
    page.select_option("#view", "objects")
    text = " ".join(captions(page))
    for nasty in NASTY:
        assert " ".join(f"{nasty} note".split()) in " ".join(text.split()), nasty
    for number in range(6):
        page.locator("figure button").nth(number).click()
        page.keyboard.press("Escape")
    page.select_option("#view", "images")
    assert NASTY[1] in captions(page)[0], "the inputs"
    assert page.title() == title
    scripts = page.evaluate("[...document.scripts].map(script => script.getAttribute('src'))")
    assert all(source.startswith("report/") for source in scripts)
    assert page.locator("#cards script, #cards iframe, #cards a, #large script").count() == 0


def test_the_policy_stops_a_script_that_comes_in_nevertheless(browser: Browser, folder: Path) -> None:
    opened = browser.new_page()
    blocked: list[str] = []
    opened.on("requestfailed", lambda request: blocked.append(f"{request.failure} {request.url}"))
    opened.goto((folder / "report.html").as_uri())
    opened.wait_for_selector("body[data-loaded]")
    opened.evaluate(
        """() => {
            const script = document.createElement('script');
            script.textContent = "document.title = 'ran'";
            document.body.append(script);
            document.body.insertAdjacentHTML('beforeend', `<img src="http://127.0.0.1:9/x">
                <img src="nothing" onerror="document.title = 'ran'">`);
        }"""
    )
    opened.wait_for_timeout(300)
    assert opened.title() != "ran"
    assert [each for each in blocked if "127.0.0.1:9" in each] in ([], ["csp http://127.0.0.1:9/x"])
    opened.close()


def test_filters_narrow_the_rows_and_the_bars(page: Page) -> None:
    assert found(page) == "140 of 140 rows in 80 images"
    page.select_option("[data-choice=kind]", "van")
    vans = page.evaluate("shown.length")
    assert found(page).startswith(f"{vans} of 140 rows")
    cells = page.locator("tr[data-field=kind]", has_text="van").locator("td").all_inner_texts()
    assert cells[:2] == ["van", str(vans)]
    page.select_option("[data-choice=label]", "bus")
    assert page.evaluate("shown.length") == vans / 2
    page.get_by_label("score from").fill("0.5")
    page.get_by_label("score to").fill("0.8")
    scores = page.evaluate("[...shown].map(row => rows.named.score.rows[row])")
    assert scores
    assert all(0.5 <= score <= 0.8 for score in scores)
    page.click("#all")
    assert found(page) == "140 of 140 rows in 80 images"
    page.locator("tr[data-field=damaged]", has_text="true").click()
    assert page.input_value("[data-choice=damaged]") != ""
    assert page.evaluate("[...shown].every(row => rows.text(rows.named.damaged, row) === 'true')")
    page.click("#all")
    page.click("[data-reason]")
    assert found(page) == "2 of 140 rows in 1 images"
    page.click("#all")
    for text, count in (("NOTE 77", 2), ("photo 077%", 2), ("no picture", 1), ("</SCRIPT>", None), ("nowhere", 0)):
        page.fill("#search", text)
        until(page, f"wanted.text === {json.dumps(text)}")
        assert count is None or found(page).startswith(f"{count} of 140 rows"), text


def test_rows_are_sorted_by_any_column_and_those_without_a_value_come_last(page: Page) -> None:
    page.select_option("#view", "objects")
    for name in ("score", "kind", "damaged", "doors", "note", "kind_confidence", "reason"):
        page.select_option("#sort", name)
        for _ in range(2):
            values = page.evaluate(
                "name => [...shown].map(row => rows.named[name].kind === 'number' ? "
                "(Number.isNaN(rows.named[name].rows[row]) ? null : rows.named[name].rows[row]) "
                ": rows.text(rows.named[name], row))",
                name,
            )
            held = [value for value in values if value is not None]
            assert held
            assert values == held + [None] * (len(values) - len(held)), name
            assert held == sorted(held, reverse=page.inner_text("#turn") == "descending"), name
            page.click("#turn")
    page.select_option("#sort", "kind")
    assert page.locator("#cards h3").first.inner_text() == NASTY[0]
    assert any(text.startswith("bus: ") for text in captions(page))
    assert "(4%)" in " ".join(captions(page)), "confidences stand beside their answers"


def test_pages_turn_by_buttons_and_keys(page: Page) -> None:
    assert page.locator("#cards figure").count() == 24
    first = captions(page)[0]
    page.get_by_role("button", name="next").click()
    assert captions(page)[0] != first
    page.keyboard.press("p")
    assert captions(page)[0] == first
    page.get_by_label("page", exact=True).fill("4")
    page.get_by_label("page", exact=True).press("Enter")
    until(page, "page === 3")
    assert page.locator("#cards figure").count() == IMAGES - 3 * 24
    page.locator("body").click(position={"x": 1, "y": 1})
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.type("photo 079")
    until(page, "items.length === 1")


def test_the_large_view_has_boxes_that_can_be_switched(page: Page) -> None:
    page.fill("#search", "photo 0")
    until(page, "wanted.text === 'photo 0'")
    page.locator("figure button", has_text="photo 009%").focus()
    page.keyboard.press("Enter")
    stage = page.locator("#large .stage")
    assert page.inner_text("#large strong") == "photo 009%.jpg"
    until(page, "document.querySelector('#large image').getBBox().width === 320")
    assert stage.locator("g").count() == 2
    assert stage.locator("g:visible").count() == 2
    page.keyboard.press("b")
    assert stage.locator("g:visible").count() == 0
    page.keyboard.press("b")
    page.locator("#large input[type=checkbox]").first.uncheck()
    assert stage.locator("g:visible").count() == 1
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#large strong") == "photo 010%.jpg"
    page.keyboard.press("ArrowLeft")
    assert stage.locator("g:visible").count() == 1
    page.keyboard.press("Escape")
    assert not page.locator("#large").is_visible()
    box = page.evaluate("[...rows.box(rows.first[rows.paths.indexOf('photo 009%.jpg')])]")
    assert box == [10, 20, 90, 120]


def test_a_picture_that_lies_on_its_side_is_shown_upright_under_its_boxes(browser: Browser, folder: Path) -> None:
    file = folder.parent / "photos" / "photo 013%.jpg"
    before = file.read_bytes()
    file.write_bytes(rotated_by_exif(gradient()))
    seen = []
    for _ in range(2):
        opened = browser.new_page(viewport={"width": 1240, "height": 900})
        opened.goto((folder / "report.html").as_uri())
        opened.wait_for_selector("body[data-loaded]")
        opened.evaluate("boxesOn = false; open(rows.paths.indexOf('photo 013%.jpg'))")
        opened.wait_for_timeout(500)
        seen.append(opened.locator("#large .stage").screenshot())
        opened.close()
        file.write_bytes(before)
    pictures = [Image.open(io.BytesIO(each)).convert("RGB").resize((12, 8)) for each in seen]
    pairs = zip(pictures[0].tobytes(), pictures[1].tobytes(), strict=True)
    assert max(abs(one - other) for one, other in pairs) < 25


def test_where_the_image_is_gone_its_copy_is_shown(browser: Browser, folder: Path) -> None:
    file = folder.parent / "photos" / "photo 010%.jpg"
    hidden = file.rename(file.with_suffix(".hidden"))
    opened = browser.new_page()
    opened.goto((folder / "report.html").as_uri())
    opened.wait_for_selector("body[data-loaded]")
    opened.evaluate("open(rows.paths.indexOf('photo 010%.jpg'))")
    opened.wait_for_selector("#large .stage > img")
    assert "annotated copy" in opened.inner_text("#note")
    assert opened.locator("#boxes").is_disabled()
    opened.close()
    hidden.rename(file)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """A folder on a web server of its own."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_web_server_that_has_the_folder_serves_the_report(browser: Browser, folder: Path) -> None:
    opened = browser.new_page()
    said: list[str] = []
    opened.on("response", lambda answer: said.append(f"{answer.status} {answer.url}"))
    opened.on("requestfailed", lambda request: said.append(request.url))
    with served(folder) as address:
        opened.goto(f"{address}/report.html")
        opened.wait_for_selector("body[data-loaded]")
        opened.locator("figure button").nth(10).click()
        opened.wait_for_selector("#large .stage > img")
        until(opened, "document.querySelector('#large .stage > img').naturalWidth > 0")
        opened.wait_for_load_state("networkidle")
        opened.close()
    assert len(said) > 30
    assert [text for text in said if not text.startswith("200") and "favicon" not in text] == []


@pytest.mark.parametrize("change", ["missing", "of another report"])
def test_rows_that_are_not_the_pages_are_not_shown(browser: Browser, folder: Path, tmp_path: Path, change: str) -> None:
    chunk = folder / "report" / "rows-0.js"
    before = chunk.read_text()
    if change == "missing":
        chunk.unlink()
    else:
        chunk.write_text(before[:-5] + ("0" if before[-5] != "0" else "1") + before[-4:])
    opened = browser.new_page()
    opened.goto((folder / "report.html").as_uri())
    opened.wait_for_selector("#problem:not([hidden])")
    chunk.write_text(before)
    assert ("is missing" if change == "missing" else "two different reports") in opened.inner_text("#problem")
    assert opened.locator("figure").count() == 0
    assert "1.25" in opened.inner_text(".tiles"), "the totals are in the page"
    opened.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1240])
def test_it_fits_a_phone_and_the_dark(open_page: Open, folder: Path, scheme: str, width: int) -> None:
    opened = open_page(folder / "report.html", width=width, scheme=scheme, beside=folder.parent)
    opened.wait_for_selector("body[data-loaded]")
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    background = opened.evaluate(
        """() => {
            const canvas = document.createElement('canvas').getContext('2d');
            canvas.fillStyle = getComputedStyle(document.body).color;
            return canvas.fillStyle;
        }"""
    )
    assert background == ("#000000" if scheme == "light" else "#ffffff")
    opened.locator("figure button").nth(10).click()
    opened.get_by_role("button", name="close").wait_for(state="visible")
    assert opened.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.slow
def test_a_large_run_costs_in_proportion(browser: Browser, tmp_path: Path) -> None:
    """A fifth of 100,000 images, whose page opens in 2 s and answers in 0.3 s: in CPU time, as others compute here."""
    large = write_large_run(tmp_path / "large", 20_000)
    assert large.page_mb < 6
    seen = look(browser, tmp_path / "large" / "report.html")
    assert seen.cpu_s < 0.8
    assert max(seen.acts_cpu_s.values()) < 0.15, seen.acts_cpu_s
    assert seen.memory_mb < 400
