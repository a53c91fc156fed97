"""Videos: which frames one has, by its packets, and which of them are taken. Nothing is decoded here.

PyAV is imported when a video is opened, so that a run over images does not load FFmpeg.
"""

from __future__ import annotations

import os
import re
import stat
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import IO, Any

from imaging.decode import MAX_PIXELS
from imaging.kinds import VIDEO_SUFFIXES, suffix_of, video_container
from pipeline.errors import InvalidSetting
from pipeline.locations import is_object
from pipeline.sources.images import BadImage

# The decoders that are allowed, by FFmpeg's names: what cameras, phones, screens and the web write. FFmpeg has 300.
CODECS = frozenset(
    [
        *("h264", "hevc", "vp8", "libvpx", "vp9", "libvpx-vp9", "av1", "libdav1d", "mpeg4", "msmpeg4v2", "msmpeg4v3"),
        *("mpeg1video", "mpeg2video", "h263", "mjpeg", "prores", "dnxhd", "dvvideo", "vc1", "wmv3", "ffv1", "png"),
        *("rawvideo", "huffyuv", "qtrle"),
    ]
)
OPTIONS = {"codec_whitelist": ",".join(sorted(CODECS)), "max_pixels": str(MAX_PIXELS)}

# 19 hours of 30 frames a second. A crafted file of a few kilobytes can declare more.
MOST_FRAMES = 2**21
# Between two frames, and before the first one: a file that goes on without any is left.
MOST_BYTES = 512 * 1024**2
# A share of cores: each of a decoder's threads holds a frame, 12 MB for 3840 x 2160.
DECODER_THREADS = min(os.cpu_count() or 1, 4)


@dataclass(frozen=True, slots=True)
class Every:
    """Which frames of a video are taken."""

    seconds: Fraction | None = None
    """The first frame of each so many seconds."""
    frames: int | None = None
    """Each so many-th frame. Key frames, where both are None."""

    @classmethod
    def of(cls, text: str) -> Every:
        """The setting's text: `1s`, `0.5s`, `30f` or `key`.

        Raises:
            InvalidSetting: it is something else.
        """
        found = re.fullmatch(r"(?:(\d+(?:\.\d+)?)s|(\d+)f|key)", text)
        seconds, frames = (found[1] and Fraction(found[1]), found[2] and int(found[2])) if found else (None, None)
        if not found or 0 in (seconds, frames):
            raise InvalidSetting(
                f"SPOTTER_EVERY or --every: {text!r} is invalid: expected 1s or 0.5s (seconds), 30f (each 30th frame) "
                "or key (key frames)"
            )
        return cls(seconds or None, frames or None)

    @property
    def key(self) -> bool:
        """Whether key frames are taken."""
        return self.seconds is None and self.frames is None

    def taken(self, stamps: array[int], base: Fraction, keys: set[int]) -> list[int]:
        """The numbers of the frames that are taken; `keys` are the stamps of the key frames."""
        if self.frames is not None:
            return list(range(0, len(stamps), self.frames))
        if self.seconds is None:
            return [number for number, stamp in enumerate(stamps) if stamp in keys]
        period, last, numbers = self.seconds / base, -1, []
        for number, stamp in enumerate(stamps):
            if (place := (stamp - stamps[0]) * period.denominator // period.numerator) > last:
                numbers.append(number)
                last = place
        return numbers


@dataclass(frozen=True, slots=True)
class Index:
    """The frames of a video in the order in which they are shown."""

    stamps: array[int]
    """When each is shown, in units of `base`."""
    base: Fraction
    """Seconds."""
    taken: list[int]
    """The numbers of the frames that are taken, from 0."""
    counted: bool
    """Whether frames are told by their number, since their stamps are missing or not unique."""
    fault: str | None
    """Why there are no more frames than these, though there should be."""

    def time_s(self, number: int) -> float:
        """When a frame is shown, in seconds after the first one; for the number behind the last: of the last one."""
        if not self.stamps:
            return 0.0
        return float((self.stamps[min(number, len(self.stamps) - 1)] - self.stamps[0]) * self.base)


def is_video(name: str) -> bool:
    """Whether a file's name is that of a video whose frames can be taken."""
    return suffix_of(name) in VIDEO_SUFFIXES


class Tape:
    """A regular file for FFmpeg, which may read so many bytes between two frames; a pipe is not waited for."""

    def __init__(self, path: str) -> None:
        self.file: IO[bytes] = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")  # noqa: PTH123 SIM115 a descriptor
        if not stat.S_ISREG(os.fstat(self.file.fileno()).st_mode):
            self.file.close()
            raise BadImage("not a regular file")
        self.size = os.fstat(self.file.fileno()).st_size
        self.left = MOST_BYTES
        self.seek, self.tell, self.close = self.file.seek, self.file.tell, self.file.close

    def read(self, size: int) -> bytes:
        """The next bytes; none when so many were read without a frame."""
        data = self.file.read(size) if self.left > 0 else b""
        self.left -= len(data)
        return data


def pyav() -> Any:
    """The module.

    Raises:
        InvalidSetting: this environment has none.
    """
    try:
        import av
    except ImportError as error:
        raise InvalidSetting(
            f"SPOTTER_EVERY: PyAV cannot be loaded ({error}): unset RUNNER and use the process engine (docs/videos.md)"
        ) from error
    return av


@contextmanager
def opened(path: str) -> Iterator[tuple[Any, Any, Tape]]:
    """PyAV's container and stream of a video's pictures, and the file that they read.

    The container's format is what the file's first bytes say: FFmpeg's own guess takes playlists too, which name other
    files and addresses.

    Raises:
        BadImage: it has no such stream, or one that is not decoded.
        OSError: it cannot be read.
    """
    av, tape = pyav(), Tape(path)
    try:
        name = video_container(tape.read(16))
        tape.seek(0)
        if name is None:
            raise BadImage("not a video of a known container (MP4, QuickTime, WebM, Matroska, AVI)")
        try:
            container = av.open(tape, "r", format=name, options=OPTIONS, metadata_errors="ignore")
        except (av.FFmpegError, ValueError, EOFError) as error:
            raise BadImage(f"the video cannot be opened: {said(error)}{cut_short(tape, name)}") from error
        with container:
            yield container, pictures_of(container), tape
    finally:
        tape.close()


def pictures_of(container: Any) -> Any:
    """The stream of a container that holds its pictures: the first one that is no cover.

    Raises:
        BadImage: there is none that is decoded.
    """
    streams = [each for each in container.streams.video if "attached_pic" not in str(each.disposition)]
    if not streams:
        raise BadImage("it has no video stream")
    stream = streams[0]
    if stream.codec_context is None or stream.codec_context.name not in CODECS:
        name = stream.codec_context.name if stream.codec_context else "unknown"
        raise BadImage(f"codec {name} is not decoded: convert the video to H.264")
    if stream.width * stream.height > MAX_PIXELS:
        raise BadImage(f"{stream.width} x {stream.height} pixels: more than {MAX_PIXELS // 1_000_000} megapixels")
    stream.codec_context.thread_type = "AUTO"
    stream.codec_context.thread_count = DECODER_THREADS
    return stream


def examine(path: str, every: Every) -> Index:
    """The frames of a video, by its packets: all of the file is read, and nothing is decoded.

    Raises:
        BadImage: there is no frame; the message says why.
        OSError: it cannot be read.
    """
    av = pyav()
    with opened(path) as (container, stream, tape):
        stamps, keys, counted, fault = array("q"), set(), False, None
        hides = stream.codec_context.name in ("vp8", "libvpx")
        try:
            for packet in container.demux(stream):
                if packet.is_corrupt:
                    fault = "the file ends within a frame"
                    break
                if not packet.size or packet.is_discard or (hides and not memoryview(packet)[0] & 0x10):
                    continue  # nothing, cut away by an edit list, or a frame of VP8 that others refer to only
                if len(stamps) == MOST_FRAMES:
                    fault = f"it has more than {MOST_FRAMES} frames: cut it into several"
                    break
                stamp = packet.dts if packet.pts is None else packet.pts
                counted |= packet.pts is None
                stamps.append(len(stamps) if stamp is None else stamp)
                if packet.is_keyframe:
                    keys.add(stamps[-1])
                tape.left = MOST_BYTES
        except (av.FFmpegError, ValueError, EOFError) as error:
            fault = f"it cannot be read further: {said(error)}"
        if tape.left <= 0:
            fault = f"{MOST_BYTES // 1024**2} MiB without a frame"
        fault = fault or cut_short(tape, container.format.name).removeprefix(": ") or None
        if not stamps:
            raise BadImage(fault or "it has no frames")
        stamps = array("q", sorted(stamps))
        counted |= len(set(stamps)) < len(stamps)
        base = Fraction(stream.time_base)
        return Index(stamps, base, every.taken(stamps, base, keys), counted, fault)


def frames_of(path: str, every: Every) -> Iterator[tuple[int, float, str | None]]:
    """Number and seconds of each frame of a video that is taken; of one that ends early also those of the first frame
    that is not there, and why."""
    if is_object(path):
        yield 0, 0.0, "a video in a bucket: copy it to this host"
        return
    try:
        index = examine(path, every)
    except (BadImage, OSError) as error:
        yield 0, 0.0, str(error)
        return
    for number in index.taken:
        yield number, index.time_s(number), None
    if index.fault:
        end = len(index.stamps)
        yield (
            end,
            index.time_s(end),
            f"the video ends early, after frame {end - 1} ({index.time_s(end):.3f} s): {index.fault}",
        )


def cut_short(tape: Tape, format: str) -> str:
    """`: ` and how a file is shorter than it says itself; empty when it is not."""
    size, declared = tape.size, 0
    tape.seek(0)
    if format.startswith("avi"):
        declared = int.from_bytes(tape.file.read(8)[4:], "little") + 8
    elif format.startswith("mov"):
        while declared < size:
            tape.seek(declared)
            head = tape.file.read(16)
            length = int.from_bytes(head[:4], "big")
            length = int.from_bytes(head[8:16], "big") if length == 1 else length or size - declared
            if length < 8 or head[4:8] not in (b"ftyp", b"mdat", b"moov", b"moof", b"free", b"wide", b"skip", b"mfra"):
                break  # no box, as bytes behind the end are
            declared += length
    else:
        head = tape.file.read(1024)
        at = head.find(b"\x18\x53\x80\x67")  # Segment
        if at >= 0 and at + 12 <= len(head):
            width = 9 - head[at + 4].bit_length()
            length = int.from_bytes(head[at + 4 : at + 4 + width], "big") & (1 << 7 * width) - 1
            unknown = length == (1 << 7 * width) - 1
            declared = 0 if unknown else at + 4 + width + length
    return f": the file is cut short: {size} of {declared} bytes" if declared > size else ""


def said(error: BaseException) -> str:
    """FFmpeg's reason, in one line."""
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
