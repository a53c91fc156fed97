"""Whether the server will heed what the client sends, instead of dropping it without a word."""

from __future__ import annotations

from collections.abc import Iterable

from scripts.findings import Finding
from scripts.models.model_files import Model
from scripts.vllm import tables
from scripts.vllm.options import Options, nearest

# Names that older servers knew, and what took their place. vLLM answers 200 to them, without the constraint.
REPLACED = {
    "guided_json": "response_format with json_schema",
    "guided_choice": "structured_outputs with choice",
    "guided_regex": "structured_outputs with regex",
    "guided_grammar": "structured_outputs with grammar",
    "guided_decoding_backend": "--structured-outputs-config of the server",
    "extra_body": "its content at the top of the request: a client's library unfolds it once, not twice",
}


def check_fields(fields: Iterable[str]) -> list[Finding]:
    """Every field of a request is one that this vLLM reads."""
    request = tables.read("request")
    known = set(request["fields"])
    findings = []
    for name in sorted(set(fields) - known):
        instead = f"use {REPLACED[name]}" if name in REPLACED else nearest(name, known)
        findings.append(
            Finding(
                "request",
                "error",
                f"the client sends {name!r}, which vLLM {request['version']} drops without a word",
                "fields that the server reads",
                instead,
            )
        )
    return findings


def check_served_name(model: Model, options: Options, asked: str | None) -> list[Finding]:
    """The client asks for a name that the server gives to its model."""
    served = options.values.get("served-model-name") or [model.name]
    names = [str(name) for name in (served if isinstance(served, list) else [served])]
    if asked is None or asked in names:
        return []
    return [
        Finding(
            "served name",
            "error",
            f"SPOTTER_MODEL={asked}, but the server calls its model {', '.join(names)}: every request gets 404",
            "a name that is served",
            f"unset SPOTTER_MODEL, or set it to {names[0]}",
        )
    ]
