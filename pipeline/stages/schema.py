"""The rows of the flow: what each stage adds to a row, as Daft types."""

from __future__ import annotations

import pyarrow as pa
from daft import DataType

FAILURE = DataType.struct(
    {"stage": DataType.string(), "reason": DataType.string(), "attempts": DataType.int32()},
)
# Where a table holds an image, or its path; or a frame of a video.
ROW = DataType.struct(
    {
        "table": DataType.binary(),
        "column": DataType.string(),
        "number": DataType.int64(),
        "is_frame": DataType.bool(),
    }
)
IMAGE = DataType.struct(
    {
        "key": DataType.string(),
        "width": DataType.int32(),
        "height": DataType.int32(),
        "format": DataType.string(),
        "frames": DataType.int32(),
        "file_bytes": DataType.int64(),
        "duplicate": DataType.bool(),  # an image with the same bytes was read before: nothing is asked about this one
        "data": DataType.binary(),  # the file; null where `KeptPixels` has it
        "copy": DataType.binary(),  # what the detector gets; null: the file
        "seconds": DataType.float32(),
        "failure": FAILURE,
    }
)
# A detection as the tables have it.
BOX = {
    "index": DataType.int32(),
    "label": DataType.string(),
    "box": DataType.list(DataType.float32()),  # xyxy, pixels of the upright image
    "score": DataType.float32(),
}
DETECTED = DataType.struct(
    {
        "boxes": DataType.list(DataType.struct(BOX)),
        "attempts": DataType.int32(),
        "seconds": DataType.float32(),
        "failure": FAILURE,
    }
)
DETECTION = DataType.struct({**BOX, "jpeg": DataType.binary(), "failure": FAILURE})
CROPPED = DataType.struct(
    {
        "detections": DataType.list(DETECTION),
        "seconds": DataType.float32(),
        "failure": FAILURE,
    }
)
STORED = DataType.struct({"crop": DataType.string(), "failure": FAILURE})


def answer_type(columns: pa.StructType) -> pa.StructType:
    """An answer whose checked fields are these `columns`; `raw_answer` is the model's own text."""
    return pa.struct(
        [
            pa.field("fields", columns),
            pa.field("raw_answer", pa.string()),
            pa.field("latency_s", pa.float32()),
            pa.field("attempts", pa.int32()),
            pa.field("prompt_tokens", pa.int32()),
            pa.field("completion_tokens", pa.int32()),
            pa.field("failure", FAILURE.to_arrow_dtype()),
        ]
    )
