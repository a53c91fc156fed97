"""The profile's page in a real browser: it draws, answers the pointer, asks for nothing, and shows names as text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page

from pipeline.metrics.profile import Profile, Samples
from scripts.profile.comparison import Comparison
from scripts.profile.page import page
from tests.browser.chromium import Open
from tests.profiles import NASTY, make_profile


def written(folder: Path, profile: Profile, compared: Comparison | None = None) -> Path:
    """The page as a file."""
    path = folder / "profile.html"
    path.write_text(page(profile, compared))
    return path


def points(page: Page) -> list[int]:
    """How many points each curve has, as the browser has parsed its path."""
    found: list[int] = page.evaluate(
        "() => [...document.querySelectorAll('.timeline path')]"
        ".map(path => path.getTotalLength() > 0 ? (path.getAttribute('d').match(/[ML]/g) || []).length : 0)"
    )
    return found


def show(page: Page, moment: float) -> None:
    """Put the pointer on a moment of the timeline, given as a share of the run."""
    page.locator(".timeline").scroll_into_view_if_needed()
    box = page.locator(".timeline svg").first.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * moment, box["y"] + 5)


def brightness(page: Page, selector: str, name: str) -> float:
    """How light a colour of an element is, 0 to 255."""
    colour = page.locator(selector).first.evaluate("(element, name) => getComputedStyle(element)[name]", name)
    parts = [float(part) for part in re.findall(r"[\d.]+", colour)[:3]]
    return sum(parts) / 3


def test_every_sample_of_every_series_is_drawn(tmp_path: Path, open_page: Open) -> None:
    profile = make_profile()
    shown = open_page(written(tmp_path, profile))
    drawn = points(shown)
    samples = len(profile.samples.t_s)
    # What the model server says begins later; filled curves have a point more on the ground at either end.
    assert len(drawn) >= len(profile.samples.series)
    assert all(samples - 5 <= count <= samples + 2 for count in drawn), (samples, drawn)
    heights = shown.locator(".timeline svg").evaluate_all("all => all.map(each => each.getBoundingClientRect().height)")
    assert min(heights) >= 20


@pytest.mark.parametrize("moment", [0.1, 0.5, 0.8])
def test_the_pointer_shows_time_phase_and_values(tmp_path: Path, open_page: Open, moment: float) -> None:
    profile = make_profile()
    shown = open_page(written(tmp_path, profile))
    assert not shown.locator("#tip").is_visible()
    before = shown.locator("[data-curve]").all_inner_texts()
    show(shown, moment)
    said = re.fullmatch(r"([\d.]+) s, flow", shown.locator("#tip").inner_text())
    assert said
    at = float(said[1])
    assert at == pytest.approx(moment * profile.wall_s, abs=0.1)
    index = min(range(len(profile.samples.t_s)), key=lambda place: abs(profile.samples.t_s[place] - at))
    lane = shown.locator(".row.bottleneck [data-curve]").all_inner_texts()
    expected = [profile.samples.series[name][index] for name in ("ask.working", "ask.waiting")]
    assert [float(text) for text in lane] == expected
    shown.mouse.move(0, 0)
    assert not shown.locator("#tip").is_visible()
    assert shown.locator("[data-curve]").all_inner_texts() == before


def test_arrow_keys_step_through_the_samples(tmp_path: Path, open_page: Open) -> None:
    shown = open_page(written(tmp_path, make_profile()))
    shown.locator(".timeline").focus()
    for expected in ("0.00 s, list", "0.10 s, probe", "0.20 s, probe"):
        shown.keyboard.press("ArrowRight")
        assert shown.locator("#tip").inner_text() == expected
    shown.keyboard.press("ArrowLeft")
    assert shown.locator("#tip").inner_text() == "0.10 s, probe"


def test_a_moment_without_a_measurement_says_so(tmp_path: Path, open_page: Open) -> None:
    shown = open_page(written(tmp_path, make_profile()))
    show(shown, 0.001)
    row = shown.locator(".row", has=shown.locator(".what[title=model]"))
    assert row.locator("[data-curve]").all_inner_texts()[1] == "–"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_colour_schemes_can_be_read(tmp_path: Path, open_page: Open, scheme: str) -> None:
    shown = open_page(written(tmp_path, make_profile()), scheme=scheme)
    for selector in ("body", ".card", ".timeline"):
        paper, ink = brightness(shown, selector, "backgroundColor"), brightness(shown, selector, "color")
        assert abs(paper - ink) > 140, selector
        assert (paper > ink) == (scheme == "light"), selector
        strokes = brightness(shown, ".timeline path", "stroke")
        assert abs(brightness(shown, ".timeline", "backgroundColor") - strokes) > 60


def test_bottleneck_advice_and_table_are_there(tmp_path: Path, open_page: Open) -> None:
    profile = make_profile()
    shown = open_page(written(tmp_path, profile))
    assert shown.locator(".big").inner_text() == "ask: 10.1 s of 11.2 s (90%)"
    for text in profile.diagnosis.evidence:
        assert shown.get_by_text(text).is_visible()
    advice = shown.locator("ol li").all_inner_texts()
    assert advice[0].startswith("SPOTTER_MODEL_CONCURRENCY 8 → 32 saves about 7.6 s")
    assert "saves" not in advice[1]
    cells = shown.locator("tr.bottleneck td").all_inner_texts()
    assert cells[:2] == ["ask", "360"]
    assert cells[-2:] == ["10.1 s", "90%"]


def test_the_bar_is_as_wide_as_what_is_explained(tmp_path: Path, open_page: Open) -> None:
    profile = make_profile()
    shown = open_page(written(tmp_path, profile))
    bar, parts = shown.locator(".bar").first, shown.locator(".bar").first.locator("span")
    whole = bar.evaluate("each => each.getBoundingClientRect().width")
    widths = parts.evaluate_all("all => all.map(each => each.getBoundingClientRect().width)")
    assert sum(widths) / whole == pytest.approx(profile.diagnosis.explained, abs=0.005)
    names = [name for name, cost in profile.diagnosis.cost_s.items() if cost]
    assert widths[names.index("ask")] / whole == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize("width", [380, 1240])
def test_nothing_is_wider_than_the_window(tmp_path: Path, open_page: Open, width: int) -> None:
    slow, fast = make_profile("slow"), make_profile("fast", model_slots=32, names={"ask": NASTY})
    shown = open_page(written(tmp_path, fast, Comparison(slow, fast)), width=width)
    assert shown.evaluate("document.documentElement.scrollWidth") <= width


def test_names_are_text_wherever_they_stand(tmp_path: Path, open_page: Open) -> None:
    profile = make_profile(f"run {NASTY}", names={"ask": NASTY})
    shown = open_page(written(tmp_path, profile))
    assert shown.locator("h1").inner_text() == " ".join(f"Where the time of run {NASTY} went".split())
    assert shown.locator(".row.bottleneck .what").get_attribute("title") == NASTY
    assert shown.locator("script").count() == 2  # the page's own: its data, and what reads it
    show(shown, 0.5)
    assert shown.locator("#tip").is_visible()


def test_two_runs_are_shown_side_by_side(tmp_path: Path, open_page: Open) -> None:
    slow, fast = make_profile("slow"), make_profile("fast", model_slots=32)
    shown = open_page(written(tmp_path, fast, Comparison(slow, fast)))
    assert shown.locator("#compared").inner_text() == "Against slow: 2.96x faster"
    bars = shown.locator("#compared + .card .bar").evaluate_all("all => all.map(e => e.getBoundingClientRect().width)")
    assert bars[1] / bars[0] == pytest.approx(fast.wall_s / slow.wall_s, abs=0.01)
    table = shown.locator("#compared + .card table")
    assert table.nth(0).locator("tr").nth(1).locator("td").all_inner_texts() == ["SPOTTER_MODEL_CONCURRENCY", "8", "32"]
    assert table.nth(1).locator("tr.total td").all_inner_texts()[:4] == ["wall", "11.2 s", "3.8 s", "0.34"]


def test_a_run_that_was_not_sampled_has_a_page(tmp_path: Path, open_page: Open) -> None:
    bare = make_profile().model_copy(update={"samples": Samples(t_s=[], series={}), "spans": [], "services": {}})
    shown = open_page(written(tmp_path, bare))
    assert points(shown) == []
    shown.locator(".timeline").hover()
    assert not shown.locator("#tip").is_visible()
