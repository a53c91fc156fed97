"""Clients that ask a model server about crops: Spotter's, and the usual alternatives as their users write them.

`python -m scripts.bench.clients NAME ...` runs one, as scripts/bench/compare.py does. All ask the same questions in the
same form and return the texts of the answers.
"""

from __future__ import annotations

import argparse
import asyncio
import enum
import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.ladder.servers import JOB, question
from pipeline.clients.http import HttpClient, Limits
from pipeline.clients.model import ModelClient
from pipeline.runtime.garbage import collect_rarely


@dataclass(frozen=True, slots=True)
class Work:
    """Questions, and the server to ask."""

    model_url: str
    """With its /v1."""
    model: str
    crops: list[bytes]
    """JPEGs, one for each question."""
    concurrency: int
    """Limit of questions in flight, for clients that have one."""
    api_key: str = "none"

    @property
    def headers(self) -> dict[str, str]:
        """The header with the key, for clients that do not add it themselves."""
        return {"Authorization": f"Bearer {self.api_key}"}


Answers = list[str | None]


def spotter(work: Work) -> Answers:
    """The pipeline's own stage, on Daft: bounded by rows, with retries, every answer checked."""
    import daft

    from pipeline.stages.ask import ask

    collect_rarely()  # as the pipeline's command does
    client = ModelClient(HttpClient(work.model_url, Limits(work.concurrency), headers=work.headers), work.model, JOB)
    crops = daft.from_pydict({"jpeg": work.crops}).into_batches(64)
    detections = crops.select(
        daft.functions.to_struct(jpeg=daft.col("jpeg"), label=daft.lit(JOB.label)).alias("detection")
    )
    answers = ask(detections, client).select(daft.col("answer")["raw_answer"]).to_pydict()
    client.http.close()
    return list(answers["raw_answer"])


def plain_asyncio(work: Work) -> Answers:
    """A script with asyncio and aiohttp: a semaphore, no handling of errors."""
    import aiohttp

    async def main() -> Answers:
        slots = asyncio.Semaphore(work.concurrency)
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), raise_for_status=True, headers=work.headers
        ) as session:

            async def ask(crop: bytes) -> str:
                url = f"{work.model_url}/chat/completions"
                async with slots, session.post(url, json=question(work.model, crop)) as response:
                    return str((await response.json())["choices"][0]["message"]["content"])

            return list(await asyncio.gather(*(ask(crop) for crop in work.crops)))

    return asyncio.run(main())


def thread_pool(work: Work) -> Answers:
    """The openai client, and a thread for each question in flight."""
    import openai

    client = openai.OpenAI(base_url=work.model_url, api_key=work.api_key)

    def ask(crop: bytes) -> str:
        answer = client.chat.completions.create(**question(work.model, crop))
        return str(answer.choices[0].message.content)

    with ThreadPoolExecutor(work.concurrency) as pool:
        return list(pool.map(ask, work.crops))


def answer_model() -> Any:
    """The job's schema as a pydantic model for Daft's prompt: each property is an enum."""
    from pydantic import create_model

    fields: dict[str, Any] = {}
    for name, schema in JOB.properties.items():
        members = {f"{name}_{number}": value for number, value in enumerate(schema["enum"])}
        fields[name] = (enum.Enum(name, members, type=str), ...)
    return create_model("Answer", **fields)


def prompted(work: Work, batch: int | None) -> Answers:
    """`daft.functions.prompt` over all crops."""
    import daft
    from daft.ai.openai.provider import OpenAIProvider
    from daft.functions import prompt

    crops = daft.from_pydict({"jpeg": work.crops})
    if batch is not None:
        crops = crops.into_batches(batch)
    options: dict[str, Any] = {"max_tokens": JOB.questions[0].max_tokens, "temperature": JOB.temperature}
    if batch is not None:
        options["concurrency"] = max(work.concurrency // batch, 1)
    answer = prompt(
        [daft.col("jpeg"), daft.lit(JOB.questions[0].question)],
        return_format=answer_model(),
        provider=OpenAIProvider("server", base_url=work.model_url, api_key=work.api_key),
        model=work.model,
        use_chat_completions=True,  # vLLM's; the default is OpenAI's Responses API
        **options,
    )
    answered = crops.select(answer.alias("answer")).to_pydict()["answer"]
    return [json.dumps(fields) if fields else None for fields in answered]


def daft_prompt(work: Work) -> Answers:
    """Daft's own function as its documentation shows it, without batches."""
    return prompted(work, None)


def daft_prompt_batched(work: Work) -> Answers:
    """The same with batches of 8, concurrency / 8 of them: Daft limits batches, not rows."""
    return prompted(work, 8)


def friction_udf(work: Work) -> Answers:
    """The friction log's client: an asynchronous UDF with the openai client, all defaults."""
    import daft
    import openai

    class Ask:
        def __init__(self) -> None:
            self.client = openai.AsyncOpenAI(base_url=work.model_url, api_key=work.api_key)

        @daft.method(return_dtype=daft.DataType.string())
        async def ask(self, jpeg: bytes) -> str:
            answer = await self.client.chat.completions.create(**question(work.model, jpeg))
            return str(answer.choices[0].message.content)

    ask = daft.cls(Ask)().ask
    return list(daft.from_pydict({"jpeg": work.crops}).select(ask(daft.col("jpeg"))).to_pydict()["jpeg"])


CLIENTS: dict[str, tuple[Callable[[Work], Answers], tuple[str, ...]]] = {
    "Spotter": (spotter, ("daft", "pipeline.stages.ask")),
    "asyncio script": (plain_asyncio, ("aiohttp",)),
    "openai, threads": (thread_pool, ("openai",)),
    "Daft prompt": (daft_prompt, ("daft.ai.openai.provider", "openai")),
    "Daft prompt, batched": (daft_prompt_batched, ("daft.ai.openai.provider", "openai")),
    "friction log's UDF": (friction_udf, ("daft", "openai")),
}
"""Each client with its modules, which are loaded before the measurement."""


def read_crops(folder: Path, rows: int) -> list[bytes]:
    """Read this many crops from a folder, repeating its files."""
    files = [file.read_bytes() for file in sorted(folder.iterdir())]
    return [files[row % len(files)] for row in range(rows)]


def right(answer: str | None) -> bool:
    """Whether the job can use an answer."""
    try:
        return json.loads(answer or "")["breed"] in JOB.properties["breed"]["enum"]
    except (ValueError, LookupError, TypeError):
        return False


def main() -> None:
    """Run one client and write its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("client", choices=list(CLIENTS))
    parser.add_argument("--model-url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--crops", type=Path, required=True, help="a folder of JPEGs")
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--concurrency", type=int, required=True)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--loaded", type=Path, metavar="FILE", help="created when the questions begin")
    arguments = parser.parse_args()
    os.environ["DO_NOT_TRACK"], os.environ["DAFT_PROGRESS_BAR"] = "true", "0"
    crops = read_crops(arguments.crops, arguments.rows)
    key = os.environ.get("SPOTTER_API_KEY", "none")  # any user can read a command line
    work = Work(arguments.model_url, arguments.model, crops, arguments.concurrency, key)
    ask, modules = CLIENTS[arguments.client]
    for module in modules:
        importlib.import_module(module)
    if arguments.loaded:
        arguments.loaded.touch()
    started, before = time.perf_counter(), time.process_time()
    answers = ask(work)
    measured = {
        "seconds": time.perf_counter() - started,
        "cpu_s": time.process_time() - before,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "answered": sum(right(answer) for answer in answers),
    }
    arguments.json.write_text(json.dumps(measured))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # Daft's threads never close some clients' connections


if __name__ == "__main__":
    main()
