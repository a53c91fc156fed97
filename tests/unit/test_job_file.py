"""Job files as people write them: an unquoted value is what stands there, or it is refused with its line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pipeline import job
from pipeline.clients.completion import OF_CHAT, limit_of
from pipeline.errors import InvalidJob, NotFound
from pipeline.job import Job

FILE = """\
description: Count cats.
label: {label}
question: What colour is this cat?
max_tokens: {max_tokens}
schema:
  type: object
  properties:
    it: {it}
{more}
"""
LINES = {"label": 2, "max_tokens": 4, "it": 8, "more": 9}


def write(folder: Path, **parts: str) -> Path:
    path = folder / "cats.yaml"
    path.write_text(FILE.format(**{"label": "cat", "max_tokens": "16", "it": "{enum: [a, b]}", "more": ""} | parts))
    return path


def load(folder: Path, **parts: str) -> Job:
    return job.load(str(write(folder, **parts)))


def refused(folder: Path, **parts: str) -> str:
    path = write(folder, **parts)
    with pytest.raises(InvalidJob) as raised:
        job.load(str(path))
    message = str(raised.value)
    assert message.startswith(f"job file {path}, line {LINES[next(iter(parts))]}: ")
    assert "\n" not in message
    return message


def assert_facts(facts: str, message: str) -> None:
    """The facts, with ` ... ` between them, are in the message; its other words are free."""
    assert all(fact in message for fact in facts.split(" ... ")), message


WORDS = ["yes", "No", "on", "OFF", "y", "n", "=", "1_000", "12:30:45", "2024-01-01", "2001-12-14t21:59:43.10-05:00"]
ODD = ["012", "0o14", "0x1F", "1.10", "1e3", "+1", ".5", "5.", ".inf", "-.INF", ".nan", "True", "FALSE"]


@pytest.mark.parametrize("word", [*WORDS, *ODD, "true", "1", "1.5", "0b1", "a", "'null'", '"~"'])
@pytest.mark.parametrize(
    "where",
    ["label", "property", "enum", "const", "default", "examples", "title", "required", "parts", "alternatives"],
)
def test_text_is_text_where_text_belongs(tmp_path: Path, word: str, where: str) -> None:
    text = word.strip("'\"")
    schemas: dict[str, tuple[str, Any]] = {
        "enum": (f"{{type: string, enum: [{word}]}}", {"type": "string", "enum": [text]}),
        "const": (f"{{type: string, const: {word}}}", {"type": "string", "const": text}),
        "default": (f"{{default: {word}, type: string, maxLength: 9}}",
                    {"default": text, "type": "string", "maxLength": 9}),
        "examples": (f"{{examples: [{word}], type: [string], maxLength: 9}}",
                     {"examples": [text], "type": ["string"], "maxLength": 9}),
        "title": (f"{{enum: [a], title: {word}}}", {"enum": ["a"], "title": text}),
        "parts": (f"{{type: array, maxItems: 1, items: {{type: string, enum: [{word}]}}}}",
                  {"type": "array", "maxItems": 1, "items": {"type": "string", "enum": [text]}}),
        "alternatives": (f"{{type: string, anyOf: [{{enum: [{word}]}}]}}",
                         {"type": "string", "anyOf": [{"enum": [text]}]}),
    }  # fmt: skip
    if where == "label":
        assert load(tmp_path, label=word).label == text
    elif where == "property":
        loaded = load(tmp_path, more=f"    {word}: {{enum: [a]}}\nsummary: {word}")
        assert (list(loaded.properties), loaded.summary) == (["it", text], text)
    elif where == "required":
        loaded = load(tmp_path, more=f"    {word}: {{enum: [a]}}\n  required: [{word}]")
        assert loaded.questions[0].answer_schema["required"] == [text]
    else:
        written, schema = schemas[where]
        assert load(tmp_path, it=written).properties["it"] == schema


@pytest.mark.parametrize("word", WORDS)
def test_words_of_an_enum_without_a_type_are_text(tmp_path: Path, word: str) -> None:
    assert load(tmp_path, it=f"{{enum: [{word}]}}").properties["it"] == {"enum": [word]}


@pytest.mark.parametrize("word", [*ODD, "~", "Null"])
def test_what_may_be_text_or_not_is_refused_where_no_type_decides(tmp_path: Path, word: str) -> None:
    message = refused(tmp_path, it=f"{{enum: [{word}]}}")
    assert f"schema.properties.it.enum[0]: {word!r} " in message
    assert "quote" in message


def test_an_enum_without_a_type_takes_what_json_has(tmp_path: Path) -> None:
    values = load(tmp_path, it="{enum: [1, -2.5, true, null, a, '1']}").properties["it"]["enum"]
    assert [(value, type(value)) for value in values] == [
        (1, int), (-2.5, float), (True, bool), (None, type(None)), ("a", str), ("1", str)]  # fmt: skip


@pytest.mark.parametrize(
    ("it", "found"),
    [
        ("{type: boolean, enum: [yes, no]}", "it.enum[0]: 'yes' ... true or false"),
        ("{type: integer, enum: ['1']}", "it.enum[0]: '1' ... integer"),
        ("{type: integer, enum: [1.5]}", "it.enum[0]: 1.5 ... integer"),
        ("{type: integer, const: 012}", "it.const: '012' ... decimal"),
        ("{type: number, default: many}", "it.default: 'many' ... number"),
        ("{type: string, enum: [a, null]}", "it.enum[1]: null ... text"),
        ("{type: string, const: [a]}", "it.const: ... list ... text"),
        ("{type: string, const: {a: b}}", "it.const: ... mapping ... text"),
        ("{type: [string, integer], enum: [012]}", "it.enum[0]: '012' ... text or"),
        ("{type: object, additionalProperties: no}", "it.additionalProperties: 'no' ... true or"),
        ("{type: string, maxLength: '9'}", "it.maxLength: '9' ... number"),
        ("{type: string, maxLenght: 9}", "it.maxLenght: ... 'maxLength'"),
        ("{type: string, type: integer}", "it.type: ... twice"),
        ("{type: string, 'type': integer}", "it.type: ... twice"),
        ("{enum: [a, b, a]}", 'it.enum[2]: ... "a" twice'),
        ("{enum: []}", "it.enum: ... without values"),
        ("{<<: {enum: [a]}}", "it.<<: ... YAML 1.1"),
        ("{? [a] : b}", "key"),
        ("!!str no", "tag:yaml.org,2002:str"),
        ("!thing {enum: [a]}", "!thing"),
        ('{enum: ["\\ud800"]}', "it.enum[0]: ... surrogate"),
        ('{enum: ["a\\0"]}', "it.enum[0]: ... NUL"),
        ("{type: strin}", "it.type: ... JSON Schema"),
        ("true", "'it'"),
        ("{}", "'it'"),
        ("[]", "JSON Schema"),
        ("{$ref: '#/properties/it'}", "'it' ... itself"),
        ("{$ref: '#'}", "itself"),
    ],
)
def test_a_property_that_cannot_be_meant_is_refused(tmp_path: Path, it: str, found: str) -> None:
    assert_facts(found, refused(tmp_path, it=it))


@pytest.mark.parametrize(
    ("it", "found"),
    [
        ("{type: string}", "'it' ... string"),
        ("{type: [string, 'null']}", "'it'"),
        ("{type: array, maxItems: 3, items: {type: string}}", "'it[]'"),
        ("{type: array, items: {enum: [a]}}", "'it' ... array"),
        ("{type: array, maxItems: 3}", "'it[]'"),
        ("{type: array, maxItems: 3, prefixItems: [{type: string}]}", "'it[]'"),
        ("{type: object, properties: {deep: {type: array, maxItems: 1, items: {type: string}}}}", "'it.deep[]'"),
        ("{type: object, additionalProperties: {type: integer}}", "'it' ... object"),
        ("{properties: {deep: {type: string}}}", "'it.deep'"),
        ("{anyOf: [{type: 'null'}, {type: string}]}", "'it'"),
        ("{type: string, anyOf: [{maxLength: 3}, {minLength: 9}]}", "'it'"),
        ("{allOf: [{type: string}, {minLength: 3}]}", "'it'"),
    ],
)
def test_what_has_no_end_is_named_at_any_depth(tmp_path: Path, it: str, found: str) -> None:
    assert_facts(found, refused(tmp_path, it=it))


@pytest.mark.parametrize(
    "it",
    [
        "{type: number}",
        "{type: string, pattern: '[a-z]{3}'}",
        "{type: string, format: date}",
        "{type: string, anyOf: [{maxLength: 3}, {enum: [unknown]}]}",
        "{allOf: [{type: string}, {maxLength: 3}]}",
        "{type: array, maxItems: 2, items: {enum: [a]}}",
        "{type: array, maxItems: 1, prefixItems: [{enum: [a]}]}",
        "{type: array, prefixItems: [{enum: [a]}], items: false}",
        "{type: object, properties: {deep: {type: boolean}}}",
        "&it {type: string, maxLength: 3}\n    other: *it",
    ],
)
def test_what_has_an_end_is_taken(tmp_path: Path, it: str) -> None:
    assert "it" in load(tmp_path, it=it).properties


@pytest.mark.parametrize("number", ["012", "0o14", "0x10", "1_000", "12:30", ".inf", "'64'", "1.5", "true", "~", ""])
def test_a_number_is_written_in_decimals(tmp_path: Path, number: str) -> None:
    assert "max_tokens: " in refused(tmp_path, max_tokens=number)


@pytest.mark.parametrize(
    ("more", "found"),
    [
        ("    IT: {enum: [a]}", "'IT'"),
        ("    Path: {enum: [a]}", "'Path'"),
        ("    '': {enum: [a]}", "name"),
        ("  required: [that]", "'that'"),
        ("    that: {$ref: '#/$defs/missing'}", "/$defs/missing"),
        ("labell: cat", "labell: ... 'label'"),
        ("label: cat", "label: ... line 2"),
        ("---\nlabel: dog", "'---'"),
        ("summary: no", "'no'"),
        ("crop: {margin: no}", "crop.margin: 'no' ... number"),
        ("\tcrop: {}", "YAML"),
        ("request: {chat_template_kwargs: {enable_thinking: no}}", "enable_thinking: 'no' "),
        ("request: {seed: 012}", "request.seed: '012' "),
        ("request: {stop:}", "request.stop: '' "),
        ("request: {seed: .nan}", "request.seed: '.nan' "),
        ("request: [seed]", "request: ... list ... mapping"),
        ("request: {max_completion_tokens: 0}", "request.max_completion_tokens: "),
        ("request: {max_tokens: 5}", "request.max_tokens: "),
        ("request: {extra_body: {top_k: 1}}", "request.extra_body: ... client"),
        ("crop:", "crop: ... empty ... remove the key"),
        ("    that: {type: bool}", "that.type: 'bool' ... boolean"),
        ("    that: {enum: [a, {b: c}]}", "that.enum[1]: ... mapping ... quote"),
        ("  schema: {type: object}", "schema.schema: ... write its content here"),
        *((f"request: {{{name}: 1}}", f"request.{name}: ") for name in sorted(job.FIXED_FIELDS)),
    ],
)  # fmt: skip
def test_the_rest_of_a_file_is_checked_by_line(tmp_path: Path, more: str, found: str) -> None:
    path = write(tmp_path, more=more)
    with pytest.raises(InvalidJob, match=r"cats\.yaml, line [2-9]+: ") as raised:
        job.load(str(path))
    assert_facts(found, str(raised.value))


def test_nothing_stands_for_the_default(tmp_path: Path) -> None:
    loaded = load(tmp_path, more="summary:\nthreshold: ~\ntemperature: .1\ncrop: {margin: 0}")
    assert (loaded.summary, loaded.threshold, loaded.temperature, loaded.crop.margin) == (None, None, 0.1, 0)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_file_may_have_any_encoding_that_it_names(tmp_path: Path, encoding: str, end: str) -> None:
    text = write(tmp_path, label="Kätzchen").read_text().replace("\n", end)
    path = tmp_path / "other.yaml"
    path.write_bytes(text.encode(encoding))
    if encoding == "utf-16-le":  # without a byte order mark
        with pytest.raises(InvalidJob, match="UTF-8"):
            job.load(str(path))
    else:
        assert job.load(str(path)).label == "Kätzchen"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "dog_breeds.yaml"),
        (b"# nothing\n", "dog_breeds.yaml"),
        (b"- a\n", "dog_breeds.yaml"),
        (b"label: caf\xe9\n", "UTF-8"),
        (b"label: a\0b\n", "UTF-8"),
        (b"a: " + b"[" * 5000, "nested"),
        (b"a: &a [*a]", "alias"),
        (b"a: &a {b: *a}", "alias"),
        (b"".join(b"%c: &%c [%s]\n" % (n + 98, n + 98, b",".join([b"*%c" % (n + 97)] * 9) if n else b"1")
                  for n in range(9)), "aliases (*)"),
        (b"question: What: is it?", "': '"),
    ],
)  # fmt: skip
def test_a_file_that_holds_no_job_is_refused(tmp_path: Path, content: bytes, found: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_bytes(content)
    with pytest.raises(InvalidJob) as raised:
        job.load(str(path))
    assert found in str(raised.value)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("name", ["x" * 300, "~nobody-of-that-name/job.yaml", "a\0b", ""])
def test_a_path_that_cannot_be_looked_up_is_no_job(name: str) -> None:
    with pytest.raises(NotFound, match=re.escape(repr(name))):
        job.load(name)


def test_fields_of_the_request_belong_to_the_job(tmp_path: Path) -> None:
    plain = load(tmp_path)
    assert "request" not in plain.fingerprint()
    loaded = load(tmp_path, more="request: {top_p: 0.9, stop: ['no'], chat_template_kwargs: {enable_thinking: false}}")
    assert loaded.request == {"top_p": 0.9, "stop": ["no"], "chat_template_kwargs": {"enable_thinking": False}}
    assert loaded.fingerprint() != plain.fingerprint()


def test_an_answers_limit_may_be_given_as_newer_servers_want_it(tmp_path: Path) -> None:
    loaded = load(tmp_path, more="request: {max_completion_tokens: 40}")
    assert (loaded.questions[0].max_tokens, limit_of(loaded, OF_CHAT)) == (40, "max_completion_tokens")
    path = tmp_path / "cats.yaml"
    path.write_text(path.read_text().replace("max_tokens: 16\n", "", 1))
    assert job.load(str(path)).questions[0].max_tokens == 40
