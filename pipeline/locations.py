"""Locations: a file's path, or the address of an object in a store."""

from __future__ import annotations

import os
from urllib.parse import unquote, urljoin, urlsplit

SCHEME = "s3://"
# Addresses that can be read; only those of SCHEME can be listed.
READABLE = (SCHEME, "http://", "https://")


def is_utf8(location: str) -> bool:
    """Whether a location is UTF-8, as every address has to be; a file's name may be any bytes."""
    return location.encode("utf-8", "replace").decode() == location


def is_object(location: str) -> bool:
    """Whether a location is an address and no file's path."""
    return location.lower().startswith(READABLE)


def located(entry: str, where: str) -> str:
    """The location that an entry in the file `where` names: an address, or a path relative to that file's folder."""
    entry = entry.strip()
    if entry.startswith("file://"):
        entry = unquote(urlsplit(entry).path)
    if is_object(entry):
        return entry
    if is_object(where):
        base = where[: where.rindex("/") + 1]
        return base + entry if where.startswith(SCHEME) else urljoin(base, entry)
    return os.path.normpath(os.path.join(os.path.dirname(where), os.path.expanduser(entry)))  # noqa: PTH111 PTH118 PTH120 a million rows; `~x.jpg`
