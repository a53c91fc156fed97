"""What a place is: a file's path, or the address of an object."""

from __future__ import annotations

SCHEME = "s3://"
# What can be read, but not listed.
READABLE = (SCHEME, "http://", "https://")


def is_utf8(place: str) -> bool:
    """Whether a place's name is UTF-8, as every address has to be; a file's name may be any bytes."""
    return place.encode("utf-8", "replace").decode() == place


def is_object(place: str) -> bool:
    """Whether a place is an address and no file's path."""
    return place.lower().startswith(READABLE)
