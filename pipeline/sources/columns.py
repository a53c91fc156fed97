"""Columns of tables: which one holds images, and how to get an image, or its location, from a value.

An image is in a column as bytes, as text (a path, an address, base64 or a data URL), or in a list of one or a struct of
these, such as `{bytes, path}` of Hugging Face's datasets.
"""

from __future__ import annotations

import ast
import base64
import binascii
from contextlib import suppress
from typing import Any, Literal
from urllib.parse import unquote_to_bytes

import pyarrow as pa
import pyarrow.types as pat

from imaging.kinds import HEAD_BYTES, IMAGE_SUFFIXES, image_format, suffix_of
from pipeline.errors import InvalidSetting, NotFound
from pipeline.locations import is_object
from pipeline.sources.images import BadImage

Holds = Literal["bytes", "text"] | None
BYTES: Holds = "bytes"
TEXT: Holds = "text"

# Fields of a struct in the order in which they are preferred, where it has several.
BYTES_FIELDS = ("bytes", "image", "data", "content", "image_bytes")
TEXT_FIELDS = ("path", "image", "file_name", "filename", "file", "image_path", "url", "image_url", "uri", "src")

# What a column of images is told by, where several hold bytes or text.
ROWS_LOOKED_AT = 20


def plain(kind: pa.DataType) -> pa.DataType:
    """A type without its encoding: dictionary, runs, or an extension."""
    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif pat.is_dictionary(kind) or pat.is_run_end_encoded(kind):
            kind = kind.value_type
        else:
            return kind


def is_list(kind: pa.DataType) -> bool:
    """Whether a plain type is one of Arrow's lists."""
    lists = (pat.is_list, pat.is_large_list, pat.is_fixed_size_list, pat.is_list_view, pat.is_large_list_view)
    return any(is_one(kind) for is_one in lists)


def is_byte_list(kind: pa.DataType) -> bool:
    """Whether a plain type is a list of 8-bit integers, which pandas and Polars make of an array of bytes."""
    return is_list(kind) and (pat.is_uint8(kind.value_type) or pat.is_int8(kind.value_type))


def holds(kind: pa.DataType) -> Holds:
    """Whether a column of this type may hold images' bytes or text about them; None: neither."""
    kind = plain(kind)
    binaries = (pat.is_binary, pat.is_large_binary, pat.is_binary_view, pat.is_fixed_size_binary, is_byte_list)
    if any(is_one(kind) for is_one in binaries):
        return BYTES
    if pat.is_string(kind) or pat.is_large_string(kind) or pat.is_string_view(kind):
        return TEXT
    if is_list(kind):
        return holds(kind.value_type)
    if pat.is_struct(kind):
        fields = {field.name: holds(field.type) for field in kind}
        return next((fields[name] for name in chosen(fields)), None)
    return None


def chosen(fields: dict[str, Holds]) -> list[str]:
    """Of a struct's fields the one that holds an image's bytes and the one that says where it is, in this order."""

    def one(wanted: Holds, preferred: tuple[str, ...]) -> list[str]:
        there = [name for name in fields if fields[name] == wanted]
        named = [name for name in preferred if name in there]
        return named[:1] or (there if len(there) == 1 else [])

    return one(BYTES, BYTES_FIELDS) + one(TEXT, TEXT_FIELDS)


def leaves(name: str, kind: pa.DataType) -> list[str]:
    """What has to be read of a Parquet file for a column: of a struct the chosen fields alone."""
    kind = plain(kind)
    if not pat.is_struct(kind):
        return [name]
    fields = chosen({field.name: holds(field.type) for field in kind})
    return [leaf for field in fields for leaf in leaves(f"{name}.{field}", kind.field(field).type)]


def pick(value: Any) -> bytes | str | None:
    """The bytes or the text about an image in a value of a column, as Python has it; None: it is empty.

    Raises:
        BadImage: it holds several images.
    """
    if isinstance(value, dict):
        picked = {name: pick(part) for name, part in value.items()}
        held = {name: BYTES if isinstance(part, bytes) else TEXT if part else None for name, part in picked.items()}
        return next((picked[name] for name in chosen(held)), None)
    if isinstance(value, list):
        if len(value) > 1 and not isinstance(value[0], int):
            raise BadImage(f"this row holds {len(value)} images: write one row for each image")
        if value and isinstance(value[0], int):
            return bytes(number & 255 for number in value)
        return pick(value[0]) if value else None
    if isinstance(value, str):
        if value.startswith("{'bytes':"):  # as Hugging Face's datasets write an image into CSV
            with suppress(ValueError, SyntaxError):
                return pick(ast.literal_eval(value))
        return value.strip() or None
    return value if isinstance(value, bytes) and value else None


def named(value: Any) -> str | None:
    """The path or address that a value of a column names; None: it holds an image itself, none, or several."""
    try:
        picked = pick(value)
    except BadImage:
        return None
    return picked if isinstance(picked, str) and not is_inline(picked) else None


def inline(text: str) -> bytes | None:
    """The bytes of an image that is written as a data URL or as base64; None for a path or an address.

    Raises:
        BadImage: it is damaged.
    """
    if not is_inline(text):
        return None
    head, _, data = text.partition(",") if text[:5].lower() == "data:" else ("base64", ",", text)
    if not head.lower().endswith("base64"):
        return unquote_to_bytes(data)
    try:
        return from_base64(data)
    except binascii.Error as error:
        raise BadImage(f"damaged base64 text: {error}") from error


def is_inline(text: str) -> bool:
    """Whether a text is a data URL, or begins as an image in base64 does."""
    if text[:5].lower() == "data:":
        return "," in text
    start = text[: HEAD_BYTES // 3 * 4]
    if len(start) < 64 or not start.isascii() or "." in start:
        return False
    try:
        return image_format(from_base64(start)) is not None
    except binascii.Error:
        return False


def from_base64(text: str) -> bytes:
    """Decode base64, also in its form for addresses, over several lines, or without padding."""
    text = "".join(text.split()).rstrip("=").replace("-", "+").replace("_", "/")
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)


def column_type(schema: pa.Schema, column: str) -> pa.DataType | None:
    """The type of a column, or of a field in it such as `sample.image`; None: there is none."""
    if column in schema.names:
        return schema.field(column).type
    kind: Any = schema
    for name in column.split("."):
        kind = plain(kind) if isinstance(kind, pa.DataType) else kind
        found = kind.get_field_index(name) if isinstance(kind, pa.Schema | pa.StructType) else -1
        if found < 0:
            return None
        kind = kind.field(found).type
    return kind


def descend(value: Any, path: list[str]) -> Any:
    """The value of a field in a value."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def path_in(schema: pa.Schema, column: str) -> list[str]:
    """The names of a column and of the fields in it that lead to `column`."""
    return [column] if column in schema.names else column.split(".")


def choose(place: str, schema: pa.Schema, column: str | None, samples: dict[str, list[Any]]) -> str:
    """The name of a table's column of images, `column` if it is given.

    Without one it is the only column of bytes or text, or the only one whose `samples` (values of the first rows) are
    images or name images. Of several, one of bytes is preferred.

    Raises:
        NotFound: there is no such column.
        InvalidSetting: there are several.
    """
    usable = usable_columns(schema)
    if column is not None:
        kind = column_type(schema, column)
        if kind is None or holds(kind) is None:
            raise NotFound(f"images: {place} has no column {column!r} of bytes or text: {listed(schema)}")
        return column
    strength = {name: max(map(likeness, samples.get(name, [])), default=0) for name in usable}
    most = max(strength.values(), default=0)
    likely = [name for name in usable if strength[name] == most]
    in_bytes = [name for name in likely if holds(schema.field(name).type) == BYTES]
    candidates = in_bytes or likely
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise NotFound(f"images: {place} has no column of bytes or text: {listed(schema)}")
    raise InvalidSetting(
        f"images: {place} has several columns that may hold images ({', '.join(candidates)}): name one with "
        f"SPOTTER_COLUMN; {listed(schema)}"
    )


def usable_columns(schema: pa.Schema) -> list[str]:
    """The columns that may hold images; an index that pandas wrote along does not."""
    return [field.name for field in schema if holds(field.type) and not field.name.startswith("__index_level_")]


def likeness(value: Any) -> int:
    """How much a value looks like an image: 2 its bytes, text or file name, 1 an address, 0 not at all."""
    try:
        picked = pick(value)
    except BadImage:
        return 1
    if isinstance(picked, str):
        named = suffix_of(picked.partition("?")[0]) in IMAGE_SUFFIXES
        return 2 if named or is_inline(picked) else int(is_object(picked))
    return 2 if picked and image_format(picked[:HEAD_BYTES]) else 0


def listed(schema: pa.Schema) -> str:
    """A table's columns with their types, and what those that cannot be used lack, for a message."""

    def lack(kind: pa.DataType) -> str:
        if holds(kind):
            return ""
        kind = plain(kind)
        return ", no field of bytes or one of text" if pat.is_struct(kind) else ", neither bytes nor text"

    columns = [f"{field.name} ({field.type}{lack(field.type)})" for field in schema]
    return f"its columns are {', '.join(columns)}" if columns else "it has no columns"
