"""Read a job file: YAML in which text stays text, whatever a version of YAML makes of it.

YAML 1.1 reads `no` as false, `012` as 10 and `12:30` as 750; YAML 1.2 reads two of these otherwise. Here the position
decides: a value with `type: string` is the text as written, a number must be decimal, a boolean is `true` or `false`.
Where no type decides, an unquoted value is a number, true, false or null only if JSON writes it in the same way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import yaml

from pipeline.answer_schema import KINDS, NUMBERS, as_list, kind, kinds
from pipeline.errors import InvalidJob

# Keys and list positions from the top of the file: ("schema", "properties", "color", "enum", 2).
Where = tuple[str | int, ...]

# Aliases can repeat a value without end; the longest real job file has some thousand values.
MOST_VALUES = 100_000

# The keywords of JSON Schema by what stands under them.
ONE_VALUE, VALUES = {"const", "default"}, {"enum", "examples"}
NAMED_SCHEMAS = {"properties", "patternProperties", "dependentSchemas", "$defs", "definitions"}
SAME_VALUE = {"anyOf", "oneOf", "allOf", "not", "if", "then", "else"}  # schemas of the value itself
PART = {"items", "prefixItems", "contains", "additionalProperties", "propertyNames"}
PART |= {"unevaluatedItems", "unevaluatedProperties"}
TEXT = {"type", "required", "dependentRequired", "title", "description", "pattern", "format"}
TEXT |= {"$ref", "$id", "$schema", "$anchor", "$comment", "$dynamicRef", "$dynamicAnchor"}
TEXT |= {"contentEncoding", "contentMediaType"}
NUMBER = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength"}
NUMBER |= {"minItems", "maxItems", "minContains", "maxContains", "minProperties", "maxProperties"}
BOOLEAN = {"uniqueItems", "readOnly", "writeOnly", "deprecated"}
KEYWORDS = ONE_VALUE | VALUES | NAMED_SCHEMAS | SAME_VALUE | PART | TEXT | NUMBER | BOOLEAN

# YAML 1.2, the core schema.
NULL = re.compile(r"null|Null|NULL|~|")
TRUE, FALSE = re.compile(r"true|True|TRUE"), re.compile(r"false|False|FALSE")
DECIMAL = re.compile(r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
ODD_NUMBER = re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?|0o[0-7]+|0x[0-9a-fA-F]+")
NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")

# What to do about messages of PyYAML that do not say it.
REMEDIES = {
    "mapping values are not allowed": "quote a text that holds ': '",
    "cannot start any token": "indent with spaces, and quote a text that starts with a special character",
    "another document": "write one job into a file, without '---' between its parts",
}


class PlainLoader(yaml.BaseLoader):
    """Nodes without a reading of their scalars. A tag (`!!int`) asks for a reading, so it is an error."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The next node."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None):
            problem = f"found the tag {event.tag!r}: remove it, and quote what is text"
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        return super().compose_node(parent, index)


class JobFile:
    """The content of one job file, and the line of each of its values."""

    def __init__(self, file: Path, schema: dict[str, Any]) -> None:
        """Read a file whose keys and values have a JSON `schema`, with its references inlined.

        Raises:
            InvalidJob: it cannot be read, or a value can mean two things; says where and what to do.
        """
        self.file = file
        self.lines: dict[Where, int] = {}
        try:
            root = yaml.compose(file.read_bytes(), PlainLoader)
            if not isinstance(root, yaml.MappingNode):
                self.refuse((), f"must hold keys and values, as {Path(__file__).parent / 'jobs/dog_breeds.yaml'} does")
            self.content: dict[str, Any] = self.value(root, schema, ())
        except OSError as error:
            self.refuse((), f"cannot be read: {error.strerror or error}")
        except yaml.MarkedYAMLError as error:
            if mark := error.problem_mark or error.context_mark:
                self.lines[()] = mark.line + 1
            said = ": ".join(filter(None, (error.context, error.problem)))
            remedy = next((f": {remedy}" for words, remedy in REMEDIES.items() if words in said), "")
            self.refuse((), f"cannot be read as YAML: {said}{remedy}")
        except (yaml.YAMLError, UnicodeError) as error:
            self.refuse((), f"cannot be read as YAML: {error}: save it as UTF-8, without control characters")
        except RecursionError:
            self.refuse((), "is nested too deep, or an alias (*) stands within its own anchor (&)")

    def refuse(self, where: Where, message: str) -> NoReturn:
        """Say what is wrong with a value of the file.

        Raises:
            InvalidJob: always.
        """
        known = next((where[:end] for end in range(len(where), -1, -1) if where[:end] in self.lines), None)
        line = "" if known is None else f", line {self.lines[known]}"
        name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).removeprefix(".")
        text = f"job file {self.file}{line}: {name}{': ' if name else ''}{message}"
        raise InvalidJob(" ".join(text.encode("utf-8", "backslashreplace").decode().split()))

    def note(self, node: yaml.Node, where: Where) -> None:
        """Remember a value's line."""
        self.lines[where] = node.start_mark.line + 1
        if len(self.lines) > MOST_VALUES:
            self.refuse(where, f"the file has more than {MOST_VALUES} values: do its aliases (*) repeat each other?")

    def items(self, node: yaml.SequenceNode, where: Where) -> Iterator[tuple[Where, yaml.Node]]:
        """The values of a list."""
        for number, child in enumerate(node.value):
            self.note(child, (*where, number))
            yield (*where, number), child

    def pairs(self, node: yaml.MappingNode, where: Where) -> Iterator[tuple[str, yaml.Node]]:
        """The keys of a mapping, as written, and their values."""
        lines: dict[str, int] = {}
        for key, child in node.value:
            line = key.start_mark.line + 1
            place = (*where, key.value if isinstance(key, yaml.ScalarNode) else "?")
            self.note(key, place)
            if not isinstance(key, yaml.ScalarNode):
                self.refuse(place, "a key must be text, not a list or a mapping")
            if key.style is None and not key.value:
                self.refuse(place, "a key is missing before ':'")
            if key.style is None and key.value == "<<":
                self.refuse(place, "merges keys in YAML 1.1 only: write the keys themselves")
            if key.value in lines:
                self.refuse(place, f"is given twice, first in line {lines[key.value]}: remove one")
            lines[key.value] = line
            yield self.storable(key, place), child

    def storable(self, node: yaml.ScalarNode, where: Where) -> str:
        """The text of a scalar, if a request and a table can hold it."""
        text: str = node.value
        if "\0" in text or re.search(r"[\ud800-\udfff]", text):
            self.refuse(where, "the text holds a NUL or half of a surrogate pair: remove it")
        return text

    def value(self, node: yaml.Node, schema: Any, where: Where) -> Any:
        """A value of the file, by its JSON schema."""
        schema = schema if isinstance(schema, dict) else {}
        types = kinds(schema)
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, types, where)
        if isinstance(node, yaml.SequenceNode):
            self.require("array", types, where)
            return [self.value(child, schema.get("items"), place) for place, child in self.items(node, where)]
        assert isinstance(node, yaml.MappingNode)
        self.require("object", types, where)
        known = schema.get("properties")
        known = known if isinstance(known, dict) else {}
        found = {}
        for key, child in self.pairs(node, where):
            if is_schema((*where, key)) and isinstance(child, yaml.MappingNode):
                found[key] = self.schema(child, KINDS, (*where, key))
            else:
                found[key] = self.value(child, known.get(key, schema.get("additionalProperties")), (*where, key))
        return found

    def require(self, found: str, types: frozenset[str], where: Where) -> None:
        """Refuse a list or a mapping where the type is another one."""
        if found not in types:
            self.refuse(where, f"is {ONE[found]}, but must be {one_of(types)}")

    def scalar(self, node: yaml.ScalarNode, types: frozenset[str], where: Where) -> Any:
        """A scalar of one of these types."""
        text = self.storable(node, where)
        quoted = node.style is not None
        value, decimal = (text, True) if quoted else plain(text)
        if isinstance(value, str):
            if "string" not in types:
                hint = ": write decimal digits" if types & NUMBERS else ""
                hint = ": remove the quotes" if quoted and plain(text)[0] != text else hint
                self.refuse(where, f"{text!r} is text, but must be {one_of(types)}{hint}")
            # An enum's choices are words; a field of a request may well be a boolean.
            if not quoted and types == KINDS and not in_schema(where) and is_read_in_yaml_1_1(text):
                self.refuse(where, f"{text!r} is text only in some versions of YAML: quote it, or write it as JSON")
            return text
        as_json = json.dumps(value)
        fits = kind(value) in types or (isinstance(value, float) and value.is_integer() and "integer" in types)
        fits = fits or (kind(value) in NUMBERS and "number" in types)
        if fits and "string" in types and text != as_json and not (text in ("", "~") and types != KINDS):
            instead = f", or write {as_json}" if decimal else ""
            self.refuse(where, f"{text!r} is text or {as_json}: quote it if it is text{instead}")
        if fits and not decimal:
            self.refuse(where, f"{text!r} is not a decimal number: write it without leading zeros or prefix")
        if fits:
            return value
        if "string" not in types or value is None:
            found = f"{text or 'an empty value'} is {ONE[kind(value)]}, but must be {one_of(types)}"
            remedy = ': quote it, or add "null" to the type' if in_schema(where) else ": quote it"
            remedy = remedy if "string" in types else ""
            self.refuse(where, found + (remedy if text else ": give it a value, or remove the key"))
        return text

    def schema(self, node: yaml.Node, outer: frozenset[str], where: Where) -> Any:
        """A JSON schema; `outer` are the types that the schema around it allows for the same value."""
        if isinstance(node, yaml.ScalarNode):
            return self.value(node, {"type": ["object", "boolean"]}, where)
        if isinstance(node, yaml.SequenceNode):
            return [self.schema(child, outer, place) for place, child in self.items(node, where)]
        assert isinstance(node, yaml.MappingNode)
        pairs = list(self.pairs(node, where))
        own = next((kinds({"type": self.text(child, (*where, key))}) for key, child in pairs if key == "type"), KINDS)
        types = outer if own == KINDS else own
        found: dict[str, Any] = {}
        for key, child in sorted(pairs, key=lambda pair: pair[0] in ONE_VALUE | VALUES):  # these need what limits them
            place = (*where, key)
            if key in SAME_VALUE:
                found[key] = self.schema(child, types, place)
            elif key in PART:
                found[key] = self.schema(child, KINDS, place)
            elif key in NAMED_SCHEMAS and isinstance(child, yaml.MappingNode):
                found[key] = {name: self.schema(each, KINDS, (*place, name)) for name, each in self.pairs(child, place)}
            elif key in ONE_VALUE:
                found[key] = self.value(child, {**found, "type": sorted(types)}, place)
            elif key in VALUES and isinstance(child, yaml.SequenceNode):
                each_type, found[key] = {**found, "type": sorted(types)}, []
                for at, each in self.items(child, place):
                    if key == "enum" and types == KINDS and isinstance(each, yaml.MappingNode):
                        self.refuse(at, "is a mapping: quote a text that holds ': ', or add 'type: object'")
                    found[key].append(self.value(each, each_type, at))
            elif key in TEXT:
                found[key] = self.text(child, place)
                if key == "type" and (strange := [each for each in as_list(found[key]) if each not in list(KINDS)]):
                    names = ", ".join(sorted(KINDS))
                    self.refuse(place, f"{strange[0]!r} is not a JSON Schema type: write one of {names}")
            else:
                expected = {"type": "number"} if key in NUMBER else {"type": "boolean"} if key in BOOLEAN else {}
                if key == "schema" and is_schema(where):
                    self.refuse(place, "is a schema in a schema: write its content here, without a name or strict")
                if key not in KEYWORDS and (near := get_close_matches(key, KEYWORDS, n=1, cutoff=0.8)):
                    self.refuse(place, f"is not a keyword of JSON Schema: did you mean {near[0]!r}?")
                found[key] = self.value(child, expected, place)
        return {key: found[key] for key, _ in pairs}

    def text(self, node: yaml.Node, where: Where) -> Any:
        """Text as it is written, or a list or mapping of such."""
        if isinstance(node, yaml.SequenceNode):
            return [self.text(child, place) for place, child in self.items(node, where)]
        if isinstance(node, yaml.MappingNode):
            return {key: self.text(child, (*where, key)) for key, child in self.pairs(node, where)}
        assert isinstance(node, yaml.ScalarNode)
        if node.style is None and not node.value:
            self.refuse(where, "has no value")
        return self.storable(node, where)


def is_schema(where: Where) -> bool:
    """Whether the schema of an answer stands there: `schema` at the top of the file or of a question."""
    return where == ("schema",) or (len(where) == 3 and where[0] == "questions" and where[2] == "schema")


def in_schema(where: Where) -> bool:
    """Whether a place is the schema of an answer, or within it."""
    return is_schema(where[:1]) or is_schema(where[:3])


ONE = {
    "boolean": "a boolean",
    "integer": "an integer",
    "number": "a number",
    "string": "text",
    "array": "a list",
    "object": "a mapping",
    "null": "null",
}


def one_of(types: frozenset[str]) -> str:
    """Types in words, with what a boolean looks like."""
    return " or ".join(ONE[each] for each in ONE if each in types).replace("a boolean", "true or false")


def plain(text: str) -> tuple[Any, bool]:
    """An unquoted scalar as YAML 1.2 reads it; False beside a number that is infinite or not in plain decimals."""
    if NULL.fullmatch(text):
        return None, True
    if TRUE.fullmatch(text) or FALSE.fullmatch(text):
        return text.lower() == "true", True
    try:
        if DECIMAL.fullmatch(text):
            number = int(text) if re.fullmatch(r"[-+]?[0-9]+", text) else float(text)
            return number, abs(number) != float("inf")
        if ODD_NUMBER.fullmatch(text):
            return int(text, 0) if text.startswith(("0o", "0x")) else float(text), False
        if NOT_FINITE.fullmatch(text):
            return float(text.replace(".", "")), False
    except ValueError:  # thousands of digits
        return float("inf"), False
    return text, True


def is_read_in_yaml_1_1(text: str) -> bool:
    """Whether YAML 1.1 reads an unquoted scalar as something else than text."""
    readings = yaml.SafeLoader.yaml_implicit_resolvers.get(text[:1], [])
    return text.lower() in ("y", "n") or any(pattern.match(text) for _, pattern in readings)
