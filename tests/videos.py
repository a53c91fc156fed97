"""Videos, valid and not, made on the spot: each frame has a colour of its own, and a bright corner at the top left."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np

SIZE = (64, 48)
COLOURS = 60


def colour(number: int) -> tuple[int, int, int]:
    """Of a frame; they repeat after COLOURS frames."""
    step = number % COLOURS * 4
    return step, 255 - step, 128


def picture(number: int, size: tuple[int, int] = SIZE) -> av.VideoFrame:
    """A frame of its colour with a white corner."""
    pixels = np.full((size[1], size[0], 3), colour(number), np.uint8)
    pixels[: size[1] // 4, : size[0] // 4] = 255
    return av.VideoFrame.from_ndarray(pixels, format="rgb24")


def write_video(
    path: Path,
    codec: str = "libx264",
    times: Iterable[Fraction | float] | None = None,
    options: dict[str, str] | None = None,
    *,
    audio: bool = False,
    encoder: dict[str, str] | None = None,
    pictures: Iterable[av.VideoFrame] | None = None,
) -> Path:
    """A video whose frames are shown at these seconds: by default 60, 30 a second. A key frame comes every 12 frames;
    H.264 has frames that are stored in another order than shown. `audio`: a stream of sound before the pictures."""
    times = [Fraction(number, 30) for number in range(60)] if times is None else list(times)
    frames = list(pictures) if pictures is not None else [picture(number) for number in range(len(times))]
    base = Fraction(1, 30_000)
    with av.open(path, "w", options=options or {}) as container:
        sound = container.add_stream("aac", rate=8000) if audio else None
        stream = cast("av.VideoStream", container.add_stream(codec, rate=30, options=encoder or {}))
        stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, "yuv420p"
        if codec == "mpeg4":
            stream.bit_rate = 2_000_000
        stream.codec_context.gop_size, stream.codec_context.time_base = 12, base
        if sound:
            write_silence(container, sound)
        for frame, time in zip(frames, times, strict=True):
            frame.pts, frame.time_base = round(time / base), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_silence(container: av.container.OutputContainer, stream: av.AudioStream) -> None:
    """A second of silence."""
    for number in range(8):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 8000, number * 1000
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def write_sound(path: Path) -> Path:
    """A file with sound alone."""
    with av.open(path, "w") as container:
        write_silence(container, container.add_stream("aac", rate=8000))
    return path


def turned(content: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """An MP4 whose track header has another display matrix: a, b, c, d."""
    at = content.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    return content[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + content[at + 36 :]
