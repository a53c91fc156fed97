"""2. Split UDFs: the same Python, split where the data changes its form. Daft now shows the slow step. No faster: six
images are one batch, which moves on when all of its rows are done, and within it row follows row.

Files and JPEGs travel between the steps, not pixels: `explode` copies a row's image to each of its dogs.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import daft
import openai
from daft import DataType, col
from PIL import Image, ImageOps

from examples.ladder.command import Found, collect, main, paths
from examples.ladder.servers import Servers, question
from examples.ladder.servers import detect as ask_detector

PIXELS = DataType.list(DataType.int64())
DOGS = DataType.list(DataType.struct({"box": PIXELS, "cut": PIXELS}))


@daft.func
def read(path: str) -> bytes:
    """A file's content."""
    return Path(path).read_bytes()


class Detect:
    """Asks the detector."""

    def __init__(self, servers: Servers) -> None:
        self.servers = servers

    @daft.method(return_dtype=DOGS)
    def detect(self, file: bytes) -> list[dict[str, list[int]]]:
        """The dogs of one image."""
        return ask_detector(self.servers, file)


@daft.func
def crop(file: bytes, cut: list[int]) -> bytes:
    """One dog as JPEG."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(file))).convert("RGB")
    left, top, right, bottom = cut
    jpeg = io.BytesIO()
    image.crop((left, top, right, bottom)).save(jpeg, "JPEG", quality=90)
    return jpeg.getvalue()


class Ask:
    """Asks the model."""

    def __init__(self, servers: Servers) -> None:
        self.model = servers.model
        self.client = openai.OpenAI(base_url=servers.model_url, api_key=servers.api_key)

    @daft.method(return_dtype=DataType.string())
    def ask(self, picture: bytes) -> str:
        """One dog's breed."""
        answer = self.client.chat.completions.create(**question(self.model, picture))
        return str(json.loads(answer.choices[0].message.content or "")["breed"])


def find(folder: Path, servers: Servers) -> Found:
    """All dogs of a folder's images."""
    detect, ask = daft.cls(Detect)(servers).detect, daft.cls(Ask)(servers).ask
    images = paths(folder)
    images = images.with_column("file", read(col("path")))
    images = images.with_column("dog", detect(col("file")))
    dogs = images.explode("dog").where(col("dog").not_null())
    dogs = dogs.with_column("jpeg", crop(col("file"), col("dog")["cut"]))
    dogs = dogs.with_column("breed", ask(col("jpeg")))
    return collect(dogs.select(col("path"), col("dog")["box"], col("breed")))


if __name__ == "__main__":
    main(find)
