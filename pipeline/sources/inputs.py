"""The values that a job takes from the columns of its input table, besides the image: question, options, truth."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.types as pat

from pipeline.errors import InvalidJob, InvalidSetting, NotFound
from pipeline.job import Job
from pipeline.sources.columns import TEXT, descend, holds, is_list, path_in, plain
from pipeline.sources.table_files import Table

# All values of a row together, as JSON. They stay in memory from the listing to the end of the run.
LONGEST_INPUTS = 50_000


@dataclass(frozen=True, slots=True)
class Inputs:
    """A job's values of one row, or of one element of a list in it."""

    text: str
    """A JSON object: value by name; null where the table has none."""
    fault: str | None
    """Why nothing can be asked about this row; None: it is complete."""


@dataclass(frozen=True, slots=True)
class InputColumns:
    """Where a job's inputs are in a table."""

    paths: dict[str, str]
    """Column, or path of fields such as `texts.user`, by the input's name."""
    each: str | None
    """A column of lists, each element of which is a row of its own."""
    needed: frozenset[str]
    """The inputs without which a question cannot be asked."""

    @classmethod
    def of(cls, job: Job) -> InputColumns | None:
        """Those of a job; None for a job that takes none."""
        return cls(job.inputs, job.each, job.in_questions) if job.inputs else None

    def read(self, place: str, table: Table) -> Iterator[list[Inputs]]:
        """The values of each row in order: one for a row, or one for each element of `each`.

        Raises:
            NotFound: the table has no such column.
            InvalidJob: a column is of another kind than a question takes.
            OSError, pyarrow.ArrowException, ValueError: the table cannot be read.
        """
        schema = table.schema
        each = path_in(schema, self.each) if self.each is not None else []
        paths = {name: path_in(schema, path) for name, path in self.paths.items()}
        element = self._element(place, schema, each) if each else None
        inner = {name for name, path in paths.items() if each and path[: len(each)] == each}
        for name, path in paths.items():
            start, rest = (element, path[len(each) :]) if name in inner else (pa.struct(list(schema)), path)
            self._check(place, schema, name, start, rest)
        roots = [readable(schema, path) for path in [*([each] if each else []), *paths.values()]]
        for row in table.rows(list(dict.fromkeys(roots))):
            outer = {name: descend(row, path) for name, path in paths.items() if name not in inner}
            if not each:
                yield [self._inputs(outer)]
                continue
            elements = descend(row, each) or []
            rests = {name: paths[name][len(each) :] for name in inner}
            found = [
                self._inputs(outer | {name: descend(one, rest) for name, rest in rests.items()}) for one in elements
            ]
            yield found or [Inputs("{}", f"column {self.each} is empty in this row")]

    def kept(self, text: str | None) -> Inputs:
        """The values of a row as an earlier run kept them."""
        values = json.loads(text or "{}")
        return self._inputs({name: values.get(name) for name in self.paths})

    def refuse_others(self, others: Iterator[str]) -> None:
        """See that a place has tables alone; `others` are its files that are none.

        Raises:
            InvalidSetting: there is such a file.
        """
        if (other := next(others, None)) is not None:
            raise InvalidSetting(
                f"images: the job takes {', '.join(self.paths.values())} from a table, and {other!r} is no table: give "
                "one (.parquet, .arrow, .csv, .jsonl) with IMAGES=... or --images"
            )

    def refuse_empty(self, place: str, found: Iterable[Inputs | None]) -> None:
        """See that a question can be asked about at least one row of a place.

        Raises:
            InvalidJob: all rows lack an input; the message has the first row's reason.
        """
        faults = [each.fault for each in found if each]
        if faults and all(faults):
            raise InvalidJob(f"images: {place}: no row has all inputs; the first one: {faults[0]}")

    def _element(self, place: str, schema: pa.Schema, each: list[str]) -> pa.DataType:
        kind = type_at(pa.struct(list(schema)), each)
        if kind is None:
            raise NotFound(f"images: {place} has no column {self.each!r} (each): {named(schema)}")
        if not is_list(plain(kind)):
            raise InvalidJob(f"images: {place}: column {self.each} (each) is {kind}, but must be a list")
        return plain(kind).value_type

    def _check(self, place: str, schema: pa.Schema, name: str, start: pa.DataType, path: list[str]) -> None:
        column = f"column {self.paths[name]!r} (input {name})"
        for length in range(len(path)):
            at = type_at(start, path[:length])
            if length and at is not None and is_list(plain(at)):
                raise InvalidJob(
                    f"images: {place}: {column} leads through a list, {path[length - 1]!r}: name it with `each`, which "
                    "makes a row of each element"
                )
        kind = type_at(start, path)
        if kind is None:
            raise NotFound(f"images: {place} has no {column}: {named(schema)}")
        if not fits(kind):
            raise InvalidJob(
                f"images: {place}: {column} is {kind}: expected text, numbers, true or false, or a list of these"
            )

    def _inputs(self, values: dict[str, Any]) -> Inputs:
        ordered = {name: tidy(values[name]) for name in self.paths}
        for name, value in ordered.items():
            column = f"input {name!r} (column {self.paths[name]})"
            if not is_value(value):
                return Inputs(
                    "{}", f"{column} is {type(value).__name__} in this row: expected text, a number or a list"
                )
            if name in self.needed and value in (None, "", []):
                return Inputs(as_json(ordered), f"{column} is empty in this row")
        text = as_json(ordered)
        if len(text) > LONGEST_INPUTS:
            return Inputs(
                "{}", f"the inputs of this row have {len(text)} characters, at most {LONGEST_INPUTS} are taken"
            )
        return Inputs(text, None)


def example(found: Iterable[Inputs | None]) -> dict[str, Any]:
    """The values of the first row that has them all; empty where there is none."""
    complete = (each.text for each in found if each and not each.fault)
    return dict(json.loads(next(complete, "{}")))


def as_json(values: dict[str, Any]) -> str:
    """Values as one line of JSON; half of a surrogate pair, which no table holds, becomes a question mark."""
    return json.dumps(values, ensure_ascii=False).encode("utf-8", "replace").decode()


def tidy(value: Any) -> Any:
    """A value as JSON has it: text without spaces around it, and null for NaN."""
    if isinstance(value, list):
        return [tidy(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.strip() if isinstance(value, str) else value


def is_value(value: Any) -> bool:
    """Whether a question can take a value."""
    ones = value if isinstance(value, list) else [value]
    return all(one is None or isinstance(one, str | bool | int | float) for one in ones)


def type_at(kind: pa.DataType, path: list[str]) -> pa.DataType | None:
    """The type of a field within a struct; None: there is none."""
    for name in path:
        kind = plain(kind)
        at = kind.get_field_index(name) if pat.is_struct(kind) else -1
        if at < 0:
            return None
        kind = kind.field(at).type
    return kind


def fits(kind: pa.DataType) -> bool:
    """Whether a column's values are ones that a question can take."""
    kind = plain(kind)
    kind = plain(kind.value_type) if is_list(kind) else kind
    scalar = pat.is_integer(kind) or pat.is_floating(kind) or pat.is_boolean(kind) or pat.is_null(kind)
    return scalar or (holds(kind) == TEXT and not is_list(kind) and not pat.is_struct(kind))


def readable(schema: pa.Schema, path: list[str]) -> str:
    """The part of a path that a Parquet file can be asked for: up to the first list, which is read whole."""
    for length in range(1, len(path)):
        kind = type_at(pa.struct(list(schema)), path[:length])
        if kind is not None and is_list(plain(kind)):
            return ".".join(path[:length])
    return ".".join(path)


def named(schema: pa.Schema) -> str:
    """A table's columns, for a message."""
    return "its columns are " + ", ".join(f"{field.name} ({field.type})" for field in schema)
