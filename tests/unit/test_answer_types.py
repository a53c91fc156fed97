"""Columns of answers: the Arrow type that a property's schema gives."""

from typing import Any

import pyarrow as pa
import pytest

from pipeline import job, tables

INTEGER, NUMBER, TEXT, BOOLEAN = pa.int64(), pa.float64(), pa.string(), pa.bool_()


@pytest.mark.parametrize(
    ("schema", "column"),
    [
        ({"type": "integer"}, INTEGER),
        ({"type": "number"}, NUMBER),
        ({"type": "boolean"}, BOOLEAN),
        ({"type": "string"}, TEXT),
        ({"type": ["integer", "null"]}, INTEGER),
        ({"type": ["null", "number"]}, NUMBER),
        ({"type": ["boolean", "null"]}, BOOLEAN),
        ({"type": ["integer", "number"]}, NUMBER),
        ({"type": ["integer", "boolean"]}, TEXT),
        ({"type": ["integer", "string"]}, TEXT),
        ({"type": "null"}, TEXT),
        ({"type": "array"}, TEXT),
        ({"type": "object"}, TEXT),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, INTEGER),
        ({"oneOf": [{"type": "null"}, {"type": "number"}]}, NUMBER),
        ({"anyOf": [{"type": "integer"}, {"type": "number"}]}, NUMBER),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, TEXT),
        ({"anyOf": [{"type": "integer"}, {}]}, TEXT),
        ({"allOf": [{"type": "integer"}]}, INTEGER),
        ({"allOf": [{"type": ["integer", "null"]}, {"minimum": 0}]}, INTEGER),
        ({"allOf": [{"type": ["integer", "string"]}, {"type": ["integer", "null"]}]}, INTEGER),
        ({"const": 3}, INTEGER),
        ({"const": 1.5}, NUMBER),
        ({"const": True}, BOOLEAN),
        ({"const": "red"}, TEXT),
        ({"enum": [1, 2]}, INTEGER),
        ({"enum": [1, 2.5]}, NUMBER),
        ({"enum": [1, 2.5, None]}, NUMBER),
        ({"enum": [True, None]}, BOOLEAN),
        ({"enum": [1, True]}, TEXT),
        ({"enum": ["1", 1]}, TEXT),
        ({"type": "number", "enum": [1, 2]}, NUMBER),
        ({"type": "integer", "anyOf": [{"minimum": 3}, {"maximum": 1}]}, INTEGER),
        ({"type": ["integer", "string", "null"], "enum": [1, None]}, INTEGER),
        ({}, TEXT),
    ],
)
def test_the_column_of_a_property(schema: dict[str, Any], column: pa.DataType) -> None:
    assert tables.answer_type(schema) == column


def test_references_within_the_schema_give_the_type_of_what_they_name() -> None:
    schema = {
        "type": "object",
        "properties": {
            "z": {"$ref": "#/$defs/count"},
            "a": {"anyOf": [{"$ref": "#/$defs/count"}, {"type": "null"}]},
            "m": {"$ref": "#/definitions/a~1b"},
        },
        "$defs": {"count": {"type": "integer", "title": "How many"}},
        "definitions": {"a/b": {"type": "number"}},
    }
    asked = job.load("dog_breeds").questions[0].model_copy(update={"answer_schema": schema})
    struct = tables.answer_struct(asked.properties)
    assert [(field.name, field.type) for field in struct] == [("z", INTEGER), ("a", INTEGER), ("m", NUMBER)]
    columns = tables.detections_schema(asked.properties)
    assert columns.names[11:15] == ["z", "a", "m", "raw_answer"]
