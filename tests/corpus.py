"""A folder of pictures as the world has them, valid and hostile: `python -m tests.corpus FOLDER`.

Each file's name begins with its kind; kinds that cannot become an image begin with `bad-`.
"""

from __future__ import annotations

import itertools
import random
import struct
import sys
import zlib
from pathlib import Path

from PIL import Image, ImageDraw

from tests.pictures import animated, encoded, gradient, rotated_by_exif, sixteen_bit

JPEG = encoded(gradient())
PNG = encoded(gradient(), "PNG")
WEBP = encoded(gradient(), "WEBP")


def valid() -> dict[str, bytes]:
    """Files that decode."""
    files: dict[str, bytes] = {}
    formats = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "tif": "TIFF", "bmp": "BMP", "avif": "AVIF"}
    for suffix, kind in formats.items():
        for size in ((320, 240), (240, 320), (1, 1), (7, 500), (1920, 1080)):
            files[f"format-{size[0]}x{size[1]}.{suffix}"] = encoded(gradient(*size), kind)
    for mode in ("1", "L", "LA", "P", "RGBA", "I;16"):
        source = gradient().convert("L") if mode.startswith("I") else gradient()
        files[f"mode-{mode.replace(';', '')}.png"] = encoded(source.convert(mode), "PNG")
    for mode in ("L", "CMYK", "YCbCr"):
        files[f"mode-{mode}.jpg"] = encoded(gradient().convert(mode))
    for mode in ("CMYK", "LAB", "I;16", "F"):
        source = gradient().convert("L") if mode in ("I;16", "F") else gradient().convert("RGB")
        if mode == "LAB":
            source = Image.merge("LAB", gradient().split())
            files["mode-LAB.tif"] = encoded(source, "TIFF")
        else:
            files[f"mode-{mode.replace(';', '')}.tif"] = encoded(source.convert(mode), "TIFF")
    for quality, progressive, subsampling in itertools.product((1, 60, 100), (False, True), (0, 2)):
        name = f"jpeg-q{quality}-{'progressive' if progressive else 'baseline'}-{subsampling}.jpg"
        files[name] = encoded(gradient(), quality=quality, progressive=progressive, subsampling=subsampling)
    for orientation in range(0, 10):
        exif = Image.Exif()
        exif[0x0112] = orientation
        files[f"exif-{orientation}.jpg"] = encoded(gradient(), exif=exif)
    files["exif-rotated.jpg"] = rotated_by_exif(gradient())
    files["exif-garbage.jpg"] = encoded(gradient(), exif=b"Exif\0\0" + bytes(range(200)))
    files["sixteen-bit.png"] = sixteen_bit()
    files["animated.gif"] = animated()
    frames = [gradient(100 + n, 80).resize((100, 80)) for n in range(3)]
    files["animated.webp"] = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    files["animated.png"] = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])
    files["pages.tif"] = encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    files["lossless.webp"] = encoded(gradient(), "WEBP", lossless=True)
    files["interlaced-name.jpg"] = PNG  # a PNG that calls itself JPEG
    files["trailing-bytes.jpg"] = JPEG + b"after the end" * 50
    files["icc-garbage.jpg"] = encoded(gradient(), icc_profile=b"no profile at all")
    for name in (
        "with space",
        "größe",
        "😀",
        "a" * 200,
        "<b>html</b>",
        "quote\"'",
        "semi;colon&amp",
        "new\nline",
        "-rf",
        "..dots",
    ):
        files[f"name-{name}.jpg"] = encoded(gradient(200 + len(name), 100))
    draw = gradient(800, 600)
    ImageDraw.Draw(draw).text((10, 10), "a word")
    for quality in range(20, 90, 2):
        files[f"similar-{quality}.jpg"] = encoded(draw, quality=quality)
    return files


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG, with its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int) -> bytes:
    """A small PNG that says it is enormous."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + png_chunk(b"IEND", b"")
    )


def hostile() -> dict[str, bytes]:
    """Files that do not decode."""
    draw = random.Random(0)
    files = {
        "bad-empty.jpg": b"",
        "bad-text.jpg": b"this is no picture\n" * 10,
        "bad-html.png": b"<html><body>404 Not Found</body></html>",
        "bad-zip.jpg": b"PK\x03\x04" + bytes(100),
        "bad-zeros.jpg": bytes(5000),
        "bad-random.jpg": draw.randbytes(5000),
        "bad-postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\nshowpage\n",
        "bad-svg.png": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "bad-pdf.jpg": b"%PDF-1.4\n1 0 obj\n",
        "bad-bomb-20000x20000.png": bomb(20_000, 20_000),
        "bad-bomb-100000x100000.png": bomb(100_000, 100_000),
        "bad-size-0x0.png": bomb(0, 0),
        "bad-header-only.jpg": JPEG[:200],
        "bad-header-only.png": PNG[:40],
        "bad-header-only.webp": WEBP[:40],
        "bad-magic-only.gif": b"GIF89a",
        "bad-magic-only.tif": b"II*\x00",
        "bad-loop.tif": b"II*\x00\x08\x00\x00\x00\x00\x00\x08\x00\x00\x00",
    }
    for name, data in (("jpg", JPEG), ("png", PNG), ("webp", WEBP), ("bmp", encoded(gradient(), "BMP"))):
        for share in (25, 50, 75):
            files[f"bad-truncated-{share}.{name}"] = data[: len(data) * share // 100]
    return files


def write(folder: Path) -> list[str]:
    """Write all files; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    files = valid() | hostile()
    for name, data in files.items():
        (folder / name.replace("/", "_")).write_bytes(data)
    return [name.replace("/", "_") for name in files]


if __name__ == "__main__":
    print(f"{len(write(Path(sys.argv[1])))} files in {sys.argv[1]}")
