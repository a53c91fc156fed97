"""The model server's client: a crop and a question in, an answer that fits the question's schema out."""

from __future__ import annotations

import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import jsonschema_rs

from pipeline.answer_schema import listed_values
from pipeline.clients.answer_text import NoText, answer_text, shown
from pipeline.clients.completion import OF_CHAT, completion_request, limit_of
from pipeline.clients.confidence import confidences
from pipeline.clients.dialects import PICTURE, TEXT, RequestForm, schema_name
from pipeline.clients.http import HttpClient, Request
from pipeline.clients.retries import JSON
from pipeline.errors import RowError
from pipeline.job import Job
from pipeline.question import Question
from pipeline.runtime.in_process import InProcess
from pipeline.tables import answer_columns, answer_value, confidence_columns
from pipeline.template import Template

# What an answer cost, as a server tells it in `usage`, if it does.
TOKENS = ("prompt_tokens", "completion_tokens")

PICTURE_IN_JSON, TEXT_IN_JSON = (json.dumps(mark)[1:-1].encode() for mark in (PICTURE, TEXT))


class BadAnswer(RowError):
    """The model answered, but not with what the question's schema asks for; `raw` is its text."""

    def __init__(self, reason: str, raw: str | None, attempts: int, unbound: bool = False) -> None:
        super().__init__(reason, attempts)
        self.raw = raw
        self.unbound = unbound
        """Whether the server did not hold the model to the schema."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: the fields of the question's schema, the model's own text, and what it cost."""

    fields: dict[str, Any]
    """The answer's JSON, which the schema allows."""
    columns: dict[str, Any]
    """The same as its columns hold it, for `tables.answer_struct`: each of the schema's properties, null if absent, and
    the confidences that were asked for."""
    raw: str
    attempts: int
    latency_s: float
    prompt_tokens: int | None
    completion_tokens: int | None


def data_url(image: bytes, media_type: bytes = b"image/jpeg") -> bytes:
    """An encoded image as a data URL: a server refuses bare base64, and would fetch any other URL by itself."""
    return b"data:%b;base64,%b" % (media_type, binascii.b2a_base64(image, newline=False))


class Form:
    """One question of a job as the model server gets it, and how its answers are read."""

    def __init__(self, question: Question, job: Job, model: str, form: RequestForm) -> None:
        self.limit = f"{limit_of(job, form)} = {question.max_tokens + job.reasoning_tokens}"
        self.completion = form.dialect.completion
        self.schema_form = form.schema_form
        self.validator = question.validator()
        self.columns = answer_columns(question.properties)
        named = confidence_columns(job.properties) if form.logprobs else {}
        self.choices = {
            name: listed_values(schema) or [] for name, schema in question.properties.items() if name in named
        }
        self.confidences = {name: named[name] for name in self.choices}
        self.request = completion_request(question, job, model, form)
        self.schema_name = schema_name(job.name)
        self.template = Template(question.question) if job.inputs else None
        body = json.dumps(self.request).encode()
        # All requests are the same but for the picture and the inputs; writing each as JSON took a tenth of the CPU.
        self.pieces = re.split(b"(%b|%b)" % (re.escape(PICTURE_IN_JSON), re.escape(TEXT_IN_JSON)), body)

    def body(self, crop: bytes, inputs: Mapping[str, Any]) -> bytes:
        """The request about one JPEG, left out without `image`, with the values that the text takes."""
        text = json.dumps(self.template.fill(inputs))[1:-1].encode() if self.template else b""
        instead = {PICTURE_IN_JSON: data_url(crop), TEXT_IN_JSON: text}
        return b"".join([instead.get(piece, piece) for piece in self.pieces])

    def parse(self, body: bytes, attempts: int, latency_s: float) -> Answer:
        """Turn the server's answer into one that is checked.

        Raises:
            BadAnswer: cut at max_tokens, no JSON, or JSON that the schema does not allow or no column can hold.
        """
        try:
            completion = self.completion(LENIENT.decode(body.decode(json.detect_encoding(body), "surrogatepass")))
            said = answer_text(completion, self.schema_name)
        except NoText as error:
            raise BadAnswer(str(error), error.raw, attempts) from error
        except (ValueError, RecursionError) as error:
            reason = f"not a chat completion: {type(error).__name__}: {error}: {shown(body)}"
            raise BadAnswer(reason, None, attempts) from error
        raw = said.raw
        if said.cut:
            reason = f"cut at {self.limit}: raise it in the job file, or bound the schema's strings"
            raise BadAnswer(reason, raw, attempts, unbound=not said.answer.startswith("{"))
        try:
            fields = read_answer(said.answer)
        except (ValueError, RecursionError) as error:
            reason = f"not JSON ({error}): does the server support {self.schema_form}? {shown(raw)}"
            raise BadAnswer(reason, raw, attempts, unbound=True) from error
        try:
            self.validator.validate(fields)
        except jsonschema_rs.ValidationError as wrong:
            where = "/".join(str(part) for part in wrong.instance_path) or "the answer"
            reason = f"does not fit the schema: {where}: {wrong.message[:200]}"
            raise BadAnswer(reason, raw, attempts, unbound=True) from None
        except ValueError as error:  # half a surrogate pair in a name, or hundreds of brackets
            raise BadAnswer(f"does not fit the schema: the answer: {error}", raw, attempts) from error
        columns = {}
        for name, column in self.columns.items():
            try:
                columns[name] = answer_value(fields.get(name), column)
            except ValueError as error:
                raise BadAnswer(f"does not fit its column: {name}: {error}", raw, attempts) from error
        if self.choices:
            known = confidences(completion, said.answer, self.choices)
            columns |= {column: known.get(name) for name, column in self.confidences.items()}
        usage = completion.get("usage")
        tokens = [count(usage.get(name) if isinstance(usage, dict) else None) for name in TOKENS]
        return Answer(fields, columns, raw, attempts, latency_s, *tokens)


class ModelClient(InProcess):
    """Asks a job's questions about crops, in the job's form."""

    def __init__(self, http: HttpClient, model: str, job: Job, form: RequestForm = OF_CHAT) -> None:
        self.http = http
        self.job = job
        self.path = form.dialect.PATH
        self.forms = [Form(question, job, model, form) for question in job.questions]

    async def ask(self, crop: bytes, number: int = 0, inputs: Mapping[str, Any] | None = None) -> Answer:
        """Ask the job's question of this number about one JPEG, with the values of the job's inputs.

        Raises:
            RequestFailed: the server refused the request or could not be reached.
            BadAnswer: it answered with something else than the schema asks for.
        """
        form = self.forms[number]
        body = form.body(crop, inputs or {})
        reply = await self.http.post(self.path, body, JSON)
        try:
            return form.parse(reply.body, reply.attempts, reply.latency_s)
        except BadAnswer:
            second = await self.http.second(Request("POST", self.path, body, JSON), reply)
            if second is None:
                raise
            return form.parse(second.body, second.attempts, second.latency_s)


def read_answer(text: str) -> Any:
    """The JSON of an answer. Raw control characters in a string are taken: xgrammar lets a model write them.

    Raises:
        ValueError: it is not JSON, or names a property twice, so that it says two things.
        RecursionError: it is nested too deep.
    """
    return ANSWER.decode(text.lstrip("\ufeff"))


def refuse_constant(name: str) -> NoReturn:
    """Python reads NaN and Infinity, which JSON does not have."""
    raise ValueError(f"{name} is not a JSON number")


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object from its names and values."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"{twice!r} is given twice")
    return found


# `json.loads` makes a decoder for each call with options: that took 4% of a row's CPU time.
LENIENT = json.JSONDecoder(strict=False)
ANSWER = json.JSONDecoder(strict=False, parse_constant=refuse_constant, object_pairs_hook=once)


def count(value: object) -> int | None:
    """A number of tokens as a server tells it; None for what is none, or none that the column holds."""
    return value if type(value) is int and 0 <= value < 2**31 else None
