"""Where images come from: folders, globs, files, lists, Parquet files and buckets, all as one list of sources."""

from __future__ import annotations

import codecs
import glob
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

from pipeline.errors import UsageError
from pipeline.locations import SCHEME, is_object, is_utf8
from pipeline.sources import parquet
from pipeline.sources.images import BadImage
from pipeline.sources.objects import WILDCARD, Objects, StoreError, refuse
from pipeline.tables import shown_path

# What a folder is searched for. A file named otherwise can still be given by a glob.
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".avif", ".heic", ".heif", ".ppm", ".mpo"}
)
LIST_SUFFIX = ".txt"

# Twice the pixels that are decoded at most, as 8-bit RGB without compression. No camera's file comes near, and what
# hides behind a picture's name (a disk image, an endless device) does not fill the memory.
MAX_FILE_BYTES = 512 * 1024**2

GIVE = "give a folder, a glob, a file, a list (.txt), Parquet or s3:// with IMAGES=... or --images"


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a Parquet file, where an image's bytes are, or where they should be."""

    table: str
    column: str
    number: int


@dataclass(frozen=True, slots=True)
class Source:
    """One image, before anybody has looked at it."""

    path: bytes
    """Its name in all tables: a file's path as the file system has it, an object's address, or a row's name."""
    version: str | None
    """Another one tells that the content has changed: a file's time and size, an object's size, which is all that
    Daft's listing knows; None where nothing is known before the image is read."""
    row: Row | None = None

    @property
    def size(self) -> int | None:
        """Bytes of its file or object; None where nothing is known before it is read."""
        return int(self.version.rpartition("-")[2]) if self.version and self.row is None else None

    @property
    def shown(self) -> str:
        """The path as text, as in the tables."""
        return shown_path(self.path)


def list_images(place: str, column: str | None = None, objects: Objects | None = None) -> list[Source]:
    """The images of a place, in an order that is the same in every run; none twice.

    A folder or a prefix `s3://bucket/photos/` is searched through for SUFFIXES, or, where it has no image, for Parquet;
    hidden files and folders are passed over. A glob (`photos/**/*.jpg`, also in a bucket) or a single file may have any
    name. A Parquet file stands for the images in its `column`. A list, which the place itself has to name (by
    LIST_SUFFIX: `photos/*` may find a README.txt), has a path or an address on each line; blank lines and those that
    begin with `#` are passed over. A path in a list or in a Parquet file is relative
    to the folder of that file. What is listed and not there is a source all the same: it fails when it is read.

    Raises:
        UsageError: there is nothing there, or it cannot be listed.
    """
    objects = objects or Objects()
    if is_object(place):
        found, expected = list_objects(place, objects)
    elif re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", place) and not place.startswith("file:"):
        raise UsageError(f"images: {place}: only {SCHEME} is understood of such addresses: {GIVE}")
    else:
        found, expected = list_files(Path(place).expanduser())
    if column is not None and not any(parquet.is_parquet(name) for name, _ in found):
        raise UsageError(f"images: {place!r} is no Parquet, which alone has columns: leave SPOTTER_COLUMN empty")
    lists = names_lists(place)
    sources = (source for name, version in found for source in expand(name, version, column, lists, objects))
    unique = {source.path: source for source in sources}
    if not unique:
        raise UsageError(f"images: {expected}: {GIVE}")
    return list(unique.values())


def list_files(place: Path) -> tuple[list[tuple[str, str | None]], str]:
    """Path and version of the files of a folder, a glob or a path; and what to say if there are none.

    Raises:
        UsageError: the folder may not be listed.
    """
    if place.is_dir():
        if not os.access(place, os.R_OK | os.X_OK):
            raise UsageError(f"images: no permission to list the folder {str(place)!r}")
        names = sorted(walk(place))
        expected = f"no image in the folder {str(place)!r} (searched for {', '.join(sorted(SUFFIXES))}, .parquet)"
        names = wanted(names)
    elif place.exists():
        names, expected = [str(place)], f"{str(place)!r} is empty"
    else:
        matches = glob.glob(str(place), recursive=True)  # noqa: PTH207 absolute globs too
        names = sorted(match for match in matches if Path(match).is_file())
        expected = f"{str(place)!r} is no file, no folder and matches nothing as a glob"
    return [(name, version(name)) for name in names], expected


def list_objects(place: str, objects: Objects) -> tuple[list[tuple[str, str | None]], str]:
    """The same for a bucket.

    Raises:
        UsageError: the store cannot be reached, refuses the credentials or has no such bucket.
    """
    if not place.lower().startswith(SCHEME):  # a web server has no listing
        return [(place, None)], f"{place} is empty"
    try:
        found = {address: str(size) for address, size in objects.list(place)}
    except StoreError as error:
        raise refuse("images", place, error) from error
    names = sorted(found)
    if names != [place] and not WILDCARD.search(place):
        prefix = place.rstrip("/") + "/"
        names = wanted([name for name in names if "/." not in "/" + name.removeprefix(prefix)])
    return [(name, found[name]) for name in names], f"{place} is no object, no prefix and matches nothing as a glob"


def wanted(names: list[str]) -> list[str]:
    """Of a folder's files the images, or, where there are none, the Parquet files."""
    images = [name for name in names if os.path.splitext(name)[1].lower() in SUFFIXES]  # noqa: PTH122 100,000 of them
    return images or [name for name in names if parquet.is_parquet(name)]


def walk(folder: Path) -> Iterator[str]:
    """All files below a folder, but for hidden ones."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.join(parent, name) for name in names if not name.startswith("."))  # noqa: PTH118 as above


def version(path: str) -> str | None:
    """A file's time and size, without opening it."""
    try:
        status = os.stat(path)  # noqa: PTH116 100,000 of them
    except (OSError, ValueError):  # a dangling link, or gone since: reading it will tell
        return None
    return f"{status.st_mtime_ns}-{status.st_size}"


def expand(name: str, seen: str | None, column: str | None, lists: bool, objects: Objects) -> Iterator[Source]:
    """The images that a file stands for: those that it holds or, where `lists` are looked for, lists; or itself."""
    if parquet.is_parquet(name):
        yield from rows(name, seen, column, objects)
    elif lists and names_lists(name):
        for line in lines(name, objects):
            yield listed(line, name)
    else:
        yield Source(os.fsencode(name), seen)


def rows(table: str, seen: str | None, column: str | None, objects: Objects) -> Iterator[Source]:
    """The images of a Parquet file: its rows, or the files that these name."""
    column, in_bytes, number_of_rows = parquet.examine(table, column, objects)
    if in_bytes:
        for number in range(number_of_rows):
            yield Source(os.fsencode(parquet.row_name(table, number)), seen, Row(table, column, number))
        return
    for number, value in enumerate(parquet.texts(table, column, objects)):
        if value is None or not value.strip():
            yield Source(os.fsencode(parquet.row_name(table, number)), seen, Row(table, column, number))
        else:
            yield listed(value, table)


def lines(name: str, objects: Objects) -> list[str]:
    """A list's entries. Its bytes are kept, as names of files have them; or it is UTF-16, as Windows' shell writes it.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        content = objects.read(name) if is_object(name) else Path(name).read_bytes()
    except StoreError as error:
        raise refuse("images", name, error) from error
    except OSError as error:
        raise UsageError(f"images: the list {name} cannot be read: {error.strerror or error}") from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        content = content.decode("utf-16", "replace").encode()
    found = [line.strip() for line in os.fsdecode(content.removeprefix(codecs.BOM_UTF8)).split("\n")]
    return [line for line in found if line and not line.startswith("#")]


def listed(entry: str, where: str) -> Source:
    """The image that a line of a list or a row of a Parquet file names; a path is relative to that file's folder."""
    if entry.startswith("file://"):
        entry = unquote(urlsplit(entry).path)
    if is_object(entry):
        return Source(os.fsencode(entry), None)
    if is_object(where):
        base = where[: where.rindex("/") + 1]
        return Source(os.fsencode(base + entry if where.startswith(SCHEME) else urljoin(base, entry)), None)
    path = os.path.normpath(Path(where).parent / Path(entry).expanduser())
    return Source(os.fsencode(path), version(path))


def names_lists(place: str) -> bool:
    """Whether a place is a list, or a glob of lists, by its own name."""
    return place.lower().endswith(LIST_SUFFIX)


def has_entries(place: str) -> bool:
    """Whether a place names other places, by its own name: a list, or Parquet, which may have paths."""
    return names_lists(place) or place.lower().endswith(parquet.SUFFIXES)


def canonical(place: str, column: str | None) -> str:
    """The same text for the same place, however it is written."""
    if not is_object(place):
        path = Path(place).expanduser()
        place = str(path.resolve() if path.exists() else path.absolute())
    return place if column is None else f"{place}, column {column}"


class Reader:
    """Reads the bytes of sources; safe from several threads."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self.rows = parquet.Rows(objects)

    def __reduce__(self) -> tuple[type[Reader], tuple[Objects]]:
        """A copy elsewhere opens its own files."""
        return Reader, (self.objects,)

    def read(self, path: bytes, row: Row | None, size: int | None = None, fetched: bytes | None = None) -> bytes:
        """An encoded image, unless what was `fetched` is it; one whose `size` is known to be too large is not read.

        Raises:
            BadImage: what is there can be no image.
            StoreError: its store does not give it.
            OSError, pyarrow.ArrowException: it cannot be read.
        """
        data = fetched
        if data is None and not too_large(size):
            data = self._row(row) if row is not None else self._file(os.fsdecode(path))
        if data is None or too_large(len(data)):
            raise BadImage(f"the file has more than {MAX_FILE_BYTES // 1024**2} MiB")
        return data

    def _row(self, row: Row) -> bytes:
        """What is in a row of a Parquet file."""
        value = self.rows.get(row.table, row.column, row.number)
        if value is None or isinstance(value, str):
            raise BadImage(f"column {row.column} is empty in this row")
        return value

    def _file(self, name: str) -> bytes:
        """A file or an object; of one that is too large the beginning."""
        if not is_object(name):
            return read_file(name)
        if not is_utf8(name):
            raise BadImage("the address is no UTF-8")
        return self.objects.read(name, MAX_FILE_BYTES + 1)


def too_large(size: int | None) -> bool:
    """Whether a file of this many bytes is no image that anybody took; one of unknown size may be."""
    return size is not None and size > MAX_FILE_BYTES


def read_file(path: str) -> bytes:
    """A regular file's content, of one that is too large the beginning; a pipe or a device is not waited for.

    Raises:
        BadImage: it is no regular file.
        OSError: it cannot be read.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as handle:  # noqa: PTH123 a descriptor
        if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
            raise BadImage("not a regular file")
        return handle.read(MAX_FILE_BYTES + 1)
