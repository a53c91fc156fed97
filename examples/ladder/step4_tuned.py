"""4. Tuned: the questions are asynchronous and a batch is one row. This saves the time: the detector gets all images at
once, the model all dogs, and the job waits only once for each.

Daft limits batches in flight by `max_concurrency`; with batches of one row this limits the questions. With larger ones
it would not: all rows of a batch are in flight at once.
"""

from __future__ import annotations

import json
from pathlib import Path

import aiohttp
import daft
import openai
from daft import DataType, col

from examples.ladder.command import Found, collect, main, paths
from examples.ladder.servers import MSGPACK, Servers, detect_request, question, read_dogs
from examples.ladder.step2_split_udfs import DOGS
from examples.ladder.step3_native import cut_out, read


class Detect:
    """Asks the detector, without holding a thread while it waits."""

    def __init__(self, servers: Servers) -> None:
        self.url = f"{servers.detector_url}/detect"

    @daft.method(return_dtype=DOGS)
    async def detect(self, file: bytes) -> list[dict[str, list[int]]]:
        """The dogs of one image."""
        async with (
            aiohttp.ClientSession(raise_for_status=True) as session,
            session.post(self.url, data=detect_request(file), headers=MSGPACK) as response,
        ):
            return read_dogs(await response.read())


class Ask:
    """Asks the model, without holding a thread while it waits."""

    def __init__(self, servers: Servers) -> None:
        self.model = servers.model
        self.client = openai.AsyncOpenAI(base_url=servers.model_url, api_key=servers.api_key)

    @daft.method(return_dtype=DataType.string())
    async def ask(self, picture: bytes) -> str:
        """One dog's breed."""
        answer = await self.client.chat.completions.create(**question(self.model, picture))
        return str(json.loads(answer.choices[0].message.content or "")["breed"])


def find(folder: Path, servers: Servers) -> Found:
    """All dogs of a folder's images."""
    detect = daft.cls(Detect, max_concurrency=16)(servers).detect
    ask = daft.cls(Ask, max_concurrency=64)(servers).ask
    images = read(paths(folder).into_batches(1))
    images = images.with_column("dog", detect(col("file")))
    dogs = cut_out(images.explode("dog").where(col("dog").not_null()).into_batches(1))
    dogs = dogs.with_column("breed", ask(col("picture")))
    return collect(dogs.select(col("path"), col("dog")["box"], col("breed")))


if __name__ == "__main__":
    main(find)
