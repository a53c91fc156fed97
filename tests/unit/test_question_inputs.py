"""Questions with values from the input table, and their right answers."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from rich.console import Console

from pipeline import job, settings
from pipeline.errors import InvalidJob, InvalidSetting, NotFound, UsageError
from pipeline.output.accuracy import is_right, right_answer
from pipeline.output.manifest import Result
from pipeline.question import Truth
from pipeline.run import run
from pipeline.sources.images import content_key
from pipeline.sources.inputs import InputColumns
from pipeline.sources.listing import Source, list_images
from pipeline.sources.objects import Objects
from pipeline.sources.rows import Cursor
from pipeline.template import Template
from tests.doubles.simulated import Simulated
from tests.pictures import encoded, gradient
from tests.report_rows import loaded

SCHEMA = {
    "type": "object",
    "properties": {"answer": {"enum": ["A", "B", "C", "D"]}},
    "required": ["answer"],
    "additionalProperties": False,
}
JOB: dict[str, Any] = {
    "description": "Answer questions.",
    "label": "dog",
    "question": "{question}\n{options}",
    "schema": SCHEMA,
    "max_tokens": 16,
    "inputs": {"question": "question", "options": "options", "truth": "truth"},
    "truth": {"answer": "truth"},
}
ROWS = [
    {"question": "Which colour?", "options": ["red", "blue"], "truth": "A"},
    {"question": "How many?", "options": ["1", "2", "3"], "truth": "B"},
]
# As Hugging Face's data sets have multiple-choice questions about diagrams.
NESTED: dict[str, Any] = JOB | {
    "question": "{question}",
    "inputs": {"question": "texts.user", "truth": "texts.assistant"},
    "each": "texts",
    "truth": {"answer": {"input": "truth", "pattern": "Answer: ([A-D])"}},
}


def load(folder: Path, content: dict[str, Any]) -> job.Job:
    path = folder / "vqa.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return job.load(str(path))


def picture(number: int = 0) -> bytes:
    return encoded(gradient(64 + 16 * number, 48))


def nested_rows() -> list[dict[str, Any]]:
    """Two pictures with two questions each."""
    return [
        {
            "images": [{"bytes": picture(number), "path": None}],
            "texts": [
                {"user": f"Question {number}.{n}\nA. x\nB. y", "assistant": f"Answer: {'AB'[n]}", "source": "drawn"}
                for n in range(2)
            ],
        }
        for number in range(2)
    ]


# --- templates ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{a}", "one"),
        ("Is it {a}? {{a}}", "Is it one? {a}"),
        ("{list}", "A. red\nB. 2\nC. true"),
        ("{number}, {flag}", "3, false"),
    ],
)
def test_a_template_takes_text_numbers_and_lists_of_options(text: str, said: str) -> None:
    values = {"a": "one", "list": ["red", 2, True], "number": 3, "flag": False}
    assert Template(text).fill(values) == said


def test_options_beyond_z_have_two_letters() -> None:
    lines = Template("{o}").fill({"o": list(range(28))}).splitlines()
    assert lines[25:] == ["Z. 25", "AA. 26", "AB. 27"]


@pytest.mark.parametrize("text", ["{", "a } b", "{a b}", "{}", "{a.b}", "{a!r}", "{{a}"])
def test_a_template_with_a_lone_brace_or_no_name_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidJob, match=r"line \d+: question: .*\{|\}"):
        load(tmp_path, JOB | {"question": text})


def test_braces_in_a_job_without_inputs_are_text(tmp_path: Path) -> None:
    plain = {name: value for name, value in JOB.items() if name not in ("inputs", "truth")}
    assert load(tmp_path, plain | {"question": 'Answer {"a": "{b}"} { }'}).in_questions == frozenset()


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        pytest.param(
            {"question": "{query}"}, ("question: ", "{query}", "question, options, truth"), id="no such input"
        ),
        pytest.param({"truth": {"reply": "truth"}}, ("truth.reply: ", "answer"), id="no such property"),
        pytest.param({"truth": {"answer": "right"}}, ("truth.answer: ", "'right'"), id="truth from nowhere"),
        pytest.param({"inputs": {"a b": "c"}, "question": "q"}, ("inputs.a b: ",), id="name with a space"),
        pytest.param({"each": "texts"}, ("each: ", "'texts'"), id="each without an input in it"),
        pytest.param(
            {"truth": {"answer": {"input": "truth", "pattern": "("}}}, ("truth.answer.pattern: ",), id="regex"
        ),
        pytest.param({"truth": {"answer": {"input": "truth", "pattern": "a"}}}, ("one group",), id="no group"),
        pytest.param({"truth": {"answer": {"input": "truth", "x": "a"}}}, ("truth.answer.x: ",), id="unknown key"),
    ],
)
def test_a_wrong_job_is_one_line_that_names_the_place(
    tmp_path: Path, change: dict[str, Any], facts: tuple[str, ...]
) -> None:
    with pytest.raises(InvalidJob) as error:
        load(tmp_path, JOB | change)
    for fact in facts:
        assert fact in str(error.value)


# --- tables ---------------------------------------------------------------------------------------------------------


def as_parquet(rows: list[dict[str, Any]], path: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path.with_suffix(".parquet"), row_group_size=1)
    return path.with_suffix(".parquet")


def as_arrow(rows: list[dict[str, Any]], path: Path) -> Path:
    feather.write_feather(pa.Table.from_pylist(rows), str(path.with_suffix(".arrow")))
    return path.with_suffix(".arrow")


def as_json_lines(rows: list[dict[str, Any]], path: Path) -> Path:
    path.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.with_suffix(".jsonl")


def sources(folder: Path, content: dict[str, Any], place: Path) -> list[Source]:
    return list_images(str(place), None, None, InputColumns.of(load(folder, content))).sources


def values(found: list[Source]) -> list[Any]:
    return [json.loads(source.inputs.text) for source in found if source.inputs]


@pytest.mark.parametrize("write", [as_parquet, as_arrow, as_json_lines])
def test_plain_columns_of_each_kind_of_table(tmp_path: Path, write: Callable[..., Path]) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    found = sources(tmp_path, JOB, write([{"image": "a.png", **row} for row in ROWS], tmp_path / "qa"))
    assert values(found) == ROWS
    assert len({source.path for source in found}) == 2, "two questions about one picture are two rows"


def test_a_csv_file_has_texts(tmp_path: Path) -> None:
    (tmp_path / "qa.csv").write_text("image,question,options,truth\na.png,Which?,A. red B. blue,A\n")
    assert values(sources(tmp_path, JOB, tmp_path / "qa.csv")) == [
        {"question": "Which?", "options": "A. red B. blue", "truth": "A"}
    ]


@pytest.mark.parametrize("write", [as_parquet, as_arrow])
def test_each_element_of_a_list_is_a_row(tmp_path: Path, write: Callable[..., Path]) -> None:
    found = sources(tmp_path, NESTED, write(nested_rows(), tmp_path / "qa"))
    assert [source.shown.rpartition("#")[2] for source in found] == [
        *("00000000.0", "00000000.1", "00000001.0", "00000001.1"),
    ]
    assert values(found)[1] == {"question": "Question 0.1\nA. x\nB. y", "truth": "Answer: B"}


def test_a_picture_with_several_questions_is_not_read_anew_from_the_start_of_its_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"image": bytes([number])} for number in range(100)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "one_group.parquet")
    seeks: list[int] = []
    seek = Cursor.seek

    def counted(self: Cursor, row: int) -> None:
        seeks.append(row)
        seek(self, row)

    monkeypatch.setattr(Cursor, "seek", counted)
    cursor = Cursor(str(tmp_path / "one_group.parquet"), "image", Objects(None))
    assert [cursor.get(number // 3) for number in range(300)] == [bytes([number // 3]) for number in range(300)]
    assert len(seeks) <= 2, "at the start, and once to learn that rows repeat"


def test_an_input_beside_the_list_is_shared_by_its_elements(tmp_path: Path) -> None:
    rows = [{"image": picture(), "title": "t", "texts": [{"q": "1"}, {"q": "2"}]}]
    change = {"question": "{t} {q}", "inputs": {"t": "title", "q": "texts.q"}, "each": "texts", "truth": {}}
    found = sources(tmp_path, JOB | change, as_parquet(rows, tmp_path / "qa"))
    assert values(found) == [{"t": "t", "q": "1"}, {"t": "t", "q": "2"}]


@pytest.mark.parametrize(
    ("change", "kind", "facts"),
    [
        pytest.param(
            {"inputs": {"question": "query", "truth": "texts.assistant"}},
            NotFound,
            ("'query'", "question", "texts"),
            id="none",
        ),
        pytest.param({"each": None}, InvalidJob, ("'texts.user'", "`each`"), id="a list without each"),
        pytest.param(
            {"each": None, "inputs": {"question": "images", "truth": "images"}}, InvalidJob, ("'images'",), id="structs"
        ),
        pytest.param(
            {"inputs": {"question": "texts.users", "truth": "texts.assistant"}},
            NotFound,
            ("'texts.users'",),
            id="field",
        ),
    ],
)
def test_columns_that_do_not_fit_stop_the_run_in_one_line(
    tmp_path: Path, change: dict[str, Any], kind: type[UsageError], facts: tuple[str, ...]
) -> None:
    content = {name: value for name, value in (NESTED | change).items() if value is not None}
    place = as_parquet(nested_rows(), tmp_path / "qa")
    with pytest.raises(kind) as error:
        sources(tmp_path, content, place)
    for fact in (str(place), *facts):
        assert fact in str(error.value)


def test_a_folder_of_images_has_no_inputs(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    with pytest.raises(InvalidSetting, match=r"question, options, truth .*a\.png.* no table"):
        sources(tmp_path, JOB, tmp_path)


def test_a_table_without_a_single_complete_row_stops_the_run(tmp_path: Path) -> None:
    rows = [{"image": picture(), **ROWS[0], "question": " "}]
    with pytest.raises(InvalidJob, match=r"'question'.*empty"):
        sources(tmp_path, JOB, as_parquet(rows, tmp_path / "qa"))


def test_the_key_covers_the_inputs() -> None:
    assert len({content_key(b"x"), content_key(b"x", "{}"), content_key(b"x", '{"a": 1}')}) == 3


# --- runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def run_job(simulated: Simulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run a job over a table, with the simulated servers; every box is the whole picture."""
    for name, value in simulated.settings.items():
        monkeypatch.setenv(name, value)
    simulated.boxes = lambda image: [[0, 0, image.width, image.height]]

    def do(content: dict[str, Any], place: Path) -> Result:
        load(tmp_path, content)
        arguments = ["--images", str(place), "--output", str(tmp_path / "runs"), "--job", str(tmp_path / "vqa.yaml")]
        return run(settings.load(arguments), Console(file=io.StringIO()))

    return do


def table(done: Result, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(done.folder / f"{name}.parquet").to_pylist()
    return rows


def text_of(body: dict[str, Any]) -> str:
    text: str = body["messages"][0]["content"][-1]["text"]
    return text


def test_each_row_is_asked_its_own_question(
    run_job: Callable[..., Result], simulated: Simulated, tmp_path: Path
) -> None:
    simulated.answer = lambda crop, body: '{"answer": "A"}'
    done = run_job(NESTED, as_parquet(nested_rows(), tmp_path / "qa"))
    asked = sorted(text_of(body) for body in simulated.model.bodies[1:])
    assert asked == sorted(f"Question {number}.{n}\nA. x\nB. y" for number in range(2) for n in range(2))
    assert text_of(simulated.model.bodies[0]) == "Question 0.0\nA. x\nB. y", "the probe asks the first row's"
    images = table(done, "images")
    assert json.loads(images[1]["inputs"]) == {"question": "Question 0.1\nA. x\nB. y", "truth": "Answer: B"}
    assert [row["duplicate_of"] for row in images] == [None] * 4
    assert done.manifest["accuracy"] == {
        "answer": {"rows": 4, "right": 2, "no_answer": 0, "without_truth": 0, "share": 0.5}
    }
    page = (done.folder / "report.html").read_text()
    assert "50.0 %" in page
    shown = loaded(done.folder / "report" / "rows-0.js", "take")["images"]["inputs"]
    assert shown == [row["inputs"] for row in images]


def test_rows_that_are_done_are_not_asked_again(
    run_job: Callable[..., Result], simulated: Simulated, tmp_path: Path
) -> None:
    simulated.answer = lambda crop, body: '{"answer": "A"}'
    place = as_parquet(nested_rows(), tmp_path / "qa")
    first = run_job(NESTED, place)
    asked = simulated.model.requests
    second = run_job(NESTED, place)
    assert (second.folder, simulated.model.requests) == (first.folder, asked + 1), "one question before the run"
    assert second.manifest["accuracy"] == first.manifest["accuracy"]


def test_rows_without_an_answer_count_as_wrong_and_rows_without_a_truth_do_not_count(
    run_job: Callable[..., Result], simulated: Simulated, tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = [{"image": picture(number), **ROWS[0]} for number in range(5)]
    rows[1] |= {"question": None}
    rows[2] |= {"truth": None}
    rows[3] |= {"image": b"no picture"}
    simulated.answer = lambda crop, body: '{"answer": "A"}'
    done = run_job(JOB, as_parquet(rows, tmp_path / "qa"))
    images = table(done, "images")
    assert [row["outcome"] for row in images] == ["detected", "failed", "detected", "failed", "detected"]
    assert "input 'question' (column question) is empty" in images[1]["reason"]
    assert done.manifest["accuracy"]["answer"] == {
        "rows": 4, "right": 2, "no_answer": 2, "without_truth": 1, "share": 0.5
    }  # fmt: skip


def test_a_question_with_and_one_without_the_image(
    run_job: Callable[..., Result], simulated: Simulated, tmp_path: Path
) -> None:
    blind = {"type": "object", "properties": {"blind": {"enum": ["A", "B"]}}, "required": ["blind"]}
    content = {name: value for name, value in JOB.items() if name not in ("question", "schema", "max_tokens")}
    content["questions"] = [
        {"question": "{question}", "schema": SCHEMA, "max_tokens": 16},
        {"question": "{question}", "schema": blind, "max_tokens": 16, "image": False},
    ]
    content["truth"] = {"answer": "truth", "blind": "truth"}

    def answer(crop: Image.Image, body: dict[str, Any]) -> str:
        right = "B" if text_of(body) == "How many?" else "A"
        return json.dumps({"answer": right} if crop.size != (1, 1) else {"blind": "B"})

    simulated.answer = answer
    done = run_job(content, as_parquet([{"image": picture(n), **row} for n, row in enumerate(ROWS)], tmp_path / "qa"))
    assert {name: count["right"] for name, count in done.manifest["accuracy"].items()} == {"answer": 2, "blind": 1}


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [
        ("A", "A", True), ("A", " A\n", True), ("A", "a", False), ("A", "Answer: A", False), ("3", 3, True),
        (3, 3, True), (3, "3", True), (3, "three", False), (3.5, "3.50", True), (1, True, False),
        (True, True, True), (True, "True", True), (False, "true", False), (True, 1, False),
    ],
)  # fmt: skip
def test_when_an_answer_is_right(answer: Any, truth: Any, right: bool) -> None:
    assert is_right(answer, truth) is right


def test_a_pattern_says_which_part_of_an_input_is_the_truth() -> None:
    truth = Truth(input="t", pattern="Answer: ([A-D])")
    assert right_answer(truth, '{"t": "Answer: C"}') == "C"
    assert right_answer(truth, '{"t": "C"}') is None
    assert right_answer(Truth(input="t"), '{"t": 3}') == 3
    assert right_answer(truth, None) is None
