"""The rows of the flow: what each stage adds to a row, as Daft types."""

from __future__ import annotations

from daft import DataType

FAILURE = DataType.struct(
    {"stage": DataType.string(), "reason": DataType.string(), "attempts": DataType.int32()},
)
# Where a table holds an image, or its path.
ROW = DataType.struct({"table": DataType.binary(), "column": DataType.string(), "number": DataType.int64()})
IMAGE = DataType.struct(
    {
        "key": DataType.string(),
        "width": DataType.int32(),
        "height": DataType.int32(),
        "format": DataType.string(),
        "file_bytes": DataType.int64(),
        "duplicate": DataType.bool(),  # an image with the same bytes was read before: nothing is asked about this one
        "data": DataType.binary(),  # the file
        "upload": DataType.binary(),  # what the detector gets
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
# Without a failure, `raw_answer` is JSON that fits the job's schema.
ANSWER = DataType.struct(
    {
        "raw_answer": DataType.string(),
        "latency_s": DataType.float32(),
        "attempts": DataType.int32(),
        "prompt_tokens": DataType.int32(),
        "completion_tokens": DataType.int32(),
        "failure": FAILURE,
    }
)
STORED = DataType.struct({"crop": DataType.string(), "failure": FAILURE})
