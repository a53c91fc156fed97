"""The preflight's look at the input table of a job."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pipeline import job
from scripts.checks.preflight.command import preflight
from scripts.checks.preflight.inputs import check_inputs
from scripts.settings import StackSettings

JOB: dict[str, Any] = {
    "description": "Answer questions.",
    "label": "dog",
    "question": "{question} {options}",
    "schema": {"type": "object", "properties": {"answer": {"enum": ["A", "B"]}}, "required": ["answer"]},
    "max_tokens": 16,
    "inputs": {"question": "question", "options": "options"},
}


def load(folder: Path) -> job.Job:
    (folder / "qa.yaml").write_text(yaml.safe_dump(JOB))
    return job.load(str(folder / "qa.yaml"))


def table(folder: Path, **columns: list[Any]) -> str:
    pq.write_table(pa.table({"image": [b"", b""], **columns}), folder / "qa.parquet")
    return str(folder / "qa.parquet")


def test_the_longest_row_is_the_one_that_is_checked(tmp_path: Path) -> None:
    place = table(tmp_path, question=["Short?", "A longer question?"], options=[["x"], ["y", "z"]])
    (question,), findings = check_inputs(load(tmp_path), {"SPOTTER_IMAGES": place})
    assert question.question == "A longer question? A. y\nB. z"
    assert findings == []


def test_a_missing_column_is_an_error_that_names_it(tmp_path: Path) -> None:
    place = table(tmp_path, question=["Short?", "Long?"])
    _, (finding,) = check_inputs(load(tmp_path), {"SPOTTER_IMAGES": place})
    assert (finding.severity, finding.check) == ("error", "inputs")
    assert "'options'" in finding.found


def test_without_a_table_nothing_is_claimed(tmp_path: Path) -> None:
    _, (finding,) = check_inputs(load(tmp_path), {})
    assert (finding.severity, "options" in str(finding)) == ("unchecked", True)


def test_a_question_that_is_too_long_for_the_server_is_found_in_the_table(tmp_path: Path) -> None:
    load(tmp_path)
    place = table(tmp_path, question=["Short?", "word " * 4000], options=[["x"], ["y"]])
    settings = StackSettings(state=tmp_path)
    settings._environment = {"SPOTTER_JOB": str(tmp_path / "qa.yaml"), "SPOTTER_IMAGES": place, "STACK_DEVICE": "cpu"}
    settings = settings.model_copy(update={"device": "cpu"})
    found = [each for each in preflight(settings).findings if each.severity == "error"]
    assert [each.check for each in found] == ["length"]
