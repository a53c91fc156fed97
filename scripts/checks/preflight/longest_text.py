"""Write out the longest answer of a schema, so that a tokenizer can count it."""

from __future__ import annotations

import json
from typing import Any

from scripts.checks.preflight.answers import Endless, longest_answer, measure, resolve, string_length

# A model writes words: a run of one letter would be taken for very few tokens.
WORDS = "brown dog stands near a green tree and looks to the left side of this picture "


def longest_text(schema: dict[str, Any]) -> str:
    """The longest answer that a schema allows, as compact JSON.

    Raises:
        Endless: there is none.
    """
    longest_answer(schema)
    return json.dumps(value_of(schema, schema), ensure_ascii=False, separators=(",", ":"))


def value_of(schema: dict[str, Any], root: dict[str, Any]) -> Any:
    """The longest value of a schema that has an end."""
    if reference := schema.get("$ref"):
        return value_of(resolve(reference, root), root)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return max(schema["enum"], key=lambda value: len(json.dumps(value)))
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return value_of(max(schema[key], key=lambda each: measure(each, root, "", ())), root)
    kinds = schema.get("type", "object")
    match kinds[0] if isinstance(kinds, list) else kinds:
        case "boolean":
            return False
        case "null":
            return None
        case "integer" | "number":
            return -1234567890
        case "string":
            length = string_length(schema, "")
            return (WORDS * (length // len(WORDS) + 1))[:length]
        case "array":
            return [value_of(schema["items"], root)] * schema["maxItems"]
        case "object":
            return {name: value_of(each, root) for name, each in schema.get("properties", {}).items()}
    raise Endless(f"{kinds} cannot be written out")
