"""Shards of a run, each with a folder of its own, and their merge into one run's folder."""

from __future__ import annotations

import io
import json
import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from aiohttp import web
from rich.console import Console

from pipeline import settings
from pipeline.errors import InvalidSetting, NotFound, OtherRun, Unreadable
from pipeline.output.manifest import Result
from pipeline.output.run_folder import read_manifest, write_manifest
from pipeline.results import merge as merging
from pipeline.results.merge import merge
from pipeline.run import run
from pipeline.sources.listing import Listing, Source
from pipeline.sources.search import LeftOut
from pipeline.sources.shards import described, share
from scripts import __main__ as spotter
from tests import killed_runs
from tests.conftest import ROOT
from tests.doubles.simulated import ANSWER, Simulated
from tests.pictures import encoded, gradient

Shards = Callable[..., Result]
TIMINGS = {"images": ["version", "read_s", "detect_s", "crop_s"], "detections": ["latency_s"]}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """20 files: two contents that stand far apart, one without a dog, and one that is damaged."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number:02}.jpg").write_bytes(encoded(gradient(100 + 4 * number, 80)))
    for twin, original in (("19.jpg", "00.jpg"), ("11.jpg", "03.jpg")):
        shutil.copy(folder / original, folder / twin)
    (folder / "07.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    return folder


@pytest.fixture
def do(simulated: Simulated, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shards:
    """Run a shard, or without one all images; options are command line arguments."""
    simulated.boxes = lambda image: [] if image.width == 120 else [[0, 0, image.width / 2, 40], [20, 20, 90, 70]]
    simulated.answer = lambda crop, request: json.dumps(ANSWER | {"facing": ["left", "right"][crop.width % 2]})
    for name, value in simulated.settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SPOTTER_OUTPUT", str(tmp_path / "runs"))

    def call(shard: str | None = None, *options: str) -> Result:
        given = [*(["--shard", shard] if shard else []), "--images", str(photos), *options]
        return run(settings.load(given), Console(file=io.StringIO()), measure=False)

    return call


def merged(run: str | None = None) -> Result:
    return merge(settings.load([]), run)


def table(folder: Path, name: str) -> pa.Table:
    return pq.read_table(folder / f"{name}.parquet")


def assert_equal(one: Path, other: Path) -> None:
    """Two runs have the same rows and crops, timings apart."""
    for name, columns in TIMINGS.items():
        left, right = (table(folder, name).drop_columns(columns) for folder in (one, other))
        assert left.equals(right), name
    crops = [{path.name: path.read_bytes() for path in (folder / "crops").iterdir()} for folder in (one, other)]
    assert crops[0] == crops[1]
    assert {path.name for path in (one / "annotated").iterdir()} == {
        path.name for path in (other / "annotated").iterdir()
    }
    figures = ("counts", "summary", "failures", "several_frames", "accuracy", "identity", "job", "annotated")
    before, after = (read_manifest(folder) or {} for folder in (one, other))
    for name in figures:
        assert before[name] == after[name], name
    tokens = ("prompt_tokens", "completion_tokens")
    assert [before["totals"][name] for name in tokens] == [after["totals"][name] for name in tokens]


@pytest.mark.parametrize(("images", "shards"), [(20, 8), (3, 8), (1000, 7), (0, 2)])
def test_shares_are_equal_and_hold_each_image_once(images: int, shards: int) -> None:
    listing = Listing([Source(b"%d" % number, "1-1") for number in range(images)], LeftOut())
    given = [settings.load([f"--shard={number}/{shards}"]) for number in range(1, shards + 1)]
    taken = [share(listing, each) for each in given]
    assert [source for each in taken for source in each] == listing.sources
    sizes = [len(each) for each in taken]
    assert max(sizes) - min(sizes) <= 1
    notes = [described(listing, each)["shard"] for each in given]
    assert len({note["listing"] for note in notes}) == 1
    assert [note["images"] for note in notes] == sizes


@pytest.mark.parametrize("shard", ["0/8", "9/8", "2", "2/", "a/b", "02/8", "1/0"])
def test_a_shard_that_is_none_is_refused(do: Shards, shard: str) -> None:
    with pytest.raises(InvalidSetting, match="expected 1/8"):
        do(shard)


@pytest.mark.slow
def test_eight_shards_in_any_order_are_one_run(do: Shards, tmp_path: Path) -> None:
    order = [f"{number}/8" for number in range(1, 9)]
    random.Random(4).shuffle(order)
    folders = [do(shard).folder for shard in order]
    assert len(set(folders)) == 8
    assert not (tmp_path / "runs" / "latest").exists()
    done = merged()
    assert done.folder == folders[0].parent / folders[0].name.rpartition("-of-")[0].rpartition("-")[0]
    assert (tmp_path / "runs" / "latest").resolve() == done.folder
    assert (done.status, len(done.manifest["shards"])) == ("complete", 8)
    assert done.manifest["seconds"] == pytest.approx(sum(each["seconds"] for each in done.manifest["shards"]))
    assert sum(each["images"] for each in done.manifest["shards"]) == 20
    whole = do(None, "--output", str(tmp_path / "one"))
    assert whole.folder.name == done.folder.name
    assert_equal(done.folder, whole.folder)
    # It is one run from now on: nothing is left to do, and every row is known.
    again = do()
    assert again.folder == done.folder
    assert (again.manifest["done_before"], again.status) == (20, "complete")
    assert_equal(again.folder, whole.folder)
    with pytest.raises(OtherRun, match="continued without SHARD"):
        merged()


@pytest.mark.slow
def test_a_shard_that_was_killed_and_repeated_changes_nothing(
    do: Shards, simulated: Simulated, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20, 90):  # enough for parts to be committed before the kill
        (photos / f"{number}.jpg").write_bytes(encoded(gradient(30 + number, 60)))
    runs = tmp_path / "runs"
    do("1/3", "--run-name", "one")
    simulated.model.requests = 0
    simulated.hold = lambda traffic, number: traffic is simulated.model and number > 40
    monkeypatch.setenv("SPOTTER_SHARD", "2/3")
    child = killed_runs.start(simulated, photos, runs / "one", 2)
    folder = runs / "one-2-of-3"
    while killed_runs.committed(folder)[0] < 1 and child.poll() is None:
        time.sleep(0.02)
    child.kill()
    child.wait()
    monkeypatch.delenv("SPOTTER_SHARD")
    simulated.hold = lambda traffic, number: False
    simulated.settle()
    parts, images = killed_runs.committed(folder)
    assert parts >= 1
    early = merged()
    assert early.status == "stopped"
    assert "1 of 3 shards (3/3) with 30 images" in early.manifest["reason"]
    assert f"{30 - images} of 30 images of shard 2/3 (running)" in early.manifest["reason"]
    assert early.manifest["counts"]["images"]["not_reached"] == 60 - images
    do("3/3", "--run-name", "one")
    assert do("2/3", "--run-name", "one").manifest["done_before"] == images
    done = merged("one")
    assert done.status == "complete"
    assert [each["status"] for each in done.manifest["starts"]] == ["complete", "unfinished", "complete", "complete"]
    whole = do(None, "--output", str(tmp_path / "whole"), "--run-name", "one")
    assert_equal(done.folder, whole.folder)


@pytest.mark.slow
def test_a_failure_in_one_shard_gives_way_to_the_answer_in_another(do: Shards, simulated: Simulated) -> None:
    """00.jpg and 19.jpg have one content; so have 03.jpg and 11.jpg."""
    simulated.model_fault = lambda number: web.Response(status=400, text="no") if number > 1 else None
    do("1/2", "--failure-limit", "1")
    simulated.model_fault = lambda number: None
    do("2/2")
    done = merged()
    rows = table(done.folder, "detections").to_pylist()
    failed = {Path(row["path"]).name for row in rows if row["outcome"] == "failed"}
    assert failed == {f"{number:02}.jpg" for number in range(10)} - {"00.jpg", "03.jpg", "05.jpg", "07.jpg"}
    assert all((done.folder / row["crop"]).is_file() for row in rows)
    images = {Path(row["path"]).name: row for row in table(done.folder, "images").to_pylist()}
    assert Path(images["19.jpg"]["duplicate_of"]).name == "00.jpg"
    simulated.model.requests = 0
    retried = do(None, "--retry-failed")
    assert retried.failures == 1
    assert simulated.model.requests == 1 + 2 * len(failed)


@pytest.mark.slow
def test_shards_of_different_runs_are_refused(do: Shards, tmp_path: Path) -> None:
    do("1/2", "--run-name", "one")
    do("2/2", "--run-name", "one", "--model-revision", "other")
    with pytest.raises(OtherRun, match=r"different: model revision \(none -> other\)"):
        merged()
    assert not (tmp_path / "runs" / "one").exists()
    do("1/2", "--run-name", "two")
    with pytest.raises(InvalidSetting, match="one, two"):
        merged()
    with pytest.raises(NotFound, match="of run three"):
        merged("three")
    do("1/3", "--run-name", "two")
    with pytest.raises(OtherRun, match="number of shards"):
        merged("two")


@pytest.mark.slow
def test_a_listing_that_changed_is_found(do: Shards, photos: Path) -> None:
    do("1/2")
    (photos / "20.jpg").write_bytes(encoded(gradient(60, 60)))
    do("2/2")
    with pytest.raises(OtherRun, match="shard 1/2 saw 20 images, shard 2/2 saw 21 images"):
        merged()
    do("1/2")
    (photos / "20.jpg").write_bytes(encoded(gradient(61, 60)))
    os.utime(photos / "00.jpg", (1, 1))  # a time alone is no other listing
    do("2/2")
    with pytest.raises(OtherRun, match="names or sizes differ"):
        merged()
    do("1/2")
    done = merged()
    assert done.status == "complete"
    paths = [Path(path).name for path in table(done.folder, "images")["path"].to_pylist()]
    assert paths == [f"{number:02}.jpg" for number in range(21)]


@pytest.mark.slow
def test_a_merge_that_fails_leaves_what_was_there(do: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    do("1/2", "--run-name", "one")
    first = merged()

    def state() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in first.folder.iterdir() if path.name != ".lock"}

    before = state()
    done = do("2/2", "--run-name", "one")
    with monkeypatch.context() as patch:

        def breaks(*_: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(merging, "write_manifest", breaks)
        with pytest.raises(KeyboardInterrupt):
            merged()
    assert state() == before
    assert not (tmp_path / "runs" / ".one.merging").exists()
    crop = next((done.folder / "crops").iterdir())
    content = crop.read_bytes()
    crop.unlink()
    with pytest.raises(Unreadable, match="copy the whole folder"):
        merged()
    crop.write_bytes(content)
    shutil.move(done.folder / ".parts", tmp_path / "parts")
    with pytest.raises(Unreadable, match=r"\.parts lacks the rows of 10 images"):
        merged()
    shutil.move(tmp_path / "parts", done.folder / ".parts")
    manifest = read_manifest(done.folder) or {}  # of a shard whose disk was full when it was to write its tables
    write_manifest(done.folder, manifest | {"status": "stopped", "reason": "no space"})
    for name in ("images.parquet", "detections.parquet"):
        (done.folder / name).unlink()
    assert merged().status == "complete"
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"one", "one-1-of-2", "one-2-of-2", "latest"}


@pytest.mark.slow
def test_shards_stay_as_they_are_when_the_merged_run_goes_on(do: Shards, simulated: Simulated) -> None:
    """Crops are links: doing an image again must not write into a shard."""
    shard = do("1/1")
    done = merged()
    crop = next((done.folder / "crops").iterdir())
    assert crop.samefile(shard.folder / "crops" / crop.name)
    before = crop.read_bytes()
    simulated.boxes = lambda image: [[5, 5, image.width / 3, 30], [25, 25, 70, 60]]
    for part in (done.folder / ".parts").iterdir():
        part.unlink()
    do()
    assert crop.read_bytes() != before
    assert (shard.folder / "crops" / crop.name).read_bytes() == before


@pytest.mark.slow
def test_a_merged_run_is_evaluated_like_one_run(do: Shards, tmp_path: Path) -> None:
    truth = tmp_path / "truth.csv"
    rows = [f"{number:02}.jpg,dog,0,0,{50 + 2 * number},40,poodle" for number in range(0, 20, 2)]
    truth.write_text("\n".join(["path,label,x1,y1,x2,y2,breed", *rows]))
    for shard in ("2/2", "1/2"):
        do(shard, "--truth", str(truth))
    done, whole = merged(), do(None, "--truth", str(truth), "--output", str(tmp_path / "one"))
    assert done.manifest["evaluation"] == whole.manifest["evaluation"]
    assert done.manifest["evaluation"]["detections"]["dog"]["found"] == 10
    assert (done.folder / "evaluation.json").read_bytes() == (whole.folder / "evaluation.json").read_bytes()


@pytest.mark.slow
def test_more_shards_than_images(do: Shards, photos: Path) -> None:
    for path in sorted(photos.iterdir())[1:]:
        path.unlink()
    assert do("1/2").manifest["counts"]["images"]["total"] == 0
    do("2/2")
    done = merged()
    assert (done.status, done.manifest["counts"]["images"]["total"]) == ("complete", 1)


@pytest.mark.slow
def test_the_command_says_what_is_missing(do: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    do("2/2", "--price-input", "3")
    assert spotter.main(["merge"]) == 1
    said = capsys.readouterr().out
    assert "20 images: 10 with a dog" in said
    assert "10 not reached" in said
    assert "missing are 1 of 2 shards (1/2) with 10 images" in said
    assert "cost: " in said
    page = (tmp_path / "runs" / "latest" / "report.html").read_text()
    assert "of 1 shards" in page
    assert "missing are 1 of 2 shards (1/2)" in page
    do("1/2")
    assert spotter.main(["merge"]) == 0
    said = capsys.readouterr().out
    assert "2 shards, " in said
    assert "missing" not in said
    for command, ends in (
        (["sql", "select count(*) as images from images"], 0),
        (["report"], 0),
        (["export", "--format", "csv", "--output", str(tmp_path / "csv")], 0),
        (["compare", "latest", "latest", "--output", str(tmp_path)], 0),
        (["review", "--output", str(tmp_path / "review")], 2),  # the simulated server gives no confidences
    ):
        assert spotter.main(command) == ends, capsys.readouterr().err


def example(language: str) -> str:
    """The first block of docs/shards.md in a language that has an entry of a scheduler."""
    found: list[str] = re.findall(
        rf"^```{language}\n(.*?)^```", (ROOT / "docs" / "shards.md").read_text(), re.MULTILINE | re.DOTALL
    )
    return next(block for block in found if "sbatch" in block.lower() or "kind: Job" in block)


@pytest.mark.parametrize(("signalled", "code"), [(False, 3), (True, 130)])
def test_the_slurm_example_runs_its_shard_and_stops_the_stack(tmp_path: Path, signalled: bool, code: int) -> None:
    """With a program in the place of ./spotter: a shard that ends by itself, and one that Slurm tells to end."""
    (tmp_path / "spotter").mkdir()
    program = tmp_path / "spotter" / "spotter"
    program.write_text(
        "#!/bin/bash\n"
        'echo "$1 $SPOTTER_SHARD" >> "$HOME/told"\n'
        '[ "$1" = run ] || exit 0\n'
        + ("trap 'exit 130' TERM\nfor _ in {1..400}; do sleep 0.05; done\n" if signalled else "exit 3\n")
    )
    program.chmod(0o755)
    script = example("sh")
    assert f"--array=1-{script.partition('SLURM_ARRAY_TASK_ID/')[2][0]} " in script
    variables = {**os.environ, "HOME": str(tmp_path), "SLURM_ARRAY_TASK_ID": "2"}
    job = subprocess.Popen(["bash", "-c", script], env=variables)
    told, deadline = tmp_path / "told", time.monotonic() + 20
    while signalled and not told.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    if signalled:
        time.sleep(0.2)  # the program sets its trap
        job.terminate()
    assert job.wait(timeout=30) == code
    assert told.read_text().splitlines() == ["run 2/8", "down 2/8"]


def test_the_kubernetes_example_gives_each_pod_its_shard(tmp_path: Path) -> None:
    spec = yaml.safe_load(example("yml"))["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    (tmp_path / "python").write_text('#!/bin/sh\necho "$SPOTTER_SHARD $*"\n')
    (tmp_path / "python").chmod(0o755)
    for index in range(spec["completions"]):
        variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "JOB_COMPLETION_INDEX": str(index)}
        said = subprocess.run(container["command"], env=variables, capture_output=True, text=True, check=True).stdout
        assert said == f"{index + 1}/{spec['completions']} -m pipeline\n"
    assert {each["name"] for each in container["env"]} <= set(settings.variables())
