"""A strict stand-in for OpenAI's Responses API: it refuses what the documented API refuses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from aiohttp import web

# The fields of a request, as documented in 2026.
FIELDS = {
    *("background", "context_management", "conversation", "include", "input", "instructions", "max_output_tokens"),
    *("max_tool_calls", "metadata", "model", "parallel_tool_calls", "previous_response_id", "prompt"),
    *("prompt_cache_key", "prompt_cache_retention", "reasoning", "safety_identifier", "service_tier", "store"),
    *("stream", "stream_options", "temperature", "text", "tool_choice", "tools", "top_logprobs", "top_p"),
    *("truncation", "user"),
}
PARTS = {"input_text": {"type", "text"}, "input_image": {"type", "image_url", "file_id", "detail"}}
FORMAT = {"type", "name", "schema", "strict", "description"}
LEAST_TOKENS = 16  # of max_output_tokens


def error(message: str, code: str, param: str | None = None) -> web.Response:
    """400, in the API's form."""
    body = {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}
    return web.json_response(body, status=400)


def refusal(body: Mapping[str, Any], *, thinks: bool) -> web.Response | None:
    """What is wrong with a request; `thinks`: the model is one that reasons, and takes no temperature."""
    for name in body:
        if name not in FIELDS:
            return error(f"Unknown parameter: '{name}'.", "unknown_parameter", name)
    if thinks and "temperature" in body:
        return error("Unsupported parameter: 'temperature' is not supported with this model.", "unsupported_parameter")
    if body.get("max_output_tokens", LEAST_TOKENS) < LEAST_TOKENS:
        return error("Invalid 'max_output_tokens': integer below minimum value.", "integer_below_min_value")
    for message in body["input"]:
        for part in message["content"]:
            kind = part.get("type")
            if kind not in PARTS or set(part) - PARTS[kind]:
                return error(f"Invalid value: '{kind}'.", "invalid_value", "input")
            if kind == "input_image" and not isinstance(part["image_url"], str):
                return error("Invalid type for 'image_url': expected a string.", "invalid_type", "input")
    form = body.get("text", {}).get("format", {"type": "text"})
    if set(form) - FORMAT:
        return error(f"Unknown parameter: 'text.format.{min(set(form) - FORMAT)}'.", "unknown_parameter")
    return schema_refusal(form.get("schema")) if form["type"] == "json_schema" else None


def schema_refusal(schema: Any) -> web.Response | None:
    """Strict mode wants every property required, and no others."""
    if schema.get("additionalProperties") is not False or set(schema["required"]) != set(schema["properties"]):
        return error(
            "Invalid schema for response_format: 'required' is required to include every key.", "invalid_schema"
        )
    return None


def response(text: str, *, cut: bool = False, thoughts: str = "") -> dict[str, Any]:
    """A response with one message."""
    reasoning = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": thoughts}]}
    content = [{"type": "output_text", "text": text, "annotations": []}]
    message = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": content}
    return {
        "id": "resp_1",
        "object": "response",
        "status": "incomplete" if cut else "completed",
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "output": [*([reasoning] if thoughts else []), message],
        "usage": {"input_tokens": 40, "output_tokens": 12, "total_tokens": 52},
    }


def answering(text: str, *, thinks: bool = False, bodies: list[dict[str, Any]] | None = None) -> Any:
    """A handler for POST /v1/responses; every other path is 404."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path != "/v1/responses":
            return web.json_response({"detail": "Not Found"}, status=404)
        body = json.loads(await request.read())
        if bodies is not None:
            bodies.append(body)
        return refusal(body, thinks=thinks) or web.json_response(response(text, thoughts="hm" if thinks else ""))

    return answer
