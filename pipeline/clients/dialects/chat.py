"""OpenAI's chat completions, as vLLM and most others serve them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.clients.dialects import Asked

PATH = "/chat/completions"
LIMIT = "max_tokens"


def request(asked: Asked) -> dict[str, Any]:
    """The request's JSON."""
    picture = [{"type": "image_url", "image_url": {"url": asked.picture}}] if asked.picture else []
    schema: dict[str, Any] = {"name": asked.schema_name, "schema": asked.schema, "strict": True}
    forms: dict[str, dict[str, Any]] = {
        "json_schema": {"response_format": {"type": "json_schema", "json_schema": schema}},
        "structured_outputs": {"structured_outputs": {"json": asked.schema}},
        "json_object": {"response_format": {"type": "json_object"}},
    }
    return {
        "model": asked.model,
        asked.limit: asked.max_tokens,
        **({} if asked.temperature is None else {"temperature": asked.temperature}),
        **({"logprobs": True} if asked.logprobs else {}),
        **asked.more,
        **forms.get(asked.schema_form, {}),
        # The image stands before the text: the other order cost the whole gain from images in measurements.
        "messages": [{"role": "user", "content": [*picture, {"type": "text", "text": asked.text}]}],
    }


def completion(body: Any) -> Any:
    """It is one."""
    return body
