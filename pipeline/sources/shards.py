"""Shards: several runs that each do a share of one listing, with no coordinator."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Any

from pipeline.errors import InvalidSetting
from pipeline.settings import Settings
from pipeline.sources.listing import Listing, Source

# The end of the name of a shard's folder: its number and the number of shards.
FOLDER = re.compile(r"(?P<run>.+)-(?P<number>\d+)-of-(?P<shards>\d+)")


def numbers(shard: str) -> tuple[int, int]:
    """The number of a shard, from 1, and how many there are.

    Raises:
        InvalidSetting: it is not a number and the number of shards.
    """
    found = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", shard)
    if found is None or int(found[1]) > int(found[2]):
        raise InvalidSetting(f"SPOTTER_SHARD or --shard: {shard!r} is invalid: expected 1/8 for the first of 8 shards")
    return int(found[1]), int(found[2])


def folder_name(run: str, shard: str | None) -> str:
    """The name of a run's folder: each shard has its own, so that no two write the same file."""
    return run if shard is None else "{}-{}-of-{}".format(run, *numbers(shard))


def share(listing: Listing, settings: Settings) -> list[Source]:
    """The images that a run does.

    The listing has the same order on every host. A share is a range of neighbours in it, and ranges differ in length by
    one image at most. Rows of a table are then read from front to back, and a file that is added later moves one image
    between two shares, not all of them.

    Raises:
        InvalidSetting: the setting is no shard.
    """
    images = listing.trial(settings.limit, settings.sample, settings.sample_seed)
    if settings.shard is None:
        return images
    number, shards = numbers(settings.shard)
    return images[(number - 1) * len(images) // shards : number * len(images) // shards]


def described(listing: Listing, settings: Settings) -> dict[str, Any]:
    """What the run.json of a shard says of its share; `listing` is equal in all shards of one listing."""
    if settings.shard is None:
        return {}
    images = listing.trial(settings.limit, settings.sample, settings.sample_seed)
    taken = len(share(listing, settings))
    return {"shard": {"images": taken, "listed": len(images), "listing": digest(images)}}


def digest(sources: Iterable[Source]) -> str:
    """A hash of names, sizes and inputs. Times are left out: each node may have a copy of the images."""
    listing = hashlib.sha256()
    for source in sources:
        size = (source.version or "").rpartition("-")[2]
        inputs = source.inputs.text if source.inputs else ""
        listing.update(b"%b\0%b\0%b\0" % (source.path, size.encode(), inputs.encode()))
    return listing.hexdigest()[:32]


def taken_of(settings: Settings, taken: int, listed: int) -> str:
    """How many images of the listing a run takes, for people."""
    kind = f"shard {settings.shard}," if settings.shard else "trial on" if settings.trial else ""
    return f"{kind} {taken} of {listed} images" if kind else f"{listed} images"
