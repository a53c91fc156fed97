"""Job files and server answers that nobody thought of: each is taken as it stands, or refused with its reason."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline import job
from pipeline.answer_schema import KINDS
from pipeline.clients.completion import completion_request
from pipeline.clients.http import HttpClient, Limits
from pipeline.clients.model import Answer, BadAnswer, ModelClient
from pipeline.errors import InvalidJob
from pipeline.job_file import KEYWORDS, Where
from pipeline.tables import answer_struct, detections_schema

# The same examples in each run, so that a failure is one of the code and not of luck.
FUZZ = settings(
    derandomize=True,
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# A job with a value in each kind of place.
PLACES: dict[str, Any] = {
    "description": "d", "label": "cat", "question": "q", "max_tokens": 9, "temperature": 0.5, "threshold": 0.1,
    "crop": {"margin": 0.1, "max_side": 64}, "summary": "one",
    "request": {"top_p": 0.5, "stop": ["x"], "chat_template_kwargs": {"thinking": False}},
    "schema": {
        "type": "object", "title": "t", "required": ["one"], "additionalProperties": False,
        "properties": {
            "one": {"enum": ["a", "b"], "default": "a"},
            "two": {"type": "string", "maxLength": 9, "pattern": "x", "examples": ["y"]},
            "three": {"type": ["integer", "null"], "minimum": 0, "maximum": 9},
            "four": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "boolean", "const": True}]},
            "five": {"type": "array", "maxItems": 2, "uniqueItems": True, "items": {"type": "string", "enum": ["z"]}},
            "six": {"type": "object", "properties": {"deep": {"type": "number", "default": 1.5}}},
        },
        "$defs": {"n": {"type": "number", "multipleOf": 0.5}},
    },
}  # fmt: skip


# The same for several questions from a table.
TABLE_PLACES: dict[str, Any] = {
    "description": "d", "label": "cat", "each": "texts", "inputs": {"q": "texts.user", "t": "title"},
    "truth": {"one": "t", "two": {"input": "q", "pattern": "Answer: (.)"}},
    "questions": [
        {"question": "{q}", "max_tokens": 9, "schema": {"type": "object", "properties": {"one": {"enum": ["a"]}}}},
        {"question": "{{{t}}}", "max_tokens": 9, "image": False, "labels": ["cat"],
         "schema": {"type": "object", "properties": {"two": {"type": ["boolean", "null"]}}}},
    ],
}  # fmt: skip


def places(value: Any, where: Where = ()) -> list[Where]:
    """The places of all values, and with a trailing None of all keys of mappings."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found: list[Where] = [where] if where else []
    for key, child in children:
        found += places(child, (*where, key))
        found += [(*where, key, "")] if isinstance(value, dict) else []
    return found


def written(value: Any, at: Where | None, text: str) -> str:
    """A value as flow YAML, with a raw text at one place (with a trailing "": instead of the key)."""
    if at == ():
        return text
    step, rest = (at[0], at[1:]) if at else (None, None)
    if isinstance(value, list):
        return "[" + ", ".join(written(v, rest if n == step else None, text) for n, v in enumerate(value)) + "]"
    if not isinstance(value, dict):
        return json.dumps(value)
    pairs = []
    for key, child in value.items():
        renamed = key == step and rest == ("",)
        below = written(child, rest if key == step and not renamed else None, text)
        pairs.append(f"{text if renamed else json.dumps(key)}: {below}")
    return "{" + ", ".join(pairs) + "}"


WORDS = (
    "yes no on off y n Yes NO true True FALSE null Null ~ 012 0o14 0x1F 0b1 1_000 12:30 12:30:45 2024-01-01 1e3 1.10 "
    "1. .5 +1 -0 .inf -.INF .nan = << * & ! !!int !!str @ ` % | > - ? : # 1 2.5 -3 9007199254740993 1e999 '' \"\" "
    '\'yes\' "\\ud800" "\\0" *a &a [] {} [yes] {no:1} [[[]]] string integer object #/$defs/n #/properties/one # '
    "http://127.0.0.1:9/x ( [a-z]+ .*"
)
SCALARS = WORDS.split()
SCALAR = st.one_of(
    st.sampled_from([*SCALARS, "", "a b", "\t", "\n", "\ufeff", "\u2028", "9" * 5000, "2001-12-14 21:59:43"]),
    st.text(max_size=8),
    st.integers().map(str),
    st.floats().map(str),
)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=4), each, max_size=3),
    max_leaves=6,
)
SCHEMA = st.recursive(
    st.fixed_dictionaries({}, optional={"type": st.sampled_from(sorted(KINDS)), "enum": st.lists(VALUE, max_size=3)}),
    lambda each: st.dictionaries(
        st.sampled_from(sorted(KEYWORDS)),
        each | st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=3), each, max_size=3) | VALUE,
        max_size=4,
    ),
    max_leaves=8,
)


def load(folder: Path, text: str) -> job.Job | None:
    """A job that can be sent and stored, or None when it is refused in one line."""
    path = folder / "fuzz.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass", newline="")
    loaded, said = None, ""
    try:
        loaded = job.load(str(path))
    except InvalidJob as error:
        said = str(error)
    if loaded is None:
        assert str(path) in said
        assert "\n" not in said
        said.encode()
        return None
    json.dumps([completion_request(question, loaded, "m") for question in loaded.questions], allow_nan=False).encode()
    loaded.fingerprint().encode()
    assert detections_schema(loaded.properties).names.count("path") == 1
    ModelClient(HttpClient("http://nowhere", Limits(concurrency=1)), "m", loaded)
    return loaded


@FUZZ
@given(place=st.sampled_from(places(PLACES)), text=SCALAR)
def test_any_scalar_in_any_place_is_taken_or_refused(tmp_path: Path, place: Where, text: str) -> None:
    load(tmp_path, written(PLACES, place, text))


@FUZZ
@given(place=st.sampled_from(places(TABLE_PLACES)), text=SCALAR)
def test_any_scalar_in_any_place_of_a_job_with_inputs_is_taken_or_refused(
    tmp_path: Path, place: Where, text: str
) -> None:
    load(tmp_path, written(TABLE_PLACES, place, text))


@FUZZ
@given(schema=SCHEMA)
def test_any_schema_is_taken_or_refused(tmp_path: Path, schema: Any) -> None:
    properties = {"it": schema}
    content = PLACES | {"summary": None, "schema": {"type": "object", "properties": properties, "$defs": properties}}
    load(tmp_path, json.dumps(content))


@FUZZ
@given(st.text() | st.lists(st.sampled_from([*SCALARS, "\n", "  ", ": ", "- ", ", "])).map("".join))
def test_any_text_is_taken_or_refused(tmp_path: Path, text: str) -> None:
    load(tmp_path, text)


@FUZZ
@given(text=st.sampled_from(SCALARS) | st.text(st.characters(codec="utf-8", categories=["L", "N", "P"]), min_size=1))
def test_an_enums_choice_is_the_text_that_stands_there(tmp_path: Path, text: str) -> None:
    """As YAML without any reading of its scalars has it."""
    content = written(PLACES | {"summary": None}, ("schema", "properties", "five", "items", "enum", 0), text)
    if loaded := load(tmp_path, content):
        plain = yaml.load(content, yaml.BaseLoader)
        assert loaded.properties["five"]["items"]["enum"] == plain["schema"]["properties"]["five"]["items"]["enum"]


def test_the_job_of_the_fuzz_is_taken(tmp_path: Path) -> None:
    assert load(tmp_path, written(PLACES, None, ""))
    assert load(tmp_path, written(TABLE_PLACES, None, ""))


ANSWERS = {
    "count": {"type": ["integer", "null"]},
    "share": {"anyOf": [{"type": "number"}, {"type": "null"}]},
    "sure": {"type": ["boolean", "null"]},
    "note": {"type": ["string", "null"]},
    "mixed": {"type": ["string", "integer", "array", "object", "null"]},
    "either": {"enum": [1, 2.5, None]},
}
NUMBERS = st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from([0, 1.0, 2**53 + 1, 1e300, -0.0])
FIELD = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text() | st.sampled_from(["\ud800", "a\tb", "\0", "1", "null", "[]"]),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=3), each, max_size=3),
    max_leaves=5,
)
FIELDS = st.fixed_dictionaries({}, optional=dict.fromkeys([*ANSWERS, "more"], FIELD))
LIKELY = {
    "count": st.integers(-(2**64), 2**64) | st.integers(-(2**54), 2**54).map(float),
    "share": NUMBERS,
    "sure": st.booleans(),
    "note": st.text(),
    "mixed": st.text() | st.integers() | st.lists(FIELD, max_size=2),
    "either": st.sampled_from([1, 1.0, 2.5, 3]),
}
LIKELY_FIELDS = st.fixed_dictionaries({}, optional={name: st.none() | each for name, each in LIKELY.items()})


@pytest.fixture(scope="module")
def client() -> ModelClient:
    schema = {"type": "object", "properties": ANSWERS}
    loaded = job.load("dog_breeds")
    asked = loaded.model_copy(update={"questions": [loaded.questions[0].model_copy(update={"answer_schema": schema})]})
    return ModelClient(HttpClient("http://nowhere", Limits(concurrency=1)), "m", asked)


def parse(client: ModelClient, body: bytes) -> Answer | None:
    """The answer in a body, or None when it is refused with a reason and a text that can be stored."""
    try:
        return client.forms[0].parse(body, 1, 0.1)
    except BadAnswer as error:
        reason, raw = str(error), error.raw or ""
    assert reason
    raw.encode()
    return None


def body(content: Any, finish_reason: Any = "stop", usage: Any = None) -> bytes:
    message = {"message": {"content": content}, "finish_reason": finish_reason}
    return json.dumps({"choices": [message], "usage": usage}).encode()


@FUZZ
@given(fields=FIELDS | LIKELY_FIELDS, ascii=st.booleans(), pad=st.sampled_from(["", "\n", " \t\n", "\ufeff", "\0"]))
@example(fields={"count": 1.0, "share": 3, "sure": False, "note": "a\tb\0", "mixed": ["a"]}, ascii=False, pad="")
def test_a_column_holds_only_what_the_model_said(
    client: ModelClient, fields: dict[str, Any], ascii: bool, pad: str
) -> None:
    content = json.dumps(fields, ensure_ascii=ascii).replace(r"\t", "\t").replace(r"\u0000", "\0")
    answer = parse(client, body(pad + content + pad))
    if answer is None:
        return
    stored = pa.array([answer.columns], answer_struct(client.job.properties)).to_pylist()[0]
    for name in ANSWERS:
        said, kept = fields.get(name), stored[name]
        if name == "mixed" and said is not None and not isinstance(said, str):
            kept = json.loads(kept)
        if name in ("count", "share", "either") and kept is not None:
            assert type(kept) is (int if name == "count" else float)
            assert math.isfinite(kept)
        assert (kept, isinstance(kept, bool)) == (said, isinstance(said, bool))


@FUZZ
@given(content=FIELD | FIELDS.map(json.dumps), reason=FIELD, usage=FIELD)
def test_any_message_is_an_answer_or_refused(client: ModelClient, content: Any, reason: Any, usage: Any) -> None:
    parse(client, body(content, reason, usage))


@FUZZ
@given(FIELD.map(json.dumps).map(str.encode) | st.binary() | st.dictionaries(st.sampled_from(["choices"]), FIELD).map(
    json.dumps).map(str.encode))  # fmt: skip
@example(b'{"choices": [{"message": "x"}]}')
@example(b'{"choices": {"0": 1}}')
@example(b'{"choices": [[0]]}')
@example(b'{"choices": ["message"]}')
@example(b"[" * 100_000)
@example(b'{"choices": [{"message": {"content": "' + b"[" * 100_000 + b'"}}]}')
@example(b"9" * 5000)
def test_any_body_is_refused(client: ModelClient, whole: bytes) -> None:
    assert parse(client, whole) is None
