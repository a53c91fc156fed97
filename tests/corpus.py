"""A folder of pictures as the world has them, valid and hostile: `python -m tests.corpus FOLDER`.

Each file's name begins with its kind; kinds that cannot become an image begin with `bad-`. Those that begin with
`boxes-` are fine, but a detector says strange things of them: see `boxes`.
"""

from __future__ import annotations

import itertools
import os
import random
import struct
import sys
import zlib
from pathlib import Path

from PIL import Image, ImageDraw

from tests.pictures import animated, as_phones_take_it, encoded, gradient, rotated_by_exif, sixteen_bit

JPEG = encoded(gradient())
PNG = encoded(gradient(), "PNG")
WEBP = encoded(gradient(), "WEBP")
GIF = encoded(gradient(), "GIF")
BMP = encoded(gradient(), "BMP")
HEIC = encoded(gradient(), "HEIF")
AVIF = encoded(gradient(), "AVIF")
JP2 = encoded(gradient(), "JPEG2000")


def valid() -> dict[str, bytes]:
    """Files that decode."""
    files: dict[str, bytes] = {}
    formats = {
        **{"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "tif": "TIFF", "bmp": "BMP"},
        **{"avif": "AVIF", "heic": "HEIF", "jp2": "JPEG2000"},
    }
    for suffix, kind in formats.items():
        for size in ((320, 240), (240, 320), (1, 1), (7, 500), (1920, 1080)):
            files[f"format-{size[0]}x{size[1]}.{suffix}"] = encoded(gradient(*size), kind)
    for mode in ("1", "L", "LA", "P", "RGBA", "I;16"):
        source = gradient().convert("L") if mode.startswith("I") else gradient()
        files[f"mode-{mode.replace(';', '')}.png"] = encoded(source.convert(mode), "PNG")
    for mode in ("L", "CMYK", "YCbCr"):
        files[f"mode-{mode}.jpg"] = encoded(gradient().convert(mode))
    for mode in ("CMYK", "LAB", "I;16"):
        source = gradient().convert("L") if mode == "I;16" else gradient().convert("RGB")
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
    files["exif-rotated.avif"] = rotated_by_exif(gradient(), "AVIF")
    files["exif-and-container-rotated.heic"] = as_phones_take_it(gradient())
    files["giant-9000x9000.png"] = encoded(Image.new("RGB", (9000, 9000), "green"), "PNG")
    files["giant-6000x4000.jpg"] = encoded(gradient(6000, 4000))
    files["giant-30000x10.jpg"] = encoded(gradient(30_000, 10))
    files["giant-1x20000.png"] = encoded(gradient(1, 20_000), "PNG")
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
        " leading and trailing ",
        "per%20cent%2F",
        "hash#question?",
        "back\\slash",
        "[glob]*",
        "tab\there",
        "s3:colon",
        "\u202egpj.right-to-left",
        os.fsdecode(b"no-utf-8-\xff\xfe"),
        "<script>alert(1)</script>".replace("/", "\u2215"),
    ):
        files[f"name-{name}.jpg"] = encoded(gradient(200 + len(name), 100))
    for name, (size, _) in BOXES.items():
        files[f"{name}.jpg"] = encoded(gradient(*size))
    draw = gradient(800, 600)
    ImageDraw.Draw(draw).text((10, 10), "a word")
    for quality in range(20, 90, 2):
        files[f"similar-{quality}.jpg"] = encoded(draw, quality=quality)
    return files


# What the simulated detector says of a picture of this size; a share of a real one's answers is as odd.
NAN, INFINITE = float("nan"), float("inf")
BOXES: dict[str, tuple[tuple[int, int], list[list[float]]]] = {
    "boxes-5000": ((801, 600), [[x, y, x + 40, y + 40] for x in range(0, 750, 15) for y in range(0, 500, 5)]),
    "boxes-no-area": ((802, 600), [[50, 50, 50, 50], [60, 10, 60, 90], [10, 10, 200, 200]]),
    "boxes-inverted": ((803, 600), [[200, 200, 100, 100], [10, 10, 200, 200]]),
    "boxes-nan": ((804, 600), [[NAN, NAN, NAN, NAN], [10, NAN, 50, 60], [10, 10, 200, 200]]),
    "boxes-infinite": ((805, 600), [[0, 0, INFINITE, 50], [-INFINITE, 0, 50, 50], [10, 10, 200, 200]]),
    "boxes-outside": ((806, 600), [[900, 10, 950, 60], [-90, -90, -10, -10], [10, 10, 200, 200]]),
    "boxes-over-the-edge": ((807, 600), [[-50, -50, 100, 100], [700, 500, 2000, 2000]]),
    "boxes-thinner-than-a-pixel": ((808, 600), [[10.2, 10.2, 10.3, 300], [5.5, 5.5, 5.6, 5.6]]),
    "boxes-the-same-twice": ((809, 600), [[10, 10, 200, 200], [10, 10, 200, 200]]),
    "boxes-whole-image": ((810, 600), [[0, 0, 810, 600]]),
    "boxes-none": ((811, 600), []),
}


def boxes(image: Image.Image) -> list[list[float]]:
    """What a simulated detector answers: for a picture of BOXES what stands there, or else one box."""
    said = dict(BOXES.values())
    return said.get(image.size, [[0, 0, image.width / 2, image.height / 2]])


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


def with_chunk(png: bytes, kind: bytes, data: bytes) -> bytes:
    """A PNG with one more chunk behind its header."""
    header = 8 + 4 + 4 + 13 + 4
    return png[:header] + png_chunk(kind, data) + png[header:]


def small_copy_first() -> bytes:
    """A TIFF as cameras write their raw data: the first picture in it is a small copy."""
    return encoded(gradient(160, 120), "TIFF", tiffinfo={254: 1})


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
        "bad-header-only.heic": HEIC[:40],
        "bad-bomb-65535x65535.gif": b"GIF89a" + struct.pack("<HH", 65535, 65535) + GIF[10:],
        "bad-bomb-50000x50000.jp2": JP2.replace(
            struct.pack(">II", 240, 320), struct.pack(">II", 50_000, 50_000)
        ).replace(struct.pack(">II", 320, 240), struct.pack(">II", 50_000, 50_000)),
        "bad-raw.tif": small_copy_first(),
        "bad-bomb-50000x50000.bmp": BMP[:18] + struct.pack("<ii", 50_000, 50_000) + BMP[26:],
        "bad-bomb-text.png": with_chunk(PNG, b"zTXt", b"a\0\0" + zlib.compress(bytes(80_000_000))),
        "bad-mode-F.tif": encoded(gradient().convert("F"), "TIFF"),  # 0 to 255, and nothing says so
        "bad-magic-only.gif": b"GIF89a",
        "bad-magic-only.tif": b"II*\x00",
        "bad-loop.tif": b"II*\x00\x08\x00\x00\x00\x00\x00\x08\x00\x00\x00",
    }
    for name, data in (
        ("jpg", JPEG),
        ("png", PNG),
        ("webp", WEBP),
        ("bmp", BMP),
        ("heic", HEIC),
        ("avif", AVIF),
        ("jp2", JP2),
    ):
        for share in (25, 50, 75):
            files[f"bad-truncated-{share}.{name}"] = data[: len(data) * share // 100]
    return files


def special(folder: Path) -> list[str]:
    """Things in a folder that are called pictures and are no files; their names."""
    os.mkfifo(folder / "bad-pipe.jpg")
    (folder / "bad-dangling-link.jpg").symlink_to("nowhere")
    (folder / "bad-link-to-itself.jpg").symlink_to("bad-link-to-itself.jpg")
    (folder / "bad-link-to-a-device.jpg").symlink_to("/dev/zero")
    return ["bad-pipe.jpg", "bad-dangling-link.jpg", "bad-link-to-itself.jpg", "bad-link-to-a-device.jpg"]


def write(folder: Path) -> list[str]:
    """Write all files; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {name.replace("/", "_"): data for name, data in (valid() | hostile()).items()}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return [*files, *special(folder)]


if __name__ == "__main__":
    print(f"{len(write(Path(sys.argv[1])))} files in {sys.argv[1]}")
