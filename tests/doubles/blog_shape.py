"""The job of the Daft blog's "After the First Run" (September 2025): 6 images, 25 dogs, a slow detector, a slow model.

The blog gives two times: 72 s with everything in sequence, and 24 s after its tuning, when questions overlap and only
the detector, one moondream2 on one GPU, still works on one image after the other. So

    6 images x detector + 25 dogs x model = 72 s
    6 images x detector +  1 dog  x model = 24 s    the last question cannot begin before the last detection ends

which gives 2.0 s for an answer and 22 / 6 = 3.67 s for an image. The blog's times include loading the detector. It
cannot be separated, so it counts as detection here, and no rung loads anything.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageStat

from pipeline.sources.images import decode
from scripts.environments import ROOT
from tests.doubles.capacity import Capacity, Limited

FIRST_S, TUNED_S = 72.0, 24.0

# Drawn pictures with 25 dogs in all, from 2 to 6 each; one lies on its side, as cameras store them (EXIF).
PICTURES = ("park-05.jpg", "park-07.jpg", "park-09.jpg", "park-12.jpg", "park-15.jpg", "park-16.jpg")
DOGS = 25

MODEL_S = (FIRST_S - TUNED_S) / (DOGS - 1)
DETECTOR_S = (TUNED_S - MODEL_S) / len(PICTURES)

# A detector service that takes images together, as Spotter's does with DETECTOR_MAX_BATCH=8: eight take as long as one.
# That holds where one image leaves an accelerator idle; where it does not, the serial detector is the honest one.
TOGETHER = 8

# Two pictures are the same when their small copies are: side in pixels.
SMALL = 12


@dataclass(frozen=True, slots=True)
class Shape:
    """The servers' times, and the number of images that the detector takes at once."""

    detector: Capacity
    model: Capacity

    @property
    def one_by_one_s(self) -> float:
        """Everything in sequence."""
        return len(PICTURES) * self.detector.seconds + DOGS * self.model.seconds

    @property
    def critical_path_s(self) -> float:
        """The longest chain, which no scheduling can shorten: all detections, and one question after the last.

        Each picture has a dog, so the last detected picture always has a question after it.
        """
        return self.detector.makespan(len(PICTURES)) + self.model.seconds


def shape(together: int = TOGETHER, scale: float = 1.0) -> Shape:
    """The blog's times, multiplied by `scale`; the model, an API for the public, takes any number of questions."""
    return Shape(Capacity(DETECTOR_S * scale, together), Capacity(MODEL_S * scale))


def truth() -> dict[str, list[dict[str, Any]]]:
    """The drawn dogs of PICTURES, by file name: `box` (xyxy, pixels) and `breed`."""
    images = json.loads((ROOT / "samples" / "truth.json").read_text())["images"]
    return {name: [it for it in images[name]["objects"] if it["label"] == "dog"] for name in PICTURES}


def small(image: Image.Image) -> Image.Image:
    """A small copy that identifies a picture, also after encoding it again."""
    return image.convert("RGB").resize((SMALL, SMALL), Image.Resampling.BOX)


def nearest(image: Image.Image, known: list[tuple[Image.Image, Any]]) -> Any:
    """The value of the known picture that is most like this one."""

    def distance(entry: tuple[Image.Image, Any]) -> float:
        return sum(ImageStat.Stat(ImageChops.difference(seen, entry[0])).sum2)

    seen = small(image)
    return min(known, key=distance)[1]


def servers(of: Shape) -> Limited:
    """A detector and a model that know these pictures and the truth about each dog."""
    pictures: list[tuple[Image.Image, Any]] = []
    dogs: list[tuple[Image.Image, Any]] = []
    for name, drawn in truth().items():
        image = decode((ROOT / "samples" / "images" / name).read_bytes()).pixels
        pictures.append((small(image), [dog["box"] for dog in drawn]))
        dogs += [(small(image.crop(dog["box"])), dog) for dog in drawn]

    def answer(crop: Image.Image, request: dict[str, Any]) -> str:
        dog = nearest(crop, dogs)
        return json.dumps({name: dog[name] for name in ("breed", "coat_color", "facing")})

    def boxes(image: Image.Image) -> list[list[float]]:
        found: list[list[float]] = nearest(image, pictures)
        return found

    return Limited(
        boxes=boxes, answer=answer, keep_bodies=False, detector_capacity=of.detector, model_capacity=of.model
    )


def copy_pictures(folder: Path) -> None:
    """Put PICTURES into a folder."""
    for name in PICTURES:
        (folder / name).write_bytes((ROOT / "samples" / "images" / name).read_bytes())
