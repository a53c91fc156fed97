"""Convert pixels of any kind to 8-bit RGB, scaled by what is known of the range of their values.

Colour profiles are not applied: a wide-gamut photo (Display P3, Adobe RGB) becomes a little less saturated, which
changes no object in it.
"""

from __future__ import annotations

import math
from typing import Any, cast

from PIL import Image, TiffTags

# Cameras and scanners write 8, 10 or 12 bits into 16 without scaling them. Such a picture is nearly black: it uses less
# than 1/16 of the range. One of 14 bits reaches a quarter of it and can be seen; scaling it would also brighten dark
# pictures of 16 bits.
NARROW = (255, 1023, 4095)
# Resampling overshoots a float picture's range of 0..1 by so much.
OVERSHOOT = 0.001

TAGS = {tag.name: number for number, tag in TiffTags.TAGS_V2.items()}
MIN_IS_WHITE = 0
SIGNED = 2


class UnknownRange(Exception):
    """Nothing says which values are black and white; the message is one line."""


def to_rgb(image: Image.Image, raw_mode: str = "") -> Image.Image:
    """Convert a loaded image of any of Pillow's modes to RGB; transparency becomes white.

    `raw_mode` is Pillow's name of the pixels in the file, such as `RGB;16B`.

    Raises:
        UnknownRange: the values' range cannot be told.
    """
    if image.mode.startswith("I") or image.mode == "F" or is_signed(image):
        return scaled(image).convert("RGB")
    if ";16" in raw_mode and image.mode in ("RGB", "RGBA") and greatest_of(image) <= NARROW[-1] >> 8:
        raise UnknownRange("colours of 16 bits below 1/16 of their range: scale them to 16 bits, or to 8")
    if image.mode == "RGBA" and tag(image, "ExtraSamples") is None and tag(image, "BitsPerSample") is not None:
        # An undeclared fourth sample is not transparency when it would hide the whole picture.
        image = image.convert("RGB") if image.getchannel("A").getextrema() == (0, 0) else image
    if image.has_transparency_data:
        layer = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        ground = Image.new("RGB", layer.size, "white")
        ground.paste(layer, mask=layer.getchannel("A"))
        return ground
    return image if image.mode == "RGB" else image.convert("RGB")


def scaled(image: Image.Image) -> Image.Image:
    """A grey picture of 16 or 32 bits, signed bytes or floats as one of 8 bits.

    Raises:
        UnknownRange: see `range_of`.
    """
    values = image
    if image.mode == "L":  # signed bytes, which Pillow gives as if they had no sign
        values = image.point([value ^ 128 for value in range(256)]).convert("I").point(lambda value: value - 128)
    elif image.mode != "F":
        values = image.convert("I")
    least, greatest = cast("tuple[float, float]", values.getextrema())
    low, high = range_of(image, least, greatest)
    if tag(image, "PhotometricInterpretation") == MIN_IS_WHITE:
        low, high = high, low
    scale = 255 / (high - low)
    return values.point(lambda value: value * scale + (0.5 - low * scale)).convert("L")


def range_of(image: Image.Image, least: float, greatest: float) -> tuple[float, float]:
    """The values that are black and white in a picture whose own values lie from `least` to `greatest`.

    Raises:
        UnknownRange: nothing tells.
    """
    low, high = tag(image, "SMinSampleValue"), tag(image, "SMaxSampleValue")
    told = low is not None and high is not None and low < high and math.isfinite(high - low)
    if image.mode == "F":
        if not math.isfinite(image.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))):  # type: ignore[arg-type]
            raise UnknownRange("floating point pixels that are no numbers (NaN or infinite): give them a value")
        if least >= -OVERSHOOT and greatest <= 1 + OVERSHOOT:
            return 0, 1
        kind, remedy = "floating point pixels", "0..1"
    else:
        bits = tag(image, "BitsPerSample") or 16
        top = 2 ** (bits - is_signed(image)) - 1
        if least >= 0 and bits < 16 and not is_signed(image):
            return 0, top
        most = tag(image, "MaxSampleValue")
        if least >= 0 and most in NARROW and greatest <= most:
            return 0, most
        if least >= 0 and greatest <= 65535:
            return 0, next((bound for bound in NARROW if greatest <= bound <= top), min(top, 65535))
        kind, remedy = "signed pixels" if least < 0 else "pixels of 32 bits", "0..65535"
    if told:
        return float(low), float(high)
    raise UnknownRange(
        f"{kind} from {least:g} to {greatest:g}: their range is not known: scale them to {remedy}, or write "
        "SMinSampleValue and SMaxSampleValue into the TIFF"
    )


def greatest_of(image: Image.Image) -> int:
    """The greatest value of red, green and blue."""
    return max(cast("list[tuple[int, int]]", image.getextrema())[band][1] for band in range(3))


def is_signed(image: Image.Image) -> bool:
    """Whether the pixels are signed integers."""
    return bool(tag(image, "SampleFormat") == SIGNED)


def tag(image: Image.Image, name: str) -> Any:
    """A TIFF tag's value for the first sample; None without the tag, or for another format."""
    value = getattr(image, "tag_v2", {}).get(TAGS[name])
    return value[0] if isinstance(value, tuple) and value else value
