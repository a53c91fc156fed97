"""What a JSON Schema allows: kinds of values, and answers without an end. References are inlined beforehand."""

from __future__ import annotations

from functools import reduce
from typing import Any

NUMBERS = frozenset({"integer", "number"})
KINDS = NUMBERS | {"null", "boolean", "string", "array", "object"}


def kind(value: Any) -> str:
    """The JSON Schema type of a JSON value; `integer` for a number written without a fraction."""
    if value is None:
        return "null"
    names = {bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}
    return next((name for each, name in names.items() if isinstance(value, each)), "string")


def kinds(schema: Any) -> frozenset[str]:
    """The types that a schema's values may have; KINDS where nothing limits them. Malformed keywords limit nothing.

    A declared `type: number` stays a number also where an enum lists integers only.
    """
    if not isinstance(schema, dict):
        return KINDS
    groups = []
    declared = schema.get("type")
    if names := KINDS & frozenset(each for each in as_list(declared) if isinstance(each, str)):
        groups.append(names)
    if "const" in schema:
        groups.append(frozenset({kind(schema["const"])}))
    if values := list_of(schema, "enum"):
        groups.append(frozenset(map(kind, values)))
    for key in ("anyOf", "oneOf"):
        if members := list_of(schema, key):
            groups.append(frozenset().union(*map(kinds, members)))
    groups += map(kinds, list_of(schema, "allOf"))
    return reduce(both, (each for each in groups if each != KINDS), KINDS) if groups else KINDS


def both(first: frozenset[str], second: frozenset[str]) -> frozenset[str]:
    """The types that two schemas allow together; of `integer` and `number` the name that the first one uses."""
    if first == KINDS:
        return second
    return frozenset(each for each in first if each in second or (each in NUMBERS and second & NUMBERS))


def as_list(value: Any) -> list[Any]:
    """A list as it is, another value as a list of one."""
    return value if isinstance(value, list) else [value]


def list_of(schema: dict[str, Any], key: str) -> list[Any]:
    """The list under a keyword; an empty one where there is none."""
    found = schema.get(key)
    return found if isinstance(found, list) else []
