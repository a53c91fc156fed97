"""Make the bundled set of multiple-choice questions about drawn dogs, or check it against its seed.

The file has the shape in which Hugging Face's data sets hold AI2D: `images` is a list of structs of bytes and path,
`texts` a list of structs of question (`user`), answer (`assistant`) and `source`.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from samples.crops import labelled_crops
from samples.drawn_questions import LETTERS, QUESTIONS, options, question_text
from samples.make_images import LOSSY_TOLERANCE

FILE = Path(__file__).parent / "questions.parquet"

# Not among the scenes of training, validation and tests.
FIRST_SEED = 30_000_000
PICTURES = 32
# How far the sides of a picture are from the dog's, as a share of its width and height.
SPREAD = 0.05
JPEG_QUALITY = 85

SCHEMA = pa.schema(
    [
        pa.field("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
        pa.field(
            "texts", pa.list_(pa.struct([("user", pa.string()), ("assistant", pa.string()), ("source", pa.string())]))
        ),
    ]
)
# How Hugging Face's `datasets` notes that a column holds images.
TEXT = {"dtype": "string", "_type": "Value"}
FEATURES = {
    "images": [{"_type": "Image"}],
    "texts": [{"user": TEXT, "assistant": TEXT, "source": TEXT}],
}


def smaller(jpeg: bytes) -> bytes:
    """A crop with fewer bytes."""
    encoded = io.BytesIO()
    Image.open(io.BytesIO(jpeg)).save(encoded, "JPEG", quality=JPEG_QUALITY)
    return encoded.getvalue()


def rows() -> list[dict[str, Any]]:
    """The set: each picture with a question about each property. Each letter is right equally often."""
    generator = random.Random(FIRST_SEED)
    places = list(range(len(LETTERS))) * (PICTURES * len(QUESTIONS) // len(LETTERS))
    generator.shuffle(places)
    found = []
    for crop in itertools.islice(labelled_crops(FIRST_SEED, SPREAD), PICTURES):
        texts = []
        for about in QUESTIONS:
            place = places.pop()
            user = question_text(about, options(about, crop.answer[about], place, generator))
            texts.append({"user": user, "assistant": f"Answer: {LETTERS[place]}", "source": "drawn"})
        found.append({"images": [{"bytes": smaller(crop.jpeg), "path": None}], "texts": texts})
    return found


def write(path: Path) -> None:
    """Write the set."""
    metadata = {"huggingface": json.dumps({"info": {"features": FEATURES}})}
    table = pa.Table.from_pylist(rows(), schema=SCHEMA.with_metadata(metadata))
    pq.write_table(table, path, row_group_size=PICTURES // 2, compression="zstd")


def check(path: Path) -> list[str]:
    """The differences between the file and today's set, one line each."""
    stored, drawn = pq.read_table(path).to_pylist(), rows()
    if len(stored) != len(drawn):
        return [f"{path}: {len(stored)} rows, expected {len(drawn)}"]
    problems = []
    for number, (before, now) in enumerate(zip(stored, drawn, strict=True)):
        if before["texts"] != now["texts"]:
            problems.append(f"{path}: the questions of row {number} are not what the generator writes")
        if not same_picture(before["images"][0]["bytes"], now["images"][0]["bytes"]):
            problems.append(f"{path}: the picture of row {number} is not what the generator draws")
    return problems


def same_picture(stored: bytes, drawn: bytes) -> bool:
    """Whether two JPEGs show the same, but for what two processors round differently."""
    one, other = (Image.open(io.BytesIO(data)).convert("RGB") for data in (stored, drawn))
    if one.size != other.size:
        return False
    return float(np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).mean()) <= LOSSY_TOLERANCE


def main() -> int:
    """Write or check the bundled set; 1 when the check finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if anything differs")
    if not parser.parse_args().check:
        write(FILE)
        return 0
    problems = check(FILE)
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
