"""How long an answer may get that a JSON Schema allows, and what the server needs to let it end."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from scripts.findings import Finding
from scripts.vllm.options import Options

# The longest number that is worth counting with: a 64-bit integer or a double, written out.
NUMBER_CHARACTERS = 20

# Characters per token of an answer. Gemma's tokenizer takes 2.7 for the longest answer of dog_breeds.yaml (80
# characters, 30 tokens); a tokenizer that learnt the very answers takes up to 12.
TYPICAL_CHARACTERS = 2.5
MOST_CHARACTERS = 12.0

# Characters of the longest text in each format.
FORMAT_CHARACTERS = {"date": 10, "time": 20, "date-time": 32, "uuid": 36, "ipv4": 15, "ipv6": 45, "duration": 24}


class Endless(Exception):
    """The schema allows answers of any length; the message names the place."""


@dataclass(frozen=True, slots=True)
class Longest:
    """The longest answer of a schema, as compact JSON."""

    characters: int

    @property
    def tokens(self) -> int:
        """About as many tokens."""
        return round(self.characters / TYPICAL_CHARACTERS)

    @property
    def fewest_tokens(self) -> int:
        """Not fewer tokens with any tokenizer."""
        return round(self.characters / MOST_CHARACTERS)


def longest_answer(schema: dict[str, Any]) -> Longest:
    """The longest answer that the schema allows.

    Raises:
        Endless: there is none.
    """
    return Longest(measure(schema, schema, "answer", ()))


def written(value: Any) -> int:
    """Characters of a value as compact JSON."""
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def measure(schema: Any, root: dict[str, Any], where: str, inside: tuple[str, ...]) -> int:
    """Characters of the longest value of a schema within `root`.

    Raises:
        Endless: it has no end.
    """
    if not isinstance(schema, dict) or not schema:
        raise Endless(f"{where} may be anything")
    if reference := schema.get("$ref"):
        if reference in inside:
            raise Endless(f"{where} contains itself")
        return measure(resolve(reference, root), root, where, (*inside, reference))
    if "const" in schema:
        return written(schema["const"])
    if "enum" in schema:
        return max((written(value) for value in schema["enum"]), default=0)
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return max(measure(each, root, where, inside) for each in schema[key])
    if "allOf" in schema:
        return sum(measure(each, root, where, inside) for each in schema["allOf"])
    kinds = schema.get("type", "object" if "properties" in schema else None)
    if isinstance(kinds, list):
        return max(measure(schema | {"type": kind}, root, where, inside) for kind in kinds)
    match kinds:
        case "boolean" | "null":
            return 5
        case "integer" | "number":
            return NUMBER_CHARACTERS
        case "string":
            return 2 + string_length(schema, where)
        case "array":
            most = schema.get("maxItems")
            if most is None:
                raise Endless(f"{where} is a list without maxItems")
            return 2 + most * (1 + measure(schema.get("items"), root, f"{where}[]", inside)) if most else 2
        case "object":
            if schema.get("additionalProperties"):
                raise Endless(f"{where} allows additionalProperties")
            properties = schema.get("properties", {})
            names = sum(written(name) + 2 for name in properties)
            return 2 + names + sum(measure(each, root, f"{where}.{n}", inside) for n, each in properties.items())
    raise Endless(f"{where} has no type")


def string_length(schema: dict[str, Any], where: str) -> int:
    """Characters of the longest string of a schema, without quotes.

    Raises:
        Endless: it has no end.
    """
    if "maxLength" in schema:
        return int(schema["maxLength"])
    if schema.get("format") in FORMAT_CHARACTERS:
        return FORMAT_CHARACTERS[schema["format"]]
    pattern = schema.get("pattern")
    if isinstance(pattern, str):
        plain = re.sub(r"\\.|\[(?:\\.|[^\]])*\]", "x", pattern)
        if not re.search(r"[*+]|\{\d*,\}", plain):
            repeats = [int(number) for number in re.findall(r"\{(?:\d+,)?(\d+)\}", plain)]
            return len(plain) * max([1, *repeats])
        raise Endless(f"{where} is a string whose pattern has no end")
    raise Endless(f"{where} is a string without maxLength")


def resolve(reference: str, root: dict[str, Any]) -> Any:
    """What a reference within the schema stands for.

    Raises:
        Endless: it leads nowhere, and so to anything.
    """
    found: Any = root
    for part in reference.removeprefix("#").strip("/").split("/"):
        if not isinstance(found, dict) or (part and part not in found):
            raise Endless(f"reference {reference} leads nowhere")
        found = found[part] if part else found
    return found


def check_answers(schema: dict[str, Any], max_tokens: int, job: str, options: Options) -> list[Finding]:
    """Every answer that the schema allows ends before `max_tokens`, and the server is told so that it can."""
    findings = []
    fit = f"max_tokens ({max_tokens}) holds every answer that the schema allows"
    try:
        longest = longest_answer(schema)
    except Endless as reason:
        findings.append(
            Finding(
                "schema",
                "error",
                f"job {job}: {reason}: a model may write until max_tokens, and the answer is cut",
                "an end for every string and list",
                "give it an enum, maxLength or maxItems, and additionalProperties: false",
            )
        )
    else:
        if longest.fewest_tokens > max_tokens:
            findings.append(
                Finding(
                    "max_tokens",
                    "error",
                    f"job {job}: the longest answer has {longest.characters} characters, at least "
                    f"{longest.fewest_tokens} tokens",
                    fit,
                    f"set max_tokens: {longest.tokens} in the job file",
                )
            )
        elif longest.tokens > max_tokens:
            findings.append(
                Finding(
                    "max_tokens",
                    "warning",
                    f"job {job}: the longest answer has {longest.characters} characters, about {longest.tokens} tokens",
                    fit,
                    f"set max_tokens: {longest.tokens} in the job file, or shorten the schema's longest values",
                )
            )
    findings += check_whitespace(options)
    return findings


def check_whitespace(options: Options) -> list[Finding]:
    """The server's grammar allows no free whitespace between an answer's parts."""
    constraint = options.mapping("structured-outputs-config")
    backend, tight = constraint.get("backend", "auto"), constraint.get("disable_any_whitespace") is True
    if tight and backend not in ("xgrammar", "guidance"):
        return [
            Finding(
                "schema",
                "error",
                f"structured-outputs-config: disable_any_whitespace with backend {backend}: vLLM refuses to start",
                "backend xgrammar or guidance",
                "add `backend: xgrammar`",
            )
        ]
    if not tight:
        return [
            Finding(
                "schema",
                "warning",
                "free whitespace is allowed in answers: a weak model writes newlines until max_tokens",
                "structured-outputs-config with disable_any_whitespace",
                "set `backend: xgrammar` and `disable_any_whitespace: true` there",
            )
        ]
    return []
