"""Read the frames of videos, when they are wanted: each video is decoded from front to back, once."""

from __future__ import annotations

import io
import struct
import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import chain, takewhile
from typing import Any

from PIL import Image

from pipeline.runtime.in_process import InProcess
from pipeline.sources.images import BadImage
from pipeline.sources.rows import KEPT_ROWS
from pipeline.sources.videos import MOST_BYTES, Every, examine, opened, pyav, said

# How a frame travels. Of a noisy frame of 1920 x 1080: 16 ms, 1.1 MB, 40.7 dB; PNG at its fastest level 229 ms and 3.2
# MB, lossless WebP 133 ms and 2.3 MB, JPEG of quality 90 with halved colours 8 ms, 0.6 MB, 34.5 dB.
QUALITY = 95
# Frames that were passed by, for threads that ask a little later: some 60 of 1920 x 1080.
KEPT_BYTES = 64 * 1024**2

# A display matrix, by the signs of its four numbers that turn, and what does the same to a picture.
TURNS = {
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}
# FFmpeg's numbers (libavutil/pixfmt.h): transfer characteristics of PQ and HLG; no colour space is given.
HDR = (16, 18)
UNSPECIFIED = 2
# Video of standard definition has the colours of BT.601 where it says nothing, larger video those of BT.709.
STANDARD_HEIGHT = 576


def encoded(frame: Any, scaler: Any) -> bytes:
    """A decoded frame (PyAV) as a JPEG, upright; HDR becomes sRGB with its reference white (203 cd/m2) as white.

    `scaler`: PyAV's VideoReformatter; it keeps the table of colours that HDR takes, which costs 3 s to make.
    """
    options: dict[str, Any] = {}
    if frame.color_trc in HDR:
        options = {"dst_color_trc": 13, "dst_color_primaries": 1}  # sRGB, BT.709
    elif frame.colorspace == UNSPECIFIED and frame.height > STANDARD_HEIGHT:
        options = {"src_colorspace": "ITU709"}
    image: Image.Image = scaler.reformat(frame, format="rgb24", **options).to_image()
    # Not frame.side_data: it keeps the frame in a cycle, which a rare garbage collector frees late (0.25 MB a frame).
    for each in pyav().sidedata.sidedata.SideDataContainer(frame):
        if each.type.name == "DISPLAYMATRIX":
            matrix = struct.unpack("=9i", bytes(each))
            signs = tuple((matrix[at] > 0) - (matrix[at] < 0) for at in (0, 1, 3, 4))
            image = image.transpose(TURNS[signs]) if signs in TURNS else image
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=QUALITY, subsampling=0)
    return jpeg.getvalue()


class Cursor:
    """Decodes one video from front to back, and gives the frames that are asked for nearly in that order."""

    def __init__(self, path: str, every: Every) -> None:
        self.path, self.every, self.scaler = path, every, pyav().video.reformatter.VideoReformatter()
        self.index = examine(path, every)
        self.kept: OrderedDict[int, bytes] = OrderedDict()
        self.missing: dict[int, str] = {}
        """Why frames have no picture."""
        self.next = self.first = 0
        """Places in `index.taken`: of the next frame that is decoded, and of the first one that is encoded."""
        self.files = ExitStack()
        self.decoded = self.decode(0)

    def decode(self, place: int) -> Iterator[tuple[int, Any]]:
        """Number and frame, from the key frame before the frame at a place of `index.taken`; unusable packets are
        passed over."""
        av = pyav()
        self.close()
        container, stream, tape = self.files.enter_context(opened(self.path))
        stamps, counted, count = self.index.stamps, self.index.counted, 0
        if self.every.key and not counted:
            stream.codec_context.skip_frame = "NONKEY"
        if place and not counted:
            container.seek(stamps[self.index.taken[place]], stream=stream)

        def packets() -> Iterator[Any]:
            with suppress(av.FFmpegError, ValueError):
                yield from takewhile(lambda packet: not packet.is_corrupt, container.demux(stream))
            yield None  # the decoder holds some frames until there are no more packets

        for packet in packets():
            tape.left = MOST_BYTES
            frames = []
            with suppress(av.FFmpegError, ValueError):
                frames = stream.decode(packet)
            for frame in frames:
                number = count if counted else bisect_left(stamps, frame.pts if frame.pts is not None else -1)
                count += 1
                if counted or (number < len(stamps) and stamps[number] == frame.pts):
                    yield number, frame

    def start(self, place: int) -> None:
        """Go on from a frame, by its place in `index.taken`."""
        taken = self.index.taken
        self.decoded = self.decode(place)
        number, frame = next(self.decoded, (0, None))
        if frame is None or number > taken[place]:  # not all containers find the key frame
            self.decoded, number = self.decode(0), 0
        self.next, self.first = bisect_left(taken, number), place
        if frame is not None and taken[self.next : self.next + 1] == [number]:
            self.decoded = chain([(number, frame)], self.decoded)

    def get(self, number: int) -> bytes:
        """A frame as a JPEG.

        Raises:
            BadImage: the video has no such frame, or it cannot be decoded.
        """
        taken = self.index.taken
        place = bisect_left(taken, number)
        if taken[place : place + 1] != [number]:
            raise BadImage(f"the video has changed since it was listed: it has no frame {number}")
        if number not in self.kept and number not in self.missing:
            if place < self.next or place - self.next >= KEPT_ROWS:
                self.start(place)
            while self.next <= place:
                self.step()
        if number in self.missing:
            raise BadImage(f"frame {number} ({self.index.time_s(number):.3f} s) {self.missing[number]}")
        return self.kept.pop(number)

    def step(self) -> None:
        """Decode to the next frame that is taken, and keep it."""
        taken = self.index.taken
        number, frame = next(self.decoded, (taken[-1] + 1, None))
        place = bisect_left(taken, number)
        self.missing |= dict.fromkeys(taken[self.next : place], "cannot be decoded: the video is damaged there")
        self.next = max(self.next, place)
        if frame is None or taken[place : place + 1] != [number]:
            return
        self.next = place + 1
        if frame.is_corrupt:
            self.missing[number] = "is damaged"
        elif place >= self.first:
            try:
                self.kept[number] = encoded(frame, self.scaler)
            except Exception as error:  # a conversion that FFmpeg does not have
                self.missing[number] = f"cannot be converted: {said(error)}"
            while len(self.kept) > KEPT_ROWS or sum(map(len, self.kept.values())) > KEPT_BYTES > len(self.kept[number]):
                self.kept.popitem(last=False)

    def close(self) -> None:
        """Close the file."""
        self.files.close()


class Frames(InProcess):
    """The frames of videos, two files at a time; safe from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: OrderedDict[tuple[str, str], Cursor] = OrderedDict()

    def get(self, path: str, every: str, number: int) -> bytes:
        """A frame as a JPEG. A decoder uses several cores itself, so that one thread at a time is no loss.

        Raises:
            BadImage: the video or the frame cannot be used.
            OSError: the file cannot be read.
        """
        with self._lock:
            cursor = self._open.pop((path, every), None) or Cursor(path, Every.of(every))
            self._open[path, every] = cursor
            while len(self._open) > 2:  # threads are at the end of one file and at the start of the next
                self._open.popitem(last=False)[1].close()
            return cursor.get(number)
