"""Make the bundled pictures and their truth file from the scenes' seeds, or check them against the seeds.

`truth.json` maps each file to the upright picture's width and height and to its objects, from back to front.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from samples.scenes import Scene, make_scene

IMAGES = Path(__file__).parent / "images"
TRUTH = Path(__file__).parent / "truth.json"

# EXIF tag 0x0112, value 6: a viewer must turn the stored picture a quarter clockwise.
ORIENTATION_TAG, TURN_CLOCKWISE = 0x0112, 6

# Lossless files may differ by one step: processors differ in the last bit of floating point arithmetic.
LOSSLESS_TOLERANCE = 1
# Lossy ones differ by 1.9 to 3.3 steps on average (measured: JPEG 88, WebP 85), one scene from another by 20 and more.
LOSSY_TOLERANCE = 5.0


@dataclass(frozen=True)
class BundledPicture:
    """One file of the bundled set, and the generator's arguments for it; None lets the seed choose."""

    name: str
    seed: int
    size: tuple[int, int] = (640, 480)
    dogs: int | None = None
    cats: int | None = None
    balls: int | None = None
    stored_sideways: bool = False

    @property
    def lossless(self) -> bool:
        """Whether the file keeps every pixel: PNG does, and WebP as `encode` writes it where the name says so."""
        return self.name.endswith((".png", "-lossless.webp"))

    def draw(self) -> Scene:
        """Draw the upright picture."""
        return make_scene(self.seed, *self.size, dogs=self.dogs, cats=self.cats, balls=self.balls)

    def encode(self, image: Image.Image) -> bytes:
        """Return the file's bytes for the upright picture."""
        encoded = io.BytesIO()
        if self.name.endswith(".png"):
            image.save(encoded, "PNG", optimize=True)
        elif self.name.endswith(".webp"):
            image.save(encoded, "WEBP", lossless=self.lossless, quality=85)
        elif self.stored_sideways:
            exif = Image.Exif()
            exif[ORIENTATION_TAG] = TURN_CLOCKWISE
            image.transpose(Image.Transpose.ROTATE_90).save(encoded, "JPEG", quality=88, exif=exif)
        else:
            image.save(encoded, "JPEG", quality=88)
        return encoded.getvalue()


PICTURES: tuple[BundledPicture, ...] = (
    BundledPicture("park-01.jpg", 101, dogs=3),
    BundledPicture("park-02.jpg", 102, dogs=1),
    BundledPicture("park-03.jpg", 103, dogs=4),
    BundledPicture("park-04.jpg", 104, dogs=2, balls=2),
    BundledPicture("park-05.jpg", 105, dogs=6),
    BundledPicture("park-06.jpg", 106, dogs=3, cats=2),
    BundledPicture("park-07.jpg", 107, size=(800, 600), dogs=5),
    BundledPicture("park-08.jpg", 108, size=(800, 600), dogs=4),
    BundledPicture("park-09.jpg", 109, size=(1024, 768), dogs=5, cats=1, balls=1),
    BundledPicture("park-10.jpg", 110, size=(480, 640), dogs=2),
    BundledPicture("park-11.jpg", 111, size=(480, 640), dogs=3),
    BundledPicture("park-12.jpg", 112, size=(600, 800), dogs=4),
    BundledPicture("park-13.jpg", 113, size=(512, 512), dogs=3),
    BundledPicture("park-14.jpg", 114, dogs=0, cats=2, balls=1),
    BundledPicture("park-15.jpg", 115, size=(480, 640), dogs=3, stored_sideways=True),
    BundledPicture("park-16.jpg", 116, dogs=2, cats=0, balls=0),
    BundledPicture("park-17.jpg", 117, dogs=5),
    BundledPicture("park-18.jpg", 118, size=(800, 600), dogs=3),
    BundledPicture("park-19.jpg", 119, dogs=4),
    BundledPicture("park-20.png", 120, size=(480, 360), dogs=2),
    BundledPicture("park-21.png", 121, size=(480, 360), dogs=3),
    BundledPicture("park-22.png", 122, size=(400, 300), dogs=0, cats=1, balls=2),
    BundledPicture("park-23.webp", 123, dogs=4),
    BundledPicture("park-24.webp", 124, size=(800, 600), dogs=3),
    BundledPicture("park-25-lossless.webp", 125, size=(480, 360), dogs=2),
    BundledPicture("park-26.webp", 126, size=(480, 640), dogs=2, cats=1),
)


def describe(scene: Scene) -> dict[str, Any]:
    """Return a picture's entry of the truth file."""
    objects = [
        {
            "label": item.label,
            "box": list(item.box),
            "breed": item.breed,
            "coat_color": item.coat_color,
            "facing": item.facing,
        }
        for item in scene.objects
    ]
    return {"width": scene.image.width, "height": scene.image.height, "objects": objects}


def truth_text(entries: dict[str, dict[str, Any]]) -> str:
    """Return the truth file: JSON sorted by name, one object of a picture per line."""
    pictures = []
    for name, entry in sorted(entries.items()):
        lines = ",\n".join(f"        {json.dumps(item)}" for item in entry["objects"])
        pictures.append(
            f'    {json.dumps(name)}: {{\n      "width": {entry["width"]},\n      "height": {entry["height"]},\n'
            f'      "objects": [\n{lines}\n      ]\n    }}'
        )
    return '{\n  "images": {\n' + ",\n".join(pictures) + "\n  }\n}\n"


def write(pictures: Sequence[BundledPicture], images: Path, truth: Path) -> None:
    """Draw the pictures into the folder `images` and write the truth file."""
    images.mkdir(parents=True, exist_ok=True)
    entries = {}
    for picture in pictures:
        scene = picture.draw()
        (images / picture.name).write_bytes(picture.encode(scene.image))
        entries[picture.name] = describe(scene)
    truth.write_text(truth_text(entries), encoding="utf-8")


def check(pictures: Sequence[BundledPicture], images: Path, truth: Path) -> list[str]:
    """Return the differences between the files and today's drawings, one line each."""
    told: dict[str, Any] = json.loads(truth.read_text(encoding="utf-8"))["images"]
    names = {picture.name for picture in pictures}
    present = {path.name for path in images.iterdir()}
    problems = [f"{images / name}: not a bundled picture, remove it" for name in sorted(present - names)]
    problems += [f"{images / name}: missing" for name in sorted(names - present)]
    problems += [f"{truth}: {name} is not a bundled picture" for name in sorted(told.keys() - names)]
    for picture in pictures:
        scene = picture.draw()
        if told.get(picture.name) != describe(scene):
            problems.append(f"{truth}: {picture.name} is not what the generator draws")
        if picture.name in present and not _same_pixels(picture, images / picture.name, scene.image):
            problems.append(f"{images / picture.name}: the pixels are not what the generator draws")
    return problems


def _same_pixels(picture: BundledPicture, path: Path, drawn: Image.Image) -> bool:
    with Image.open(path) as stored:
        upright = ImageOps.exif_transpose(stored).convert("RGB")
    if upright.size != drawn.size:
        return False
    difference = np.abs(np.asarray(upright, np.int16) - np.asarray(drawn, np.int16))
    if picture.lossless:
        return int(difference.max()) <= LOSSLESS_TOLERANCE
    return float(difference.mean()) <= LOSSY_TOLERANCE


def main() -> int:
    """Write or check the bundled set; 1 when the check finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if anything differs")
    if not parser.parse_args().check:
        write(PICTURES, IMAGES, TRUTH)
        print(f"wrote {len(PICTURES)} pictures to {IMAGES} and {TRUTH}")
        return 0
    problems = check(PICTURES, IMAGES, TRUTH)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        print("if the generator was meant to change, run: python -m samples.make_images", file=sys.stderr)
        return 1
    print(f"{len(PICTURES)} pictures and their truth are what the generator draws")
    return 0


if __name__ == "__main__":
    sys.exit(main())
