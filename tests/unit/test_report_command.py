"""`make report`: a run's page again from its tables, wherever the run is now."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from pipeline.errors import NotFound, Unreadable
from pipeline.output.annotate import place
from scripts.__main__ import parse
from scripts.commands import report
from scripts.settings import StackSettings
from tests.large_run import write_large_run
from tests.report_rows import loaded, report_rows
from tests.s3 import BUCKET, Store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run that has ended, with a copy of its second image."""
    made = tmp_path / "runs" / "large"
    write_large_run(made, 20)
    (made / "annotated").mkdir()
    return made


def remake(place: Path | str) -> str:
    """What the command prints."""
    console = Console(file=io.StringIO(), width=160)
    report.run(StackSettings(), console, existing=str(place))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def files(folder: Path) -> dict[str, bytes]:
    """The page and what it loads."""
    return {path.name: path.read_bytes() for path in (folder / "report.html", *(folder / "report").iterdir())}


def test_the_same_tables_give_the_same_rows_also_after_a_move(folder: Path, tmp_path: Path) -> None:
    rows = report_rows(folder)
    assert len(rows) == pq.read_metadata(folder / "detections.parquet").num_rows + 3
    moved = folder.rename(tmp_path / "else where")
    shutil.rmtree(moved / "report")
    (moved / "report.html").unlink()
    assert remake(moved) == f"report: {moved / 'report.html'}\n"
    assert report_rows(moved) == rows
    before = files(moved)
    remake(moved)
    assert files(moved) == before


def test_rows_of_a_larger_page_before_leave(folder: Path) -> None:
    (folder / "report" / "rows-7.js").write_text("take('of a larger run', '0');")
    remake(folder)
    assert sorted(path.name for path in (folder / "report").iterdir()) == [
        "about.js",
        "report.css",
        "report.js",
        "rows-0.js",
        "rows.js",
    ]


def test_a_published_run_gets_its_page_where_it_is(folder: Path, store: Store) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and path.parent != folder / "report" and path.name != "report.html":
            store.put(f"results/large/{path.relative_to(folder)}", path.read_bytes())
    rows = report_rows(folder)
    address = f"s3://{BUCKET}/results/large"
    assert remake(address) == f"report: {address}/report.html\n"
    second = pq.read_table(folder / "images.parquet")["path"][1].as_py()
    store.put(f"results/large/{place(second)}", b"jpeg")
    remake(address)
    shutil.rmtree(folder / "report")
    for key in store.keys("results/large/report"):
        target = folder / key.removeprefix("results/large/")
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(store.get(key))
    assert report_rows(folder) == rows
    assert loaded(folder / "report" / "rows-0.js", "take")["copies"] == {"1": place(second).as_posix()}
    with pytest.raises(NotFound, match="no run at"):
        remake(f"s3://{BUCKET}/results/another")
    with pytest.raises(NotFound, match="no such bucket"):
        remake("s3://no-such-bucket/results")


def test_copies_are_named_that_are_there(folder: Path) -> None:
    second = pq.read_table(folder / "images.parquet")["path"][1].as_py()
    (folder / place(second)).write_bytes(b"jpeg")
    remake(folder)
    assert loaded(folder / "report" / "rows-0.js", "take")["copies"] == {"1": place(second).as_posix()}


def test_what_is_no_run_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no run nowhere"):
        remake("nowhere")
    whole = (folder / "run.json").read_bytes()
    (folder / "run.json").write_text('{"status": "running"}')
    with pytest.raises(NotFound, match=r"run\.json has no counts"):
        remake(folder)
    (folder / "run.json").write_bytes(whole)
    (folder / "images.parquet").write_bytes(b"half")
    with pytest.raises(Unreadable, match=r"images\.parquet cannot be read"):
        remake(folder)
    (folder / "images.parquet").unlink()
    with pytest.raises(NotFound, match=r"has no images\.parquet"):
        remake(folder)
    (folder / "run.json").unlink()
    with pytest.raises(NotFound, match=r"run\.json is missing"):
        remake(folder)


def test_the_last_run_is_the_default_and_a_relative_path_begins_where_the_caller_is(tmp_path: Path) -> None:
    assert parse(["report"]) == ("report", {"existing": "latest"})
    (tmp_path / "mine").mkdir()
    mine = {"existing": str(tmp_path / "mine")}
    assert parse(["--folder", str(tmp_path), "report", "--run", "mine"]) == ("report", mine)
