"""Job files: what to look for, what to ask, and the form of an answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, NoReturn, Self

import jsonschema_rs
import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, StringConstraints, ValidationError, model_validator

from pipeline.errors import UsageError
from pipeline.tables import DETECTION_COLUMNS

BUNDLED = Path(__file__).parent / "jobs"

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


def refuse_elsewhere(uri: str) -> NoReturn:
    """A schema is complete in its job file: reading one must not make requests, and the model server would not."""
    raise ValueError(f"$ref to {uri}: write the schema into the job file")


class Crop(BaseModel):
    """How a detection is cut out of its image."""

    model_config = ConfigDict(extra="forbid")

    margin: float = Field(0.05, ge=0, le=1, description="context around the box, as a share of its width and height")
    max_side: int = Field(512, ge=16, le=4096, description="a longer side is scaled down to this, in pixels")


class Job(BaseModel):
    """A job file, checked. Unknown keys are refused, so that a misspelt one is not dropped."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    description: Text
    label: Text = Field(description="the detector's label of the objects to find")
    question: Text = Field(description="what the model is asked about each crop")
    answer_schema: dict[str, Any] = Field(alias="schema", description="JSON Schema of an answer: a flat object")
    max_tokens: int = Field(ge=1, description="must fit the longest answer that the schema allows")
    temperature: float = Field(0.0, ge=0, le=2, description="0 gives the same answer to the same crop")
    threshold: float | None = Field(
        None, ge=0, le=1, description="lowest score of a detection; by default the detector's"
    )
    crop: Crop = Crop()
    summary: str | None = Field(None, description="the property whose answers are counted in the summary")

    _name: str = PrivateAttr("")

    @property
    def name(self) -> str:
        """The job file's name without its ending."""
        return self._name

    @property
    def properties(self) -> dict[str, Any]:
        """The schema of each property of an answer, in the file's order, with its references inlined."""
        inlined = jsonschema_rs.dereference(self.answer_schema, retriever=refuse_elsewhere)["properties"]
        return {name: inlined[name] for name in self.answer_schema["properties"]}

    def validator(self) -> jsonschema_rs.Draft202012Validator:
        """What tells whether an answer fits the schema.

        Raises:
            jsonschema_rs.ValidationError: the schema is none.
        """
        return jsonschema_rs.Draft202012Validator(self.answer_schema, retriever=refuse_elsewhere)

    @model_validator(mode="after")
    def check_schema(self) -> Self:
        """Refuse a schema that cannot constrain an answer or cannot become columns."""
        try:
            self.validator()
        except jsonschema_rs.ValidationError as error:
            where = "/".join(str(part) for part in error.instance_path) or "its top level"
            raise ValueError(f"schema is not a JSON Schema: at {where}: {error.message}") from error
        if self.answer_schema.get("type") != "object" or not self.answer_schema.get("properties"):
            raise ValueError("schema must have 'type: object' and at least one entry in 'properties'")
        for name, schema in self.properties.items():
            if name in DETECTION_COLUMNS:
                raise ValueError(f"schema: property {name!r} has the name of a column of detections.parquet; rename it")
            if schema.get("type") == "string" and not {"enum", "const", "maxLength", "format", "pattern"} & set(schema):
                raise ValueError(
                    f"schema: property {name!r} is a string without an end: give it 'enum' or 'maxLength', "
                    "or a weak model writes until max_tokens and every answer is cut"
                )
        if self.summary is not None and self.summary not in self.properties:
            raise ValueError(f"summary {self.summary!r} is not a property of the schema: {', '.join(self.properties)}")
        return self

    def fingerprint(self) -> str:
        """The job as canonical JSON: two jobs with the same text give the same answers."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), sort_keys=True)


def bundled_names() -> list[str]:
    """The names of the jobs that come with Spotter."""
    return sorted(path.stem for path in BUNDLED.glob("*.yaml"))


def load(name_or_path: str) -> Job:
    """Load a bundled job by its name, or any job file by its path.

    Raises:
        UsageError: there is no such job, or its file is not a valid one.
    """
    path = BUNDLED / f"{name_or_path}.yaml"
    if not path.is_file():
        path = Path(name_or_path).expanduser()
    if not path.is_file():
        raise UsageError(
            f"no job {name_or_path!r}: give a job file's path, or one of the bundled jobs: {', '.join(bundled_names())}"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"job file {path} cannot be read as YAML: {reason}") from error
    if not isinstance(content, dict):
        raise UsageError(f"job file {path} must hold keys and values, as {BUNDLED / 'dog_breeds.yaml'} does")
    try:
        job = Job.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"job file {path}: {where + ': ' if where else ''}{message}") from error
    job._name = path.stem
    return job
