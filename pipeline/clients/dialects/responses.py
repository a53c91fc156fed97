"""OpenAI's Responses API, as api.openai.com and vLLM serve it.

Nothing is stored at the server (`store`), and nothing of one answer is used in another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.clients.dialects import Asked

PATH = "/responses"
LIMIT = "max_output_tokens"

# Why an answer ends early, in the words of chat completions.
REASONS = {"max_output_tokens": "length", "content_filter": "content_filter"}
# The fields of `usage`, and those of chat completions.
USAGE = {"input_tokens": "prompt_tokens", "output_tokens": "completion_tokens"}


def request(asked: Asked) -> dict[str, Any]:
    """The request's JSON."""
    picture = [{"type": "input_image", "image_url": asked.picture, "detail": "auto"}] if asked.picture else []
    schema: dict[str, Any] = {"name": asked.schema_name, "schema": asked.schema, "strict": True}
    forms: dict[str, dict[str, Any]] = {
        "json_schema": {"text": {"format": {"type": "json_schema", **schema}}},
        "structured_outputs": {"structured_outputs": {"json": asked.schema}},
        "json_object": {"text": {"format": {"type": "json_object"}}},
    }
    return {
        "model": asked.model,
        asked.limit: asked.max_tokens,
        **({} if asked.temperature is None else {"temperature": asked.temperature}),
        **({"include": ["message.output_text.logprobs"]} if asked.logprobs else {}),
        "store": False,
        **asked.more,
        **forms.get(asked.schema_form, {}),
        "input": [{"role": "user", "content": [*picture, {"type": "input_text", "text": asked.text}]}],
    }


def completion(body: Any) -> Any:
    """A response as a chat completion; something else as it is.

    The texts of all messages become the content's parts, those of `reasoning` items the reasoning, and the tokens of
    the texts `logprobs`.
    """
    if not isinstance(body, dict) or not isinstance(body.get("output"), list):
        return body
    parts: list[Any] = []
    thoughts: list[str] = []
    calls: list[Any] = []
    for item in body["output"]:
        if not isinstance(item, dict):
            continue
        content = item.get("content")
        content = content if isinstance(content, list) else [content] if isinstance(content, str) else []
        if item.get("type") == "reasoning":
            summary = item.get("summary")
            summary = summary if isinstance(summary, list) else []
            thoughts += [each["text"] for each in (*content, *summary) if isinstance(each, dict) and has_text(each)]
        elif item.get("type") == "function_call":
            calls.append({"function": item})
        else:
            parts += content
    details = body.get("incomplete_details")
    why = details.get("reason") if isinstance(details, dict) else None
    tokens = [part.get("logprobs") for part in parts if isinstance(part, dict)]
    logprobs = {"content": [token for each in tokens if isinstance(each, list) for token in each]}
    message = {"content": parts or None, "reasoning": "\n".join(thoughts), "tool_calls": calls}
    usage = body.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return {
        "choices": [{"message": message, "finish_reason": REASONS.get(str(why), "stop"), "logprobs": logprobs}],
        "usage": {chat: usage.get(name) for name, chat in USAGE.items()},
    }


def has_text(part: dict[str, Any]) -> bool:
    """Whether a part of an item holds text."""
    return isinstance(part.get("text"), str)
