"""Search a large picture in tiles, so that a detector sees small things at their full size."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from PIL import Image

from pipeline.clients.detector import Box, Detected, DetectorClient, Picture
from pipeline.clients.http import HttpClient
from pipeline.job import Tiles
from pipeline.sources.images import COPY_QUALITY, UNKNOWN_INPUT, copy_for_detector, decode, encode_jpeg

# A box whose smaller part lies to this share in a better one is the same object, seen in two tiles.
SAME_OBJECT = 0.6
# A box that ends so near the border of its tile is one that the tile may have cut off, in pixels.
AT_BORDER = 3.0


@dataclass(frozen=True, slots=True)
class Tile:
    """A part of a picture."""

    left: int
    top: int
    right: int
    bottom: int
    jpeg: bytes


@dataclass(frozen=True, slots=True)
class Seen:
    """A box in the picture, and whether its tile may have cut it off."""

    box: Box
    cut_off: bool


class TiledDetector(DetectorClient):
    """Asks the detector about the whole picture and about each tile of one that is larger than a tile."""

    def __init__(
        self, http: HttpClient, labels: Mapping[str, float | None] | None, threshold: float | None, tiles: Tiles
    ) -> None:
        super().__init__(http, labels, threshold)
        self.tiles = tiles
        # Decoded pixels: as many pictures at once as there are cores.
        self._pixels = asyncio.Semaphore(os.cpu_count() or 1)

    async def find(self, picture: Picture) -> Detected:
        """See `Finder.find`."""
        if max(picture.width, picture.height) <= self.tiles.size:
            return await super().find(picture)
        async with self._pixels:
            small, tiles = await asyncio.to_thread(cut_tiles, picture.upload, self.tiles)
        whole, *parts = await asyncio.gather(self.detect(small), *(self.detect(tile.jpeg) for tile in tiles))
        scale = picture.width / whole.width
        seen = [Seen(moved(box, scale), cut_off=False) for box in whole.boxes]
        for tile, part in zip(tiles, parts, strict=True):
            shrink = (tile.right - tile.left) / part.width
            seen += (in_picture(moved(box, shrink), tile, picture) for box in part.boxes)
        boxes = merged(seen)
        attempts = whole.attempts + sum(part.attempts for part in parts)
        latency_s = max(part.latency_s for part in (whole, *parts))
        size = picture.width, picture.height
        return Detected(boxes, *size, whole.model, whole.revision, whole.settings, attempts, latency_s, whole.input)


def starts(length: int, size: int, overlap: float) -> list[int]:
    """Where tiles begin along a side of the picture: the first at 0, the last ends at its end."""
    if length <= size:
        return [0]
    step = max(round(size * (1 - overlap)), 1)
    return [*range(0, length - size, step), length - size]


def cut_tiles(data: bytes, tiles: Tiles) -> tuple[bytes, list[Tile]]:
    """An encoded picture in the size for a search of the whole, and its tiles.

    Raises:
        BadImage: it cannot be decoded.
    """
    upright = decode(data)
    return copy_for_detector(data, upright, UNKNOWN_INPUT) or data, list(each_tile(upright.pixels, tiles))


def each_tile(image: Image.Image, tiles: Tiles) -> Iterator[Tile]:
    """The tiles of an upright picture, row by row."""
    for top in starts(image.height, tiles.size, tiles.overlap):
        for left in starts(image.width, tiles.size, tiles.overlap):
            right, bottom = min(left + tiles.size, image.width), min(top + tiles.size, image.height)
            jpeg = encode_jpeg(image.crop((left, top, right, bottom)), COPY_QUALITY)
            yield Tile(left, top, right, bottom, jpeg)


def moved(box: Box, scale: float, left: float = 0.0, top: float = 0.0) -> Box:
    """A box scaled, then moved."""
    x1, y1, x2, y2 = (value * scale for value in box.box)
    return Box(box=(x1 + left, y1 + top, x2 + left, y2 + top), label=box.label, score=box.score)


def in_picture(box: Box, tile: Tile, picture: Picture) -> Seen:
    """A tile's box in the picture's pixels."""
    found = moved(box, 1.0, tile.left, tile.top)
    x1, y1, x2, y2 = found.box
    cut_off = (
        (x1 < tile.left + AT_BORDER and tile.left > 0)
        or (y1 < tile.top + AT_BORDER and tile.top > 0)
        or (x2 > tile.right - AT_BORDER and tile.right < picture.width)
        or (y2 > tile.bottom - AT_BORDER and tile.bottom < picture.height)
    )
    return Seen(found, cut_off)


def merged(seen: list[Seen]) -> list[Box]:
    """Each object once, best first. A box that its tile cut off counts only where no whole one covers it."""
    kept: list[Box] = []
    for each in sorted(seen, key=lambda one: (one.cut_off, -(one.box.score or 0.0), one.box.box)):
        if all(each.box.label != other.label or shared(each.box, other) <= SAME_OBJECT for other in kept):
            kept.append(each.box)
    return sorted(kept, key=lambda box: (-(box.score or 0.0), box.box))


def shared(one: Box, other: Box) -> float:
    """The part of the smaller of two boxes that lies in the other; 0 where one has no area."""
    width = min(one.box[2], other.box[2]) - max(one.box[0], other.box[0])
    height = min(one.box[3], other.box[3]) - max(one.box[1], other.box[1])
    smaller = min(area(one), area(other))
    return max(width, 0.0) * max(height, 0.0) / smaller if smaller > 0 else 0.0


def area(box: Box) -> float:
    """Square pixels."""
    x1, y1, x2, y2 = box.box
    return max(x2 - x1, 0.0) * max(y2 - y1, 0.0)
