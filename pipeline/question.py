"""One question of a job: its text, the form of its answers, and the detections that it is asked about."""

from __future__ import annotations

from typing import Annotated, Any, NoReturn, Self

import jsonschema_rs
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from pipeline.answer_schema import SchemaError, check_ends, check_names
from pipeline.tables import DETECTION_COLUMNS

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
