"""Several questions in one job: what a job file may say, what is asked, and what becomes of the answers."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from rich.console import Console

from pipeline import job, settings
from pipeline.errors import InvalidJob
from pipeline.output.manifest import Result
from pipeline.run import run
from tests.doubles.simulated import Simulated
from tests.pictures import encoded, gradient
from tests.report_rows import report_rows


def question(name: str, schema: object = None, **more: Any) -> dict[str, Any]:
    """A question whose answers have one property."""
    properties = {name: schema or {"enum": ["yes", "no"]}}
    return {
        "question": f"{name}?",
        "schema": {"type": "object", "properties": properties, "required": [name], "additionalProperties": False},
        "max_tokens": 16,
        **more,
    }


def write(folder: Path, *questions: dict[str, Any], **more: Any) -> Path:
    path = folder / "two.yaml"
    content = {"description": "Ask twice.", "label": "dog", "questions": list(questions), **more}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def load(folder: Path, *questions: dict[str, Any], **more: Any) -> job.Job:
    return job.load(str(write(folder, *questions, **more)))


def refused(folder: Path, *questions: dict[str, Any], **more: Any) -> str:
    with pytest.raises(InvalidJob) as error:
        load(folder, *questions, **more)
    return str(error.value).removeprefix(f"job file {folder / 'two.yaml'}, ")


def test_a_single_question_is_the_same_job_in_both_forms(tmp_path: Path) -> None:
    as_list = load(tmp_path, question("wet"))
    (tmp_path / "two.yaml").write_text(yaml.safe_dump({"description": "Ask twice.", "label": "dog", **question("wet")}))
    flat = job.load(str(tmp_path / "two.yaml"))
    assert flat.fingerprint() == as_list.fingerprint()
    assert flat.content() == as_list.content()
    assert flat.content()["question"] == "wet?"


def test_an_unchanged_job_keeps_the_fingerprint_that_it_had() -> None:
    """Its text is part of each run's identity: another one would start each run of the bundled job anew."""
    content = yaml.safe_load((job.BUNDLED / "dog_breeds.yaml").read_text())
    defaults = {"temperature": 0.0, "threshold": None, "crop": {"margin": 0.05, "max_side": 512, "min_side": 32}}
    assert json.loads(job.load("dog_breeds").fingerprint()) == defaults | content


def test_the_columns_are_those_of_all_questions(tmp_path: Path) -> None:
    loaded = load(tmp_path, question("wet"), question("legs", {"type": "integer"}), summary="legs")
    assert list(loaded.properties) == ["wet", "legs"]


@pytest.mark.parametrize(
    ("questions", "more", "facts"),
    [
        pytest.param([], {}, ("questions: ",), id="no question"),
        pytest.param([question("a")], {"max_tokens": 9}, ("max_tokens: ", "questions"), id="both forms"),
        pytest.param(
            [question("a"), {"question": "b"}], {}, ("line 16", "questions[1].schema: "), id="half a question"
        ),
        pytest.param([question("a"), question("a")], {}, ("questions[1].schema", "'a'", "question 1"), id="one name"),
        pytest.param([question("Käse"), question("kÄSE")], {}, ("questions[1]", "'kÄSE'", "question 1"), id="case"),
        pytest.param([question("key")], {}, ("questions[0].schema.properties.key: ", "'key'"), id="a column's name"),
        pytest.param([question("a", {"type": "string"})], {}, ("questions[0].schema.properties.a: ",), id="no end"),
        pytest.param([question("a", labels=["cat"])], {}, ("questions[0].labels[0]: ", "'cat'", "dog"), id="label"),
        pytest.param([question("a", labels=[])], {}, ("questions[0].labels: ",), id="no label"),
        pytest.param([question("a", label="dog")], {}, ("questions[0].label: ", "'labels'"), id="unknown key"),
        pytest.param([question("a")], {"summary": "b"}, ("summary: ", "'b'"), id="summary of none"),
    ],
)
def test_a_wrong_job_is_one_line_that_names_the_place(
    tmp_path: Path, questions: list[dict[str, Any]], more: dict[str, Any], facts: tuple[str, ...]
) -> None:
    said = refused(tmp_path, *questions, **more)
    assert "\n" not in said
    for fact in facts:
        assert fact in said


def test_text_stays_text_in_each_schema(tmp_path: Path) -> None:
    path = write(tmp_path, question("a"), question("b"))
    path.write_text(path.read_text().replace("- 'yes'\n        - 'no'", "- yes\n        - no"))
    assert job.load(str(path)).questions[1].properties["b"] == {"enum": ["yes", "no"]}


@pytest.fixture
def images(simulated: Simulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in simulated.settings.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(encoded(gradient(320, 240)))
    return tmp_path / "photos"


def do(images: Path, path: Path, *options: str) -> Result:
    arguments = ["--images", str(images), "--output", str(images.parent / "runs"), "--job", str(path), *options]
    return run(settings.load(arguments), Console(file=io.StringIO()))


def asked_of(body: dict[str, Any]) -> str:
    text: str = body["messages"][0]["content"][-1]["text"]
    return text


def test_each_question_is_a_request_and_their_answers_are_one_row(
    simulated: Simulated, images: Path, tmp_path: Path
) -> None:
    said = {"wet?": '{"wet": "yes"}', "legs?": '{"legs": 3}', "old?": '{"old": "no"}'}
    simulated.answer = lambda crop, body: said[asked_of(body)]
    path = write(
        tmp_path,
        question("wet"),
        question("legs", {"type": "integer"}, image=False, max_tokens=8),
        question("old", labels=["dog"]),
        summary="legs",
    )
    done = do(images, path)
    (row,) = pq.read_table(done.folder / "detections.parquet").to_pylist()
    assert (row["wet"], row["legs"], row["old"], row["outcome"]) == ("yes", 3, "no", "answered")
    assert json.loads(row["raw_answer"]) == list(said.values())
    assert (row["attempts"], row["prompt_tokens"], row["completion_tokens"]) == (3, 120, 36)
    bodies = simulated.model.bodies[-3:]
    assert [asked_of(body) for body in bodies] == list(said)
    assert [len(body["messages"][0]["content"]) for body in bodies] == [2, 1, 2], "the second has no image"
    assert [body["max_tokens"] for body in bodies] == [16, 8, 16]
    assert len(simulated.model.bodies) == 6, "the probe asks each question once"
    assert done.manifest["summary"] == {"3": 1}
    (shown,) = report_rows(done.folder)
    assert [shown[name] for name in ("wet", "legs", "old")] == ["yes", 3, "no"]


def test_a_failed_question_fails_its_row_and_leaves_the_other_answers(
    simulated: Simulated, images: Path, tmp_path: Path
) -> None:
    answers = {"wet?": '{"wet": "yes"}', "old?": '{"old": "no"}'}
    right = dict(answers)
    simulated.answer = lambda crop, body: answers[asked_of(body)] if crop.size != (64, 64) else right[asked_of(body)]
    path = write(tmp_path, question("wet"), question("old"))
    answers["wet?"] = "perhaps"
    done = do(images, path)
    (row,) = pq.read_table(done.folder / "detections.parquet").to_pylist()
    assert (row["outcome"], row["stage"], row["wet"], row["old"]) == ("failed", "ask", None, "no")
    assert "not JSON" in row["reason"]
    assert json.loads(row["raw_answer"]) == ["perhaps", '{"old": "no"}']
    assert row["attempts"] == 2
    answers["wet?"] = '{"wet": "no"}'
    done = do(images, path, "--retry-failed")
    (row,) = pq.read_table(done.folder / "detections.parquet").to_pylist()
    assert (row["outcome"], row["wet"], row["old"]) == ("answered", "no", "no")


def test_a_text_only_question_sees_no_pixel(simulated: Simulated, images: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def answer(crop: Image.Image, body: dict[str, Any]) -> str:
        seen.append(crop.size)
        return '{"wet": "yes"}'

    simulated.answer = answer
    do(images, write(tmp_path, question("wet", image=False)))
    assert set(seen) == {(1, 1)}
