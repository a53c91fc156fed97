"""Small things in large pictures: tiles are searched at full size, and each object counts once."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from rich.console import Console

from pipeline import job as jobs
from pipeline import settings as pipeline_settings
from pipeline.clients.detector import Box
from pipeline.clients.tiles import Seen, merged, starts
from pipeline.errors import InvalidJob
from pipeline.run import run
from tests.doubles.simulated import Simulated
from tests.pictures import encoded

# Squares by their colours: one within a tile, one across two tiles, one across four, one at the picture's end.
SQUARES = {
    (255, 0, 0): (100, 120, 124, 144),
    (0, 255, 0): (590, 300, 614, 324),
    (0, 0, 255): (630, 630, 660, 660),
    (255, 0, 255): (1975, 1475, 1999, 1499),
}
# The simulated detector sees nothing smaller, in pixels of what it is sent.
SMALLEST = 18


def squares(image: Image.Image) -> list[list[float]]:
    """The squares of an image that are large enough to be seen."""
    found = []
    for color in SQUARES:
        mask = Image.new("L", image.size, 255)
        for band, wanted in zip(image.convert("RGB").split(), color, strict=True):
            near = band.point(lambda value, wanted=wanted: 255 if abs(value - wanted) < 90 else 0)
            mask.paste(0, mask=near.point(lambda value: 255 - value))
        box = mask.getbbox()
        if box and min(box[2] - box[0], box[3] - box[1]) >= SMALLEST:
            found.append([float(value) for value in box])
    return found


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    image = Image.new("RGB", (2000, 1500), (128, 128, 128))
    for color, box in SQUARES.items():
        image.paste(color, box)
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(encoded(image, quality=95, subsampling=0))
    return folder


def job_file(tmp_path: Path, **more: object) -> str:
    content = yaml.safe_load((jobs.BUNDLED / "dog_breeds.yaml").read_text()) | more
    path = tmp_path / f"job{len(more)}.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def boxes(job: str, picture: Path, tmp_path: Path) -> list[list[float]]:
    options = ["--images", str(picture), "--output", str(tmp_path / "runs"), "--job", job]
    done = run(pipeline_settings.load(options), Console(file=io.StringIO()))
    found: list[list[float]] = pq.read_table(done.folder / "detections.parquet")["box"].to_pylist()
    return sorted(found)


def test_small_objects_are_found_once_each_where_they_are(
    simulated: Simulated, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated.boxes = squares
    simulated.detector_input = (640, 640)
    for name, value in simulated.settings.items():
        monkeypatch.setenv(name, value)
    assert boxes(job_file(tmp_path), picture, tmp_path) == []
    found = boxes(job_file(tmp_path, tiles={"size": 640, "overlap": 0.2}), picture, tmp_path)
    assert len(found) == len(SQUARES)
    for box, expected in zip(found, sorted(map(list, SQUARES.values())), strict=True):
        assert box == pytest.approx(expected, abs=2)


def test_tiles_cover_a_side_and_end_with_it() -> None:
    assert starts(2000, 640, 0.2) == [0, 512, 1024, 1360]
    assert starts(640, 640, 0.2) == [0]
    assert starts(641, 640, 0.0) == [0, 1]
    for length in range(600, 3000, 7):
        found = starts(length, 640, 0.25)
        assert found[0] == 0
        assert max(found) + min(640, length) == length
        assert all(0 < after - before <= 480 for before, after in itertools.pairwise(found))


def seen(box: tuple[float, ...], score: float, label: str = "dog", cut_off: bool = False) -> Seen:
    return Seen(Box(box=box, label=label, score=score), cut_off)


def test_a_part_of_an_object_is_not_another_one() -> None:
    whole, part = seen((0, 0, 100, 100), 0.7), seen((60, 0, 100, 100), 0.9, cut_off=True)
    assert [box.score for box in merged([part, whole])] == [0.7]
    assert [box.score for box in merged([part])] == [0.9]  # nobody saw the whole
    cat = seen((0, 0, 100, 100), 0.8, "cat")
    assert [box.label for box in merged([whole, cat])] == ["cat", "dog"]
    beside = seen((50, 0, 150, 100), 0.6)  # a half of it lies in the other: two objects
    assert len(merged([whole, beside])) == 2


@pytest.mark.parametrize(
    ("tiles", "said"),
    [({"size": 64}, "tiles.size"), ({"overlap": 0.2}, "tiles.size"), ({"size": 640, "overlap": 1}, "tiles.overlap")],
)
def test_wrong_tiles_are_refused(tmp_path: Path, tiles: dict[str, float], said: str) -> None:
    with pytest.raises(InvalidJob, match=said):
        jobs.load(job_file(tmp_path, tiles=tiles))


def test_tiles_need_a_detector(tmp_path: Path) -> None:
    with pytest.raises(InvalidJob, match="a detector searches tiles"):
        jobs.load(job_file(tmp_path, tiles={"size": 640}, boxes="whole"))
