"""Job files: what to look for, what to ask, and the form of an answer."""

from __future__ import annotations

import json
import os
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NoReturn, Self

import jsonschema_rs
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, StringConstraints, ValidationError, model_validator

from pipeline.answer_schema import SchemaError, check_ends, check_names
from pipeline.errors import NotFound
from pipeline.job_file import JobFile
from pipeline.tables import DETECTION_COLUMNS, shown_path

BUNDLED = Path(__file__).parent / "jobs"

# Fields of a request that a job cannot add: Spotter sets them, or the job file has a key for them.
FIXED_FIELDS = {"model", "messages", "response_format", "stream", "n"}
OWN_KEYS = {"max_tokens", "temperature"}
# Arguments of OpenAI's Python client, which never reach a server.
CLIENT_KEYS = {"extra_body", "extra_headers", "extra_query", "timeout"}
# Newer servers want this in the place of max_tokens.
MAX_COMPLETION_TOKENS = "max_completion_tokens"

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


def refuse_elsewhere(uri: str) -> NoReturn:
    """A schema is complete in its job file: reading one must not make requests, and the model server would not."""
    raise ValueError(f"$ref to {uri}: write the schema into the job file")


class Crop(BaseModel):
    """How a detection is cut out of its image."""

    model_config = ConfigDict(extra="forbid")

    margin: float = Field(0.05, ge=0, le=1, description="context around the box, as a share of its width and height")
    max_side: int = Field(512, ge=16, le=4096, description="a longer side is scaled down to this, in pixels")
    min_side: int = Field(
        32, ge=1, le=512, description="a shorter side is scaled up to this, or filled with grey, in pixels"
    )


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
    request: dict[str, Any] = Field(
        {}, description="more fields of each request, for example top_p, seed, chat_template_kwargs"
    )

    _name: str = PrivateAttr("")

    @property
    def name(self) -> str:
        """The job file's name without its ending."""
        return self._name

    @property
    def limit(self) -> str:
        """The request's field that holds `max_tokens`."""
        return MAX_COMPLETION_TOKENS if MAX_COMPLETION_TOKENS in self.request else "max_tokens"

    @property
    def properties(self) -> dict[str, Any]:
        """The schema of each property of an answer, in the file's order, with references inlined: some 50 us a call."""
        inlined = jsonschema_rs.dereference(self.answer_schema, retriever=refuse_elsewhere)["properties"]
        return {name: inlined[name] for name in self.answer_schema["properties"]}

    def validator(self) -> jsonschema_rs.Draft202012Validator:
        """What tells whether an answer fits the schema.

        Raises:
            jsonschema_rs.ValidationError: the schema is not a JSON Schema.
        """
        return jsonschema_rs.Draft202012Validator(self.answer_schema, retriever=refuse_elsewhere)

    @model_validator(mode="before")
    @classmethod
    def check_request(cls, content: Any) -> Any:
        """Refuse fields that would replace Spotter's own; take the answer's limit from where the job gives it."""
        request = content.get("request") if isinstance(content, dict) else None
        if not isinstance(request, dict):
            return content
        for name in request:
            if name in FIXED_FIELDS:
                raise SchemaError(("request", name), "Spotter sets this field of a request itself: remove it")
            if name in CLIENT_KEYS:
                raise SchemaError(("request", name), "is an argument of a client: write the request's own fields here")
            if name in OWN_KEYS:
                raise SchemaError(("request", name), f"write {name} at the top level of the job file")
        if MAX_COMPLETION_TOKENS not in request:
            return content
        limit = request[MAX_COMPLETION_TOKENS]
        if type(limit) is not int or limit < 1:
            raise SchemaError(("request", MAX_COMPLETION_TOKENS), f"is {limit!r}, but must be an integer of 1 or more")
        return content | {"max_tokens": limit}

    @model_validator(mode="after")
    def check_schema(self) -> Self:
        """Refuse a schema that cannot constrain an answer or cannot become columns."""
        try:
            self.validator()
        except jsonschema_rs.ValidationError as error:
            where = "/".join(str(part) for part in error.instance_path) or "its top level"
            message = f"schema is not a JSON Schema: at {where}: {error.message}"
            raise SchemaError(("schema", *error.instance_path), message) from error
        if self.answer_schema.get("type") != "object" or not self.answer_schema.get("properties"):
            raise SchemaError(("schema",), "schema must have 'type: object' and at least one entry in 'properties'")
        check_names(self.answer_schema, DETECTION_COLUMNS)
        try:
            properties = self.properties
        except (ValueError, jsonschema_rs.ReferencingError) as error:
            raise SchemaError(("schema",), f"a $ref leads nowhere within the job file: {error}") from error
        for name, schema in properties.items():
            check_ends(schema, ("schema", "properties", name))
        if self.summary is not None and self.summary not in self.properties:
            known = ", ".join(self.properties)
            raise SchemaError(("summary",), f"summary {self.summary!r} is not a property of the schema: {known}")
        return self

    def fingerprint(self) -> str:
        """The job as canonical JSON: two jobs with the same text give the same answers."""
        content = self.model_dump(mode="json", by_alias=True)
        if not self.request:  # as in runs that are older than this key
            del content["request"]
        return json.dumps(content, sort_keys=True)


@cache
def file_schema() -> dict[str, Any]:
    """The JSON schema of a job file; tells its reader what is text and what is a number."""
    schema: dict[str, Any] = jsonschema_rs.dereference(Job.model_json_schema())
    return schema


def bundled_names() -> list[str]:
    """The names of the jobs that come with Spotter."""
    return sorted(path.stem for path in BUNDLED.glob("*.yaml"))


def find(name_or_path: str) -> Path:
    """The file of a bundled job, by its name, or of any job, by its path.

    Raises:
        NotFound: there is no such file.
    """
    try:
        for path in (BUNDLED / f"{name_or_path}.yaml", Path(name_or_path).expanduser()):
            if path.is_file():
                return path
        reason = "it is not a file" if path.exists() else "there is no such file"
    except (OSError, RuntimeError) as error:  # a name that is too long, a home that nobody has
        reason = getattr(error, "strerror", None) or str(error)
    raise NotFound(
        f"no job {name_or_path!r}: {reason}: give a job file's path, or one of the bundled jobs: "
        + ", ".join(bundled_names())
    )


def load(name_or_path: str) -> Job:
    """Load a bundled job by its name, or any job file by its path.

    Raises:
        NotFound: there is no such job.
        InvalidJob: its file is invalid.
    """
    path = find(name_or_path)
    file = JobFile(path, file_schema())
    try:
        job = Job.model_validate(file.content)
    except ValidationError as error:
        first = error.errors()[0]
        where, message = first["loc"], first["msg"]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, SchemaError):
            where, message = cause.where, str(cause)
        elif first["type"] == "extra_forbidden":
            near = get_close_matches(str(where[-1]), file_schema()["properties"], n=1)
            message = "unknown key" + (f": did you mean {near[0]!r}?" if near else "")
        file.refuse(where, message.removeprefix("Value error, "))
    job._name = shown_path(os.fsencode(path.stem))
    return job
