"""Whether the server reads every field of the client's requests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from scripts.findings import Finding, error
from scripts.models.model_files import Model
from scripts.vllm import tables
from scripts.vllm.options import Options, nearest

# Fields of older servers, and their successors. vLLM answers 200 to them, without the constraint.
REPLACED = {
    "guided_json": "response_format with json_schema",
    "guided_choice": "structured_outputs with choice",
    "guided_regex": "structured_outputs with regex",
    "guided_grammar": "structured_outputs with grammar",
    "guided_decoding_backend": "--structured-outputs-config of the server",
    "extra_body": "its content at the top of the request: a client's library unfolds it once, not twice",
}


def check_fields(fields: Iterable[str]) -> Iterator[Finding]:
    """This vLLM reads every field of a request."""
    request = tables.read("request")
    known = set(request["fields"])
    for name in sorted(set(fields) - known):
        found = f"the client sends {name!r}, which vLLM {request['version']} ignores"
        remedy = f"use {REPLACED[name]}" if name in REPLACED else nearest(name, known)
        yield error("request", found, "fields that the server reads", remedy)


def check_served_name(model: Model, options: Options, asked: str | None) -> Iterator[Finding]:
    """The client asks for a name that the server gives to its model."""
    served = options.values.get("served-model-name") or [model.name]
    names = [str(name) for name in (served if isinstance(served, list) else [served])]
    if asked is not None and asked not in names:
        found = f"SPOTTER_MODEL={asked}, but the server calls its model {', '.join(names)}: every request gets 404"
        yield error(
            "served name", found, "a name that the server knows", f"unset SPOTTER_MODEL, or set it to {names[0]}"
        )
