"""Ask many simulated rows: Spotter's ask stage against a bare asyncio + aiohttp client, in one run.

    python -m scripts.bench.rows --rows 100000

The server answers each request after a fixed time, in a process of its own; leave it a core of its own. The reference
does the least that any client must: it encodes the crop, sends the request and reads the answer's JSON, with one task
for each request in flight. The exit code is 1 when Spotter reaches less than --ratio of its rows per second, has more
than --concurrency requests at the server, takes more memory than --limit, or leaves a row without an answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import sys
import time
from typing import Any

import aiohttp
import daft
import pyarrow as pa
import pyarrow.compute

from pipeline import job as jobs
from pipeline.clients.http import HttpClient, Limits
from pipeline.clients.model import ModelClient, data_url
from pipeline.runtime.garbage import collect_rarely
from pipeline.stages.ask import ask
from scripts.bench import command
from tests.doubles.own_process import simulated_process, statistics_of

# About the size of a crop of a dog in a park, of 150 x 100 pixels.
CROP_BYTES = 8_000


def bare(url: str, rows: int, concurrency: int, crop: bytes, client: ModelClient) -> None:
    """The reference client."""
    question = {"type": "text", "text": client.job.questions[0].question}

    async def worker(session: aiohttp.ClientSession, left: Any) -> None:
        for _ in left:
            content = [{"type": "image_url", "image_url": {"url": data_url(crop).decode()}}, question]
            request = client.forms[0].request | {"messages": [{"role": "user", "content": content}]}
            async with session.post(f"{url}/chat/completions", json=request) as response:
                json.loads(json.loads(await response.read())["choices"][0]["message"]["content"])

    async def main() -> None:
        left = iter(range(rows))
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(*(worker(session, left) for _ in range(concurrency)))

    asyncio.run(main())


def spotter(url: str, rows: int, concurrency: int, crop: bytes, client: ModelClient) -> None:
    """The pipeline's own stage, on Daft."""
    numbers = daft.from_pydict({"number": list(range(rows))}).into_batches(64)
    # Made on demand: 100,000 crops at once would be the bench's memory, not the pipeline's.
    detection = daft.functions.to_struct(jpeg=daft.lit(crop), label=daft.lit(client.job.label))
    frame = ask(numbers.with_column("detection", detection), client)
    ended = failed = 0
    for batch in frame.select(daft.col("answer")["failure"].is_null().alias("answered")).to_arrow_iter():
        ended += batch.num_rows
        failed += batch.num_rows - pa.compute.sum(batch["answered"]).as_py()
    client.http.close()
    if (ended, failed) != (rows, 0):
        raise command.BenchFailed(f"{ended} of {rows} rows ended, {failed} failed")


def complaints(ratio: float, least: float, in_flight: int, bound: int, peak_mb: float, limit_mb: float) -> list[str]:
    """One line for each figure outside its limit."""
    said = []
    if ratio < least:
        said.append(f"Spotter reached {ratio:.2f} of the reference's rows per second: less than {least:g}")
    if in_flight > bound:
        said.append(f"{in_flight} requests were in flight: more than {bound}")
    if peak_mb > limit_mb:
        said.append(f"memory reached {peak_mb:.0f} MB: more than {limit_mb:.0f}")
    return said


def measure(options: argparse.Namespace) -> list[str]:
    """Print both, and their ratio; one line for each figure outside its limit."""
    collect_rarely()  # as the pipeline does; it speeds up the reference, too
    job, crop = jobs.load("dog_breeds"), os.urandom(CROP_BYTES)
    seconds = {"bare aiohttp": 0.0, "spotter": 0.0}
    peak, in_flight = 0.0, dict.fromkeys(seconds, 0)
    half = options.rows // 2
    # The reference runs before and after, so that other work on the machine affects both.
    for name, client_of, rows in (
        ("bare aiohttp", bare, half),
        ("spotter", spotter, options.rows),
        ("bare aiohttp", bare, options.rows - half),
    ):
        # A server for each, which counts the requests in flight of this client alone.
        with simulated_process(latency=options.latency) as url:
            client = ModelClient(HttpClient(f"{url}/v1", Limits(options.concurrency)), "simulated", job)
            started, cpu = time.perf_counter(), time.process_time()
            client_of(f"{url}/v1", rows, options.concurrency, crop, client)
            taken, cpu = time.perf_counter() - started, time.process_time() - cpu
            seconds[name] += taken
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(
                f"{name}: {rows:,} rows, {rows / taken:,.0f} rows/s, {cpu / rows * 1000:.2f} ms of CPU a row, "
                f"peak memory so far {peak:,.0f} MB",
                flush=True,
            )
            in_flight[name] = max(in_flight[name], statistics_of(url)["peak_in_flight"])
    ratio = seconds["bare aiohttp"] / seconds["spotter"]
    print(f"most in flight at the server: {', '.join(f'{name} {most}' for name, most in in_flight.items())}")
    print(f"ratio: {ratio:.2f}")
    return complaints(ratio, options.ratio, in_flight["spotter"], options.concurrency, peak, options.limit)


def main() -> int:
    """Print both, and their ratio; judge."""
    parser = command.Options(__doc__)
    parser.option("--rows", 20_000, "number of questions")
    parser.option("--concurrency", 256, "questions in flight")
    parser.option("--latency", 0.05, "seconds per answer")
    parser.option("--ratio", 0.8, "lowest accepted share of the reference's rows per second")
    parser.option("--limit", 1000.0, "highest memory, in MB")
    options = parser.parse_args()
    return command.run(lambda: measure(options))


if __name__ == "__main__":
    sys.exit(main())
