"""List the images of a folder, glob, file, list, table or bucket, each as one source."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from imaging.kinds import IMAGE_SUFFIXES, REMEDIES, image_format, other_kind, suffix_of
from pipeline.errors import InvalidSetting, NotFound, Unreadable
from pipeline.locations import SCHEME, is_object, located
from pipeline.sources import columns, table_files, text_tables
from pipeline.sources.inputs import InputColumns, Inputs
from pipeline.sources.lists import LIST_SUFFIX, is_list, lines
from pipeline.sources.objects import WILDCARD, Objects, StoreError, refuse
from pipeline.sources.rows import row_name
from pipeline.sources.search import LeftOut, chosen, head, in_folder, unreadable_of, without_runs
from pipeline.sources.table_files import is_table
from pipeline.sources.videos import Every, frames_of, is_video
from pipeline.tables import shown_path

GIVE = (
    "give a folder, a glob, a file, a list (.txt), a table (.parquet, .arrow, .csv, .jsonl) or s3://... with "
    "IMAGES=... or --images"
)


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table that holds an image, or should; or a frame of a video."""

    table: str
    """Its path; of a frame that of the video."""
    column: str
    """Of a frame the setting that takes it, such as `1s`."""
    number: int
    is_frame: bool = False


@dataclass(frozen=True, slots=True)
class Source:
    """One image that was listed and not yet read."""

    path: bytes
    """Its name in all tables: a file's path as the file system has it, an object's address, or a row's name."""
    version: str | None
    """Changes when the content changes: a file's time and size, or an object's size, since Daft lists no more of it.
    None: unknown until the image is read."""
    row: Row | None = None
    inputs: Inputs | None = None
    """The job's values of this row."""
    time_s: float | None = None
    """Of a frame: seconds after the first one of its video."""
    fault: str | None = None
    """Why there is no such image, as the listing knows already."""

    @property
    def size(self) -> int | None:
        """Bytes of its file or object; None: unknown until it is read."""
        return int(self.version.rpartition("-")[2]) if self.version and self.row is None else None

    @property
    def shown(self) -> str:
        """The path as text, as in the tables."""
        return shown_path(self.path)


@dataclass(frozen=True, slots=True)
class Listing:
    """The images of a place, and what was left out there."""

    sources: list[Source]
    left_out: LeftOut
    """Number of files or folders by kind; empty when nothing was left out."""
    every: str | None = None
    """Which frames of videos are taken; None: there are no videos among the images."""

    def videos(self) -> str | None:
        """One line on the videos, or None."""
        if self.every is None:
            return None
        frames = [source.row.table for source in self.sources if source.row and source.row.is_frame]
        return f"videos: {len(set(frames))}, {len(frames)} frames of them by SPOTTER_EVERY={self.every}"

    def summary(self) -> str | None:
        """One line on what was left out, or None."""
        return self.left_out.summary()

    def trial(self, limit: int | None, sample: int | None, seed: int) -> list[Source]:
        """The first images, or some drawn by chance, in the order of the listing; without both numbers all of them."""
        if sample is None or sample >= len(self.sources):
            return self.sources[:limit]
        return [self.sources[at] for at in sorted(Random(seed).sample(range(len(self.sources)), sample))]


def list_images(
    place: str,
    column: str | None = None,
    objects: Objects | None = None,
    inputs: InputColumns | None = None,
    every: str | None = None,
) -> Listing:
    """The images of a place, in an order that is the same in every run; none twice.

    A folder or a prefix `s3://bucket/photos/` is searched for images, or, when it has none, for Parquet and Arrow: see
    `search.in_folder`. A glob (`photos/**/*.jpg`, also in a bucket) may match files of any name. A table stands for the
    images in its `column`. A list has a path or an address on each line; blank lines and those that begin with `#` are
    ignored. Only a place that itself ends with LIST_SUFFIX, .csv or .jsonl is a list or such a table: `photos/*` may
    match a README.txt. A path in a list or a table is relative to the folder of that file. A listed file that does not
    exist is a source too: it fails when it is read. With `inputs`, each row of a table is a source of its own with
    their values, also where two rows name one picture. With `every` a video stands for some of its frames.

    Raises:
        NotFound: there are no images, or there is no such column.
        InvalidJob: a column holds no inputs.
        Unreadable, BucketUnusable: the place cannot be listed, or is of an unsupported kind.
        InvalidSetting: a column is named, and there is no table; or `every` is not understood, or there is one.
    """
    objects, left_out = objects or Objects(), LeftOut()
    if every is not None:
        Every.of(every)
    if is_object(place):
        found, expected = list_objects(place, objects, left_out)
    elif re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", place) and not place.startswith("file:"):
        raise Unreadable(f"images: {place}: only {SCHEME} is understood of such addresses: {GIVE}")
    else:
        found, expected = list_files(Path(os.path.expanduser(place)), left_out, videos=every is not None)  # noqa: PTH111 `~x.jpg` may be a file
    if inputs is not None:
        inputs.refuse_others(name for name, _ in found if not is_table(name, table_suffixes(place)))
    if column is not None and not any(is_table(name, table_suffixes(place)) for name, _ in found):
        raise InvalidSetting(f"images: {place!r} is no table and has no columns: leave SPOTTER_COLUMN empty")
    if every is not None and any(is_table(name, table_suffixes(place)) for name, _ in found):
        raise InvalidSetting(
            f"images: {place!r} is a table, and SPOTTER_EVERY takes frames of video files: unset SPOTTER_EVERY"
        )
    sources = (source for file in found for source in expand(*file, place, column, objects, inputs))
    if every is not None:
        sources = (frame for source in sources for frame in expand_video(source, every))
    unique = {source.path: source for source in sources}
    if inputs is not None:
        inputs.refuse_empty(place, (source.inputs for source in unique.values()))
    if not unique:
        also = f"; {left_out.summary()}" if left_out else ""
        raise NotFound(f"images: {expected}{also}: {GIVE}")
    return Listing(list(unique.values()), left_out, every)


def list_files(place: Path, left_out: LeftOut, *, videos: bool) -> tuple[list[tuple[str, str | None]], str]:
    """Path and version of the files of a folder, a glob or a path; and what to say if there are none.

    Raises:
        Unreadable: the folder may not be listed, or the file is neither an image nor a list or table, nor one of the
            `videos` that are taken.
    """
    if place.is_dir():
        if not os.access(place, os.R_OK | os.X_OK):
            raise Unreadable(f"images: no permission to list the folder {str(place)!r}")
        names, expected = in_folder(place, left_out, videos=videos), f"no image in the folder {str(place)!r}"
    elif place.exists():
        try:
            content = head(str(place))
        except OSError:  # reading it will tell
            content = b""
        if not (videos and is_video(str(place))):
            refuse_other(str(place), content)
        names, expected = [str(place)], f"{str(place)!r} is empty"
    else:
        names = matching(str(place), left_out)
        expected = f"{str(place)!r} is no file, no folder and matches nothing as a glob"
    return [(name, version(name)) for name in names], expected


def matching(pattern: str, left_out: LeftOut) -> list[str]:
    """The files that a glob matches, sorted."""
    matches = glob.glob(pattern, recursive=True)  # noqa: PTH207 absolute globs too
    root = pattern
    while glob.has_magic(root):
        root = os.path.dirname(root)  # noqa: PTH120
    if matches and "**" not in pattern:
        for match in filter(os.path.isdir, matches):
            left_out.add("folder", match)
    unreadable_of(pattern, left_out)
    return without_runs(sorted(filter(os.path.isfile, matches)), root, left_out)


def refuse_other(place: str, content: bytes) -> None:
    """See that a single file with these first bytes is an image, a list or a table; without bytes its name tells.

    Raises:
        Unreadable: it is something else; the message says what to do.
    """
    suffix = suffix_of(place)
    if is_video(place) and is_object(place):
        raise Unreadable(
            f"images: {place!r} is a video in a bucket: copy it to this host, and give the file with EVERY=1s"
        )
    raw = suffix in REMEDIES  # a camera's raw file begins as a TIFF
    if suffix in (LIST_SUFFIX, *table_files.SUFFIXES, *IMAGE_SUFFIXES) or (image_format(content) and not raw):
        return
    kind, remedy = other_kind(content, place) or (None, None)
    if kind or content:
        kind = kind or f"no image, and no list ({LIST_SUFFIX}) or table by its name"
        raise Unreadable(f"images: {place!r} is {kind}: {remedy or GIVE}")


def list_objects(place: str, objects: Objects, left_out: LeftOut) -> tuple[list[tuple[str, str | None]], str]:
    """The same for a bucket. Objects of unknown endings are left out: a look at each would cost a request.

    Raises:
        BucketUnusable: the store cannot be reached, refuses the credentials or has no such bucket.
    """
    expected = f"{place} is no object, no prefix and matches nothing as a glob"
    if not place.lower().startswith(SCHEME):  # a web server has no listing
        refuse_other(place.partition("?")[0], b"")
        return [(place, None)], expected
    try:
        found = {address: str(size) for address, size in objects.list(place)}
        names = sorted(found)
        if names == [place]:
            refuse_other(place, b"")
            return [(place, found[place])], expected
        wildcard = WILDCARD.search(place)
        root = place[: wildcard.start()].rpartition("/")[0] if wildcard else place.rstrip("/")
        holders = {name.rsplit("/", 2)[0] for name in names if name.split("/")[-2] in ("crops", "annotated")}

        def is_run(folder: str) -> bool:
            manifest = f"{folder}/run.json"
            return manifest in found or (folder in holders and bool(objects.glob(manifest, limit=1)))

        names = without_runs(names, root, left_out, is_run)
    except StoreError as error:
        raise refuse("images", place, error) from error
    if not wildcard:
        hidden = {name for name in names if "/." in name[len(root) :]}
        for name in sorted(hidden):
            left_out.add("hidden object", name)
        names = chosen((name for name in names if name not in hidden), left_out)
    return [(name, found[name]) for name in names], expected


def version(path: str) -> str | None:
    """A file's time and size, without opening it."""
    try:
        status = os.stat(path)  # noqa: PTH116 100,000 of them
    except (OSError, ValueError):  # a dangling link, or gone since: reading it will tell
        return None
    return f"{status.st_mtime_ns}-{status.st_size}"


def expand(
    name: str, seen: str | None, place: str, column: str | None, objects: Objects, inputs: InputColumns | None
) -> Iterator[Source]:
    """The images of a file that was found at a place: of a table or list those that it names, else itself."""
    if is_table(name, table_suffixes(place)):
        yield from rows(name, seen, column, objects, inputs)
    elif is_list(place) and is_list(name):
        for line in lines(name, objects):
            yield listed(line, name)
    else:
        yield Source(os.fsencode(name), seen)


def expand_video(source: Source, every: str) -> Iterator[Source]:
    """The frames of a video that are taken, the last one with a fault where the video ends early; or the image."""
    name = os.fsdecode(source.path)
    if source.row is not None or not is_video(name):
        yield source
        return
    for number, time_s, fault in frames_of(name, Every.of(every)):
        path = os.fsencode(row_name(name, number))
        yield Source(path, source.version, Row(name, every, number, True), time_s=time_s, fault=fault)


def rows(
    place: str, seen: str | None, column: str | None, objects: Objects, inputs: InputColumns | None
) -> Iterator[Source]:
    """The images of a table: its rows, or the files that these name; with `inputs` always its rows.

    Raises:
        Unreadable, BucketUnusable: the table cannot be read.
        NotFound, InvalidSetting: it has no column of images, or several, or not those of the inputs.
        InvalidJob: a column holds no inputs.
    """
    table, column = table_files.examine(place, column, objects)

    def row(number: int) -> Source:
        return Source(os.fsencode(row_name(place, number)), seen, Row(place, column, number))

    with table_files.refused(place), closing(table):
        in_rows = columns.holds(columns.column_type(table.schema, column)) == columns.BYTES
        if not in_rows:
            sample = table_files.first(table, column)
            in_rows = any(sample) and not any(map(columns.named, sample))
        if inputs is not None:
            images = itertools.repeat([None]) if in_rows else table.values(column)
            entries = itertools.chain.from_iterable(images)
            for number, (found, value) in enumerate(zip(inputs.read(place, table), entries, strict=False)):
                source, entry = row(number), columns.named(value)
                if entry:  # another picture under the same name is another source
                    source = replace(source, version=f"{seen}, {listed(entry, place).version}")
                for element, values in enumerate(found):
                    path = source.path if inputs.each is None else source.path + f".{element}".encode()
                    yield replace(source, path=path, inputs=values)
            return
        if in_rows:
            yield from map(row, range(table.count()))
            return
        for number, value in enumerate(itertools.chain.from_iterable(table.values(column))):
            entry = columns.named(value)
            yield listed(entry, place) if entry else row(number)


def listed(entry: str, where: str) -> Source:
    """The image that a line of a list or a row of a table names, see `located`."""
    place = located(entry, where)
    return Source(os.fsencode(place), None if is_object(place) else version(place))


def table_suffixes(place: str) -> tuple[str, ...]:
    """The endings of the files that are tables at a place: those of text only where its own name ends so."""
    return table_files.SUFFIXES if is_table(place, text_tables.SUFFIXES) else table_files.BINARY_SUFFIXES


def has_entries(place: str) -> bool:
    """Whether a place may name other locations, by its own name: a list, or a table."""
    return is_list(place) or is_table(place, table_files.SUFFIXES)


def canonical(place: str, column: str | None) -> str:
    """The same text for the same place, however it is written."""
    if not is_object(place):
        path = Path(os.path.expanduser(place))  # noqa: PTH111
        place = str(path.resolve() if path.exists() else path.absolute())
    return place if column is None else f"{place}, column {column}"
