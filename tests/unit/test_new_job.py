"""`./spotter job`: a job file to start from, and the JSON Schema by which editors check one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jsonschema_rs
import pytest
import yaml

from pipeline import job
from pipeline.errors import InvalidSetting
from pipeline.runtime.terminal import make_console
from scripts.__main__ import parse
from scripts.commands import new_job
from scripts.settings import StackSettings


def write(file: Path, label: str = "") -> None:
    new_job.run(StackSettings(), make_console(), file=str(file), label=label)


def test_the_new_job_is_valid_and_named_by_its_file(tmp_path: Path) -> None:
    write(tmp_path / "traffic_lights")
    written = job.load(str(tmp_path / "traffic_lights.yaml"))
    assert written.label == "traffic lights"
    assert set(written.properties) == {"color", "whole", "note"}


@pytest.mark.parametrize("label", ["car", "no", "42", "a: b # c", "it's", '"quoted"', "Hund & Katze", "LABEL", "\\d"])
def test_any_label_stays_text(tmp_path: Path, label: str) -> None:
    write(tmp_path / "x.yaml", label)
    written = job.load(str(tmp_path / "x.yaml"))
    assert written.label == label
    assert f"this {label}." in written.questions[0].question


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "cars.yaml").write_text("mine")
    with pytest.raises(InvalidSetting, match=r"cars\.yaml is there already"):
        write(tmp_path / "cars")
    assert (tmp_path / "cars.yaml").read_text() == "mine"


def test_a_name_is_required() -> None:
    with pytest.raises(InvalidSetting, match="make job NAME=cars"):
        write(Path())


def test_a_label_of_two_lines_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="one line"):
        write(tmp_path / "cars", "a\nb")


def test_a_relative_name_starts_at_the_callers_folder(tmp_path: Path) -> None:
    assert parse(["--folder", str(tmp_path), "job", "cars"])[1]["file"] == str(tmp_path / "cars")


def test_the_new_job_names_the_schema_for_editors(tmp_path: Path) -> None:
    write(tmp_path / "cars")
    first = (tmp_path / "cars.yaml").read_text().splitlines()[0]
    assert (tmp_path / first.partition("$schema=")[2]).resolve() == new_job.SCHEMA


def test_the_schema_for_editors_is_that_of_the_code() -> None:
    """After a change of `Job`: WRITE_SCHEMA=1 with this test writes the file anew."""
    schema = new_job.editor_schema()
    if os.environ.get("WRITE_SCHEMA"):
        new_job.SCHEMA.write_text(json.dumps(schema, indent=2) + "\n")
    assert json.loads(new_job.SCHEMA.read_text()) == schema


def test_the_schema_for_editors_takes_the_bundled_jobs_and_refuses_a_misspelt_key() -> None:
    check = jsonschema_rs.Draft202012Validator(new_job.editor_schema())
    for name in job.bundled_names():
        content = yaml.safe_load((job.BUNDLED / f"{name}.yaml").read_text())
        assert check.is_valid(content), name
        assert not check.is_valid(content | {"lable": "dog"})
