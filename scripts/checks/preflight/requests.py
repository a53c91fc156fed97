"""Whether the server reads every field of the client's requests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pipeline.clients.dialects import RequestForm
from scripts.findings import Finding, error, warning
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


# Fields that change how much work an image is: vLLM refuses them from a client that it does not trust.
OF_PROCESSOR = ("mm_processor_kwargs", "media_io_kwargs")


def check_fields(fields: Iterable[str], form: RequestForm) -> Iterator[Finding]:
    """This vLLM reads every field of a request."""
    request = tables.read("request")
    known = set(request["fields"][form.api])
    for name in sorted(set(fields) - known):
        found = f"the client sends {name!r}, which vLLM {request['version']} ignores"
        remedy = f"use {REPLACED[name]}" if name in REPLACED else nearest(name, known)
        if form.api != "chat" and name in request["fields"]["chat"]:
            found += f" with SPOTTER_API={form.api}"
            remedy = "unset SPOTTER_API: chat completions take it"
        yield error("request", found, "fields that the server reads", remedy)


def check_form(form: RequestForm) -> Iterator[Finding]:
    """The server gets the schema as something that it enforces."""
    if form.in_words:
        found = f"SPOTTER_SCHEMA_FORM={form.schema_form}: the schema is in the prompt, and vLLM does not enforce it"
        yield warning(
            "schema", found, "answers that fit the schema", "unset SPOTTER_SCHEMA_FORM: vLLM takes json_schema"
        )


def check_trust(more: Mapping[str, Any], options: Options) -> Iterator[Finding]:
    """The server takes what a job says of its image processor."""
    if options.values.get("trust-request-mm-kwargs") is True:
        return
    for name in OF_PROCESSOR:
        if more.get(name):
            found = f"the job's `request` has {name}, which vLLM refuses from clients: HTTP 400"
            remedy = "set `trust-request-mm-kwargs: true` in the preset"
            remedy += ", or give them there as `mm-processor-kwargs:`" if name == OF_PROCESSOR[0] else ""
            yield error("request", found, "a server that takes them", remedy)


def check_served_name(model: Model, options: Options, asked: str | None) -> Iterator[Finding]:
    """The client asks for a name that the server gives to its model."""
    served = options.values.get("served-model-name") or [model.name]
    names = [str(name) for name in (served if isinstance(served, list) else [served])]
    if asked is not None and asked not in names:
        found = f"SPOTTER_MODEL={asked}, but the server calls its model {', '.join(names)}: every request gets 404"
        yield error(
            "served name", found, "a name that the server knows", f"unset SPOTTER_MODEL, or set it to {names[0]}"
        )
