"""Job files: what is accepted, and what is said of the rest."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import job
from pipeline.errors import InvalidJob, NotFound

GOOD: dict[str, Any] = {
    "description": "Count cats.",
    "label": "cat",
    "question": "What colour is this cat?",
    "schema": {"type": "object", "properties": {"color": {"enum": ["black", "white"]}}, "required": ["color"]},
    "max_tokens": 16,
}


def write(folder: Path, content: object) -> str:
    path = folder / "cats.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(path)


def test_bundled_jobs_are_valid() -> None:
    assert "dog_breeds" in job.bundled_names()
    for name in job.bundled_names():
        assert job.load(name).name == name


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    loaded = job.load(write(tmp_path, GOOD))
    assert (loaded.name, loaded.label, loaded.crop.max_side) == ("cats", "cat", 512)


def test_the_same_text_has_the_same_fingerprint(tmp_path: Path) -> None:
    first = job.load(write(tmp_path, GOOD)).fingerprint()
    assert first == job.load(write(tmp_path, dict(reversed(GOOD.items())))).fingerprint()
    assert first != job.load(write(tmp_path, GOOD | {"max_tokens": 17})).fingerprint()


def with_schema(**properties: object) -> dict[str, Any]:
    return GOOD | {"schema": {"type": "object", "properties": properties}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param("a: [1", "YAML", id="no YAML"),
        pytest.param("just text", "dog_breeds.yaml", id="no mapping"),
        pytest.param({**GOOD, "labell": "x"}, "labell: .*'label'", id="unknown key"),
        pytest.param({k: v for k, v in GOOD.items() if k != "question"}, "question: ", id="missing key"),
        pytest.param(
            {("max_token" if key == "max_tokens" else key): value for key, value in GOOD.items()},
            "max_token: unknown key: did you mean 'max_tokens'",
            id="misspelt key that is required",
        ),
        pytest.param(
            {key: value for key, value in GOOD.items() if key != "description"},
            "description: this key is required, but missing",
            id="missing key",
        ),
        pytest.param(GOOD | {"max_tokens": 0}, "max_tokens: ", id="value out of range"),
        pytest.param(GOOD | {"schema": {"type": "objekt"}}, "schema.type: .*JSON Schema", id="no JSON Schema"),
        pytest.param(with_schema(a={"$ref": "http://127.0.0.1:9/a"}), "a: .*http://127.0.0.1:9/a", id="elsewhere"),
        pytest.param(GOOD | {"schema": {"type": "string"}}, "must have 'type: object'", id="no object"),
        pytest.param(with_schema(note={"type": "string"}), "'note'.* string", id="unbounded string"),
        pytest.param(with_schema(score={"type": "number"}), "'score'", id="name of a column"),
        pytest.param(GOOD | {"summary": "size"}, "summary: .*'size'", id="summary of nothing"),
    ],
)
def test_a_wrong_job_is_refused_in_one_line(tmp_path: Path, content: object, message: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(InvalidJob, match=message) as raised:
        job.load(path)
    assert "\n" not in str(raised.value)
    assert path in str(raised.value)


def test_an_unknown_job_names_the_known_ones() -> None:
    with pytest.raises(NotFound, match=r"'dog_breads'.* dog_breeds"):
        job.load("dog_breads")
