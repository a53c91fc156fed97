"""Pictures, valid and not, made on the spot."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pillow_heif
from PIL import Image

import pipeline.sources.images  # noqa: F401 it lets Pillow read and write HEIC


def gradient(width: int = 320, height: int = 240) -> Image.Image:
    """Red grows to the right, green downwards, so that a flip or a rotation shows."""
    red = Image.linear_gradient("L").rotate(90).resize((width, height))
    green = Image.linear_gradient("L").resize((width, height))
    return Image.merge("RGB", (red, green, Image.new("L", (width, height), 40)))


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    """An image as a file's bytes."""
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def rotated_by_exif(image: Image.Image, kind: str = "JPEG") -> bytes:
    """A picture stored lying on its side, whose EXIF orientation (6) turns it upright again."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(image.transpose(Image.Transpose.ROTATE_90), kind, exif=exif)


def sixteen_bit(width: int = 320, height: int = 240) -> bytes:
    """A grey PNG of 16 bits whose left half is a third and whose right half two thirds of white."""
    dark, light = (
        Image.new("I;16", (width, height), 65535 // 3),
        Image.new("I;16", (width // 2, height), 65535 * 2 // 3),
    )
    dark.paste(light, (width // 2, 0))
    return encoded(dark, "PNG")


def animated() -> bytes:
    """A GIF of three frames, the first red."""
    frames = [Image.new("RGB", (120, 90), color) for color in ("red", "green", "blue")]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50)


def write_plain(folder: Path, count: int, size: tuple[int, int] = (96, 64)) -> None:
    """Make a folder of small PNGs, no two the same."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        color = (number % 256, number // 256 % 256, number // 65536)
        Image.new("RGB", size, color).save(folder / f"{number:06}.png")


def awkward_folder(folder: Path) -> dict[str, str | None]:
    """Fill a folder with files that trip pipelines; for each, what its reason must contain, or None if it is fine."""
    image = gradient()
    jpeg = encoded(image)
    files: dict[str, tuple[bytes, str | None]] = {
        "fine.jpg": (jpeg, None),
        "truncated.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "text.jpg": (b"this is no picture", "not an image"),
        "empty.jpg": (b"", "empty"),
        "sixteen-bit.png": (sixteen_bit(), None),
        "cmyk.jpg": (encoded(image.convert("CMYK")), None),
        "animated.gif": (animated(), None),
        "transparent.png": (encoded(image.convert("RGBA"), "PNG"), None),
        "palette.png": (encoded(image.convert("P"), "PNG"), None),
        "rotated.jpg": (rotated_by_exif(image), None),
        "no permission.jpg": (jpeg, "Permission denied"),
    }
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    (folder / "no permission.jpg").chmod(0)
    return {name: reason for name, (_, reason) in files.items()}


def as_phones_take_it(image: Image.Image) -> bytes:
    """A HEIC stored lying on its side. As in a phone's files both the container and the EXIF tell how to turn it; only
    the container counts (ISO/IEC 23008-12), and who does both turns it twice."""
    exif = Image.Exif()
    exif[0x0112] = 6
    heic = pillow_heif.from_pillow(image.transpose(Image.Transpose.ROTATE_90))
    heic[0].info["exif"] = b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")
    target = io.BytesIO()
    heic.save(target, quality=90)
    return target.getvalue()


# Tags of a TIFF: number to struct format and values.
Tags = dict[int, tuple[str, tuple[float, ...]]]
TYPES = {"H": 3, "I": 4, "f": 11, "d": 12}  # TIFF's numbers of struct's formats


def tiff(
    size: tuple[int, int],
    pixels: bytes,
    bits: tuple[int, ...] = (8,),
    order: str = "<",
    tags: Tags | None = None,
) -> bytes:
    """An uncompressed TIFF of any kind of pixels: `bits` of each sample; `tags` over the usual ones.

    Photometric interpretation is RGB for three samples or more, else black is zero.
    """
    fields: dict[int, tuple[str, tuple[float, ...]]] = {
        256: ("I", (size[0],)),
        257: ("I", (size[1],)),
        258: ("H", bits),
        259: ("H", (1,)),
        262: ("H", (2 if len(bits) > 2 else 1,)),
        277: ("H", (len(bits),)),
        278: ("I", (size[1],)),
        279: ("I", (len(pixels),)),
        **(tags or {}),
    }
    directory, beside = b"", b""
    entries = len(fields) + 1
    start = 8 + 2 + 12 * entries + 4
    data = {number: struct.pack(f"{order}{len(values)}{kind}", *values) for number, (kind, values) in fields.items()}
    end = start + sum(len(value) for value in data.values() if len(value) > 4)
    fields[273], data[273] = ("I", (end,)), struct.pack(f"{order}I", end)
    for number in sorted(fields):
        kind, values = fields[number]
        value = data[number]
        if len(value) > 4:
            value, beside = struct.pack(f"{order}I", start + len(beside)), beside + value
        directory += struct.pack(f"{order}HHI", number, TYPES[kind], len(values)) + value.ljust(4, b"\0")
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(f"{order}IH", 8, entries) + directory + bytes(4) + beside + pixels
