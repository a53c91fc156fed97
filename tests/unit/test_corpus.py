"""Over 200 valid and hostile pictures: every one accounted for, with the outcome that its kind should have."""

from __future__ import annotations

import io
import os
from collections import Counter, defaultdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from pipeline import settings as pipeline_settings
from pipeline.output.manifest import Result
from pipeline.run import run
from pipeline.tables import shown_path
from tests import corpus
from tests.doubles.simulated import serve
from tests.report_rows import report_rows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The corpus, and the names in it."""
    folder = tmp_path_factory.mktemp("corpus")
    return folder, corpus.write(folder)


@pytest.fixture(scope="module")
def done(pictures: tuple[Path, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A run over the corpus, against a detector that knows its boxes."""
    with pytest.MonkeyPatch.context() as patch, serve() as simulated:
        simulated.boxes, simulated.keep_bodies = corpus.boxes, False
        for name, value in simulated.settings.items():
            patch.setenv(name, value)
        arguments = ["--images", str(pictures[0]), "--output", str(tmp_path_factory.mktemp("runs"))]
        return run(pipeline_settings.load(arguments), Console(file=io.StringIO()))


def test_every_picture_is_accounted_for(done: Result, pictures: tuple[Path, list[str]]) -> None:
    _, names = pictures
    assert len(names) >= 150
    rows = {row["path"].rsplit("/", 1)[1]: row for row in pq.read_table(done.folder / "images.parquet").to_pylist()}
    assert set(rows) == {shown_path(os.fsencode(name)) for name in names}
    wrong = {
        name: row["reason"] for name, row in rows.items() if (row["outcome"] == "failed") != name.startswith("bad-")
    }
    assert wrong == {}
    assert all(row["reason"] and row["stage"] == "read" for name, row in rows.items() if name.startswith("bad-"))
    assert {name for name, row in rows.items() if row["outcome"] == "no_object"} == {"boxes-none.jpg"}
    counts = done.manifest["counts"]["images"]
    assert counts["detected"] + counts["failed"] + counts["no_object"] == counts["total"] == len(names)


def test_a_box_that_holds_nothing_fails_alone(done: Result) -> None:
    rows = pq.read_table(done.folder / "detections.parquet", columns=["path", "outcome", "stage", "reason"]).to_pylist()
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        found[Path(row["path"]).stem][row["outcome"]] += 1
    assert {name: dict(found[name]) for name in corpus.BOXES if name in found} == {
        "boxes-5000": {"answered": 5000},
        "boxes-no-area": {"failed": 2, "answered": 1},
        "boxes-inverted": {"failed": 1, "answered": 1},
        "boxes-nan": {"failed": 2, "answered": 1},
        "boxes-infinite": {"failed": 2, "answered": 1},
        "boxes-outside": {"failed": 2, "answered": 1},
        "boxes-over-the-edge": {"answered": 2},
        "boxes-thinner-than-a-pixel": {"answered": 2},
        "boxes-the-same-twice": {"answered": 2},
        "boxes-whole-image": {"answered": 1},
    }
    assert {row["stage"] for row in rows if row["outcome"] == "failed"} == {"crop"}
    assert all(row["reason"].startswith("box [") for row in rows if row["outcome"] == "failed")


def test_the_report_shows_them_and_runs_nothing(done: Result) -> None:
    page = (done.folder / "report.html").read_text()
    assert "<script>alert" not in page
    paths = "".join(row["path"] for row in report_rows(done.folder))
    assert "<script>alert(1)" in paths
    assert "<b>html<" in paths
