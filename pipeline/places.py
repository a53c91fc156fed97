"""What a place is: a file's path, or the address of an object."""

from __future__ import annotations

SCHEME = "s3://"
# What can be read, but not listed.
READABLE = (SCHEME, "http://", "https://")


def is_object(place: str) -> bool:
    """Whether a place is an address and no file's path."""
    return place.lower().startswith(READABLE)
