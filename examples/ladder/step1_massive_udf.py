"""1. One massive UDF: the Python that worked for one image, passed to Daft unchanged. Slow: never more than one request
is in flight, so each server waits while the other works, and Daft's profile has a single line.

Daft calls it with one path after another, and cannot see the two servers inside.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import daft
import openai
from daft import DataType, col
from PIL import Image, ImageOps

from examples.ladder.command import Found, collect, main, paths
from examples.ladder.servers import Servers, detect, question

DOG = DataType.struct({"box": DataType.list(DataType.int64()), "breed": DataType.string()})


class FindBreeds:
    """Reads an image, finds its dogs, cuts them out and asks about each."""

    def __init__(self, servers: Servers) -> None:
        self.servers = servers
        self.client = openai.OpenAI(base_url=servers.model_url, api_key=servers.api_key)

    @daft.method(return_dtype=DataType.list(DOG))
    def find_breeds(self, path: str) -> list[dict[str, Any]]:
        """The dogs of one image."""
        file = Path(path).read_bytes()
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(file))).convert("RGB")
        dogs = []
        for dog in detect(self.servers, file):
            left, top, right, bottom = dog["cut"]
            jpeg = io.BytesIO()
            image.crop((left, top, right, bottom)).save(jpeg, "JPEG", quality=90)
            answer = self.client.chat.completions.create(**question(self.servers.model, jpeg.getvalue()))
            dogs.append({"box": dog["box"], "breed": json.loads(answer.choices[0].message.content)["breed"]})
        return dogs


def find(folder: Path, servers: Servers) -> Found:
    """All dogs of a folder's images."""
    find_breeds = daft.cls(FindBreeds)(servers).find_breeds
    images = paths(folder)
    images = images.with_column("dog", find_breeds(col("path")))
    dogs = images.explode("dog").where(col("dog").not_null())
    return collect(dogs.select(col("path"), col("dog")["box"], col("dog")["breed"]))


if __name__ == "__main__":
    main(find)
