"""Hugging Face datasets: a folder with two configurations, `detections` (with crops) and `images`, as Parquet."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pipeline import tables
from pipeline.results.finished_run import FinishedRun, Tally, local_file

# The size of the library's own files (`max_shard_size`).
FILE_BYTES = 500_000_000
# What is in memory at once.
GROUP_BYTES, GROUP_ROWS = 50_000_000, 1000

PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
OBJECT = pa.struct(
    [
        ("bbox", pa.list_(pa.float32(), 4)),  # x, y, width, height, pixels of the upright image
        ("label", pa.string()),
        ("score", pa.float32()),
        ("outcome", pa.string()),
        ("answer", pa.string()),  # JSON
    ]
)
IMAGES = pa.schema(
    [
        ("image", PICTURE),
        ("path", pa.string()),
        ("key", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("duplicate_of", pa.string()),
        *tables.FRAME,
        ("objects", pa.list_(OBJECT)),
    ]
)

CARD = """---
{configurations}---

# {run}

{description}

- `detections`: a row for each object, with all columns of the run; `crop` is the picture that the model saw.
- `images`: a row for each image; `objects` has its boxes (x, y, width, height in pixels) and answers (JSON).

```python
from datasets import load_dataset

load_dataset("this/folder", "detections", split="train")
```
"""


def detections_schema(run: FinishedRun) -> pa.Schema:
    """The columns of the run's detections, with the crop itself in the place of its path."""
    schema = run.detections.schema.remove_metadata()
    return schema.set(schema.get_field_index("crop"), pa.field("crop", PICTURE))


def picture_of(file: Path | None, name: str) -> dict[str, Any] | None:
    """A picture as the library stores it; None where there is no file, or it cannot be read."""
    try:
        return None if file is None else {"bytes": file.read_bytes(), "path": name}
    except OSError:
        return None


def detections(run: FinishedRun) -> Iterator[dict[str, Any]]:
    """The rows of the detections; `crop` is null where none was cut, or its file is gone."""
    for batch in run.detections.to_batches(max_chunksize=GROUP_ROWS):
        for row in batch.to_pylist():
            crop = row["crop"]
            yield row | {"crop": picture_of(run.folder / crop, crop) if crop else None}


def images(run: FinishedRun, tally: Tally) -> Iterator[dict[str, Any]]:
    """The images with their detections; `image` is null where this host has no file of it."""
    for picture in run.pictures(tally):
        objects = []
        for found in picture.detections:
            x1, y1, x2, y2 = found.box
            answer = json.dumps(found.answer, ensure_ascii=False)
            bbox = [x1, y1, x2 - x1, y2 - y1]
            rest = {"label": found.label, "score": found.score, "outcome": found.outcome}
            objects.append({"bbox": bbox, "answer": answer, **rest})
        image = picture_of(local_file(picture.path), picture.name)
        if image is None:
            tally.left_out["pictures of images without a file on this host"] += 1
        names = ("path", "key", "width", "height", "duplicate_of")
        yield {
            "image": image,
            **{name: getattr(picture, name) for name in names},
            **picture.of_video,
            "objects": objects,
        }


def groups(rows: Iterable[dict[str, Any]], column: str) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """The rows in groups that fit memory, each with the bytes of its pictures; one without rows at least."""
    group: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        group.append(row)
        size += len(row[column]["bytes"]) if row[column] else 0
        if size >= GROUP_BYTES or len(group) == GROUP_ROWS:
            yield group, size
            group, size = [], 0
    yield group, size


def write_files(rows: Iterable[dict[str, Any]], schema: pa.Schema, column: str, folder: Path) -> None:
    """Write rows as Parquet files of about FILE_BYTES, whose `column` the library shows as pictures."""
    features = {"info": {"features": {column: {"_type": "Image"}}}}
    schema = schema.with_metadata({"huggingface": json.dumps(features)})
    folder.mkdir()
    written, number = 0, 0
    writer: pq.ParquetWriter | None = None
    for group, size in groups(rows, column):
        if writer is None or written >= FILE_BYTES:
            if writer is not None:
                writer.close()
            # Pictures are compressed already.
            writer = pq.ParquetWriter(folder / f"{number:05}.parquet", schema, compression="zstd", compression_level=1)
            written, number = 0, number + 1
        writer.write_table(pa.Table.from_pylist(group, schema))
        written += size
    if writer is not None:
        writer.close()


def write(run: FinishedRun, folder: Path, tally: Tally) -> None:
    """Write detections/, images/ and README.md, by which the library finds both."""
    write_files(detections(run), detections_schema(run), "crop", folder / "detections")
    write_files(images(run, tally), IMAGES, "image", folder / "images")
    configurations = [
        {"config_name": name, "data_files": f"{name}/*.parquet"} | ({"default": True} if name == "detections" else {})
        for name in ("detections", "images")
    ]
    card = CARD.format(
        configurations=yaml.safe_dump({"configs": configurations}, sort_keys=False),
        run=run.folder.name,
        description=run.manifest["job"]["description"],
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
