"""The report: everything in it, nothing executable in it."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import ExifTags, Image
from rich.console import Console

from pipeline import job as jobs
from pipeline import tables
from pipeline.output import report
from pipeline.output.annotate import Drawing, annotate_all, annotated, copies_in, copies_of, draw, place
from pipeline.output.manifest import ended
from pipeline.output.page_rows import column, digest, quoted
from pipeline.output.report import bars
from pipeline.settings import Settings
from pipeline.sources.listing import Row, Source
from pipeline.sources.objects import Objects
from pipeline.sources.reader import Reader
from tests.pictures import encoded, gradient, rotated_by_exif
from tests.report_rows import loaded, report_rows

SIZE = {"width": 320, "height": 240}
NASTY = '<script>alert("x")</script>&.jpg'


@pytest.fixture
def page(tmp_path: Path) -> str:
    """The report of a run with an answered, a failed and a nastily named image."""
    job = jobs.load("dog_breeds")
    folder = tmp_path / "run"
    (folder / "annotated").mkdir(parents=True)
    names = ["a.jpg", NASTY.replace("/", "_"), "broken.jpg", "empty park.jpg"]
    files = [tmp_path / name for name in names]
    for file in files:
        file.write_bytes(encoded(gradient()))
    images = [
        {"path": str(files[0]), "outcome": "detected", "detections": 2, "key": "a", **SIZE},
        {"path": str(files[1]), "outcome": "detected", "detections": 1, "key": "b", **SIZE},
        {"path": str(files[2]), "outcome": "failed", "stage": "read", "reason": "<b>truncated</b>"},
        {"path": str(files[3]), "outcome": "no_object", "detections": 0},
    ]
    found: list[dict[str, Any]] = [
        {
            "path": str(files[0]),
            "index": 0,
            "outcome": "answered",
            "breed": "pug",
            "coat_color": "tan",
            "facing": "left",
        },
        {"path": str(files[0]), "index": 1, "outcome": "failed", "stage": "ask", "reason": "HTTP 400: no"},
        {
            "path": str(files[1]),
            "index": 0,
            "outcome": "answered",
            "breed": "pug",
            "coat_color": "red",
            "facing": "away",
        },
    ]
    for row in found:
        row |= {"label": "dog", "box": [10.0, 10.0, 100.0, 90.0], "score": 0.9, "crop": "crops/x-0.jpg"}
    written = {
        "images": pa.Table.from_pylist(images, schema=tables.IMAGES),
        "detections": pa.Table.from_pylist(found, schema=tables.detections_schema(job.properties)),
    }
    manifest = {
        "run": "r",
        "status": "complete",
        "seconds": 1.5,
        "starts": [{"started": "2026-01-01T10:00:00+00:00", "status": "complete", "seconds": 1.5}],
        "left_out": [],
        "job": {"name": "dog_breeds", **job.content()},
        "services": {"model": {"name": "m"}, "detector": {"name": "d"}},
        "versions": {"spotter": "0"},
        **ended(written, len(files), job, Settings.model_construct()),
    }
    sources = [Source(bytes(file), None) for file in files]
    pictures = report.Pictures(sources, Reader(Objects()), set(), None)
    drawn = report.draw_copies(folder, written, job, pictures, Console(quiet=True))
    assert drawn == {"copies": 2, "of": 2, "limit": None}
    return report.write_report(folder, manifest, written, copies_in(folder), tmp_path).read_text()


def test_every_image_answer_and_failure_is_a_row(page: str, tmp_path: Path) -> None:
    rows = report_rows(tmp_path / "run")
    names = ["path", "index", "outcome", "breed", "coat_color", "facing", "reason"]
    assert [[Path(row["path"]).name, *(row[name] for name in names[1:])] for row in rows] == [
        ["a.jpg", 0, "answered", "pug", "tan", "left", None],
        ["a.jpg", 1, "failed", None, None, None, "HTTP 400: no"],
        [NASTY.replace("/", "_"), 0, "answered", "pug", "red", "away", None],
        ["broken.jpg", None, "failed", None, None, None, "<b>truncated</b>"],
        ["empty park.jpg", None, "no_object", None, None, None, None],
    ]


def test_the_page_itself_has_totals_bars_and_reasons(page: str) -> None:
    bars = re.findall(
        r"<tr data-field=\"(\w+)\" data-code=\"(\d+)\"><td>(\w+)</td><td class=\"number\">(\d+)</td>", page
    )
    assert bars == [
        ("breed", "0", "pug", "2"),
        ("coat_color", "1", "tan", "1"),
        ("coat_color", "0", "red", "1"),
        ("facing", "1", "left", "1"),
        ("facing", "0", "away", "1"),
    ]
    assert "HTTP 400: no" in page
    tiles = re.findall(r'<div class="tile"><b>(\d+)</b>(.*?)</div>', page)
    assert tiles == [
        ("4", "images"),
        ("3", "dog detections"),
        ("2", "answered"),
        ("1", "images without"),
        ("2", "failed"),
    ]


def test_names_and_reasons_are_text_not_markup(page: str) -> None:
    assert re.findall(r"<script[^>]*>", page) == re.findall(r'<script src="report/\w+\.js\?[0-9a-f]{16}" defer>', page)
    assert "alert(" not in page
    assert "<b>truncated" not in page
    assert "&lt;b&gt;truncated&lt;/b&gt;" in page


def test_copies_are_named_where_they_are(page: str, tmp_path: Path) -> None:
    chunk = loaded(tmp_path / "run" / "report" / "rows-0.js", "take")
    assert [copy is not None for copy in chunk["copies"]] == [True, True, False, False]
    for copy in chunk["copies"][:2]:
        assert Image.open(tmp_path / "run" / copy).format == "JPEG"


def test_no_more_copies_are_drawn_than_wanted(page: str, tmp_path: Path) -> None:
    """And one of an image that was done again and is beyond the limit is out of date, so it leaves."""
    written = {name: pa.table({"path": [str(tmp_path / name)]}) for name in ("a.jpg", "empty park.jpg")}
    found = [{"path": table["path"][0].as_py(), "outcome": "failed", "label": "dog"} for table in written.values()]
    schema = tables.detections_schema({})
    detections = pa.Table.from_pylist([row | {"box": [1.0, 1.0, 9.0, 9.0]} for row in found], schema=schema)
    images = pa.Table.from_pylist([{"path": row["path"], "key": "x"} | SIZE for row in found], schema=tables.IMAGES)
    sources = [Source(row["path"].encode(), None) for row in found]
    for limit, redone, copies in ((1, {found[0]["path"]}, 1), (2, set(), 2), (0, set(), 2), (0, {found[1]["path"]}, 1)):
        pictures = report.Pictures(sources, Reader(Objects()), redone, limit)
        drawn = report.draw_copies(
            tmp_path / "run",
            {"images": images, "detections": detections},
            jobs.load("dog_breeds"),
            pictures,
            Console(quiet=True),
        )
        assert drawn == {"copies": copies, "of": 2, "limit": limit}


def test_a_page_of_two_reports_is_noticed(page: str, tmp_path: Path) -> None:
    """The name of a version is in the page and in each chunk, and changes with any row."""
    (version,) = set(re.findall(r"\?([0-9a-f]{16})", page))
    scripts = (tmp_path / "run" / "report").glob("*.js")
    assert {version} == {found[1] for path in scripts if (found := re.search(r"', '(\w+)'\);\n$", path.read_text()))}
    assert digest([quoted({"a": 1})]) != digest([quoted({"a": 2})])


NUMBERS = [1, None, 3, 2**60, 5]


@pytest.mark.parametrize(
    ("content", "kind", "rows"),
    [
        (pa.array([True, None, False]), "choice", ["true", None, "false"]),
        (pa.array(["b", "a", None, "b"]), "choice", ["b", "a", None, "b"]),
        (pa.array([f"text {number}" for number in range(501)]), "text", [f"text {number}" for number in range(501)]),
        (pa.array([1, None, 3]), "number", [1, None, 3]),
        (pa.array([0.123456, float("nan"), None, float("inf")]), "number", [0.1235, None, None, None]),
        (pa.array(NUMBERS), "choice", [None if each is None else str(each) for each in NUMBERS]),
        (pa.array([], pa.string()), "choice", []),
        (pa.array([None, None], pa.int64()), "number", [None, None]),
    ],
)
def test_a_column_is_what_its_values_are(content: pa.Array, kind: str, rows: list[Any]) -> None:
    found = column("x", pa.chunked_array([content]))
    assert found.kind == kind
    values = found.rows
    assert (
        [None if each == -1 else found.values[each] for each in values] == rows if kind == "choice" else values == rows
    )
    if kind == "text":
        assert sorted(rows) == [rows[found.ranks.index(rank)] for rank in range(len(rows))]


def test_numbers_are_counted_in_ranges() -> None:
    found = bars(column("legs", pa.chunked_array([pa.array([0, 4, 4, 4, 8, None, 100])])))
    assert [(bar.text, bar.rows) for bar in found if bar.rows] == [("0 to 10", 5), ("90 to 100", 1)]
    few = bars(column("legs", pa.chunked_array([pa.array([4, 2, 4, None])])))
    assert [(bar.text, bar.rows) for bar in few] == [("2", 1), ("3", 0), ("4", 2)]
    assert bars(column("legs", pa.chunked_array([pa.array([None], pa.float64())]))) == []
    assert sum(bar.rows for bar in bars(column("x", pa.chunked_array([pa.array([2.5, 2.5])])))) == 2


@pytest.mark.parametrize(
    "text", ["'", '"', "\\", "\\'", "</script><script>alert(1)", "\u2028\u2029\n\r\t\0", "${x}`", "größe 🐶", "\udcff"]
)
def test_any_text_comes_out_of_a_script_as_it_went_in(text: str, tmp_path: Path) -> None:
    script = tmp_path / "rows-0.js"
    script.write_bytes(b"take(%b, '0123456789abcdef');\n" % quoted({"x": text, text: 1}))
    assert loaded(script, "take") == {"x": text, text: 1}


def drawing(caption: str) -> Drawing:
    """A box at the upper left of a picture of 320 x 240."""
    return Drawing("x", 320, [{"box": [1.0, 1.0, 50.0, 50.0], "caption": caption}])


def test_annotated_copy_is_upright_and_has_its_boxes() -> None:
    boxes = [{"box": [100.0, 80.0, 220.0, 200.0], "caption": "pug"}]
    copy = Image.open(io.BytesIO(annotated(rotated_by_exif(gradient()), boxes)))
    assert copy.size == (320, 240)
    edge, inside = copy.getpixel((160, 200)), copy.getpixel((160, 140))
    plain = gradient()
    assert isinstance(edge, tuple)
    assert isinstance(inside, tuple)
    assert max(abs(a - b) for a, b in zip(edge, plain.getpixel((160, 200)), strict=True)) > 30  # type: ignore[arg-type]
    assert max(abs(a - b) for a, b in zip(inside, plain.getpixel((160, 140)), strict=True)) < 20  # type: ignore[arg-type]


def test_a_large_image_is_annotated_small_with_its_box_in_place() -> None:
    boxes = [{"box": [960.0, 720.0, 1920.0, 1440.0], "caption": "x"}]
    copy = Image.open(io.BytesIO(annotated(encoded(Image.new("RGB", (1920, 1440))), boxes)))
    assert copy.size == (960, 720)
    pixel = copy.getpixel((480, 600))
    assert isinstance(pixel, tuple)
    assert max(pixel) > 80  # the box's left edge


@pytest.mark.parametrize("size", [(4000, 3000), (1921, 1081), (3000, 4000), (5000, 3)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_picture_is_drawn_the_same_whether_all_its_pixels_are_decoded_or_not(
    size: tuple[int, int], kind: str
) -> None:
    """A turned JPEG is decoded at a fraction of its size, a PNG as a whole."""
    width, height = size
    plain, exif = io.BytesIO(), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # shown turned by 90 degrees
    Image.new("RGB", size).save(plain, kind, exif=exif)
    # A quarter of 4000 pixels is not resampled once more.
    scale = (1000 if kind == "JPEG" and max(size) == 4000 else 960) / max(size)
    copy = Image.open(
        io.BytesIO(
            annotated(plain.getvalue(), [{"box": [0.0, width / 2, float(height), float(width)], "caption": " "}])
        )
    )
    assert copy.size == pytest.approx((height * scale, width * scale), abs=1)
    edge = copy.getpixel((copy.width // 2, copy.height // 2 + 1))
    above = copy.getpixel((copy.width // 2, copy.height // 4))
    assert isinstance(edge, tuple)
    assert isinstance(above, tuple)
    assert max(edge) > 80 > max(above)


@pytest.mark.parametrize("content", [None, b"", encoded(gradient())[:500]])
def test_a_source_is_drawn_on_where_its_small_copy_is_not_whole(content: bytes | None, tmp_path: Path) -> None:
    source, copy, wanted = tmp_path / "a.jpg", tmp_path / "x.plain", drawing("pug")
    source.write_bytes(encoded(gradient()))
    if content is not None:
        copy.write_bytes(content)
    drawn = draw(copy, wanted, Source(bytes(source), None), Reader(Objects()))
    assert drawn == annotated(source.read_bytes(), wanted.detections)


def test_a_small_copy_is_drawn_on_with_the_boxes_of_the_image(tmp_path: Path) -> None:
    copy = tmp_path / "x.plain"
    copy.write_bytes(encoded(Image.new("RGB", (960, 720))))
    wanted = Drawing("x", 3840, [{"box": [1920.0, 1440.0, 3840.0, 2880.0], "caption": "x"}])
    drawn = Image.open(io.BytesIO(draw(copy, wanted, Source(b"gone.jpg", None), Reader(Objects()))))
    assert drawn.size == (960, 720)
    assert max(drawn.getpixel((480, 600))) > 80 > max(drawn.getpixel((470, 600)))  # type: ignore[arg-type]


def test_boxes_that_cannot_be_drawn_leave_the_others() -> None:
    nan = float("nan")
    boxes = [[nan, 0.0, 10.0, 10.0], [90.0, 80.0, 20.0, 10.0], [9000.0, 0.0, 9100.0, 10.0], [100.0, 80.0, 220.0, 200.0]]
    copy = Image.open(io.BytesIO(annotated(encoded(gradient()), [{"box": box, "caption": "pug"} for box in boxes])))
    edge, plain = copy.getpixel((160, 200)), gradient().getpixel((160, 200))
    assert max(abs(a - b) for a, b in zip(edge, plain, strict=True)) > 30  # type: ignore[arg-type]


def test_an_annotated_copy_has_a_name_that_links_lead_to(tmp_path: Path) -> None:
    names = ["100%25.jpg", "a#b?.jpg", "back\\slash.jpg", "line\nbreak.jpg", "größe.jpg", "x" * 240 + ".jpg"]
    sources = {}
    for name in names:
        (tmp_path / name).write_bytes(encoded(gradient()))
        sources[name] = Source(bytes(tmp_path / name), None)
    (tmp_path / "annotated").mkdir()
    found = {name: drawing("pug") for name in names}
    advanced: list[None] = []
    annotate_all(found, sources, Reader(Objects()), tmp_path, set(), lambda: advanced.append(None))
    copies = copies_of(names, copies_in(tmp_path))
    assert len(advanced) == len(names)
    assert list(copies) == names
    assert all(re.fullmatch(r"annotated/[\w.-]+\.jpg", copy) for copy in copies.values())
    assert all((tmp_path / copy).is_file() for copy in copies.values())


def test_a_copy_that_a_power_cut_left_empty_is_drawn_again(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(gradient()))
    sources = {"a.jpg": Source(bytes(tmp_path / "a.jpg"), None)}
    (tmp_path / "annotated").mkdir()
    (tmp_path / place("a.jpg")).touch()
    found = {"a.jpg": drawing("pug")}
    annotate_all(found, sources, Reader(Objects()), tmp_path, set(), lambda: None)
    assert Image.open(tmp_path / place("a.jpg")).size == (320, 240)
    before = (tmp_path / place("a.jpg")).stat().st_mtime_ns
    annotate_all(found, sources, Reader(Objects()), tmp_path, set(), lambda: None)
    assert (tmp_path / place("a.jpg")).stat().st_mtime_ns == before  # and then it is kept


@pytest.mark.slow
def test_an_interrupt_ends_the_drawing_and_leaves_no_copy_that_is_out_of_date(tmp_path: Path) -> None:
    (tmp_path / "annotated").mkdir()
    names = [f"{number}.png" for number in range(200)]
    sources = {}
    for name in names:
        (tmp_path / name).write_bytes(encoded(gradient()))
        (tmp_path / place(name)).write_bytes(b"of an earlier run")
        sources[name] = Source(bytes(tmp_path / name), None)
    found = {name: drawing("pug") for name in names}
    drawn: list[None] = []

    class Interrupted(Reader):
        def read(self, path: bytes, row: Row | None, size: int | None = None, fetched: bytes | None = None) -> bytes:
            if path.endswith(b"/3.png"):
                raise KeyboardInterrupt
            return super().read(path, row, size, fetched)

    with pytest.raises(KeyboardInterrupt):
        annotate_all(found, sources, Interrupted(Objects()), tmp_path, set(names), lambda: drawn.append(None))
    assert len(drawn) < len(names)
    left = [path for path in (tmp_path / "annotated").iterdir() if path.read_bytes() == b"of an earlier run"]
    assert left == []
    annotate_all(found, sources, Reader(Objects()), tmp_path, set(), lambda: None)
    assert list(copies_of(names, copies_in(tmp_path))) == names
