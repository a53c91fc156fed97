"""Two runs side by side: what is matched, what counts as changed, and a page in which nothing runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from pipeline import tables
from pipeline.errors import Unreadable
from pipeline.results import comparison_page
from pipeline.results.comparison import Agreement, Comparison
from pipeline.results.comparison_page import write_page
from tests.finished_runs import detection, failed_detection, failed_image, finished_run, image

Rows = list[dict[str, Any]]
NASTY = '<script>alert("x")</script><img src=x onerror=alert(1)>'


def compared(folder: Path, before: Rows, after: Rows, images: Rows | None = None, **manifest: Any) -> Comparison:
    """Two runs over the same images (by default one, `a`) with these detections."""
    images = images or [image("a")]
    one = finished_run(folder / "one", images, before)
    return Comparison(one, finished_run(folder / "two", images, after, **manifest))


def numbers(found: Comparison) -> tuple[int, int, int, int]:
    """Equal, changed, new, gone."""
    return found.same, len(found.pairs), len(found.new), len(found.gone)


def test_a_box_that_moved_by_less_than_a_pixel_is_the_same(tmp_path: Path) -> None:
    before = [detection("a"), detection("a", 1, box=[50, 50, 80, 80])]
    after = [detection("a", 0, box=[50.6, 50, 80, 79.5]), detection("a", 1, box=[0, 0, 102, 100])]
    assert numbers(compared(tmp_path, before, after)) == (1, 0, 1, 1)


def test_a_changed_answer_is_found_with_its_field(tmp_path: Path) -> None:
    before = [detection("a"), detection("a", 1, box=[50, 50, 80, 80])]
    after = [detection("a", breed="corgi", legs=3), detection("a", 1, box=[50, 50, 80, 80])]
    found = compared(tmp_path, before, after)
    assert numbers(found) == (1, 1, 0, 0)
    assert found.pairs[0].changed == ("breed", "legs")
    assert found.changes == {("breed", "pug", "corgi"): 1, ("legs", "4", "3"): 1}
    assert found.fields[:2] == [Agreement("breed", 2, 1), Agreement("collar", 2, 2)]
    assert found.fields[0].share == 0.5


def test_a_failure_changes_the_row_but_counts_for_no_agreement(tmp_path: Path) -> None:
    found = compared(tmp_path, [detection("a")], [failed_detection("a")])
    assert found.pairs[0].changed[0] == "outcome"
    assert found.fields[0] == Agreement("breed", 0, 0)
    assert found.fields[0].share is None


def test_of_boxes_at_one_place_the_equal_label_comes_first(tmp_path: Path) -> None:
    before = [detection("a", label="dog"), detection("a", 1, label="cat")]
    after = [detection("a", label="cat"), detection("a", 1, label="dog")]
    assert numbers(compared(tmp_path, before, after)) == (2, 0, 0, 0)
    found = compared(tmp_path / "other", [detection("a", label="dog")], [detection("a", label="wolf")])
    assert found.pairs[0].changed == ("label",)


def test_images_are_matched_by_their_content(tmp_path: Path) -> None:
    one = finished_run(tmp_path / "one", [image("a", key="1"), image("b", key="2")], [detection("a", key="1")])
    images = [image("moved", key="1"), image("copy", key="1", duplicate_of="moved"), image("c", key="3")]
    rows = [detection("moved", key="1"), detection("copy", key="1"), detection("c", key="3")]
    found = Comparison(one, finished_run(tmp_path / "two", images, rows))
    assert found.images == {"both": 1, "before": 1, "after": 1}
    assert numbers(found) == (1, 0, 0, 0)


def test_boxes_without_numbers_match_nothing(tmp_path: Path) -> None:
    rows = [failed_detection("a", box=[float("nan")] * 4)]
    assert numbers(compared(tmp_path, rows, rows)) == (0, 0, 1, 1)


def test_cost_and_accuracy_of_both(tmp_path: Path) -> None:
    accuracy = {"breed": {"rows": 4, "right": 3, "no_answer": 0, "without_truth": 0, "share": 0.75}}
    images = [image("a"), failed_image("b")]
    found = compared(tmp_path, [detection("a")], [failed_detection("a")], images, accuracy=accuracy, seconds=4.0)
    measured = {each.name: (each.before, each.after) for each in found.measures}
    assert measured["right breed, %"] == (None, 75.0)
    assert measured["images that failed"] == (1, 1)
    assert measured["detections answered"] == (1, 0)
    assert measured["prompt tokens"] == (40, 40)
    assert measured["tokens a detection"] == (52.0, 52.0)
    assert measured["seconds"] == (2.0, 4.0)
    assert measured["answers a second"] == (0.5, 0.0)


def test_runs_without_a_detection_can_be_compared(tmp_path: Path) -> None:
    found = compared(tmp_path, [], [], [image("a", outcome=tables.NO_OBJECT)])
    assert numbers(found) == (0, 0, 0, 0)
    write_page(found, tmp_path / "page.html")
    assert "Nothing." in (tmp_path / "page.html").read_text()


def test_tables_of_another_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="table format 2, expected 4"):
        compared(tmp_path, [], [], identity={"table_format": "2"})


def test_the_page_shows_both_crops_and_runs_nothing(tmp_path: Path) -> None:
    crop = "crops/a #1-0.jpg"
    found = compared(
        tmp_path, [detection("a", note=NASTY, crop=crop)], [detection("a", note="fine", crop=crop)], [image("a")]
    )
    for run in (found.before, found.after):
        (run.folder / "crops").mkdir()
        (run.folder / crop).write_bytes(b"picture")
    page = tmp_path / "pages of mine" / "page.html"
    page.parent.mkdir()
    write_page(found, page)
    text = page.read_text()
    assert "<script" not in text
    assert "<img src=x" not in text
    assert "&lt;script&gt;" in text
    policy = re.findall(r'Content-Security-Policy" content="([^"]+)"', text)[0]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "script-src" not in policy
    links = [unquote(link) for link in re.findall(r'<img src="([^"]+)"', text)]
    assert [(page.parent / link).resolve() for link in links] == [
        run.folder / crop for run in (found.before, found.after)
    ]


def test_a_long_page_is_cut_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison_page, "SHOWN_PAIRS", 2)
    before = [detection("a", n, box=[10 * n, 0, 10 * n + 5, 9]) for n in range(5)]
    found = compared(tmp_path, before, [row | {"breed": "corgi"} for row in before])
    write_page(found, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert text.count('class="card"') == 2
    assert "and 3 more" in text


def test_the_runs_differences_are_named(tmp_path: Path) -> None:
    identity = {"table_format": tables.FORMAT, "model": "other"}
    found = compared(tmp_path, [], [], identity=identity)
    assert found.differences == ["model (none -> other)"]
    assert json.loads((tmp_path / "two" / "run.json").read_text())["identity"] == identity
