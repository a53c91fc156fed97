"""Whole runs over lists, Parquet files and buckets: the same rows, the same resume, nothing asked twice."""

from __future__ import annotations

import io
import itertools
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from pipeline import settings as pipeline_settings
from pipeline.errors import BucketUnusable, OtherRun, RunStopped
from pipeline.files import write_atomically
from pipeline.output.manifest import Result
from pipeline.run import run
from pipeline.runtime.display import show_summary
from pipeline.sources.hosts import MOST_FAILED
from pipeline.sources.objects import TRIES
from tests.conftest import ROOT, Cli
from tests.doubles.simulated import Simulated
from tests.killed_runs import committed, pipeline
from tests.parquet_reads import Reads
from tests.pictures import encoded, gradient
from tests.s3 import BUCKET, Store

pytestmark = pytest.mark.slow

PICTURES = [encoded(gradient(100 + number, 80)) for number in range(6)]
THERE = f"s3://{BUCKET}"

RunJob = Callable[..., tuple[Result, str]]


@pytest.fixture
def run_job(simulated: Simulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunJob:
    """Run the bundled job over a place; the run, and what it printed."""
    for name, value in simulated.settings.items():
        monkeypatch.setenv(name, value)

    def do(images: object, *options: str, output: object = tmp_path / "runs") -> tuple[Result, str]:
        printed = io.StringIO()
        arguments = ["--images", str(images), "--output", str(output), "--work", str(tmp_path / "work"), *options]
        return run(pipeline_settings.load(arguments), Console(file=printed, width=200)), printed.getvalue()

    return do


def rows(done: Result, name: str = "images") -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = pq.read_table(done.folder / f"{name}.parquet").to_pylist()
    return content


def outcomes(done: Result) -> dict[str, str]:
    return {row["path"].rsplit("/", 1)[1]: row["outcome"] for row in rows(done)}


def asked(simulated: Simulated) -> int:
    """Questions since the last call, without the one before each run."""
    number = len(simulated.model.bodies) - 1
    simulated.model.bodies.clear()
    return number


# --- lists and Parquet ---------------------------------------------------------------------------------------------


def test_a_list_with_a_missing_file(run_job: RunJob, simulated: Simulated, tmp_path: Path) -> None:
    (tmp_path / "a b.jpg").write_bytes(PICTURES[0])
    (tmp_path / "mine.txt").write_text("# two\na b.jpg\ngone.jpg\n")
    done, _ = run_job(tmp_path / "mine.txt")
    assert outcomes(done) == {"a b.jpg": "detected", "gone.jpg": "failed"}
    assert [row["reason"] for row in rows(done) if row["reason"]] == ["cannot be read: No such file or directory"]
    asked(simulated)
    (tmp_path / "gone.jpg").write_bytes(PICTURES[1])  # it came after all
    done, _ = run_job(tmp_path / "mine.txt")
    assert (set(outcomes(done).values()), asked(simulated)) == ({"detected"}, 1)


def test_an_address_that_is_no_utf_8_is_a_failed_row(run_job: RunJob, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(PICTURES[0])
    (tmp_path / "mine.txt").write_bytes(b"a.jpg\ns3://b/\xff.jpg\nhttp://127.0.0.1:1/\xff.jpg\n")
    done, _ = run_job(tmp_path / "mine.txt")
    assert sorted((row["outcome"], row["reason"] or "") for row in rows(done)) == [
        ("detected", ""),
        ("failed", "the address is no UTF-8"),
        ("failed", "the address is no UTF-8"),
    ]


def test_parquet_under_a_path_that_is_no_utf_8(run_job: RunJob, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    folder.mkdir()
    pq.write_table(pa.table({"picture": pa.array([PICTURES[0], None], pa.binary())}), tmp_path / "t.parquet")
    (tmp_path / "t.parquet").rename(folder / "t.parquet")
    done, _ = run_job(folder)
    assert outcomes(done) == {"t.parquet#00000000": "detected", "t.parquet#00000001": "failed"}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A Parquet file with six pictures, a null, and bytes that are no picture, in row groups of three."""
    column = pa.array([*PICTURES, None, b"no picture"], pa.binary())
    pq.write_table(pa.table({"id": range(8), "picture": column}), tmp_path / "t.parquet", row_group_size=3)
    return tmp_path / "t.parquet"


def test_parquet_with_bytes(run_job: RunJob, simulated: Simulated, table: Path) -> None:
    done, _ = run_job(table)
    assert outcomes(done) == {f"t.parquet#{n:08}": "detected" if n < 6 else "failed" for n in range(8)}
    assert [row["reason"].split(" (")[0] for row in rows(done)[6:]] == [
        "column picture is empty in this row",
        "not an image of a known format",
    ]
    assert len(list((done.folder / "annotated").iterdir())) == 6
    asked(simulated)
    again, printed = run_job(table)
    assert (asked(simulated), again.folder) == (0, done.folder)
    assert "8 are done already" in printed
    retried, _ = run_job(table, "--retry-failed")
    assert outcomes(retried) == outcomes(done)


@pytest.mark.parametrize("group", [50, 400])
def test_no_row_group_is_read_over_and_over_in_a_run(
    run_job: RunJob, simulated: Simulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: int
) -> None:
    """Once by the flow and once by the report, however slow some answers are; half as often again on a busy machine."""
    count = 400
    column = pa.array([encoded(gradient(100 + number, 80)) for number in range(count)], pa.binary())
    pq.write_table(pa.table({"picture": column}), tmp_path / "t.parquet", row_group_size=group)
    reads = Reads(monkeypatch)
    delays = itertools.cycle([0.0] * 20 + [0.3])
    simulated.latency = lambda: next(delays)
    done, _ = run_job(tmp_path / "t.parquet")
    assert set(outcomes(done).values()) == {"detected"}
    assert reads.rows <= 3 * count


def test_another_column_is_another_run(run_job: RunJob, tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.jpg").write_bytes(PICTURES[number])
    pq.write_table(pa.table({"a": ["0.jpg"], "b": ["1.jpg"]}), tmp_path / "t.parquet")
    first, _ = run_job(tmp_path / "t.parquet", "--column", "a")
    second, _ = run_job(tmp_path / "t.parquet", "--column", "b")
    assert first.folder != second.folder
    assert (list(outcomes(first)), list(outcomes(second))) == (["0.jpg"], ["1.jpg"])


def test_the_same_picture_is_asked_about_once_wherever_it_is(
    run_job: RunJob, simulated: Simulated, store: Store, tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(PICTURES[0])
    store.put("b.jpg", PICTURES[0])
    (tmp_path / "all.txt").write_text(f"a.jpg\n{THERE}/b.jpg\n./a.jpg\n")
    done, _ = run_job(tmp_path / "all.txt")
    assert (outcomes(done), asked(simulated)) == ({"a.jpg": "detected", "b.jpg": "detected"}, 1)
    same = pa.array([PICTURES[0], PICTURES[1], PICTURES[0]], pa.binary())
    pq.write_table(pa.table({"picture": same}), tmp_path / "t.parquet")
    done, _ = run_job(tmp_path / "t.parquet")
    assert asked(simulated) == 2
    assert [row["duplicate_of"] is None for row in rows(done)] == [True, True, False]


def test_what_was_left_out_is_said_and_written_down(run_job: RunJob, tmp_path: Path) -> None:
    """Also the output itself, which is in the images' folder here: a second run has the same images."""
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(PICTURES[0])
    (photos / "[red].md").touch()
    done, printed = run_job(photos, output=photos / "runs")
    assert "left out: 1 .md" in printed
    again, printed = run_job(photos, "--run-name", "two", output=photos / "runs")
    assert list(outcomes(again)) == list(outcomes(done)) == ["a.jpg"]
    assert f"left out: 1 run folder ({done.folder}), 1 .md" in printed
    assert again.manifest["left_out"] == [
        {"kind": "run folder", "number": 1, "example": str(done.folder)},
        {"kind": ".md", "number": 1, "example": str(photos / "[red].md")},
    ]
    assert f"(such as {done.folder}), 1 .md</p>" in " ".join((again.folder / "report.html").read_text().split())


def test_pages_beyond_the_first_are_said(run_job: RunJob, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    pages = [gradient(100, 80 + number) for number in range(3)]
    (folder / "pages.tif").write_bytes(encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:]))
    (folder / "one.jpg").write_bytes(PICTURES[0])
    done, _ = run_job(folder)
    assert [row["frames"] for row in rows(done)] == [1, 3]
    assert done.manifest["several_frames"] == 1
    assert "Images with several pages or frames: 1;" in (done.folder / "report.html").read_text()
    printed = io.StringIO()
    show_summary(Console(file=printed, width=200), done.manifest)
    assert "images with several pages or frames: 1; only the first is used" in printed.getvalue()


class Web:
    """A web server of pictures, which may close each connection instead of answering."""

    def __init__(self) -> None:
        self.dead, self.requests = True, 0
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.requests += 1
                if web.dead:
                    self.close_connection = True
                    return
                picture = encoded(gradient(100 + int(self.path.strip("/.jpg")), 80))
                self.send_response(200)
                self.send_header("Content-Length", str(len(picture)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(picture)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def web() -> Iterator[Web]:
    """A web server that is dead at first."""
    web = Web()
    thread = threading.Thread(target=web.server.serve_forever, daemon=True)
    thread.start()
    yield web
    web.server.shutdown()
    thread.join()
    web.server.server_close()


def test_a_dead_host_of_images_costs_seconds(run_job: RunJob, web: Web, tmp_path: Path) -> None:
    """Each of 40 images would be asked for 30 times in 110 s by Daft's own rules."""
    (tmp_path / "a.jpg").write_bytes(PICTURES[0])
    addresses = "".join(f"http://{web.host}/{number}.jpg\n" for number in range(40))
    (tmp_path / "l.txt").write_text(f"{addresses}a.jpg\n")
    done, _ = run_job(tmp_path / "l.txt")
    failed = [row for row in rows(done) if row["outcome"] == "failed"]
    assert (len(failed), outcomes(done)["a.jpg"]) == (40, "detected")
    assert {row["stage"] for row in failed} == {"fetch"}
    at_once = sum(f"{web.host} gave none of the last" in row["reason"] for row in failed)
    asked_for = MOST_FAILED + (os.cpu_count() or 1)  # images that threads had begun with
    assert at_once >= 40 - asked_for
    assert web.requests <= asked_for * TRIES
    web.dead = False
    done, _ = run_job(tmp_path / "l.txt", "--retry-failed")
    assert set(outcomes(done).values()) == {"detected"}


# --- buckets -------------------------------------------------------------------------------------------------------


@pytest.fixture
def photos(store: Store) -> str:
    """Pictures in a bucket, one of them broken."""
    for number, picture in enumerate(PICTURES):
        store.put(f"photos/{number} ü#.jpg", picture)
    store.put("photos/broken.jpg", b"no picture")
    return f"{THERE}/photos/"


def test_from_a_bucket(run_job: RunJob, simulated: Simulated, store: Store, photos: str) -> None:
    done, _ = run_job(photos)
    assert outcomes(done) == {**{f"{n} ü#.jpg": "detected" for n in range(6)}, "broken.jpg": "failed"}
    assert rows(done)[0]["path"] == f"{photos}0 ü#.jpg"
    assert len(list((done.folder / "annotated").iterdir())) == 6
    asked(simulated)
    store.put("photos/new.jpg", encoded(gradient(300, 200)))
    store.put("photos/1 ü#.jpg", encoded(gradient(301, 200)))
    done, _ = run_job(photos)
    assert (len(outcomes(done)), asked(simulated)) == (8, 2)


def test_an_object_that_is_too_large_is_not_fetched(
    run_job: RunJob,
    store: Store,
    photos: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where its size is known; where it is not, it is known then."""
    monkeypatch.setattr("pipeline.sources.reader.MAX_FILE_BYTES", 10_000)
    store.put("photos/large.jpg", bytes(10_001))
    store.put("list.txt", f"{photos}large.jpg\n".encode())
    for place, fetched in ((photos, False), (f"{THERE}/list.txt", True)):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="werkzeug"):  # the store's
            done, _ = run_job(place)
        assert outcomes(done)["large.jpg"] == "failed"
        assert "the file has more than 0 MiB" in [row["reason"] for row in rows(done)]
        assert ("GET /pictures/photos/large.jpg" in caplog.text) is fetched


def test_an_object_that_went_away_is_a_failed_row(run_job: RunJob, store: Store, tmp_path: Path) -> None:
    store.put("a.jpg", PICTURES[0])
    (tmp_path / "l.txt").write_text(f"{THERE}/a.jpg\n{THERE}/gone.jpg\ns3://nobody/x.jpg\n")
    done, _ = run_job(tmp_path / "l.txt")
    assert outcomes(done) == {"a.jpg": "detected", "gone.jpg": "failed", "x.jpg": "failed"}
    assert {row["stage"] for row in rows(done) if row["reason"]} == {"read"}


def test_a_run_is_published(run_job: RunJob, simulated: Simulated, store: Store, photos: str) -> None:
    done, printed = run_job(photos, output=f"{THERE}/results")
    there = {key.removeprefix(f"results/{done.folder.name}/") for key in store.keys("results/")}
    here = {path.relative_to(done.folder).as_posix() for path in done.folder.rglob("*") if path.is_file()}
    assert there == here - {".lock", ".published"}
    assert f"published {len(there)} files to {THERE}/results/{done.folder.name}" in printed
    for name in ("run.json", "detections.parquet", "report.html"):
        assert store.get(f"results/{done.folder.name}/{name}") == (done.folder / name).read_bytes()
    asked(simulated)
    _, printed = run_job(photos, output=f"{THERE}/results/")
    assert asked(simulated) == 0
    assert "7 are done already" in printed
    assert "crops" not in printed


def move_to_another_host(tmp_path: Path, name: str) -> None:
    """Leave what this host has of its runs behind."""
    (tmp_path / "work").rename(tmp_path / name)


def test_another_host_goes_on_from_what_was_published(
    run_job: RunJob, simulated: Simulated, store: Store, photos: str, tmp_path: Path
) -> None:
    first, _ = run_job(photos, output=THERE)
    before = rows(first, "detections")
    move_to_another_host(tmp_path, "one")
    store.put("photos/new.jpg", encoded(gradient(300, 200)))
    asked(simulated)
    second, printed = run_job(photos, output=THERE)
    assert f"going on from {THERE}/{second.folder.name}" in printed
    assert asked(simulated) == 1
    assert [row for row in rows(second, "detections") if "new.jpg" not in row["path"]] == before
    assert len(list((second.folder / "crops").iterdir())) == 7
    expected = rows(second, "detections")
    move_to_another_host(tmp_path, "two")  # the first host has done nothing since: it takes over what the second did
    (tmp_path / "one").rename(tmp_path / "work")
    third, _ = run_job(photos, output=THERE)
    assert (asked(simulated), rows(third, "detections")) == (0, expected)


class Killed(BaseException):
    """The process ends here."""


def dies_at(call: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, but that the process is killed before its `call`-th call (from 0)."""
    calls = itertools.count()

    def do(*arguments: Any, **named: Any) -> Any:
        if next(calls) == call:
            raise Killed
        return function(*arguments, **named)

    return do


@pytest.mark.parametrize(
    "killed_at",
    ["pipeline.output.publish.Publication._put_manifest", "pipeline.run.Collector"],
    ids=["before its manifest is there", "before its first row"],
)
def test_no_host_goes_on_from_what_was_begun_anew(
    run_job: RunJob,
    simulated: Simulated,
    store: Store,
    photos: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    killed_at: str,
) -> None:
    run_job(photos, output=THERE)
    with monkeypatch.context() as patched:
        patched.setattr(killed_at, dies_at(0, lambda: None))
        with pytest.raises(Killed):
            run_job(photos, "--force", output=THERE)
    move_to_another_host(tmp_path, "one")
    asked(simulated)
    done, printed = run_job(photos, output=THERE)
    assert asked(simulated) == len(PICTURES)
    assert "done already" not in printed
    assert set(outcomes(done).values()) == {"detected", "failed"}


def test_beginning_anew_that_was_killed_on_this_host_goes_on_anew(
    run_job: RunJob, simulated: Simulated, store: Store, photos: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_job(photos, output=THERE)
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.run.Collector", dies_at(0, lambda: None))
        with pytest.raises(Killed):
            run_job(photos, "--force", output=THERE)
    asked(simulated)
    _, printed = run_job(photos, output=THERE)
    assert asked(simulated) == len(PICTURES)
    assert "published" in printed


@pytest.mark.parametrize("call", range(4))
def test_taking_a_run_over_that_was_cut_short_is_done_again(
    run_job: RunJob,
    simulated: Simulated,
    store: Store,
    photos: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: int,
) -> None:
    """Killed before each file that is written here: whose the run is, what is known of it, its list of parts."""
    run_job(photos, output=THERE)
    move_to_another_host(tmp_path, "one")
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.output.publish.write_atomically", dies_at(call, write_atomically))
        with pytest.raises(Killed):
            run_job(photos, output=THERE)
    asked(simulated)
    _, printed = run_job(photos, output=THERE)
    assert asked(simulated) == 0
    assert "7 are done already" in printed


def test_two_hosts_do_not_overwrite_each_other(
    run_job: RunJob, simulated: Simulated, store: Store, photos: str
) -> None:
    theirs = b'{"status": "running", "by": "another host"}'

    def meanwhile(number: int) -> None:
        key = next(key for key in store.keys("results/") if key.endswith("run.json"))
        store.put(key, theirs)

    simulated.model_fault = lambda number: meanwhile(number) if number == 3 else None
    with pytest.raises(RunStopped, match=f"{THERE}/results.*safe in"):
        run_job(photos, output=f"{THERE}/results")
    assert store.keys("results/") == [key for key in store.keys("results/") if key.endswith("run.json")]
    assert store.get(store.keys("results/")[0]) == theirs
    simulated.model_fault = lambda number: None
    with pytest.raises(OtherRun, match=f"{THERE}/results.*--run-name"):
        run_job(photos, output=f"{THERE}/results")


def test_a_bucket_that_takes_nothing_is_told_before_anything_is_asked(
    run_job: RunJob, simulated: Simulated, store: Store, tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(PICTURES[0])
    with pytest.raises(BucketUnusable, match="output: s3://nobody/"):
        run_job(tmp_path / "a.jpg", output="s3://nobody")
    assert asked(simulated) == 0


def test_a_store_that_cannot_be_used_ends_with_one_line(cli: Cli, simulated: Simulated, store: Store) -> None:
    for place in ("s3://nobody/p", THERE):
        done = cli("--images", place, env=simulated.settings)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert done.stderr.startswith("error: images: ")
        assert place in done.stderr
    store.check_credentials()
    done = cli("--images", THERE, env=simulated.settings)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "InvalidAccessKeyId" in done.stderr
    assert "its-secret" not in done.stderr


def test_kill_9_and_resume_from_bucket_to_bucket(simulated: Simulated, store: Store, tmp_path: Path) -> None:
    for number in range(40):
        store.put(f"many/{number}.jpg", encoded(gradient(100 + number, 80)))
    simulated.latency_s = 0.05
    command = [*pipeline(part=5), "--images", f"{THERE}/many", "--output", f"{THERE}/out", "--run-name", "one"]
    command += ["--work", str(tmp_path / "work"), "--detector-concurrency", "1"]
    variables = {**os.environ, **simulated.settings}
    child = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while committed(tmp_path / "work" / "one")[0] < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    parts, safe = committed(tmp_path / "work" / "one")
    assert parts >= 2
    assert b'"running"' in store.get("out/one/run.json")
    simulated.settle()
    simulated.latency_s = 0.0
    simulated.model.requests = 0
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert simulated.model.requests == 1 + 40 - safe
    table = pq.read_table(pa.BufferReader(store.get("out/one/images.parquet")))
    assert sorted(table["path"].to_pylist()) == sorted(f"{THERE}/many/{number}.jpg" for number in range(40))
    assert set(table["outcome"].to_pylist()) == {"detected"}
    assert b'"complete"' in store.get("out/one/run.json")
