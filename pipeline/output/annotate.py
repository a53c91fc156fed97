"""Draw detections and answers onto images."""

from __future__ import annotations

import hashlib
import os
import re
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image, ImageDraw, ImageFont

from pipeline.files import whole
from pipeline.sources.images import COPY_EXCESS, COPY_SIDE, BadImage, decode, encode_jpeg
from pipeline.sources.listing import Source
from pipeline.sources.objects import StoreError
from pipeline.sources.reader import Reader
from pipeline.stages.boxes import BadBox, check_box
from pipeline.stages.copies import FOLDER, SUFFIX, plain

# The number of a row or a frame at the end of a name: copies sort as frames are shown.
ROW = re.compile(r"#(\d{8,})$")

# Okabe and Ito's palette for colour-blind readers (Color Universal Design, 2008), without black and yellow.
PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def color(kind: str) -> str:
    """The same colour for the same kind, in every run."""
    return PALETTE[zlib.crc32(kind.encode()) % len(PALETTE)]


@dataclass(frozen=True, slots=True)
class Drawing:
    """What is drawn on an image."""

    key: str
    """Of the image's content."""
    longest: int
    """The longer side of the upright image, in pixels."""
    detections: list[dict[str, Any]]
    """A detection holds `box` (`xyxy`, pixels of the upright image), `caption`, and perhaps `kind`: each kind, or else
    each caption, has one colour."""


def annotated(data: bytes, detections: list[dict[str, Any]], longest: int | None = None) -> bytes:
    """The JPEG of an encoded image, at most COPY_EXCESS * COPY_SIDE pixels wide and high, with its detections drawn.

    `detections` are as in `Drawing`. `longest` is the longer side of the image that they are of, if that is another.

    Raises:
        BadImage: the image cannot be decoded.
    """
    upright = decode(data, enough=COPY_SIDE)
    image = upright.pixels
    if max(image.size) > COPY_EXCESS * COPY_SIDE:
        image.thumbnail((COPY_SIDE, COPY_SIDE), Image.Resampling.BILINEAR)
    scale = max(image.size) / (longest or max(upright.width, upright.height))
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=max(12, max(image.size) // 55))
    line = max(2, max(image.size) // 320)
    for found in detections:
        x1, y1, x2, y2 = box = [value * scale for value in found["box"]]
        try:
            check_box(box, image.size)
        except BadBox:
            continue
        ink = color(found.get("kind", found["caption"]))
        draw.rectangle((x1, y1, x2, y2), outline=ink, width=line)
        left, top, right, bottom = draw.textbbox((0, 0), found["caption"], font=font)
        width, height = right - left + 8, bottom - top + 6
        x = min(max(x1, 0), max(image.width - width, 0))
        y = y1 - height if y1 >= height else y1
        draw.rectangle((x, y, x + width, y + height), fill=ink)
        draw.text((x + 4 - left, y + 3 - top), found["caption"], fill="white", font=font)
    return encode_jpeg(image, 85)


def place(path: str) -> Path:
    """Where the annotated copy of an image is, within the run's folder."""
    # Of a name only what no browser, web server or shell stumbles over.
    row = ROW.search(path)
    stem = re.sub(r"[^\w.-]+", "_", Path(ROW.sub("", path)).stem)[:60] + (f"-{row[1]}" if row else "")
    return Path(FOLDER, f"{stem}-{hashlib.sha256(path.encode()).hexdigest()[:8]}.jpg")


def is_there(copy: Path) -> bool:
    """Whether a copy is there; one that a power cut left empty is not."""
    try:
        return copy.stat().st_size > 0
    except FileNotFoundError:
        return False


def copies_in(folder: Path) -> set[str]:
    """The names of the annotated copies in a run's folder."""
    return {path.name for path in (folder / FOLDER).glob("*.jpg") if is_there(path)}


def copies_of(paths: Iterable[str], names: set[str]) -> dict[str, str]:
    """Those of the annotated copies, given by `names`, that are of these images: paths in the run's folder by image."""
    places = ((path, place(path)) for path in paths)
    return {path: copy.as_posix() for path, copy in places if copy.name in names}


def draw(copy: Path, drawing: Drawing, source: Source, reader: Reader) -> bytes:
    """An annotated copy, drawn on the small copy of the image or, where that is missing or not whole, on the image."""
    with suppress(BadImage, OSError):
        return annotated(copy.read_bytes(), drawing.detections, drawing.longest)
    return annotated(reader.read(source.path, source.row), drawing.detections)


def annotate_all(
    found: dict[str, Drawing],
    sources: dict[str, Source],
    reader: Reader,
    folder: Path,
    redone: set[str],
    advance: Callable[[], None],
) -> None:
    """Annotate the images of `found`, on their small copies. Without a small copy, the source is read.

    An annotated copy from an earlier call is kept unless its image is in `redone`. An image that has gone since, or a
    copy that cannot be written, is left out: the rows are safe already. `advance` is called after each image.
    """
    for path in redone:  # first of all: an interrupt must not leave a copy that is out of date
        (folder / place(path)).unlink(missing_ok=True)

    def one(path: str) -> None:
        target = place(path)
        try:
            if not is_there(folder / target):
                copy = draw(folder / plain(found[path].key), found[path], sources[path], reader)
                # Not waited for until it is on the disk, 1.4 ms each: after a power cut the next run makes it again.
                with whole(folder / target, durable=False) as handle:
                    handle.write(copy)
        except (BadImage, StoreError, OSError, pa.ArrowException):
            pass
        finally:
            advance()

    pool = ThreadPoolExecutor(os.cpu_count())  # Pillow works outside the interpreter's lock
    try:
        list(pool.map(one, found))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C waits for the images that are being drawn, not for all
    for copy in (folder / FOLDER).glob(f"*{SUFFIX}"):
        copy.unlink(missing_ok=True)
