"""Read a run's exports with the libraries that they are for: Label Studio's, FiftyOne's and Hugging Face's.

    python -m scripts.bench.read_exports --only hf

The run is made here, over the bundled images, one damaged image and one with an awkward name, with simulated servers.
The libraries take 0.4 to 1 GB each and are installed from the package index; FiftyOne's reader is used without its
database. The exit code is 1 when a library reads other images, boxes or answers than the run has.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import sub
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline import settings
from pipeline import tables as of_run
from pipeline.results.export import export
from pipeline.results.finished_run import FinishedRun, Tally, read_run
from pipeline.run import run
from scripts.bench import command
from scripts.bench.installed import installed
from scripts.environments import ROOT
from tests.doubles.simulated import serve

# Each prints, as JSON, the number of images, and each detection: its box as x1, y1, x2, y2 in pixels, and its breed.
HUGGING_FACE = """
from datasets import load_dataset
images = load_dataset(folder, "images", split="train")
found = []
for row in images:
    assert row["image"].size == (row["width"], row["height"]), row["path"]
    for each in row["objects"]:
        x, y, w, h = each["bbox"]
        found.append([[x, y, x + w, y + h], json.loads(each["answer"])["breed"]])
crops = load_dataset(folder, "detections", split="train")
assert [row["breed"] for row in crops] == [breed for _, breed in found]
assert all(min(row["crop"].size) > 0 for row in crops)
told = len(images), found
"""
FIFTYONE = """
from fiftyone.utils.data import FiftyOneImageDetectionDatasetImporter
images, found = 0, []
with FiftyOneImageDetectionDatasetImporter(folder, compute_metadata=True) as importer:
    for _, size, labels in importer:
        images += 1
        for each in labels.detections:
            x, y, w, h = each.bounding_box
            box = [x * size.width, y * size.height, (x + w) * size.width, (y + h) * size.height]
            found.append([box, each.breed])
told = images, found
"""
LABEL_STUDIO = """
import pathlib, tempfile
from label_studio_sdk.converter import Converter
from label_studio_sdk.label_interface import LabelInterface
place = pathlib.Path(folder)
setup, tasks = (place / "labelling_setup.xml").read_text(), json.loads((place / "tasks.json").read_text())
interface = LabelInterface(setup)
interface.validate()
for number, task in enumerate(tasks, 1):
    assert interface.validate_task({"data": task["data"]}), task["data"]
    for prediction in task["predictions"]:
        problems = interface.validate_prediction(prediction, return_errors=True)
        assert not problems, problems
    task["id"] = number
    task["annotations"] = [{"id": number, "completed_by": 1, **prediction} for prediction in task.pop("predictions")]
with tempfile.TemporaryDirectory() as temporary:
    exported, done = pathlib.Path(temporary, "exported.json"), pathlib.Path(temporary, "coco")
    exported.write_text(json.dumps(tasks))
    Converter(setup, None, download_resources=False).convert_to_coco(str(exported), str(done), is_dir=False)
    coco = json.loads((done / "result.json").read_text())
breeds = [
    result["value"]["choices"][0]
    for task in tasks for result in task["annotations"][0]["result"] if result["from_name"] == "breed"
]
boxes = [[x, y, x + w, y + h] for x, y, w, h in (each["bbox"] for each in coco["annotations"])]
told = len(tasks), [list(each) for each in zip(boxes, breeds, strict=True)]
"""
BEGIN = "import json, sys\nfolder = sys.argv[1]\n"
END = "\nprint('told', json.dumps(told))\n"
# Two libraries compute in other steps: pixels.
NEAR = 0.01


@dataclass(frozen=True, slots=True)
class Reader:
    """A library that reads a format."""

    package: str
    version: str
    code: str


READERS = {
    "hf": Reader("datasets[vision]", "5.2.0", HUGGING_FACE),
    "labelstudio": Reader("label-studio-sdk", "2.1.2", LABEL_STUDIO),
    "fiftyone": Reader("fiftyone", "1.22.1", FIFTYONE),
}


@contextmanager
def finished(folder: Path) -> Iterator[FinishedRun]:
    """A run with simulated servers, over images of which some are awkward."""
    images = folder / "some images"
    shutil.copytree(ROOT / "samples" / "images", images)
    (images / "damaged.jpg").write_bytes(b"\xff\xd8\xff no image")
    Path(os.fsdecode(bytes(images) + b"/caf\xe9.png")).symlink_to(ROOT / "samples" / "images" / "park-20.png")
    with serve() as simulated:
        simulated.boxes = lambda image: [[0, 0, image.width / 3, image.height / 2], [20.5, 9.25, 64, image.height + 5]]
        places = ["--images", str(images), "--output", str(folder / "runs")]
        urls = ["--detector-url", simulated.url, "--model-url", f"{simulated.url}/v1"]
        done = run(settings.load([*places, *urls]), Console(quiet=True))
        yield read_run(done.folder)


def expected(finished: FinishedRun) -> tuple[int, list[Any]]:
    """What a library has to read."""
    pictures = list(finished.pictures(Tally()))
    found = [[list(each.box), each.answer["breed"]] for picture in pictures for each in picture.detections]
    assert finished.images["outcome"].to_pylist().count(of_run.FAILED) == 1
    return len(pictures), found


def read(reader: Reader, folder: Path) -> tuple[int, list[Any]]:
    """What a library reads from an export.

    Raises:
        BenchFailed: it cannot read it.
    """
    python = installed(reader.package, reader.version) / "bin" / "python"
    # Nothing is reported to anyone, and no cache outlives the bench.
    environment = {**os.environ, "HF_HOME": str(folder.parent / "hub"), "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "true"}
    done = subprocess.run(
        [python, "-c", BEGIN + reader.code + END, folder], capture_output=True, text=True, env=environment, check=False
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("told ")), None)
    if line is None:
        raise command.BenchFailed(f"{reader.package} {reader.version} cannot read {folder.name}: {done.stderr[-2000:]}")
    images, found = json.loads(line.removeprefix("told "))
    return images, found


def same(found: list[Any], wanted: list[Any]) -> bool:
    """Whether the detections are the same, in any order."""
    left = list(found)
    for box, breed in wanted:
        near = (each for each in left if each[1] == breed and max(map(abs, map(sub, each[0], box))) <= NEAR)
        if (hit := next(near, None)) is None:
            return False
        left.remove(hit)
    return not left


def measure(only: str | None) -> list[str]:
    """Read each export; what differs."""
    problems, table = [], command.figures("format", ("images", "detections"), "read by")
    with tempfile.TemporaryDirectory() as temporary, finished(Path(temporary)) as done:
        images, wanted = expected(done)
        for name, reader in READERS.items():
            if only not in (None, name):
                continue
            count, found = read(reader, export(done, name, Path(temporary) / name).folder)
            table.add_row(name, str(count), str(len(found)), f"{reader.package} {reader.version}")
            if count != images or not same(found, wanted):
                problems.append(f"{name}: {count} of {images} images, or other boxes or breeds than the run has")
    command.make_console().print(table)
    return problems


def main() -> int:
    """Run the bench."""
    parser = command.Options(__doc__)
    parser.add_argument("--only", choices=READERS, help="one of the formats")
    only = parser.parse_args().only
    return command.run(lambda: measure(only))


if __name__ == "__main__":
    sys.exit(main())
