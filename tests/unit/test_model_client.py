"""The model client: what it sends, and what it makes of answers."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline import job
from pipeline.clients.completion import completion_request
from pipeline.clients.http import HttpClient, Limits
from pipeline.clients.model import BadAnswer, ModelClient
from pipeline.tables import answer_struct

GOOD = {"breed": "pug", "coat_color": "tan", "facing": "left"}


@pytest.fixture
def client() -> ModelClient:
    return ModelClient(HttpClient("http://nowhere", Limits(concurrency=1)), "m", job.load("dog_breeds"))


def with_schema(schema: dict[str, Any]) -> job.Job:
    """The bundled job with another schema."""
    loaded = job.load("dog_breeds")
    return loaded.model_copy(update={"questions": [loaded.questions[0].model_copy(update={"answer_schema": schema})]})


def request_of(asked: job.Job) -> dict[str, Any]:
    return completion_request(asked.questions[0], asked, "m")


def client_for(properties: dict[str, Any]) -> ModelClient:
    """Of a job whose answers have these properties."""
    schema = {"type": "object", "properties": properties}
    asked = with_schema(schema)
    return ModelClient(HttpClient("http://nowhere", Limits(concurrency=1)), "m", asked)


def completion(content: Any, finish_reason: str = "stop", **more: Any) -> bytes:
    choice = {"message": {"role": "assistant", "content": content}, "finish_reason": finish_reason}
    return json.dumps({"choices": [choice], **more}).encode()


def test_an_answer_that_fits(client: ModelClient) -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 3}
    answer = client.forms[0].parse(completion(json.dumps(GOOD), usage=usage), attempts=2, latency_s=0.5)
    assert answer.fields == answer.columns == GOOD
    assert (answer.attempts, answer.latency_s, answer.prompt_tokens, answer.completion_tokens) == (2, 0.5, 9, 3)


def test_usage_may_be_missing(client: ModelClient) -> None:
    assert client.forms[0].parse(completion(json.dumps(GOOD)), 1, 0.1).prompt_tokens is None


@pytest.mark.parametrize(
    ("body", "reason", "raw"),
    [
        pytest.param(b"<html>", "not a chat completion", None, id="no JSON body"),
        pytest.param(b"{}", "not a chat completion: KeyError", None, id="no choices"),
        pytest.param(b'{"choices": []}', "not a chat completion: IndexError", None, id="empty choices"),
        pytest.param(completion(None), "has no text", None, id="no text"),
        pytest.param(completion('{"breed": "pu', "length"), "cut at max_tokens = 64", '{"breed": "pu', id="cut"),
        pytest.param(completion("A pug, I think."), "not JSON", "A pug, I think.", id="prose"),
        pytest.param(completion('["pug"]'), "does not fit the schema", '["pug"]', id="no object"),
        pytest.param(
            completion('{"breed": "cat"}'), "does not fit the schema", '{"breed": "cat"}', id="not in the enum"
        ),
    ],
)
def test_anything_else_is_a_bad_answer_with_its_text(
    client: ModelClient, body: bytes, reason: str, raw: str | None
) -> None:
    with pytest.raises(BadAnswer, match=reason) as raised:
        client.forms[0].parse(body, 1, 0.1)
    assert raised.value.raw == raw


@pytest.mark.parametrize(
    ("schema", "content", "reason"),
    [
        pytest.param({"type": "integer"}, f'{{"it": {2**63}}}', "does not fit its column: it", id="65 bits"),
        pytest.param({"type": "number"}, f'{{"it": {10**400}}}', "does not fit its column: it", id="beyond a float"),
        pytest.param({"type": "string", "maxLength": 9}, r'{"it": "\ud800"}', "does not fit", id="half a character"),
        pytest.param({"type": "number"}, f'{{"it": {2**53 + 1}}}', "does not fit its column: it", id="rounded"),
        pytest.param({"type": "integer"}, f'{{"it": {2**53 + 1}.0}}', "does not fit its column: it", id="was rounded"),
        pytest.param({"type": "number"}, '{"it": 1e400}', "does not fit the schema: it", id="infinite"),
        pytest.param({"type": "array"}, '{"it": [1e400]}', "does not fit its column: it", id="infinite in a list"),
        pytest.param({"type": "number"}, '{"it": NaN}', "NaN is not a JSON number", id="not a number"),
        pytest.param({"type": "number"}, '{"it": -Infinity}', "-Infinity is not", id="infinity"),
        pytest.param({"type": "integer"}, '{"it": 1, "it": 2}', "'it' is given twice", id="two answers"),
        pytest.param({"type": "integer"}, '{"it": 1.5}', "does not fit the schema: it", id="a fraction"),
        pytest.param({"type": "integer"}, '{"it": true}', "does not fit the schema: it", id="a boolean"),
    ],
)
def test_what_no_column_can_hold_fails_its_row_and_not_the_run(
    schema: dict[str, Any], content: str, reason: str
) -> None:
    with pytest.raises(BadAnswer, match=reason):
        client_for({"it": schema}).forms[0].parse(completion(content), 1, 0.1)


@pytest.mark.parametrize(
    ("schema", "content", "value"),
    [
        pytest.param({"type": "string", "maxLength": 9}, '{"it": "a\tb"}', "a\tb", id="raw tab"),
        pytest.param({"type": "string", "maxLength": 9}, '{"it": "a\r\n\0"}', "a\r\n\0", id="raw line end and NUL"),
        pytest.param({"type": "integer"}, '{"it": 1}\n \t\n', 1, id="space after it"),
        pytest.param({"type": "integer"}, '\ufeff{"it": 1}', 1, id="byte order mark"),
        pytest.param({"type": "integer"}, '{"it": 1.0}', 1, id="integer with a point"),
        pytest.param({"type": ["integer", "null"]}, '{"it": null}', None, id="null"),
        pytest.param({"type": "integer"}, "{}", None, id="left out"),
        pytest.param({"type": "integer"}, f'{{"it": {2**63 - 1}}}', 2**63 - 1, id="largest integer"),
        pytest.param({"enum": [1, 2.5]}, '{"it": 1}', 1.0, id="integer among fractions"),
        pytest.param({"type": "boolean"}, '{"it": false}', False, id="boolean"),
        pytest.param({"type": ["string", "integer"]}, '{"it": 7}', "7", id="mixed types"),
        pytest.param({"type": "array", "maxItems": 2}, '{"it": ["\u00fc"]}', r'["\u00fc"]', id="list"),
    ],
)
def test_a_column_holds_what_the_answer_says(schema: dict[str, Any], content: str, value: Any) -> None:
    client = client_for({"it": schema})
    answer = client.forms[0].parse(completion(content), 1, 0.1)
    struct = answer_struct(client.job.properties)
    stored = pa.array([answer.columns], struct)
    assert stored.field("it").to_pylist() == [value]
    assert type(stored.to_pylist()[0]["it"]) is type(value)
    assert (answer.raw, set(answer.columns)) == (content, {"it"})


@pytest.mark.parametrize("content", [r'{"\ud800": 1}', "[" * 300 + "]" * 300])
def test_what_cannot_even_be_held_against_the_schema_does_not_fit_it(client: ModelClient, content: str) -> None:
    with pytest.raises(BadAnswer, match="does not fit the schema: the answer"):
        client.forms[0].parse(completion(content), 1, 0.1)


def test_half_a_character_is_no_text(client: ModelClient) -> None:
    with pytest.raises(BadAnswer, match="not a chat completion: UnicodeEncodeError"):
        client.forms[0].parse(completion("\ud800"), 1, 0.1)


@pytest.mark.parametrize(
    "usage",
    [{"prompt_tokens": value} for value in ("9", None, 2**31, -1, True, 1.5)] + [{}, None, [9], "9"],
)
def test_a_cost_that_is_no_number_is_left_out(client: ModelClient, usage: Any) -> None:
    assert client.forms[0].parse(completion(json.dumps(GOOD), usage=usage), 1, 0.1).prompt_tokens is None


def test_the_request_bounds_the_answer(client: ModelClient) -> None:
    loaded = job.load("dog_breeds")
    form = client.forms[0].request["response_format"]
    assert isinstance(form, dict)
    assert form["json_schema"] == {"name": "dog_breeds", "schema": loaded.questions[0].answer_schema, "strict": True}
    assert (client.forms[0].request["max_tokens"], client.forms[0].request["temperature"]) == (64, 0.0)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("cars v1.2.yaml", "cars_v1_2"),
        ("dog_breeds-2.yaml", "dog_breeds-2"),
        ("собаки.yaml", "answer"),
        ("Hündchen.yaml", "H_ndchen"),
        ("...yaml", "answer"),
        (f"{'x' * 200}.yaml", "x" * 64),
        (b"caf\xe9.yaml", "caf_udce9"),
    ],
)
def test_the_schemas_name_is_one_that_the_api_takes(tmp_path: Path, file: str | bytes, name: str) -> None:
    path = str(tmp_path / os.fsdecode(file))
    shutil.copy(job.BUNDLED / "dog_breeds.yaml", path)
    request = request_of(job.load(path))
    assert request["response_format"]["json_schema"]["name"] == name
    assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name)


def with_request(folder: Path, request: str) -> job.Job:
    """The bundled job with fields for its requests."""
    path = folder / "job.yaml"
    path.write_text(f"{(job.BUNDLED / 'dog_breeds.yaml').read_text()}\nrequest: {request}\n")
    return job.load(str(path))


def test_a_jobs_own_fields_travel_with_each_request(tmp_path: Path) -> None:
    plain = request_of(job.load("dog_breeds"))
    added = request_of(with_request(tmp_path, "{top_p: 0.5, mm_processor_kwargs: {max_pixels: 9}}"))
    assert added | plain == added | {"response_format": plain["response_format"]}
    assert {name: added[name] for name in added.keys() - plain.keys()} == {
        "top_p": 0.5,
        "mm_processor_kwargs": {"max_pixels": 9},
    }


def test_a_newer_servers_limit_takes_the_place_of_max_tokens(tmp_path: Path) -> None:
    asked = with_request(tmp_path, "{max_completion_tokens: 99}")
    request = request_of(asked)
    assert request["max_completion_tokens"] == 99
    assert "max_tokens" not in request
    client = ModelClient(HttpClient("http://nowhere", Limits(concurrency=1)), "m", asked)
    with pytest.raises(BadAnswer, match="cut at max_completion_tokens = 99"):
        client.forms[0].parse(completion("{", "length"), 1, 0.1)
