"""The questions of a job: text, form of the answers, the detections that each is about, and the right answers."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, NoReturn, Self

import jsonschema_rs
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    StringConstraints,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from pipeline.answer_schema import SchemaError, check_ends, check_names, folded
from pipeline.tables import DETECTION_COLUMNS, answer_type
from pipeline.template import NAME, Template

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


def refuse_elsewhere(uri: str) -> NoReturn:
    """A schema is complete in its job file: reading one must not make requests, and the model server would not."""
    raise ValueError(f"$ref to {uri}: write the schema into the job file")


class Question(BaseModel):
    """One question, which is one request about each detection that it belongs to."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    question: Text = Field(description="what the model is asked about each crop")
    answer_schema: dict[str, Any] = Field(alias="schema", description="JSON Schema of an answer: a flat object")
    max_tokens: int = Field(ge=1, description="must fit the longest answer that the schema allows")
    labels: list[Text] | None = Field(
        None, min_length=1, description="ask about detections with these labels only; by default about all"
    )
    image: bool = Field(True, description="false: the model gets the text alone, without the crop")

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

    def is_about(self, label: str) -> bool:
        """Whether it is asked about detections with this label."""
        return self.labels is None or label in self.labels

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
        return self


class Truth(BaseModel):
    """Where the right answer to a property is. In a job file, an input's name alone is enough."""

    model_config = ConfigDict(extra="forbid")

    input: Text
    pattern: Text | None = Field(
        None, description="a regular expression: what its first group finds in the input is the right answer"
    )

    @model_validator(mode="before")
    @classmethod
    def read(cls, content: Any) -> Any:
        """Take a name alone."""
        return {"input": content} if isinstance(content, str) else content

    @field_validator("pattern")
    @classmethod
    def check_pattern(cls, pattern: str | None) -> str | None:
        """Refuse what is not a regular expression with one group."""
        try:
            if pattern is not None and re.compile(pattern).groups != 1:
                raise SchemaError((), f"pattern {pattern!r} must have one group, such as 'Answer: ([A-D])'")
        except re.error as error:
            raise SchemaError((), f"pattern {pattern!r} is not a regular expression: {error}") from error
        return pattern

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"type": "string"}, handler(schema)]}


def check_shared(questions: Sequence[Question]) -> None:
    """Refuse a property in two questions, unless no detection gets both and one column holds the answers of both.

    Raises:
        SchemaError: names the property and both questions.
    """
    found: dict[str, list[tuple[int, str, Any]]] = {}
    for number, question in enumerate(questions):
        for name, schema in question.properties.items():
            for other, other_name, other_schema in found.setdefault(folded(name), []):
                where = ("questions", number, "schema", "properties", name)
                also = f"property {name!r} is also in question {other + 1}"
                if not apart(question, questions[other]):
                    raise SchemaError(where, f"{also}: rename one, or give each question `labels` of its own")
                if name != other_name or answer_type(schema) != answer_type(other_schema):
                    kinds = f"{other_name!r} ({answer_type(other_schema)}), here {name!r} ({answer_type(schema)})"
                    raise SchemaError(where, f"{also} as {kinds}: one column cannot hold both: rename one")
            found[folded(name)].append((number, name, schema))


def apart(one: Question, other: Question) -> bool:
    """Whether no detection gets both questions."""
    return one.labels is not None and other.labels is not None and set(one.labels).isdisjoint(other.labels)


def check_inputs(inputs: Mapping[str, str], each: str | None, questions: Sequence[Question]) -> None:
    """Refuse inputs that have no usable name, questions that take others, and an `each` without an input.

    Raises:
        SchemaError: names the place.
    """
    known = ", ".join(inputs)
    for name in inputs:
        if not NAME.fullmatch(name):
            raise SchemaError(("inputs", name), "the name of an input has letters, digits and _ alone")
    if each is not None and not any(f"{path}.".startswith(f"{each}.") for path in inputs.values()):
        raise SchemaError(("each",), f"no input is in {each!r}: add one such as {each}.text, or remove the key")
    for number, question in enumerate(questions if inputs else ()):
        where = ("questions", number, "question")
        try:
            names = Template(question.question).names
        except ValueError as error:
            raise SchemaError(where, str(error)) from error
        if unknown := next((name for name in names if name not in inputs), None):
            raise SchemaError(where, f"{{{unknown}}} is not an input: the inputs are {known}")


def check_truth(truth: Mapping[str, Truth], inputs: Mapping[str, str], properties: Collection[str]) -> None:
    """Refuse a right answer to a property, or from an input, that the job does not have.

    Raises:
        SchemaError: names the property.
    """
    for name, right in truth.items():
        if name not in properties:
            raise SchemaError(("truth", name), f"is not a property of the schema: {', '.join(properties)}")
        if right.input not in inputs:
            known = f"the inputs are {', '.join(inputs)}" if inputs else "add `inputs`"
            raise SchemaError(("truth", name), f"{right.input!r} is not an input: {known}")
