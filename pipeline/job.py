"""Job files: what to look for, what to ask, and the form of an answer."""

from __future__ import annotations

import json
import os
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Self

import jsonschema_rs
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from pipeline.answer_schema import SchemaError
from pipeline.errors import NotFound
from pipeline.job_file import JobFile
from pipeline.labels import (
    DETECTOR,
    LABEL_SCHEMA,
    LABELS_SCHEMA,
    WHOLE,
    Boxes,
    Labels,
    as_labels,
    as_written,
    check_whole,
    lowest,
    reaches,
    said,
)
from pipeline.question import Question, Text, Truth, check_inputs, check_shared, check_truth
from pipeline.tables import shown_path
from pipeline.template import Template

BUNDLED = Path(__file__).parent / "jobs"

# Fields of a request that a job cannot add: Spotter sets them, or the job file has a key for them.
FIXED_FIELDS = {"model", "messages", "response_format", "stream", "n", "input", "text", "store", "structured_outputs"}
OWN_KEYS = {"max_tokens", "max_output_tokens", "temperature"}
# Arguments of OpenAI's Python client, which never reach a server.
CLIENT_KEYS = {"extra_body", "extra_headers", "extra_query", "timeout"}
# Newer servers want this in the place of max_tokens.
MAX_COMPLETION_TOKENS = "max_completion_tokens"

# The keys of a job file with one question, which stand at its top.
ONE_QUESTION = {"question", "schema", "max_tokens"}


class Crop(BaseModel):
    """How a detection is cut out of its image."""

    model_config = ConfigDict(extra="forbid")

    margin: float = Field(0.05, ge=0, le=1, description="context around the box, as a share of its width and height")
    max_side: int = Field(512, ge=16, le=4096, description="a longer side is scaled down to this, in pixels")
    min_side: int = Field(
        32, ge=1, le=512, description="a shorter side is scaled up to this, or filled with grey, in pixels"
    )


class Tiles(BaseModel):
    """How a large picture is searched for small things."""

    model_config = ConfigDict(extra="forbid")

    size: int = Field(ge=128, le=8192, description="side of a tile, in pixels; a larger picture is searched in tiles")
    overlap: float = Field(
        0.2, ge=0, le=0.8, description="what two tiles share, as a share of a tile: as large as the largest small thing"
    )


class Job(BaseModel):
    """A job file, checked. Unknown keys are refused, so that a misspelt one is not dropped."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    description: Text
    labels: Labels = Field(description="the labels of the objects to find, each with its lowest score")
    questions: list[Question] = Field(
        min_length=1, description="several questions, each a request of its own; or question, schema and max_tokens"
    )
    boxes: Boxes = Field(
        "detector",
        description="detector; whole: the image itself is the one detection; input: the boxes come with the images",
    )
    temperature: float | None = Field(
        0.0, ge=0, le=2, description="0 gives the same answer to the same crop; null: the server's own"
    )
    reasoning_tokens: int = Field(
        0, ge=0, description="for a model that thinks before it answers: so many more tokens than max_tokens"
    )
    threshold: float | None = Field(
        None, ge=0, le=1, description="lowest score of a detection; by default the detector's"
    )
    crop: Crop = Crop()
    tiles: Tiles | None = Field(None, description="search a large picture in tiles, for small things")
    summary: str | None = Field(None, description="the property whose answers are counted in the summary")
    inputs: dict[str, Text] = Field(
        {}, description="values from the input table for `{name}` in questions: name to column, or path of fields"
    )
    each: Text | None = Field(None, description="a column of lists: each element is a row of its own")
    truth: dict[str, Truth] = Field(
        {}, description="property to the input that holds the right answer; the summary then has the accuracy"
    )
    request: dict[str, Any] = Field(
        {}, description="more fields of each request, for example top_p, seed, chat_template_kwargs"
    )

    _name: str = PrivateAttr("")

    @property
    def name(self) -> str:
        """The job file's name without its ending."""
        return self._name

    @property
    def label(self) -> str:
        """The label of a job that has one; a word for all objects in a job that has several."""
        return said(self.labels)

    @property
    def has_several_labels(self) -> bool:
        """Whether the detections of the job may have different labels."""
        return self.labels is None or len(self.labels) > 1

    def wants(self, label: str, score: float | None) -> bool:
        """Whether a detection has a label that the job looks for, and no lower score."""
        if self.labels is not None and label not in self.labels:
            return False
        return reaches(score, lowest(self.labels, self.threshold, label))

    @property
    def properties(self) -> dict[str, Any]:
        """The schema of each property of all questions, in the file's order, with references inlined."""
        found: dict[str, Any] = {}
        for question in self.questions:
            for name, schema in question.properties.items():
                found.setdefault(name, schema)
        return found

    @property
    def in_questions(self) -> frozenset[str]:
        """The inputs that questions take."""
        texts = [Template(question.question) for question in self.questions] if self.inputs else []
        return frozenset(name for text in texts for name in text.names)

    def about(self, label: str) -> list[int]:
        """The numbers of the questions that are asked about detections with this label."""
        return [number for number, question in enumerate(self.questions) if question.is_about(label)]

    @model_validator(mode="before")
    @classmethod
    def check_content(cls, content: Any) -> Any:
        """Make one form of labels and questions; see that `request` replaces no field of Spotter's own."""
        if not isinstance(content, dict):
            return content
        content = as_questions(as_labels(content))
        request = content.get("request")
        if isinstance(request, dict):
            check_request(request)
            if MAX_COMPLETION_TOKENS in request and isinstance(content["questions"], list):
                limit = {"max_tokens": request[MAX_COMPLETION_TOKENS]}
                limited = [each | limit if isinstance(each, dict) else each for each in content["questions"]]
                content = content | {"questions": limited}
        return content

    @model_validator(mode="after")
    def check_questions(self) -> Self:
        """Refuse questions that cannot share a table, and a label that no question is about."""
        check_shared(self.questions)
        for number, question in enumerate(self.questions):
            for place, label in enumerate(question.labels or ()):
                if self.labels is not None and label not in self.labels:
                    where = ("questions", number, "labels", place)
                    raise SchemaError(where, f"label {label!r} is not a label of this job: {', '.join(self.labels)}")
        if self.tiles and self.boxes != DETECTOR:
            raise SchemaError(
                ("tiles",), f"a detector searches tiles, but the job has `boxes: {self.boxes}`: remove one"
            )
        if self.boxes == WHOLE:
            check_whole(self.labels, self.threshold)
        if self.labels is None and all(question.labels for question in self.questions):
            raise SchemaError(("questions",), "each has `labels`, but with `labels: any` one must be about all of them")
        for label in self.labels or ():
            if not self.about(label):
                raise SchemaError(("questions",), f"none is about the label {label!r}")
        check_inputs(self.inputs, self.each, self.questions)
        check_truth(self.truth, self.inputs, self.properties)
        if self.summary is not None and self.summary not in self.properties:
            known = ", ".join(self.properties)
            raise SchemaError(("summary",), f"summary {self.summary!r} is not a property of the schema: {known}")
        return self

    def content(self) -> dict[str, Any]:
        """The job with all defaults, as JSON; a single question about all detections is written without a list."""
        content = self.model_dump(mode="json", by_alias=True)
        del content["labels"]
        content |= as_written(self.labels)
        if self.boxes == DETECTOR:
            del content["boxes"]
        # As in runs that are older than these keys.
        for name in ("request", "reasoning_tokens", "tiles", "inputs", "each", "truth"):
            if not content[name]:
                del content[name]
        for question in content["questions"]:
            for name, default in (("labels", None), ("image", True)):
                if question[name] == default:
                    del question[name]
        if len(self.questions) == 1 and content["questions"][0].keys() == ONE_QUESTION:
            content |= content.pop("questions")[0]
        return content

    def fingerprint(self) -> str:
        """The job as canonical JSON: two jobs with the same text give the same answers."""
        return json.dumps(self.content(), sort_keys=True)


def as_questions(content: dict[str, Any]) -> dict[str, Any]:
    """A job file's content with its one question as a list of one.

    Raises:
        SchemaError: it has both forms.
    """
    one = {name: value for name, value in content.items() if name in ONE_QUESTION}
    if "questions" not in content:
        return {name: value for name, value in content.items() if name not in one} | {"questions": [one]}
    if one:
        raise SchemaError((next(iter(one)),), "stands beside `questions`: move it into one of them")
    return content


def check_request(request: dict[str, Any]) -> None:
    """Refuse fields of `request` that would replace Spotter's own.

    Raises:
        SchemaError: names the field.
    """
    for name in request:
        if name in FIXED_FIELDS:
            raise SchemaError(("request", name), "Spotter sets this field of a request itself: remove it")
        if name in CLIENT_KEYS:
            raise SchemaError(("request", name), "is an argument of a client: write the request's own fields here")
        if name in OWN_KEYS:
            raise SchemaError(("request", name), f"write {name} at the top level of the job file")
    limit = request.get(MAX_COMPLETION_TOKENS, 1)
    if type(limit) is not int or limit < 1:
        raise SchemaError(("request", MAX_COMPLETION_TOKENS), f"is {limit!r}, but must be an integer of 1 or more")


@cache
def file_schema() -> dict[str, Any]:
    """The JSON schema of a job file; tells its reader what is text and what is a number."""
    schema: dict[str, Any] = jsonschema_rs.dereference(Job.model_json_schema())
    question = schema["properties"]["questions"]["items"]["properties"]
    schema["properties"] |= {name: question[name] for name in sorted(ONE_QUESTION)}
    schema["properties"] |= {"label": LABEL_SCHEMA, "labels": LABELS_SCHEMA}
    schema["required"] = [name for name in schema["required"] if name not in ("questions", "labels")]
    schema["allOf"] = [
        {"oneOf": [{"required": sorted(ONE_QUESTION)}, {"required": ["questions"]}]},
        {"anyOf": [{"required": ["label"]}, {"required": ["labels"]}, {"required": ["boxes"]}]},
        {"not": {"required": ["label", "labels"]}},
    ]
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
        # A misspelt key is the cause of the missing one.
        first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
        where, message = first["loc"], first["msg"]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, SchemaError):
            where, message = (*where, *cause.where), str(cause)
        elif first["type"] == "extra_forbidden":
            keys = file_schema()["properties"]
            keys = keys["questions"]["items"]["properties"] if where[0] == "questions" else keys
            near = get_close_matches(str(where[-1]), keys, n=1)
            message = "unknown key" + (f": did you mean {near[0]!r}?" if near else "")
        elif first["type"] == "missing":
            message = "this key is required, but missing"
        if "questions" not in file.content and where[:2] == ("questions", 0):
            where = where[2:]
        file.refuse(where, message.removeprefix("Value error, "))
    job._name = shown_path(os.fsencode(path.stem))
    return job
