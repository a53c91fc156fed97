"""`export`, `sql` and `compare` as a user calls them, on a run of the bundled job with simulated servers."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from pipeline import settings
from pipeline.run import run
from scripts import __main__ as spotter
from tests.doubles.simulated import ANSWER, Simulated
from tests.pictures import encoded, gradient

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def runs(simulated: Simulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run over three images, of which one has no dog."""
    photos = tmp_path / "my photos"
    photos.mkdir()
    for width in (100, 110, 120):
        (photos / f"{width}.jpg").write_bytes(encoded(gradient(width, 80)))
    simulated.boxes = lambda image: [] if image.width == 120 else [[0, 0, image.width / 2, 40], [20, 20, 90, 70]]
    for name, value in simulated.settings.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "runs"
    monkeypatch.setenv("SPOTTER_OUTPUT", str(folder))
    run(settings.load(["--images", str(photos)]), Console(file=io.StringIO()))
    return folder


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """A command, called from the test's folder; its exit code and what it prints."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = spotter.main(["--folder", str(tmp_path), *arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def test_export_writes_where_it_says(runs: Path, command: Command, tmp_path: Path) -> None:
    code, out, _ = command("export", "--format", "coco", "--output", "to coco")
    assert code == 0
    told = out.splitlines()
    assert told[0].startswith(f"{tmp_path}/to coco: 3 images, 4 detections of run dog_breeds-")
    assert told[-1].startswith("next: ")
    found = json.loads((tmp_path / "to coco" / "annotations.json").read_text())
    assert [len(found[name]) for name in ("images", "annotations", "categories")] == [3, 4, 1]
    assert command("export", "--format", "coco", "--output", "to coco")[0] == 2
    assert command("export", "--format", "csv", "--output", "to coco", "--force", "--run", "runs/latest")[0] == 0


def test_sql_prints_a_table_or_csv(runs: Path, command: Command) -> None:
    query = 'select breed, count(*) as "how many" from detections group by 1'
    code, out, _ = command("sql", query)
    assert code == 0
    assert [line.split() for line in out.splitlines()] == [["breed", "how", "many"], ["poodle", "4"]]
    code, out, _ = command("sql", "select box, d.path from detections d join images i on d.path = i.path", "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert (len(rows), rows[1]["box_x1"], Path(rows[0]["path"]).name) == (4, "20", "100.jpg")


@pytest.mark.parametrize("query", ["select colour from detections", "selec", "select 1 from runs", "drop table images"])
def test_a_wrong_query_is_one_line_with_the_columns(runs: Path, command: Command, query: str) -> None:
    code, out, error = command("sql", query)
    assert (code, out) == (2, "")
    assert len(error.splitlines()) == 1
    assert "coat_color" in error


def test_a_query_is_required(command: Command) -> None:
    code, _, error = command("sql", " ")
    assert (code, "make sql QUERY=" in error) == (2, True)


def test_compare_prints_a_table_and_writes_a_page(runs: Path, command: Command, simulated: Simulated) -> None:
    simulated.answer = lambda image, body: json.dumps(ANSWER | {"breed": "corgi" if image.width < 60 else "poodle"})
    photos = str(runs.parent / "my photos")
    run(settings.load(["--images", photos, "--run-name", "again"]), Console(file=io.StringIO()))
    older = next(path.name for path in runs.iterdir() if path.name.startswith("dog_breeds-"))
    code, out, _ = command("compare", older, "again")
    assert code == 0
    assert "detections in images of both: 2 equal, 2 changed, 0 new, 0 gone" in out
    assert "2  breed: poodle -> corgi" in out
    page = runs / f"compare-{older}-again.html"
    assert f"page: {page}" in out
    assert page.read_text().count('class="card"') == 2
    assert "(replaced)" in command("compare", older, "again")[1]
    assert command("compare", older, "gone")[0] == 2
    code, _, error = command("compare", older)
    assert (code, "RUNS='older newer'" in error) == (2, True)


def test_a_long_table_is_cut_and_says_so(runs: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.commands.sql.SHOWN_ROWS", 2)
    out = command("sql", "select path from detections")[1].splitlines()
    assert len(out) == 4
    assert out[-1].startswith("2 of 4 rows")
