"""Find the model's text in a chat completion, also where a server puts it in another place than `message.content`.

Text is taken only where one reading is possible. Otherwise the reason says what stood there, in the server's words.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

# How much of a server's text an error shows.
SHOWN = 300

# One block of code, as models write JSON in Markdown. Two blocks are two answers.
FENCE = re.compile(r"```[ \t]*(?:json\w*)?[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL | re.IGNORECASE)
# The end of what a model thinks. The start may be missing: then the chat template wrote it into the prompt.
THOUGHT_ENDS = re.compile(r"</(?:think|thinking|thought|reasoning)>|\[/THINK\]|<\|channel\|>final<\|message\|>")
# LiteLLM asks models without structured output to call a tool of this name with the answer.
ANSWER_TOOL = "json_tool_call"
# Where servers put a model's reasoning: vLLM, Ollama, OpenRouter, LM Studio, DeepSeek, SGLang.
REASONING = ("reasoning_content", "reasoning", "thinking")
TEXT_PARTS, REASONING_PARTS = ("text", "output_text"), ("reasoning", "thinking", "redacted_thinking")

NO_REASONING = "turn reasoning off (a chat template often has `enable_thinking: false`) or raise max_tokens"


class NoText(ValueError):
    """A completion holds no text that can be the answer; `raw` is what the model wrote instead, if anything."""

    def __init__(self, reason: str, raw: str | None = None) -> None:
        super().__init__(reason)
        self.raw = raw


@dataclass(frozen=True, slots=True)
class AnswerText:
    """What a model wrote, and which part of it is the answer."""

    raw: str
    """All of the text, as the model wrote it."""
    answer: str
    """Without a leading block of thoughts and without the fence around JSON."""
    cut: bool
    """Whether the answer ran into max_tokens."""


def shown(content: Any) -> str:
    """The beginning of a server's answer, on one line."""
    if isinstance(content, bytes):
        content = content[: 8 * SHOWN].decode("utf-8", "replace")
    if not isinstance(content, str):
        try:
            content = json.dumps(content, ensure_ascii=False)
        except (ValueError, RecursionError):
            content = str(type(content).__name__)
    return " ".join(content[: 8 * SHOWN].encode("utf-8", "backslashreplace").decode().split())[:SHOWN]


def answer_text(completion: Any, schema_name: str = "answer") -> AnswerText:
    """The text of a chat completion's first choice; `schema_name` is the name of the format that was asked for.

    Raises:
        NoText: there is no text, or text that is no answer, such as a refusal.
    """
    choice = first_choice(completion)
    message = choice["message"]
    reason = choice.get("finish_reason")
    cut = reason in ("length", "max_tokens", "MAX_TOKENS")
    raw = content_text(message)
    if reason == "content_filter":
        raise NoText(f"the server's content filter stopped the answer: {shown(raw or choice)}", raw or None)
    if not raw.strip():
        raw = text_elsewhere(message, schema_name, cut)
    try:
        raw.encode()  # half of a surrogate pair cannot be stored
    except UnicodeEncodeError as error:
        raise NoText(f"not a chat completion: UnicodeEncodeError: {error}") from None
    return AnswerText(raw, without_frame(raw), cut)


def first_choice(completion: Any) -> dict[str, Any]:
    """The first choice, whose message is an object.

    Raises:
        NoText: the completion has no such choice.
    """
    try:
        choice = completion["choices"][0]
        if isinstance(choice["message"], dict):
            return dict(choice)
        raise TypeError("the message is not an object")
    except (LookupError, TypeError) as error:
        raise NoText(f"not a chat completion: {type(error).__name__}: {error}: {shown(completion)}") from None


def content_text(message: dict[str, Any]) -> str:
    """The message's own text; empty where there is none.

    Raises:
        NoText: the content is of another kind.
    """
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, dict):  # a server that has parsed the JSON
        return json.dumps(content, ensure_ascii=False)
    if not isinstance(content, list):
        raise NoText(f"the message has no text but {type(content).__name__} {shown(content)}")
    texts = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        text = part.get("text") if isinstance(part, dict) else part
        if kind == "refusal":
            raise refused(shown(part.get("refusal", text)))
        if kind in TEXT_PARTS and isinstance(text, str):
            texts.append(text)
        elif kind not in REASONING_PARTS:
            raise NoText(f"the message has a part that is not text: {shown(part)}")
    return "".join(texts)


def text_elsewhere(message: dict[str, Any], schema_name: str, cut: bool) -> str:
    """The answer of a message without content.

    Raises:
        NoText: nothing there is the answer.
    """
    if message.get("refusal"):
        raise refused(shown(message["refusal"]))
    if calls := message.get("tool_calls") or message.get("function_call"):
        return tool_answer(calls, schema_name)
    reasoning = next((text for name in REASONING if isinstance(text := message.get(name), str) and text.strip()), "")
    answer = without_frame(reasoning)
    if is_object(answer):  # a server whose parser takes all of a model's JSON for its reasoning
        return reasoning
    if reasoning and cut:
        raise NoText(f"cut at max_tokens while it was reasoning: {NO_REASONING}: {shown(reasoning)}", reasoning)
    if reasoning:
        raise NoText(f"the message has no text but reasoning: {NO_REASONING}: {shown(reasoning)}", reasoning)
    raise NoText(f"the message has no text: {shown(message)}")


def tool_answer(calls: Any, schema_name: str) -> str:
    """The arguments of the one call that stands for the answer.

    Raises:
        NoText: there are several calls, or it is a call of another tool.
    """
    call = calls[0] if isinstance(calls, list) else calls
    function = call.get("function", call) if isinstance(call, dict) else {}
    arguments = function.get("arguments") if isinstance(function, dict) else None
    if isinstance(arguments, dict):
        arguments = json.dumps(arguments, ensure_ascii=False)
    named = isinstance(function, dict) and function.get("name") in (ANSWER_TOOL, schema_name)
    if named and isinstance(arguments, str) and (not isinstance(calls, list) or len(calls) == 1):
        return arguments
    raise NoText(f"the message has no text but a tool call: {shown(calls)}", shown(calls))


def without_frame(text: str) -> str:
    """Text without the thoughts before it and without the one fence around it; as it is where it begins as JSON."""
    text = text.strip().lstrip("\ufeff").strip()
    if is_json_start(text):
        return text
    if end := THOUGHT_ENDS.search(text):
        text = text[end.end() :].strip()
    fenced = FENCE.findall(text)
    return fenced[0].strip() if len(fenced) == 1 and not is_json_start(text) else text


def is_json_start(text: str) -> bool:
    """Whether a text begins as a JSON object or array; `[THINK]` does not."""
    return text.startswith(("{", "[")) and not text.startswith("[THINK]")


def is_object(text: str) -> bool:
    """Whether a text is a JSON object and nothing else."""
    if not text.startswith("{"):
        return False
    try:
        return isinstance(json.loads(text, strict=False), dict)
    except (ValueError, RecursionError):
        return False


def refused(words: str) -> NoText:
    """The model will not answer."""
    return NoText(f"the model refused: {words}", words)
