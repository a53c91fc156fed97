"""The tables of a run: their columns, and the rows that become them.

Each image ends as exactly one of IMAGE_OUTCOMES, each detection as exactly one of DETECTION_OUTCOMES.
"""

from __future__ import annotations

import json
import math
import os
from typing import Any

import pyarrow as pa

from pipeline.answer_schema import NUMBERS, folded, kinds, listed_values

# Changes when rows that an older version wrote cannot stand beside new ones.
FORMAT = "4"

DETECTED = "detected"
NO_OBJECT = "no_object"
DUPLICATE = "duplicate"  # within parts only: its rows are those of the first image with the same key
ANSWERED = "answered"
FAILED = "failed"
IMAGE_OUTCOMES = (DETECTED, NO_OBJECT, FAILED)
DETECTION_OUTCOMES = (ANSWERED, FAILED)

# Of a frame of a video; null for other images.
FRAME = (
    pa.field("video", pa.string()),  # its path
    pa.field("frame", pa.int64()),  # the frame's number in the order of showing, from 0
    pa.field("time_s", pa.float64()),  # seconds after the first frame
)

IMAGES = pa.schema(
    [
        pa.field("path", pa.string()),
        pa.field("key", pa.string()),  # start of the SHA-256 of the file's bytes; null when it could not be read
        pa.field("outcome", pa.string()),
        pa.field("width", pa.int32()),  # pixels, upright (EXIF orientation applied)
        pa.field("height", pa.int32()),
        pa.field("format", pa.string()),
        pa.field("frames", pa.int32()),  # frames or pages in the file; only the first is used
        pa.field("file_bytes", pa.int64()),
        pa.field("version", pa.string()),  # another one tells a changed source: a file's time and size, for example
        pa.field("inputs", pa.string()),  # JSON: the job's values of the row of a table; null for a job without inputs
        *FRAME,
        pa.field("duplicate_of", pa.string()),  # the path of an image with the same bytes: its answers are copied here
        pa.field("detections", pa.int32()),
        pa.field("stage", pa.string()),  # where it failed; null unless `outcome` is failed
        pa.field("reason", pa.string()),
        pa.field("attempts", pa.int32()),  # requests to the detector
        pa.field("read_s", pa.float32()),
        pa.field("detect_s", pa.float32()),  # with waiting for the detector's turn and retries
        pa.field("crop_s", pa.float32()),
    ]
)

DETECTIONS = pa.schema(
    [
        pa.field("path", pa.string()),
        pa.field("key", pa.string()),
        pa.field("index", pa.int32()),  # within the image, by descending score
        pa.field("outcome", pa.string()),
        pa.field("label", pa.string()),
        pa.field("box", pa.list_(pa.float32(), 4)),  # xyxy, pixels of the upright image
        pa.field("score", pa.float32()),
        pa.field("crop", pa.string()),  # path within the run's folder
        *FRAME,
        # the answer's fields stand here, see `detections_schema`
        pa.field("raw_answer", pa.string()),
        pa.field("stage", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("attempts", pa.int32()),  # requests to the model
        pa.field("latency_s", pa.float32()),  # of the last request, without waiting for its turn
        pa.field("prompt_tokens", pa.int32()),
        pa.field("completion_tokens", pa.int32()),
    ]
)
DETECTION_COLUMNS = frozenset(DETECTIONS.names)

# The end of the name of a column that says how sure the model was of a property; of this type, which no answer has.
CONFIDENCE = "_confidence"
CONFIDENCE_TYPE = pa.float32()


def answer_type(schema: Any) -> pa.DataType:
    """The Arrow type of one property of an answer: a number, a boolean or a string, also where null is allowed.

    Arrays, objects and mixed types are kept as JSON text. References within `schema` are inlined beforehand.
    """
    types = kinds(schema) - {"null"}
    if types and types <= NUMBERS:
        return pa.int64() if types == {"integer"} else pa.float64()
    return pa.bool_() if types == {"boolean"} else pa.string()


def answer_columns(properties: dict[str, Any]) -> dict[str, pa.DataType]:
    """The columns of an answer's fields, in the order of the schema's `properties`."""
    return {name: answer_type(schema) for name, schema in properties.items()}


def confidence_columns(properties: dict[str, Any]) -> dict[str, str]:
    """From a property whose values are listed to the column of its confidence.

    A property that has this name already keeps it: then there is no confidence.
    """
    taken = {folded(name) for name in properties}
    return {
        name: name + CONFIDENCE
        for name, schema in properties.items()
        if listed_values(schema) is not None and folded(name + CONFIDENCE) not in taken
    }


def confidences_in(schema: pa.Schema) -> list[str]:
    """The columns of confidences in detections.parquet."""
    return [field.name for field in schema if field.name.endswith(CONFIDENCE) and field.type == CONFIDENCE_TYPE]


def answer_struct(properties: dict[str, Any]) -> pa.StructType:
    """The Arrow type of an answer's columns: those of its fields, then those of their confidences."""
    confidences = dict.fromkeys(confidence_columns(properties).values(), CONFIDENCE_TYPE)
    return pa.struct(list((answer_columns(properties) | confidences).items()))


def detections_schema(properties: dict[str, Any]) -> pa.Schema:
    """The schema of detections.parquet for a job whose answers have `properties`."""
    where = DETECTIONS.get_field_index("raw_answer")
    fields = list(DETECTIONS)
    return pa.schema(fields[:where] + list(answer_struct(properties)) + fields[where:])


def answer_value(value: Any, column: pa.DataType) -> Any:
    """One field of an answer as its column holds it; JSON Schema counts 1.0 as an integer, and 1 is stored.

    Raises:
        ValueError: the column cannot hold exactly what the answer says.
    """
    if value is None or column == pa.bool_():
        return value
    if column == pa.string():
        text = value if isinstance(value, str) else json.dumps(value, allow_nan=False)
        text.encode()  # half a surrogate pair is not text
        return text
    # A fraction beyond 2**53 was rounded when it was read.
    exact = isinstance(value, int) or abs(value) < 2**53 or column == pa.float64()
    try:
        number = int(value) if column == pa.int64() else float(value)
    except OverflowError as error:
        raise ValueError(f"{value} is beyond a 64-bit float") from error
    if not exact or number != value or not math.isfinite(number):
        raise ValueError(f"a column of {column} cannot hold {value} exactly")
    if column == pa.int64() and not -(2**63) <= number < 2**63:
        raise ValueError(f"{value} is beyond a 64-bit integer")
    return number


def shown_path(path: bytes) -> str:
    """A file's path as text; bytes that are no UTF-8 are shown as escapes."""
    return os.fsdecode(path).encode("utf-8", "backslashreplace").decode()
