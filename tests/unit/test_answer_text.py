"""Where servers put a model's answer, and what is said when it is not there."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline import job
from pipeline.clients.answer_text import NoText, answer_text, shown, without_frame
from pipeline.clients.http import HttpClient, Limits
from pipeline.clients.model import BadAnswer, ModelClient

ANSWER = '{"breed": "pug", "coat_color": "tan", "facing": "left"}'


def completion(finish_reason: str | None = "stop", **message: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", **message}, "finish_reason": finish_reason}]}


def call(name: str, arguments: Any = ANSWER) -> dict[str, Any]:
    return {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize(
    "message",
    [
        pytest.param({"content": ANSWER}, id="content"),
        pytest.param({"content": f"\n{ANSWER}\n"}, id="white space around it"),
        pytest.param({"content": f"\ufeff{ANSWER}"}, id="byte order mark"),
        pytest.param({"content": [{"type": "text", "text": ANSWER}]}, id="parts"),
        pytest.param({"content": [{"type": "output_text", "text": ANSWER}]}, id="parts of the Responses API"),
        pytest.param(
            {"content": [{"type": "thinking", "thinking": "A dog."}, {"type": "text", "text": ANSWER}]},
            id="thoughts and text as parts",
        ),
        pytest.param({"content": [ANSWER[:9], ANSWER[9:]]}, id="text in pieces"),
        pytest.param({"content": json.loads(ANSWER)}, id="parsed JSON"),
        pytest.param({"content": f"```json\n{ANSWER}\n```"}, id="fence"),
        pytest.param({"content": f"```\n{ANSWER}\n```\n"}, id="fence without a language"),
        pytest.param({"content": f"Here it is:\n\n```JSON\n{ANSWER}\n```\nAnything else?"}, id="fence in prose"),
        pytest.param({"content": f"<think>\nA dog: {{}}\n</think>\n\n{ANSWER}"}, id="think block"),
        pytest.param({"content": f"A dog.\n</think>\n{ANSWER}"}, id="think block that the template opened"),
        pytest.param({"content": f"<think></think>```json\n{ANSWER}\n```"}, id="think block and fence"),
        pytest.param({"content": f"[THINK]A dog.[/THINK]{ANSWER}"}, id="Magistral's block"),
        pytest.param(
            {"content": f"<|channel|>analysis<|message|>A dog.<|end|><|channel|>final<|message|>{ANSWER}"},
            id="Harmony's channels",
        ),
        pytest.param({"content": None, "reasoning_content": ANSWER}, id="vLLM's reasoning parser took all"),
        pytest.param({"content": "", "reasoning": f"\n{ANSWER}"}, id="the same at another server"),
        pytest.param({"content": None, "tool_calls": [call("json_tool_call")]}, id="LiteLLM's tool"),
        pytest.param({"content": None, "tool_calls": [call("dogs", json.loads(ANSWER))]}, id="tool of our format"),
        pytest.param({"content": None, "function_call": {"name": "dogs", "arguments": ANSWER}}, id="old function call"),
    ],
)
def test_one_reading_is_taken(message: dict[str, Any]) -> None:
    found = answer_text(completion(**message), "dogs")
    assert json.loads(found.answer) == json.loads(ANSWER)
    assert not found.cut


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (completion(content=None, refusal="I cannot help with that."), "the model refused: I cannot help with that."),
        (
            completion(content=[{"type": "refusal", "refusal": "No."}]),
            "the model refused: No.",
        ),
        (completion("content_filter", content="A"), "content filter stopped the answer: A"),
        (completion("content_filter", content=None), "content filter stopped the answer"),
        (completion(content=None, tool_calls=[call("get_weather")]), "no text but a tool call: .*get_weather"),
        (completion(content=None, tool_calls=[call("dogs"), call("dogs")]), "no text but a tool call"),
        (completion(content=None, tool_calls="get_weather"), "no text but a tool call: get_weather"),
        (completion(content=None, tool_calls=[None]), "no text but a tool call"),
        (completion(content=None, reasoning="A dog, so"), "no text but reasoning: .*enable_thinking.*A dog, so"),
        (
            completion("length", content=None, reasoning="A dog, so"),
            "cut at max_tokens while it was reasoning",
        ),
        (completion(content=None, reasoning_content="[1]"), "no text but reasoning"),
        (completion(content=None), 'the message has no text: {"role": "assistant", "content": null}'),
        (completion(content=" \n"), "the message has no text"),
        (completion(content=7), "the message has no text but int 7"),
        (completion(content=[{"type": "image_url", "image_url": {"url": "http://x"}}]), "a part that is not text: .*x"),
        (completion(content=[{"type": "text", "text": None}]), "a part that is not text"),
        ({"choices": [{"text": ANSWER}]}, "not a chat completion: KeyError: 'message': .*pug"),
        ({"choices": [{"delta": {"content": ANSWER}}]}, "not a chat completion: KeyError"),
        ({"choices": None}, "not a chat completion: TypeError"),
        ({"detail": "Not here"}, "not a chat completion: KeyError: 'choices': .*Not here"),
        ([ANSWER], "not a chat completion: TypeError"),
    ],
)
def test_otherwise_the_reason_says_what_stood_there(body: Any, reason: str) -> None:
    with pytest.raises(NoText, match=reason):
        answer_text(body, "dogs")


@pytest.mark.parametrize(
    "text",
    [
        "I think it is a pug.",
        f"```json\n{ANSWER}\n```\nor\n```json\n{ANSWER}\n```",
        f"<think>A dog: {ANSWER}",
        f"It is {ANSWER}",
    ],
)
def test_what_can_be_read_in_two_ways_is_not_json(text: str) -> None:
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(without_frame(text))


def test_an_answer_that_speaks_of_thoughts_and_fences_stays_as_it_is() -> None:
    text = json.dumps({"note": "</think> ```json\n{}\n``` "})
    assert without_frame(text) == text


def test_the_models_own_text_is_kept_and_the_answer_is_read_from_it() -> None:
    client = ModelClient(HttpClient("http://nowhere", Limits(concurrency=1)), "m", job.load("dog_breeds"))
    raw = f"<think>A dog.</think>\n```json\n{ANSWER}\n```"
    answer = client.forms[0].parse(json.dumps(completion(content=raw)).encode(), 1, 0.1)
    assert (answer.fields, answer.raw) == (json.loads(ANSWER), raw)
    with pytest.raises(BadAnswer, match="the model refused: No") as refused:
        client.forms[0].parse(json.dumps(completion(content=None, refusal="No.")).encode(), 2, 0.1)
    assert (refused.value.raw, refused.value.attempts) == ("No.", 2)


def test_words_of_a_server_are_short_and_one_line() -> None:
    assert shown(b"<html>\n  <b>no</b>\xff\n") == "<html> <b>no</b>�"
    assert shown("a\ud800b") == "a\\ud800b"
    assert len(shown({"detail": "x" * 5000})) == 300
