"""The APIs of model servers, one module for each.

To add one: a module here with `PATH`, `LIMIT`, `request(asked)` and `completion(body)`, and its line in DIALECTS.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from pipeline.clients.dialects import chat, responses

Api = Literal["chat", "responses"]
SchemaForm = Literal["json_schema", "structured_outputs", "json_object", "none"]

# Stand in a request for the picture's data URL and for the text of a question that takes inputs, and nowhere else: a
# job file holds no NUL.
PICTURE, TEXT = "\x00picture\x00", "\x00text\x00"

# Where the schema is no field of the request, the model has to be told.
IN_WORDS = "\n\nAnswer with one JSON object and nothing else. It must fit this JSON Schema:\n"


@dataclass(frozen=True, slots=True)
class RequestForm:
    """How a model server wants its requests."""

    api: Api = "chat"
    schema_form: SchemaForm = "json_schema"
    """json_schema: OpenAI's field. structured_outputs: vLLM's. json_object: JSON mode, with the schema in the prompt.
    none: the schema in the prompt."""
    limit: str | None = None
    """The request's field of the longest answer, where it is another than the dialect's own."""
    logprobs: bool = field(default=False, compare=False)
    """Whether the probability of each token is asked for. It changes no answer, and so no identity of a run."""

    @property
    def dialect(self) -> Dialect:
        """The API's module."""
        return DIALECTS[self.api]

    @property
    def in_words(self) -> bool:
        """Whether the schema is part of the prompt."""
        return self.schema_form in ("json_object", "none")

    def said(self) -> str:
        """The form, for people."""
        name = {"chat": "chat completions", "responses": "the Responses API"}[self.api]
        return f"{name}, schema by {self.schema_form}" + (f", {self.limit}" if self.limit else "")


@dataclass(frozen=True, slots=True)
class Asked:
    """One question about one crop, in terms of no API."""

    model: str
    text: str
    """The text, with a mark in the place of what changes."""
    picture: str | None
    """A mark in the place of the picture's data URL; None: the text alone."""
    limit: str
    max_tokens: int
    temperature: float | None
    """None: the server's own."""
    schema_name: str
    schema: dict[str, Any]
    schema_form: SchemaForm
    more: dict[str, Any]
    """Fields that the job adds."""
    logprobs: bool = False
    """Whether the answer shall hold the logarithm of each token's probability."""


class Dialect(Protocol):
    """What a module of DIALECTS offers."""

    PATH: str
    """Of the address, behind `/v1`."""
    LIMIT: str
    """The request's field of the longest answer, in tokens."""

    def request(self, asked: Asked) -> dict[str, Any]:
        """The request's JSON."""
        ...

    def completion(self, body: Any) -> Any:
        """An answer's JSON as a chat completion, which `answer_text` reads."""
        ...


DIALECTS: dict[Api, Dialect] = {"chat": chat, "responses": responses}


def schema_name(job: str) -> str:
    """A job's name as the APIs take it for the schema: 1 to 64 letters, digits, `_` and `-`."""
    return re.sub(r"[^a-zA-Z0-9_-]+", "_", job).strip("_")[:64] or "answer"


def in_words(schema: dict[str, Any]) -> str:
    """A schema as the prompt has it."""
    return IN_WORDS + json.dumps(schema, ensure_ascii=False)
