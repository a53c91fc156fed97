"""What the preflight reads in a job's JSON Schema: its longest answer, its open ends, keywords without effect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.checks.preflight.answers import check_answers
from scripts.checks.preflight.schema import Measure
from scripts.vllm.options import Options
from tests.configurations import Configuration

XGRAMMAR = {"backend": "xgrammar", "disable_any_whitespace": True}
DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}


def of(**properties: object) -> dict[str, Any]:
    """A schema with these properties."""
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


def deep(schema: object) -> dict[str, Any]:
    """A schema within an array, an object, a reference and one branch of anyOf."""
    return {
        **of(dogs={"type": "array", "maxItems": 2, "items": {"$ref": "#/$defs/dog"}}),
        "$defs": {"dog": of(coat={"anyOf": [of(colour=schema), {"type": "null"}]})},
    }


def findings(schema: dict[str, Any], backend: str = "xgrammar") -> list[tuple[str, str]]:
    """Severity and text of each finding about a schema."""
    options = Options({"structured-outputs-config": XGRAMMAR | {"backend": backend}})
    return [(each.severity, each.found) for each in check_answers(schema, 10_000, "dogs", options)]


OPEN_ENDS: list[tuple[object, str, str]] = [
    ({"type": "string"}, "error", "a string without maxLength"),
    ({"type": "string", "pattern": "^[a-z]+$"}, "error", "a string whose pattern has no end"),
    ({"type": "string", "format": "email"}, "error", "a string without maxLength"),
    ({"type": "string", "format": "date-time"}, "warning", "a string of format date-time"),
    ({"type": "integer"}, "warning", "an integer without minimum and maximum"),
    ({"type": "integer", "minimum": 0}, "warning", "an integer without minimum and maximum"),
    ({"type": "number", "exclusiveMaximum": 1}, "warning", "a number without minimum and maximum"),
    ({"type": ["number", "null"]}, "warning", "a number without minimum and maximum"),
    ({"type": "array", "items": DIGIT}, "error", "an array without maxItems"),
    ({"type": "array", "maxItems": 2}, "error", "anything"),
    ({"type": "object"}, "error", "an object without properties"),
    ({"type": "object", "additionalProperties": DIGIT}, "error", "an object that allows additionalProperties"),
    ({"type": "object", "patternProperties": {"^a": DIGIT}}, "error", "an object that allows patternProperties"),
    ({"$ref": "#/$defs/dog"}, "error", "contains itself"),
    ({"$ref": "#/$defs/cat"}, "error", "anything"),
    ({"$ref": "https://json-schema.org/draft/2020-12/schema"}, "error", "anything"),
    ({}, "error", "anything"),
    (True, "error", "anything"),
]


@pytest.mark.parametrize(("open_end", "severity", "kind"), OPEN_ENDS, ids=str)
def test_what_has_no_end_is_named_with_its_property_and_kind(open_end: object, severity: str, kind: str) -> None:
    for schema, where in ((of(name=open_end), "answer.name"), (deep(open_end), "answer.dogs[].coat.colour")):
        if "contains itself" in kind and where == "answer.name":
            continue  # only the deep one holds a definition
        found = [text for level, text in findings(schema) if level == severity and "a model may write" in text]
        assert any(f"job dogs: {where}" in text and kind in text for text in found), findings(schema)


def test_every_open_end_is_named_at_once() -> None:
    schema = of(name={"type": "string"}, legs={"type": "integer"}, toys={"type": "array", "items": DIGIT})
    places = {text.split()[2] for _, text in findings(schema)}
    assert places == {"answer.name", "answer.legs", "answer.toys"}


@pytest.mark.parametrize(
    ("schema", "longest"),
    [
        (of(), "{}"),
        (of(a=DIGIT), '{"a": 9}'),
        (of(a={"type": "integer", "minimum": -10, "maximum": 9}), '{"a": -10}'),
        (of(a={"type": "number", "minimum": 0, "exclusiveMaximum": 1}), '{"a": 0.111111}'),
        (of(a={"enum": ["x", None, "long"]}), '{"a": "long"}'),
        (of(a={"const": "x"}, b={"type": "boolean"}), '{"a": "x", "b": false}'),
        (of(a={"type": ["null", "boolean"]}), '{"a": false}'),
        (of(a={"type": "string", "maxLength": 5}), '{"a": "brown"}'),
        (of(a={"type": "string", "pattern": "^[a-z]{2}$"}), None),
        (of(a={"type": "string", "format": "date"}), '{"a": "2026-01-01"}'),
        (of(a={"type": "array", "items": DIGIT, "maxItems": 3}), None),
        (of(a={"type": "array", "prefixItems": [DIGIT, {"type": "null"}]}), None),
        (of(a={"type": "array", "items": DIGIT, "maxItems": 0}), '{"a": []}'),
        (of(a={"anyOf": [DIGIT, {"enum": ["ten"]}]}), '{"a": "ten"}'),
        ({**of(a={"$ref": "#/$defs/x"}), "$defs": {"x": DIGIT}}, '{"a": 9}'),
        ({**of(a={"$ref": "#/$defs/x~1y%20z"}), "$defs": {"x/y z": DIGIT}}, '{"a": 9}'),
        ({**of(a={"$ref": "#/$defs/x/anyOf/0"}), "$defs": {"x": {"anyOf": [DIGIT]}}}, '{"a": 9}'),
        (deep(DIGIT), None),
    ],
    ids=str,
)
def test_the_longest_answer(schema: dict[str, Any], longest: str | None) -> None:
    measure = Measure(schema)
    found = measure.longest(schema)
    assert measure.endless == []
    assert found.characters == len(found.text)
    json.loads(found.text)
    if longest is not None:
        assert len(found.text) == len(longest)


def test_an_answer_of_a_gigabyte_is_counted_but_not_written_out() -> None:
    rows = {"type": "array", "maxItems": 10**6, "items": {"type": "string", "maxLength": 1000}}
    found = Measure(of(rows=rows)).longest(of(rows=rows))
    assert found.characters == 10**6 * 1004 + len('{"rows": []}') - 2
    assert len(found.text) < 200_000


# A schema, the keyword, and whether vLLM refuses the request; else its grammar ignores the keyword.
KEYWORDS: list[tuple[dict[str, object], str, bool]] = [
    ({**DIGIT, "multipleOf": 3}, "multipleOf", True),
    ({"type": "array", "items": DIGIT, "maxItems": 2, "uniqueItems": True}, "uniqueItems", True),
    ({"type": "array", "items": DIGIT, "maxItems": 2, "contains": {"const": 1}}, "contains", True),
    ({"type": "array", "items": [DIGIT], "maxItems": 1}, "items", True),
    ({"type": "string", "pattern": "^[a-z]{3}$", "maxLength": 2}, "maxLength", True),
    ({"type": "string", "format": "date", "minLength": 12}, "minLength", True),
    ({"type": "string", "format": "regex", "maxLength": 2}, "format", True),
    ({"allOf": [DIGIT, {"maximum": 5}]}, "allOf", True),
    ({**of(a=DIGIT), "patternProperties": {"^b": DIGIT}}, "patternProperties", True),
    ({**of(a=DIGIT), "propertyNames": {"maxLength": 3}}, "propertyNames", True),
    ({**DIGIT, "not": {"const": 3}}, "not", False),
    ({**DIGIT, "nullable": True}, "nullable", False),
    ({**DIGIT, "maximun": 5}, "maximun", False),
    ({**of(a=DIGIT), "if": {}, "then": {}}, "then", False),
    ({**of(a=DIGIT), "dependentRequired": {"a": ["b"]}}, "dependentRequired", False),
    ({**of(a=DIGIT), "required": ["b"]}, "required", False),
    ({"type": "string", "maxLength": 2, "contentEncoding": "base64"}, "contentEncoding", False),
    ({"anyOf": [DIGIT], "maximum": 5}, "maximum", False),
    ({"type": "string", "pattern": "^(?!b)[a-z]{3}$"}, "pattern", False),
]


@pytest.mark.parametrize(("schema", "keyword", "refused"), KEYWORDS, ids=str)
def test_a_keyword_that_the_grammar_does_not_know_is_named(schema: dict[str, Any], keyword: str, refused: bool) -> None:
    for whole, where in ((of(name=schema), "answer.name"), (deep(schema), "answer.dogs[].coat.colour")):
        named = [level for level, text in findings(whole) if f"{where} uses {keyword}," in text]
        assert named == ["error" if refused else "warning"], findings(whole)
        assert not any(" uses " in text for _, text in findings(whole, "guidance"))


def test_a_keyword_in_a_definition_that_nothing_uses_is_named() -> None:
    """vLLM reads it too, and refuses the request."""
    schema = {**of(a=DIGIT), "$defs": {"unused": {**DIGIT, "multipleOf": 2}}}
    assert [text for _, text in findings(schema) if "$defs.unused uses multipleOf" in text]


def test_what_the_grammar_knows_is_not_named() -> None:
    known = {
        **of(
            a={**DIGIT, "title": "t", "description": "d", "default": 1, "examples": [1]},
            b={"type": ["string", "null"], "maxLength": 9, "minLength": 1},
            c={"type": "array", "items": {"$ref": "#/$defs/x", "description": "d"}, "minItems": 1, "maxItems": 2},
            d={"type": "string", "enum": ["a", "b"]},
            e={"anyOf": [{"type": "string", "pattern": "^[a-z]{1,4}$"}, {"type": "null"}]},
        ),
        "$defs": {"x": of(y={"const": 1})},
        "$schema": "https://json-schema.org/draft/2020-12/schema",
    }
    assert findings(known) == []


def test_the_static_tier_names_both(tmp_path: Path) -> None:
    configuration = Configuration(tmp_path)
    configuration.question(answer_schema=of(name={"type": "string"}, legs={**DIGIT, "multipleOf": 2}))
    found = [each.found for each in configuration.check().findings if each.check == "schema"]
    assert any("answer.name is a string without maxLength" in text for text in found)
    assert any("answer.legs uses multipleOf" in text for text in found)


BOUNDED: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.sampled_from([{"type": "boolean"}, {"type": ["null", "boolean"]}, {"type": "string", "format": "date"}]),
        st.integers(0, 50).map(lambda most: {"type": "string", "maxLength": most}),
        st.integers(-999, 0).map(lambda least: {"type": "integer", "minimum": least, "maximum": 7}),
        st.lists(st.one_of(st.text(max_size=4), st.none(), st.integers()), min_size=1).map(lambda each: {"enum": each}),
        st.text(max_size=4).map(lambda value: {"const": value}),
    ),
    lambda schema: st.one_of(
        st.dictionaries(st.text(max_size=4), schema, max_size=3).map(lambda named: of(**named)),
        st.tuples(schema, st.integers(0, 4)).map(lambda it: {"type": "array", "items": it[0], "maxItems": it[1]}),
        st.lists(schema, min_size=1, max_size=3).map(lambda first: {"type": "array", "prefixItems": first}),
        st.lists(schema, min_size=1, max_size=3).map(lambda branches: {"anyOf": branches}),
    ),
    max_leaves=8,
)
ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.one_of(BOUNDED, st.booleans(), st.just({})),
    lambda schema: st.dictionaries(st.sampled_from(["anyOf", "allOf", "oneOf"]), st.lists(schema, min_size=1)),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(BOUNDED)
def test_the_longest_answer_of_any_schema_with_an_end_is_an_answer(schema: dict[str, Any]) -> None:
    measure = Measure(schema)
    longest = measure.longest(schema)
    assert measure.endless == []
    assert longest.characters == len(longest.text)
    jsonschema_rs.validate(schema, json.loads(longest.text))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(ANYTHING)
def test_no_schema_ends_the_check(schema: Any) -> None:
    findings(of(a=schema, b={"type": "array", "items": schema}))
