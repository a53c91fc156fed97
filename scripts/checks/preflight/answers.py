"""Whether every answer that the job's schema allows can end, and whether the server enforces all of the schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from scripts.checks.preflight.schema import Measure, unsupported
from scripts.findings import Finding, error, warning
from scripts.vllm import tables
from scripts.vllm.options import Options

# Characters per token of an answer. Gemma's tokenizer takes 2.7 for the longest answer of dog_breeds.yaml (80
# characters, 30 tokens); a tokenizer that learnt the very answers takes up to 12.
TYPICAL_CHARACTERS = 2.5
MOST_CHARACTERS = 12.0

INSTEAD = {
    "allOf": "write its parts as one schema",
    "format": "use a pattern, or maxLength",
    "items": "use prefixItems, and items for the rest",
    "maxLength": "keep the pattern or format alone, and give a pattern its end, such as {1,12}",
    "minLength": "keep the pattern or format alone, and give a pattern its end, such as {1,12}",
    "multipleOf": "list the values with enum",
    "nullable": "write `type: [integer, 'null']`",
    "required": "add the properties that it names, or remove their names",
}


def check_answers(schema: dict[str, Any], max_tokens: int, job: str, options: Options) -> Iterator[Finding]:
    """Every answer of the schema ends before `max_tokens`, and the server's grammar knows each keyword."""
    measure = Measure(schema)
    longest = measure.longest(schema).characters
    for place in measure.endless:
        found = f"job {job}: {place.where} {place.reason}: a model may write until max_tokens, and the answer is cut"
        yield (error if place.likely else warning)("schema", found, "an end for every value", place.remedy)
    fewest, likely = round(longest / MOST_CHARACTERS), round(longest / TYPICAL_CHARACTERS)
    fit = f"max_tokens ({max_tokens}) that holds every answer of the schema"
    found, remedy = f"job {job}: the longest answer has {longest} characters", f"set max_tokens: {likely}"
    if any(place.likely for place in measure.endless):
        pass  # nobody can say how long
    elif fewest > max_tokens:
        yield error("max_tokens", f"{found}, at least {fewest} tokens", fit, f"{remedy} in the job file")
    elif likely > max_tokens:
        remedy += " in the job file, or shorten the schema's longest values"
        yield warning("max_tokens", f"{found}, about {likely} tokens", fit, remedy)
    yield from check_keywords(schema, job, options)
    yield from check_whitespace(options)


def check_keywords(schema: dict[str, Any], job: str, options: Options) -> Iterator[Finding]:
    """The server's grammar enforces each keyword of the schema."""
    backend = options.mapping("structured-outputs-config").get("backend", "auto")
    if backend not in ("xgrammar", "auto"):
        return
    for each in unsupported(schema, set(tables.read("request")["formats"])):
        found, required = f"job {job}: {each.where} uses {each.keyword}", "keywords that the server enforces"
        remedy = INSTEAD.get(each.keyword, "remove it, and ask for it in the question")
        if not each.refused:
            found += ", which xgrammar ignores there: answers may break it, and their rows fail"
            yield warning("schema", found, required, remedy)
        elif backend == "xgrammar":  # with `auto`, vLLM takes another backend for it
            yield error("schema", f"{found}, which vLLM refuses with xgrammar: HTTP 400", required, remedy)


def check_whitespace(options: Options) -> Iterator[Finding]:
    """The server's grammar allows no free whitespace between the parts of an answer."""
    constraint = options.mapping("structured-outputs-config")
    backend, tight = constraint.get("backend", "auto"), constraint.get("disable_any_whitespace") is True
    if tight and backend not in ("xgrammar", "guidance"):
        found = f"structured-outputs-config: disable_any_whitespace with backend {backend}: vLLM refuses to start"
        yield error("schema", found, "backend xgrammar or guidance", "add `backend: xgrammar`")
    elif not tight:
        yield warning(
            "schema",
            "free whitespace is allowed in answers: a weak model writes newlines until max_tokens",
            "structured-outputs-config with disable_any_whitespace",
            "set `backend: xgrammar` and `disable_any_whitespace: true` there",
        )
