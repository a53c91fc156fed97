"""How many questions should be in flight? Double the concurrency until the model server answers no faster.

The knee is the lowest concurrency that reaches 90% of the highest rate, among those without a failure: more would only
make each answer wait longer. It is measured with the pipeline's own client, on the settings' server and job.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import dotenv
from rich.console import Console
from rich.prompt import Confirm
from rich.table import Table

from pipeline import settings as pipeline_settings
from pipeline.clients.connect import model_headers
from pipeline.clients.http import HttpClient, Limits, RequestFailed
from pipeline.clients.model import Answer, BadAnswer, ModelClient
from pipeline.errors import NotFound
from pipeline.job import Job
from pipeline.job import load as load_job
from pipeline.locations import addresses
from pipeline.settings import Settings
from scripts.bench import command, running
from scripts.bench.clients import read_crops
from scripts.bench.compare import write_crops

VARIABLE = pipeline_settings.PREFIX + "MODEL_CONCURRENCY"

# The knee reaches this share of the highest rate. The last tenth costs a multiple of the concurrency.
ENOUGH = 0.9
# A doubling that gains less than this has passed the knee; two in a row end the sweep.
GAIN = 1.05
LEAST_ROUNDS = 4


@dataclass(frozen=True, slots=True)
class Level:
    """The figures at one concurrency."""

    concurrency: int
    rows: int
    rows_per_s: float
    latency_s: float
    """Median time of an answer, without the wait for its turn."""
    failed: int


def knee(levels: list[Level]) -> Level | None:
    """The lowest concurrency that reaches ENOUGH of the highest rate, among those without a failure."""
    sound = [level for level in levels if not level.failed]
    highest = max((level.rows_per_s for level in sound), default=0.0)
    return next((level for level in sound if level.rows_per_s >= ENOUGH * highest), None)


class Sweep:
    """Asks one server about the same crops, at one concurrency after another."""

    def __init__(self, settings: Settings, job: Job, model: str, crops: Path) -> None:
        """`crops` is a folder of JPEGs."""
        self.settings = settings
        self.job = job
        self.model = model
        self.crops = crops

    def measure(self, concurrency: int, rows: int) -> Level:
        """Ask `rows` questions with `concurrency` in flight; each is tried once."""
        return asyncio.run(self.ask_all(concurrency, read_crops(self.crops, rows)))

    async def ask_all(self, concurrency: int, crops: list[bytes]) -> Level:
        """One question about each crop, with the pipeline's own client."""
        limits = Limits(concurrency, self.settings.request_timeout_s, attempts=1)
        http = HttpClient(addresses(self.settings.model_url), limits, headers=model_headers(self.settings))
        client = ModelClient(http, self.model, self.job)
        started = perf_counter()
        answers = await asyncio.gather(*(client.ask(crop) for crop in crops), return_exceptions=True)
        seconds = perf_counter() - started
        await http.aclose()
        latencies = [answer.latency_s for answer in answers if isinstance(answer, Answer)]
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, RequestFailed | BadAnswer):
                raise answer
        failed = len(answers) - len(latencies)
        return Level(concurrency, len(crops), len(crops) / seconds, statistics.median(latencies or [seconds]), failed)

    def run(self, highest: int, seconds: float, console: Console) -> list[Level]:
        """Double the concurrency from 1 to `highest`, or until that gains nothing; about `seconds` for each."""
        speed = 1 / max(self.measure(1, 3).latency_s, 1e-3)
        levels: list[Level] = []
        concurrency = 1
        while concurrency <= highest:
            # Whole rounds, so that the last one is full too, and enough of them to outweigh the first one's cold start.
            rows = concurrency * max(round(speed * seconds / concurrency), LEAST_ROUNDS)
            with console.status(f"{concurrency} in flight ..."):
                # Twice, and the better counts: other work on the host only slows a measurement down.
                tries = [self.measure(concurrency, rows) for _ in range(2)]
            levels.append(max(tries, key=lambda level: (-level.failed, level.rows_per_s)))
            if levels[-1].failed or (
                len(levels) > 2 and levels[-1].rows_per_s < GAIN * max(level.rows_per_s for level in levels[:-2])
            ):
                break
            speed = levels[-1].rows_per_s
            concurrency *= 2
        return levels


def table(levels: list[Level], best: Level | None) -> Table:
    """A line for each concurrency."""
    shown = command.figures("in flight", ("rows/s", "an answer takes", "rows", "failed"), "")
    highest = max(level.rows_per_s for level in levels)
    for level in levels:
        bar = "█" * round(30 * level.rows_per_s / highest)
        shown.add_row(
            str(level.concurrency),
            f"{level.rows_per_s:.1f}",
            f"{1000 * level.latency_s:.0f} ms",
            str(level.rows),
            str(level.failed),
            bar + (" <- the knee" if level is best else ""),
        )
    return shown


def write(best: Level, settings: Settings, asked: bool, console: Console) -> None:
    """Write the knee to .env if the user agrees; other lines stay unchanged."""
    file, now = pipeline_settings.ENV_FILE, settings.model_concurrency
    line = f"{VARIABLE}={best.concurrency}"
    if best.concurrency == now:
        console.print(f"{VARIABLE} is {now} already")
        return
    if not asked and console.is_terminal:
        asked = Confirm.ask(f"write {line} to {file} (now {now})?", console=console, default=False)
    if not asked:
        console.print(f"now it is {now}; to change it put {line} into {file}")
        return
    dotenv.set_key(file, VARIABLE, str(best.concurrency), quote_mode="never", follow_symlinks=True)
    console.print(f"wrote {line} to {file}")
    if VARIABLE in os.environ:
        console.print(f"but {VARIABLE}={os.environ[VARIABLE]} is set in the environment, and wins")


def find_crops(given: Path | None, settings: Settings, scratch: Path) -> tuple[Path, str]:
    """A folder of JPEGs to ask about, and its description: the given one, the latest run's crops, or the bundled dogs.

    Raises:
        NotFound: the given folder has no files.
    """
    if given is not None:
        if not given.is_dir() or not any(given.iterdir()):
            raise NotFound(f"--crops {given}: no folder with files in it: give JPEGs, such as a run's crops/")
        return given, f"the crops of {given}"
    latest = Path(settings.output).expanduser() / "latest" / "crops"
    if latest.is_dir() and any(latest.iterdir()):
        return latest, f"the crops of {latest.parent.resolve().name}"
    write_crops(scratch)
    return scratch, "the bundled pictures' dogs, as there is no run yet"


def measure(options: argparse.Namespace, console: Console) -> list[str]:
    """Find the knee, show all levels, offer to write the setting; a line when every concurrency had failures."""
    with tempfile.TemporaryDirectory() as scratch:
        settings = running.settings()
        job = load_job(settings.job)
        model = running.find(settings).model
        crops, described = find_crops(options.crops, settings, Path(scratch))
        console.print(f"{settings.model_url}, model {model}, job {job.name}, {described}")
        levels = Sweep(settings, job, model, crops).run(options.highest, options.seconds, console)
    best = knee(levels)
    console.print(table(levels, best))
    if best is None:
        return ["questions failed at every concurrency: see 'make logs'"]
    write(best, settings, options.write, console)
    return []


def main(given: list[str]) -> int:
    """Returns the exit code of `command.run`."""
    parser = command.Options(__doc__)
    parser.option("--highest", 512, "last concurrency")
    parser.option("--seconds", 4.0, "time for each concurrency")
    parser.add_argument("--crops", type=Path, help="a folder of JPEGs to ask about (default: the latest run's crops)")
    parser.add_argument("--write", action="store_true", help=f"write the knee to .env as {VARIABLE} without asking")
    options = parser.parse_args(given)
    return command.run(lambda: measure(options, command.make_console()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
