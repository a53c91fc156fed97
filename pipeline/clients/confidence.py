"""How sure a model was of the values that it chose, by the probabilities of their tokens.

A confidence is the product of the probabilities of the tokens that wrote the value: how likely the model was to write
it without the schema (vLLM's `logprobs_mode` is `raw_logprobs` by default: before the schema's mask). It ranks doubt.
It is not calibrated: of the answers with 0.8, another share than 80% may be right.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

BLANK = " \t\r\n"
VALUE = json.JSONDecoder(strict=False)

Span = tuple[int, int]


def confidences(completion: Any, answer: str, choices: Mapping[str, Sequence[Any]]) -> dict[str, float]:
    """The confidence, 0 to 1, of each property of `choices` in an answer, the text of a JSON object.

    `choices` holds the values that each property may have. A property is missing where the completion does not tell:
    without logprobs, or with some that do not spell the answer.
    """
    tokens = tokens_of(completion)
    written = b"".join(text for text, _ in tokens)
    # A model may have written the object before, in its thoughts.
    begin = written.rfind(answer.encode())
    if not tokens or begin < 0:
        return {}
    found = {}
    for name, (start, end) in value_spans(answer).items():
        if name not in choices:
            continue
        end += is_prefix(answer[start:end], choices[name])
        first, last = (begin + len(answer[:place].encode()) for place in (start, end))
        found[name] = min(1.0, math.exp(sum(overlapping(tokens, first, last))))
    return found


def tokens_of(completion: Any) -> list[tuple[bytes, float]]:
    """The bytes and the log probability of each token of a chat completion; empty where one has another form.

    A token without a text, such as the first part of a character, counts with the one behind it.
    """
    try:
        listed = completion["choices"][0]["logprobs"]["content"]
        read = [(token_bytes(token), float(token["logprob"])) for token in listed]
    except (LookupError, TypeError, ValueError):
        return []
    tokens, before = [], 0.0
    for text, logprob in read:
        if not -math.inf < logprob < math.inf:
            return []
        before += logprob
        if text:
            tokens.append((text, before))
            before = 0.0
    return tokens


def token_bytes(token: Mapping[str, Any]) -> bytes:
    """What a token writes; OpenAI's tokens may hold part of a character, which only `bytes` tells.

    Raises:
        LookupError, TypeError, ValueError: it has another form.
    """
    given = token.get("bytes") if isinstance(token, dict) else None
    return bytes(given) if isinstance(given, list) else str(token["token"]).encode()


def overlapping(tokens: Sequence[tuple[bytes, float]], first: int, last: int) -> list[float]:
    """The log probabilities of the tokens that write some of the bytes from `first` up to `last`."""
    found, place = [], 0
    for text, logprob in tokens:
        if place < last and place + len(text) > first:
            found.append(logprob)
        place += len(text)
    return found


def value_spans(answer: str) -> dict[str, Span]:
    """Where the value of each property of a JSON object stands in its text; of a string what is between the quotes."""
    spans: dict[str, Span] = {}
    place = skip(answer, answer.index("{") + 1)
    while answer[place] == '"':
        name, place = VALUE.raw_decode(answer, place)
        start = skip(answer, skip(answer, place) + 1)  # behind the colon
        _, end = VALUE.raw_decode(answer, start)
        text = answer[start] == '"'
        spans[name] = (start + text, end - text)
        place = skip(answer, end)
        if answer[place] != ",":
            break
        place = skip(answer, place + 1)
    return spans


def skip(text: str, place: int) -> int:
    """The place of the next character that is not blank."""
    while text[place] in BLANK:
        place += 1
    return place


def is_prefix(written: str, values: Sequence[Any]) -> bool:
    """Whether another value begins with the one that was written: only the character behind it then decides."""
    texts = [value if isinstance(value, str) else json.dumps(value) for value in values]
    return any(text.startswith(written) and text != written for text in texts)
