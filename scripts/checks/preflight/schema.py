"""A job's JSON Schema: its longest answer, the places where an answer has no end, and the keywords without effect."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

# Words, because a tokenizer would need very few tokens for a run of one letter.
WORDS = "brown dog stands near a green tree and looks to the left side of this picture "
# The longest text that is written out, in characters. No max_tokens in use comes near.
WRITTEN_OUT = 100_000
# Stands for a number without bounds: as long as a 64-bit integer or a double.
LONG_NUMBER = "-1234567890123456789"
# xgrammar 0.2 writes at most this many digits after the point of a number that has bounds.
FRACTION_DIGITS = 6
# Formats and the longest text of each. xgrammar 0.2 allows any number of digits in the formats of DIGITS.
FORMATS = {"date": "2026-01-01", "uuid": "0" * 36, "ipv4": "255.255.255.255", "ipv6": "f" * 45}
DIGITS = {
    "time": "00:00:00.000000+00:00",
    "date-time": "2026-01-01T00:00:00.000000+00:00",
    "duration": "P1Y1M1DT1H1M1S",
}

# Keywords without a rule for the answer.
ANNOTATIONS = {
    *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"),
    *("$comment", "$schema", "$id", "$defs", "definitions"),
}
# Keywords that xgrammar 0.2 heeds, alone or with others of their type.
HEEDED = {
    *("type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref"),
    *("minLength", "maxLength", "pattern", "format"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    *("items", "prefixItems", "unevaluatedItems", "minItems", "maxItems"),
    *("properties", "required", "additionalProperties", "unevaluatedProperties"),
    *("minProperties", "maxProperties", "patternProperties", "propertyNames"),
}
# xgrammar 0.2 reads the first of these and nothing else beside it.
GOVERNING = ("$ref", "anyOf", "oneOf", "allOf")


@dataclass(frozen=True, slots=True)
class Longest:
    """The longest value of a schema, as JSON with the spaces that xgrammar writes: after each comma and colon."""

    characters: int
    text: str
    """Cut where it is longer than WRITTEN_OUT."""


@dataclass(frozen=True, slots=True)
class Endless:
    """A place where the schema sets no end."""

    where: str
    reason: str
    remedy: str
    likely: bool = True
    """Whether models write on there: in text and lists they do, in numbers seldom."""


@dataclass(frozen=True, slots=True)
class Unsupported:
    """A keyword that the server's grammar cannot enforce."""

    where: str
    keyword: str
    refused: bool
    """vLLM refuses the request; else it ignores the keyword."""


def resolve(reference: str, root: Any) -> Any:
    """The schema that a reference names; None where it leads nowhere."""
    found = root
    for part in unquote(reference.removeprefix("#")).split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and name.isdecimal():
            found = found[int(name)] if int(name) < len(found) else None
        else:
            found = found.get(name) if isinstance(found, dict) else None
    return found if reference.startswith("#") else None


def types(schema: dict[str, Any]) -> list[str]:
    """The types that a schema names; an object where only its properties tell."""
    named = schema.get("type", "object" if "properties" in schema else [])
    return [named] if isinstance(named, str) else list(named)


@dataclass
class Measure:
    """A walk through a schema that adds up its longest answer and notes every place without an end."""

    root: dict[str, Any]
    endless: list[Endless] = field(default_factory=list)

    def no_end(self, where: str, reason: str, remedy: str, text: str = "", *, likely: bool = True) -> Longest:
        """Note a place without an end; it counts with the length of `text`."""
        self.endless.append(Endless(where, reason, remedy, likely))
        return Longest(len(text), text)

    def longest(self, schema: Any, where: str = "answer", inside: tuple[str, ...] = ()) -> Longest:
        """The longest value of a schema; `inside` are the references that led here."""
        if not isinstance(schema, dict) or not schema:
            return self.no_end(where, "may be anything", "give it a type, an enum or a const")
        if reference := schema.get("$ref"):
            if reference in inside:
                return self.no_end(where, "contains itself", "write out as many levels as the job needs")
            return self.longest(resolve(reference, self.root), where, (*inside, reference))
        if "const" in schema or "enum" in schema:
            values = map(written, schema.get("enum", [schema.get("const")]))
            return max(values, key=size, default=written(None))
        for key in ("anyOf", "oneOf", "allOf"):
            if key in schema:
                branches = [self.longest(each, where, inside) for each in schema[key]]
                return max(branches, key=size, default=written(None))
        found = [self.of_type(kind, schema, where, inside) for kind in types(schema)]
        return max(found, key=size) if found else self.no_end(where, "has no type", "give it a type")

    def of_type(self, kind: str, schema: dict[str, Any], where: str, inside: tuple[str, ...]) -> Longest:
        """The longest value of one type."""
        match kind:
            case "boolean" | "null":
                return written(False if kind == "boolean" else None)
            case "integer" | "number":
                return self.number(kind, schema, where)
            case "string":
                return self.string(schema, where)
            case "array":
                return self.array(schema, where, inside)
            case "object":
                return self.object(schema, where, inside)
        return self.no_end(where, f"has the unknown type {kind!r}", "correct its type")

    def number(self, kind: str, schema: dict[str, Any], where: str) -> Longest:
        """The longest number."""
        given = [schema.get(name, schema.get(f"exclusive{name.capitalize()}")) for name in ("minimum", "maximum")]
        bounds = [bound for bound in given if isinstance(bound, int | float) and not isinstance(bound, bool)]
        if len(bounds) < 2:
            reason, remedy = f"is {a(kind)} without minimum and maximum", "add minimum and maximum"
            return self.no_end(where, reason, remedy, LONG_NUMBER, likely=False)
        whole = max((str(int(bound)) for bound in bounds), key=len)
        text = whole if kind == "integer" else f"{whole}.{'1' * FRACTION_DIGITS}"
        return Longest(len(text), text)

    def string(self, schema: dict[str, Any], where: str) -> Longest:
        """The longest string."""
        form, pattern = schema.get("format"), schema.get("pattern")
        if isinstance(pattern, str):  # vLLM refuses it together with maxLength
            plain = re.sub(r"\\.|\[(?:\\.|[^\]])*\]", "x", pattern)
            if re.search(r"[*+]|\{\d*,\}", plain):
                return self.no_end(
                    where, "is a string whose pattern has no end", "give each repetition an end, such as {1,12}"
                )
            repeats = [int(number) for number in re.findall(r"\{(?:\d+,)?(\d+)\}", plain)]
            length = len(plain) * max([1, *repeats])
        elif form in FORMATS:
            return written(FORMATS[form])
        elif form in DIGITS:
            reason = f"is a string of format {form}, whose digits have no end"
            return self.no_end(where, reason, "use a pattern with an end", f'"{DIGITS[form]}"', likely=False)
        elif "maxLength" in schema:
            length = int(schema["maxLength"])
        else:
            return self.no_end(where, "is a string without maxLength", "add maxLength, or an enum")
        out = min(length, WRITTEN_OUT)
        return Longest(length + 2, f'"{(WORDS * (out // len(WORDS) + 1))[:out]}"')

    def array(self, schema: dict[str, Any], where: str, inside: tuple[str, ...]) -> Longest:
        """The longest array."""
        first = [self.longest(each, f"{where}[{n}]", inside) for n, each in enumerate(schema.get("prefixItems", []))]
        items, most = schema.get("items"), schema.get("maxItems")
        if items is False or (first and items is None):  # nothing behind the first ones
            return joined("[", first, "]")
        if most is None:
            return self.no_end(where, "is an array without maxItems", "add maxItems")
        more = max(int(most) - len(first), 0)
        if not more:
            return joined("[", first[: int(most)], "]")
        item = self.longest(items, f"{where}[]", inside)
        written_out = joined("[", [*first, *[item] * min(more, WRITTEN_OUT // (item.characters + 2) + 1)], "]")
        return Longest(sum(each.characters + 2 for each in first) + more * (item.characters + 2), written_out.text)

    def object(self, schema: dict[str, Any], where: str, inside: tuple[str, ...]) -> Longest:
        """The longest object."""
        properties = schema.get("properties")
        remedy = "list its properties, and set additionalProperties: false"
        for open_ended in ("additionalProperties", "unevaluatedProperties", "patternProperties"):
            if schema.get(open_ended):
                return self.no_end(where, f"is an object that allows {open_ended}", remedy)
        if properties is None and schema.get("additionalProperties") is not False:
            return self.no_end(where, "is an object without properties, which allows any", remedy)
        members = []
        for name, each in (properties or {}).items():
            value = self.longest(each, f"{where}.{name}", inside)
            key = json.dumps(name, ensure_ascii=False)
            members.append(Longest(len(key) + 2 + value.characters, f"{key}: {value.text}"))
        return joined("{", members, "}")


def size(value: Longest) -> int:
    """Characters of a value."""
    return value.characters


def a(kind: str) -> str:
    """A type with its article."""
    return f"{'an' if kind[0] in 'aio' else 'a'} {kind}"


def written(value: Any) -> Longest:
    """One value."""
    text = json.dumps(value, ensure_ascii=False)
    return Longest(len(text), text)


def joined(before: str, parts: list[Longest], after: str) -> Longest:
    """Values within an array or an object."""
    characters = sum(each.characters for each in parts) + 2 * max(len(parts) - 1, 0) + 2
    return Longest(characters, before + ", ".join(each.text for each in parts) + after)


def parts(root: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema within a schema, once, with the place of its values; references are followed."""
    seen: set[int] = set()
    # vLLM also reads the definitions that nothing refers to.
    named = [
        (f"{key}.{name}", each) for key in ("$defs", "definitions") for name, each in (root.get(key) or {}).items()
    ]
    for start in [("answer", root), *named]:
        waiting: list[tuple[str, Any]] = [start]
        for where, schema in waiting:  # grows as it goes
            if not isinstance(schema, dict) or id(schema) in seen:
                continue
            seen.add(id(schema))
            yield where, schema
            if isinstance(reference := schema.get("$ref"), str):
                waiting.append((where, resolve(reference, root)))
            for key in ("properties", "patternProperties"):
                waiting += [(f"{where}.{name}", each) for name, each in (schema.get(key) or {}).items()]
            for key in ("anyOf", "oneOf", "allOf"):
                waiting += [(where, each) for each in schema.get(key) or []]
            waiting += [(f"{where}[{number}]", each) for number, each in enumerate(schema.get("prefixItems") or [])]
            waiting += [(f"{where}[]", schema.get("items")), (f"{where}.*", schema.get("additionalProperties"))]


def unsupported(root: dict[str, Any], formats: set[str]) -> list[Unsupported]:
    """The keywords that vLLM 0.32 with xgrammar 0.2 refuses or ignores; `formats` are the ones that it knows."""
    found = []
    for where, schema in parts(root):
        refused = set(refused_keywords(schema, formats))
        governing = next((key for key in GOVERNING if key in schema), None)
        heeded = {governing, "type"} if governing else HEEDED
        ignored = schema.keys() - heeded - ANNOTATIONS
        if "properties" in schema and set(schema.get("required", ())) - schema["properties"].keys():
            ignored |= {"required"}
        if re.search(r"\(\?<?[=!]", str(schema.get("pattern"))):  # xgrammar skips a pattern's lookarounds
            ignored |= {"pattern"}
        found += [Unsupported(where, key, key in refused) for key in schema if key in refused | ignored]
    return found


def refused_keywords(schema: dict[str, Any], formats: set[str]) -> Iterator[str]:
    """The keywords of one schema for which vLLM refuses a request: has_xgrammar_unsupported_json_features there."""
    kinds = set(types(schema))
    if kinds & {"integer", "number"}:
        yield "multipleOf"
    if "array" in kinds:
        yield from ("uniqueItems", "contains", "minContains", "maxContains")
    if isinstance(schema.get("items"), list):
        yield "items"
    if "string" in kinds:
        if "format" in schema and schema["format"] not in formats:
            yield "format"
        if "pattern" in schema or "format" in schema:
            yield from ("minLength", "maxLength")
    if len(schema.get("allOf", ())) > 1:
        yield "allOf"
    if "object" in kinds:
        names, patterns = schema.get("propertyNames"), schema.get("patternProperties")
        if "properties" in schema or (patterns and len(patterns) > 1):
            yield "patternProperties"
        bounded = (
            isinstance(names, dict)
            and names.keys() & {"pattern", "format"}
            and names.keys() & {"minLength", "maxLength"}
        )
        if "properties" in schema or patterns or bounded or schema.get("unevaluatedProperties", True) is not True:
            yield "propertyNames"
