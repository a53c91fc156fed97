"""Whole runs of job files with odd names, columns and answers, against simulated servers."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from pipeline import settings
from pipeline.output.manifest import Result
from pipeline.run import run
from tests.doubles.simulated import Simulated
from tests.pictures import encoded, gradient

JOB = """\
description: Look at fractures.
label: dog
question: Is this a fracture?
max_tokens: 64
schema:
  type: object
  properties:
    no: {type: string, enum: [yes, no, unsure]}
    bone no. 2 (é): {type: [integer, null]}
    share: {anyOf: [{type: number}, {type: "null"}]}
    note: {type: string, maxLength: 12}
    parts: {type: array, maxItems: 2, items: {enum: [1, 2.5]}}
  required: [no]
summary: no
request: {seed: 3}
"""
ANSWER = '{"no": "no", "bone no. 2 (é)": 2.0, "share": 1, "note": "a\tb\n[/red]\0", "parts": [1, 2.5]}\n'
EMPTY = '{"no": "unsure", "bone no. 2 (é)": null}'


def test_answers_arrive_in_their_columns(simulated: Simulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in simulated.settings.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "photos").mkdir()
    for name, size in {"wide": (320, 240), "high": (240, 320)}.items():
        (tmp_path / "photos" / f"{name}.jpg").write_bytes(encoded(gradient(*size)))
    path = tmp_path / "no v1.2.yaml"
    path.write_text(JOB)
    asked: list[dict[str, Any]] = []

    def answer(crop: Image.Image, body: dict[str, Any]) -> str:
        asked.append(body)
        return ANSWER if crop.width > crop.height else EMPTY

    simulated.answer = answer

    def do() -> Result:
        arguments = ["--images", str(tmp_path / "photos"), "--output", str(tmp_path / "runs"), "--job", str(path)]
        return run(settings.load(arguments), Console(file=io.StringIO()))

    done = do()
    found = pq.read_table(done.folder / "detections.parquet")
    columns = ["no", "bone no. 2 (é)", "share", "note", "parts"]
    types = [found.schema.field(name).type for name in columns]
    assert types == [pa.string(), pa.int64(), pa.float64(), pa.string(), pa.string()]
    rows = sorted(found.select([*columns, "raw_answer"]).to_pylist(), key=lambda row: row["no"])
    assert [list(row.values()) for row in rows] == [
        ["no", 2, 1.0, "a\tb\n[/red]\0", "[1, 2.5]", ANSWER],
        ["unsure", None, None, None, None, EMPTY],
    ]
    assert done.manifest["summary"] == {"no": 1, "unsure": 1}
    assert "no v1.2" in (done.folder / "report.html").read_text()
    assert {(body["seed"], body["response_format"]["json_schema"]["name"]) for body in asked} == {(3, "no_v1_2")}
    assert json.loads((done.folder / "run.json").read_text())["job"]["name"] == "no v1.2"
    assert do().folder == done.folder, "the same job goes on where it was"
    path.write_text(JOB.replace("seed: 3", "seed: 4"))
    assert do().folder != done.folder, "another request is another run"
