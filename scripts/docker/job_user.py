"""The user of the job's container, where modes of files bind everybody, also root."""

from __future__ import annotations

import contextlib
import glob
import os
import pwd
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from pipeline.errors import Unreadable, Unwritable
from pipeline.sources.search import LeftOut, may_be_image, walk

# The most images that are looked at before a job starts.
LOOKED_AT = 20


@dataclass(frozen=True, slots=True)
class User:
    """A user by numbers: a container knows no names of this host."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    """The user's other groups."""


def owner_of(folder: Path) -> User:
    """The user of a job that writes into a folder: the current one; under root, the folder's owner."""
    status = folder.stat()
    if os.getuid() != 0 or status.st_uid == 0:
        uid, gid, groups = os.getuid(), os.getgid(), os.getgroups()
    else:
        uid, gid = status.st_uid, status.st_gid
        try:
            groups = os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
        except KeyError:  # a number without a name
            groups = []
    return User(uid, gid, tuple(sorted({*groups} - {gid})))


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents; those that root makes get the owner of the folder around them.

    Raises:
        OSError: it cannot be made.
    """
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    if missing and os.getuid() == 0:
        owner = missing[-1].parent.stat()
        for each in missing:
            os.chown(each, owner.st_uid, owner.st_gid)


def may(user: User, place: Path, wanted: int) -> bool:
    """Whether a user without privileges has the rights `wanted`, such as os.R_OK, to a file or folder."""
    with contextlib.suppress(OSError):  # a file system without such lists
        if "system.posix_acl_access" in os.listxattr(place):
            return True  # the list may allow more than the mode; the job will see
    status = place.stat()
    shift = 6 if status.st_uid == user.uid else 3 if status.st_gid in (user.gid, *user.groups) else 0
    return stat.S_IMODE(status.st_mode) >> shift & wanted == wanted


def refuse_unreachable(user: User, runs: Path, places: list[Path], images: list[Path]) -> None:
    """Check that the job of another user, which root starts, can write its runs and read its images.

    `places` are mounted into its container. `images` are some of those in them: a single one that cannot be read is a
    failed row, like any other.

    Raises:
        Unwritable, Unreadable: it cannot.
    """
    if not may(user, runs, os.R_OK | os.W_OK | os.X_OK):
        raise Unwritable(
            f"output: {str(runs)!r} cannot be written by user {user.uid}, the job's user in its container: "
            "correct its mode, or give another folder with OUTPUT=... or --output"
        )
    closed = [place for place in places if not may(user, place, os.R_OK | os.X_OK if place.is_dir() else os.R_OK)]
    if not closed and images and not any(may(user, image, os.R_OK) for image in images):
        closed = images
    if closed:
        raise Unreadable(
            f"{str(closed[0])!r} cannot be read by user {user.uid}, the job's user in its container and the owner of "
            f"{str(runs)!r}: let that user read it, give the folder of a user who may with OUTPUT=... or --output, or "
            "set STACK_ENGINE=process"
        )


def files(images: str) -> Iterator[str]:
    """The files of a folder or a glob that may be images, or a file itself, one by one, unopened."""
    place = Path(images).expanduser().absolute()
    if place.is_dir():
        return filter(may_be_image, walk(place, LeftOut()))
    if place.exists():
        return iter([str(place)])
    return glob.iglob(str(place), recursive=True)  # noqa: PTH207 as in sources


def some(images: str) -> list[Path]:
    """The first of the images, whose modes stand for those of all."""
    return [Path(name) for name in islice(filter(os.path.isfile, files(images)), LOOKED_AT)]
