"""Locations: a file's path, the address of an object in a store, the addresses of a service."""

from __future__ import annotations

import os
from urllib.parse import unquote, urljoin, urlsplit

from pydantic import AnyHttpUrl, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

SCHEME = "s3://"
# Addresses that can be read; only those of SCHEME can be listed.
READABLE = (SCHEME, "http://", "https://")

ADDRESS = TypeAdapter(AnyHttpUrl)
# The type of the error for an address with a password in it.
CREDENTIALS = "credentials"


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


def read_addresses(value: object) -> str:
    """One address of a service, or several with commas between them, checked.

    Raises:
        PydanticCustomError: one is no address, is there twice, or holds a password: addresses are shown.
    """
    found: list[str] = []
    for each in str(value).split(","):
        try:
            address = str(ADDRESS.validate_python(each.strip()))
        except ValidationError as error:
            where = f"address {len(found) + 1}: " if "," in str(value) else ""
            raise PydanticCustomError("address", "{said}", {"said": where + error.errors()[0]["msg"]}) from error
        if "@" in address.partition("://")[2].partition("/")[0]:
            raise PydanticCustomError(CREDENTIALS, "it holds a user or a password, and run.json shows it")
        if address in found:
            raise PydanticCustomError("address", "{address} is given twice", {"address": address})
        found.append(address)
    return ",".join(found)


def addresses(value: str) -> tuple[str, ...]:
    """Each address of such a list, without a slash at its end."""
    return tuple(each.rstrip("/") for each in value.split(","))
