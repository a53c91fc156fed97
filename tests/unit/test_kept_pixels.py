"""Pixels that wait for the crop stage: an image is decoded once, and memory has a bound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.job import Crop
from pipeline.runtime.runtime import Runtime
from pipeline.sources.images import Upright, decode
from pipeline.sources.objects import Objects
from pipeline.sources.reader import Reader
from pipeline.stages import crop as crop_stage
from pipeline.stages.batches import image_batch
from pipeline.stages.crop import CropBoxes
from pipeline.stages.kept_pixels import KeptPixels
from pipeline.stages.read import ReadImage, SeenContent
from tests.pictures import encoded, gradient


def upright(width: int, height: int) -> Upright:
    """A black image."""
    return Upright(Image.new("RGB", (width, height)), "JPEG", width, height)


def test_pixels_are_kept_up_to_a_limit_and_given_once() -> None:
    kept = KeptPixels(3 * 4 * 100)
    images = [upright(10, 10) for _ in range(4)]
    for number, image in enumerate(images):
        assert kept.full == (number == 3)
        assert kept.keep(b"%d" % number, image, b"file") == (number < 3)
    assert kept.take(b"3") == (None, None)  # no room
    assert kept.take(b"0") == (images[0], b"file")
    assert kept.take(b"0") == (None, None)
    assert not kept.full
    assert not kept.keep(b"4", upright(10, 11), b"file")
    assert [kept.take(b"1")[0], kept.take(b"2")[0], kept.total] == [*images[1:3], 0]


@pytest.mark.parametrize(
    ("limit", "side", "decodes"),
    [
        pytest.param(2**30, 1200, [], id="kept"),
        pytest.param(2**30, 300, [None], id="kept too small for the crop"),
        pytest.param(0, 1200, [1626], id="no room"),
    ],
)
def test_an_image_is_decoded_once_where_its_pixels_are_kept_and_enough(
    limit: int, side: int, decodes: list[int | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(gradient(4000, 3000))
    (tmp_path / "a.jpg").write_bytes(data)
    kept, runtime, asked = KeptPixels(limit), Runtime.alone(), []

    def noted(data: bytes, enough: int | None) -> Upright:
        asked.append(enough)
        return decode(data, enough)

    monkeypatch.setattr(crop_stage, "decode", noted)
    path = bytes(tmp_path / "a.jpg")
    image = ReadImage(Reader(Objects()), SeenContent(), runtime, (640, 640), kept)(path, None, None, None)
    assert kept.total == (0 if limit == 0 else 2000 * 1500 * 4)
    assert image["data"] == (data if limit == 0 else None)
    boxes: list[dict[str, Any]] = [{"index": 0, "label": "dog", "box": [0.0, 0.0, side, side / 2], "score": 0.9}]
    cropped = CropBoxes(Crop(), runtime, None, kept)(path, image, boxes)
    assert cropped is not None
    assert cropped["failure"] is None
    assert len(cropped["detections"][0]["jpeg"]) > 1000
    assert asked == decodes
    assert kept.total == 0


@pytest.mark.parametrize("boxes", [None, []])
def test_pixels_of_an_image_without_boxes_are_let_go(boxes: list[dict[str, Any]] | None) -> None:
    kept = KeptPixels(2**30)
    kept.keep(b"a", upright(10, 10), b"file")
    assert CropBoxes(Crop(), Runtime.alone(), None, kept)(b"a", {"data": b"x"}, boxes) is None
    assert kept.total == 0


def test_large_files_come_in_small_batches() -> None:
    assert [image_batch([size] * 10) for size in (0, 100_000, 600_000, 3_300_000, 20_000_000)] == [8, 8, 8, 2, 1]
    assert image_batch([0, 3_300_000]) == 2
    assert image_batch([]) == 8
