"""Confidences: the probability of each value that a model chose, from the tokens that wrote it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import job as jobs
from pipeline import tables
from pipeline.clients.confidence import confidences, value_spans
from pipeline.clients.dialects import RequestForm
from pipeline.clients.dialects.responses import completion as of_response
from pipeline.clients.model import Form
from pipeline.job import Job
from pipeline.output.page_rows import LOWEST, PageRows
from pipeline.output.parts import Parts
from pipeline.output.run_folder import COMMITTED
from pipeline.stages.reusable import COLUMNS, ReusableAnswers
from tests.finished_runs import detection, finished_run, image

BREEDS = ["pug", "corgi", "black", "black and tan"]


def token(text: str | bytes, probability: float) -> dict[str, Any]:
    """A token as OpenAI has it."""
    raw = text.encode() if isinstance(text, str) else text
    return {"token": raw.decode(errors="replace"), "bytes": list(raw), "logprob": math.log(probability)}


def said(*tokens: tuple[str | bytes, float], logprobs: Any = None) -> tuple[dict[str, Any], str]:
    """A completion of these tokens, and its text."""
    text = b"".join(part.encode() if isinstance(part, str) else part for part, _ in tokens).decode()
    given = {"content": [token(*each) for each in tokens]} if logprobs is None else logprobs
    choice = {"message": {"content": text}, "finish_reason": "stop", "logprobs": given}
    return {"choices": [choice]}, text


def test_only_the_tokens_of_a_value_count() -> None:
    completion, text = said(('{"', 0.1), ("breed", 0.1), ('": "', 0.1), ("pu", 0.5), ("g", 0.5), ('"}', 0.1))
    assert confidences(completion, text, {"breed": BREEDS}) == {"breed": pytest.approx(0.25)}


def test_a_token_may_hold_more_than_the_value() -> None:
    completion, text = said(('{"breed', 0.1), ('":"pu', 0.5), ('g","ok":tr', 0.5), ("ue}", 0.25))
    found = confidences(completion, text, {"breed": BREEDS, "ok": [True, False]})
    assert found == {"breed": pytest.approx(0.25), "ok": pytest.approx(0.125)}


def test_the_end_counts_where_another_value_goes_on() -> None:
    completion, text = said(('{"coat":"', 1), ("black", 0.9), ('"', 0.5), ("}", 0.1))
    assert confidences(completion, text, {"coat": BREEDS}) == {"coat": pytest.approx(0.45)}
    assert confidences(completion, text, {"coat": ["black", "white"]}) == {"coat": pytest.approx(0.9)}
    completion, text = said(('{"legs":', 1), ("1", 0.5), ("}", 0.5))
    assert confidences(completion, text, {"legs": [1, 12]}) == {"legs": pytest.approx(0.25)}


def test_characters_of_several_tokens() -> None:
    dog = "犬".encode()
    completion, text = said(('{"é":"', 0.1), (dog[:1], 0.5), (dog[1:], 0.5), ('"}', 0.1))
    assert confidences(completion, text, {"é": ["犬", "猫"]}) == {"é": pytest.approx(0.25)}
    # vLLM gives the first part of a character without a text.
    completion["choices"][0]["logprobs"]["content"][1:3] = [token("", 0.5), token("犬", 0.25)]
    assert confidences(completion, text, {"é": ["犬", "猫"]}) == {"é": pytest.approx(0.125)}


def test_thoughts_and_ends_of_text_around_the_answer() -> None:
    answer = '{"breed":"pug"}'
    completion, _ = said((answer, 0.1), ("</think>", 0.1), ('{"breed":"', 0.1), ("pug", 0.5), ('"}', 1), ("<eos>", 0.1))
    assert confidences(completion, answer, {"breed": BREEDS}) == {"breed": pytest.approx(0.5)}


@pytest.mark.parametrize(
    "odd",
    [
        {},
        [],
        "no",
        {"content": None},
        {"content": [None]},
        {"content": [{"token": '{"breed":"pug"}'}]},
        {"content": [{"token": '{"breed":"pug"}', "logprob": "x"}]},
        {"content": [{"token": '{"breed":"pug"}', "logprob": math.nan}]},
        {"content": [{"token": '{"breed":"pug"}', "logprob": -0.1, "bytes": [300]}]},
        {"content": [{"token": "something else", "logprob": -0.1}]},
    ],
)
def test_odd_logprobs_tell_nothing(odd: Any) -> None:
    completion, text = said(('{"breed":"pug"}', 1), logprobs=odd)
    assert confidences(completion, text, {"breed": BREEDS}) == {}
    form = Form(job().questions[0], job(), "m", RequestForm(logprobs=True))
    answer = form.parse(json.dumps(completion).encode(), 1, 0.1)
    assert answer.columns == {"breed": "pug", "ok": None, "note": None, "breed_confidence": None, "ok_confidence": None}


def test_values_are_found_by_reading_the_json() -> None:
    answer = ' { "a\\"b" : "x\\"}" ,\n"c": [1, {"a": 2}], "d":null,"e" : -1.5e3 }'
    found = {name: answer[start:end] for name, (start, end) in value_spans(answer).items()}
    assert found == {'a"b': 'x\\"}', "c": '[1, {"a": 2}]', "d": "null", "e": "-1.5e3"}
    assert value_spans("{}") == {}


def job(**properties: Any) -> Job:
    """A job with these properties, or with a choice, a boolean and a text."""
    usual: dict[str, Any] = {
        "breed": {"enum": BREEDS},
        "ok": {"type": "boolean"},
        "note": {"type": "string", "maxLength": 9},
    }
    question = jobs.load("dog_breeds").questions[0]
    schema = {"type": "object", "properties": properties or usual}
    return jobs.load("dog_breeds").model_copy(
        update={"questions": [question.model_copy(update={"answer_schema": schema})], "summary": None}
    )


def test_columns_are_those_of_listed_values() -> None:
    names = tables.detections_schema(job().properties).names
    assert names[11:17] == ["breed", "ok", "note", "breed_confidence", "ok_confidence", "raw_answer"]
    taken = job(breed={"enum": BREEDS}, Breed_Confidence={"type": "number"})
    schema = tables.detections_schema(taken.properties)
    assert schema.names[11:14] == ["breed", "Breed_Confidence", "raw_answer"]
    assert tables.confidences_in(schema) == []
    either = {"anyOf": [{"enum": BREEDS}, {"type": "null"}]}
    assert tables.confidence_columns(job(a=either, b={"const": 1}, c={"type": "integer"}).properties) == {
        "a": "a_confidence",
        "b": "b_confidence",
    }


def test_both_apis_ask_for_and_read_the_probabilities() -> None:
    completion, text = said(('{"breed":"', 1), ("pug", 0.5), ('","ok":', 1), ("false", 0.25), ("}", 1))
    tokens = completion["choices"][0]["logprobs"]["content"]
    part = {"type": "output_text", "text": text, "logprobs": tokens}
    bodies = {"chat": completion, "responses": {"output": [{"type": "message", "content": [part]}]}}
    for api, asked in (("chat", {"logprobs": True}), ("responses", {"include": ["message.output_text.logprobs"]})):
        form = Form(job().questions[0], job(), "m", RequestForm(api, logprobs=True))  # type: ignore[arg-type]
        assert asked.items() <= form.request.items()
        columns = form.parse(json.dumps(bodies[api]).encode(), 1, 0.1).columns
        assert (columns["breed_confidence"], columns["ok_confidence"]) == (pytest.approx(0.5), pytest.approx(0.25))
        stored = pa.array([columns], tables.answer_struct(job().properties)).to_pylist()[0]
        assert 0 <= stored["ok_confidence"] <= 1
        usual = Form(job().questions[0], job(), "m", RequestForm(api))  # type: ignore[arg-type]
        assert not asked.items() <= usual.request.items()
    assert of_response({"output": []})["choices"][0]["logprobs"] == {"content": []}


def test_a_question_without_a_choice_asks_for_none() -> None:
    texts = job(note={"type": "string", "maxLength": 9})
    assert "logprobs" not in Form(texts.questions[0], texts, "m", RequestForm(logprobs=True)).request


def test_probabilities_are_no_part_of_a_runs_identity() -> None:
    assert RequestForm(logprobs=True) == RequestForm()
    assert RequestForm("responses", logprobs=True).said() == RequestForm("responses").said()


def test_parts_of_a_version_without_confidences_are_read(tmp_path: Path) -> None:
    (tmp_path / COMMITTED).parent.mkdir(parents=True)
    asked = jobs.load("dog_breeds").properties
    columns = tables.confidence_columns(asked).values()
    row = {"path": "a", "key": "a", "index": 0, "outcome": tables.ANSWERED, "box": [0, 0, 9, 9], "breed": "pug"}
    parts = Parts(tmp_path, asked)
    parts.add({"path": "a", "key": "a", "outcome": tables.DETECTED}, [row])
    parts.commit()
    file = next(tmp_path.rglob("detections-*.parquet"))
    pq.write_table(pq.read_table(file).drop_columns(list(columns)), file)
    parts.add({"path": "b", "key": "b", "outcome": tables.DETECTED}, [row | {"path": "b", "breed_confidence": 0.5}])
    parts.commit()
    merged = Parts(tmp_path, asked).merge({"a", "b"})["detections"]
    assert merged["breed"].to_pylist() == ["pug", "pug"]
    assert merged["breed_confidence"].to_pylist() == [None, 0.5]


def test_an_answer_that_is_used_again_keeps_its_confidence() -> None:
    row = dict.fromkeys(COLUMNS) | {"key": "k", "box": [0, 0, 9, 9], "breed": "pug", "breed_confidence": 0.5}
    found = ReusableAnswers([row], ["breed", "breed_confidence"]).find("k", [0, 0, 9, 9])
    assert found is not None
    assert found["fields"] == {"breed": "pug", "breed_confidence": 0.5}


def test_the_report_sorts_by_the_lowest_confidence(tmp_path: Path) -> None:
    rows = [
        detection("a", breed_confidence=0.9, collar_confidence=0.2),
        detection("b", breed_confidence=0.5, collar_confidence=None),
    ]
    run = finished_run(tmp_path / "r", [image("a"), image("b")], rows)
    page = PageRows({"images": run.images, "detections": run.detections}, {}, None)
    assert page.fields == ["breed", "collar", "legs", "note"]
    numbers = {each.name: each.rows for each in page.columns if each.kind == "number"}
    assert numbers[LOWEST] == [0.2, 0.5]
    assert numbers["breed_confidence"] == [0.9, 0.5]
    without = PageRows({"images": run.images, "detections": run.detections.slice(0, 0)}, {}, None)
    assert not {LOWEST, "breed_confidence"} & {each.name for each in without.columns}
