"""What a JSON Schema allows: kinds of values, and answers without an end. References are inlined beforehand."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Collection
from functools import reduce
from typing import Any, NoReturn

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


def listed_values(schema: Any) -> list[Any] | None:
    """The values that a schema lists, true and false for a boolean; None where it lists none."""
    if not isinstance(schema, dict):
        return None
    if values := list_of(schema, "enum"):
        return values
    if "const" in schema:
        return [schema["const"]]
    if kinds(schema) - {"null"} == {"boolean"}:
        return [True, False]
    members = [
        listed_values(each) for each in list_of(schema, "anyOf") or list_of(schema, "oneOf") if not is_null(each)
    ]
    found = [values for values in members if values is not None]
    return [value for values in found for value in values] if found and len(found) == len(members) else None


def is_null(schema: Any) -> bool:
    """Whether null is all that a schema allows."""
    return kinds(schema) == {"null"}


def as_list(value: Any) -> list[Any]:
    """A list as it is, another value as a list of one."""
    return value if isinstance(value, list) else [value]


def list_of(schema: dict[str, Any], key: str) -> list[Any]:
    """The list under a keyword; empty without the keyword."""
    found = schema.get(key)
    return found if isinstance(found, list) else []


class SchemaError(ValueError):
    """A job's content that cannot be used; `where` are the keys that lead to it from the top of the file."""

    def __init__(self, where: tuple[str | int, ...], message: str) -> None:
        super().__init__(message)
        self.where = where


def check_names(schema: dict[str, Any], taken: Collection[str]) -> None:
    """Refuse properties that cannot be columns beside those `taken`; SQL does not tell upper from lower case.

    Raises:
        SchemaError: names the property.
    """
    columns = {folded(name): name for name in taken}
    for name in schema["properties"]:
        where = ("schema", "properties", name)
        if not name.strip():
            raise SchemaError(where, "a property has no name")
        if (other := columns.get(folded(name))) is not None:
            whose = "a column of detections.parquet" if other in taken else "another property"
            raise SchemaError(where, f"property {name!r} has the name of {whose}, {other!r}; rename it")
        columns[folded(name)] = name
    for name in list_of(schema, "required"):
        if name not in schema["properties"]:
            raise SchemaError(("schema", "required"), f"{name!r} is required, but not among the properties")


def folded(name: str) -> str:
    """A name as a table compares it."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def check_ends(schema: Any, where: tuple[str | int, ...], name: str = "") -> None:
    """Refuse a property that allows answers without an end, at any depth. Numbers are taken: models end them.

    Raises:
        SchemaError: names the property, for example `tags[]`, and its kind.
    """

    def endless(kind: str, remedy: str) -> NoReturn:
        cost = "or a weak model writes until max_tokens and every answer is cut"
        raise SchemaError(where, f"property {name!r} {kind}: give it {remedy}, {cost}")

    name = name or str(where[-1])
    if schema is False:
        return
    if not isinstance(schema, dict):
        endless("may be anything", "a 'type' or an 'enum'")
    if "enum" in schema:
        check_choices(schema["enum"], (*where, "enum"), name)
    if "enum" in schema or "const" in schema:
        return
    if "$ref" in schema:  # all others are inlined
        endless("contains itself", "a schema that does not")
    if members := list_of(schema, "allOf"):
        check_ends(merged([schema, *members], without="allOf"), where, name)
        return
    for key in ("anyOf", "oneOf"):
        if members := list_of(schema, key):
            for number, member in enumerate(members):
                check_ends(merged([schema, member], without=key), (*where, key, number), name)
            return
    types = kinds(schema)
    if types == KINDS:
        types = frozenset({"object"} if "properties" in schema else {"array"} if "items" in schema else KINDS)
    if types == KINDS:
        endless("may be anything", "a 'type' or an 'enum'")
    if "string" in types and not {"maxLength", "format", "pattern"} & set(schema):
        endless("is a string without an end", "'enum' or 'maxLength'")
    if "array" in types and schema.get("maxItems") != 0:
        parts = [((*where, "prefixItems", n), each) for n, each in enumerate(list_of(schema, "prefixItems"))]
        if schema.get("items") is not False:
            if "maxItems" not in schema:
                endless("is an array without an end", "'maxItems'")
            parts += [] if len(parts) >= schema["maxItems"] else [((*where, "items"), schema.get("items"))]
        for place, each in parts:
            check_ends(each, place, f"{name}[]")
    if "object" in types:
        further = schema.get("additionalProperties", False)
        if further is not False:
            endless("is an object without an end", "'additionalProperties: false'")
        for key, each in (schema.get("properties") or {}).items():
            check_ends(each, (*where, "properties", key), f"{name}.{key}")


def check_choices(values: list[Any], where: tuple[str | int, ...], name: str) -> None:
    """Refuse an enum without a choice, or with one that stands there twice.

    Raises:
        SchemaError: names the property and the value.
    """
    if not values:
        raise SchemaError(where, f"property {name!r} has an enum without values: no answer fits it")
    seen = set()
    for number, value in enumerate(values):
        if (text := json.dumps(value, sort_keys=True)) in seen:
            raise SchemaError((*where, number), f"property {name!r} has {text} twice in its enum: remove one")
        seen.add(text)


def merged(schemas: list[Any], without: str) -> dict[str, Any]:
    """Schemas of the same value as one; what two of them say differently is the last one's."""
    found: dict[str, Any] = {}
    for schema in schemas:
        found |= {key: value for key, value in schema.items() if key != without} if isinstance(schema, dict) else {}
    return found
