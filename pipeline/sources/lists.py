"""Lists of images: text files with a path or an address on each line."""

from __future__ import annotations

import codecs
import os
from pathlib import Path

from pipeline.errors import Unreadable
from pipeline.locations import is_object
from pipeline.sources.objects import Objects, StoreError, refuse

LIST_SUFFIX = ".txt"


def is_list(place: str) -> bool:
    """Whether a place is a list, or a glob of lists, by its own name."""
    return place.lower().endswith(LIST_SUFFIX)


def lines(name: str, objects: Objects) -> list[str]:
    """A list's entries. Its bytes are kept, since names of files need not be UTF-8; UTF-16 with a BOM is understood.

    Raises:
        Unreadable: it cannot be read, or is no text.
    """
    try:
        content = objects.read(name) if is_object(name) else Path(name).read_bytes()
    except StoreError as error:
        raise refuse("images", name, error) from error
    except OSError as error:
        raise Unreadable(f"images: the list {name} cannot be read: {error.strerror or error}") from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        content = content.decode("utf-16", "replace").encode()
    found = [line.strip() for line in os.fsdecode(content.removeprefix(codecs.BOM_UTF8)).split("\n")]
    if any("\0" in line for line in found):
        raise Unreadable(
            f"images: the list {name} holds NUL characters: write one path on each line as UTF-8; "
            f"'tr \"\\\\0\" \"\\\\n\"' does so with the output of 'find -print0'"
        )
    return [line for line in found if line and not line.startswith("#")]
