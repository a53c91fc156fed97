"""Several simulated model servers behind one run: how much faster four are than one, and what an ill one costs.

    python -m scripts.bench.servers --rows 4000

Each server is a process of its own, takes --at-once questions at a time and needs --latency seconds for each, like a
GPU that is full. The rows go through Spotter's ask stage. One server, three and four run in turns, --repeats times;
then, beside three healthy ones: a fourth that is killed or frozen (SIGSTOP) after a fifth of the rows, or is slow (ten
times) or answers nonsense from the start. The exit code is 1 when four servers reach less than --ratio of one's rows
per second, an ill server makes a run take more than --longest of three servers' time, or a row has no right answer.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import daft

from pipeline import job as jobs
from pipeline.clients.http import HttpClient, Limits
from pipeline.clients.model import ModelClient
from pipeline.runtime.garbage import collect_rarely
from pipeline.stages.ask import ask
from scripts.bench import command
from tests.doubles.own_process import OwnProcess, own_process
from tests.doubles.simulated import ANSWER

CROP_BYTES = 8_000
PATIENCE_S = 120.0

Fault = Callable[[OwnProcess], None]


def kill(server: OwnProcess) -> None:
    """End the process: its port refuses connections."""
    server.process.kill()


def freeze(server: OwnProcess) -> None:
    """Stop the process: its port takes connections, and nobody answers."""
    server.process.send_signal(signal.SIGSTOP)


# What ails the fourth server: its own options, and what happens to it in the run.
ILL: dict[str, tuple[dict[str, object], Fault | None]] = {
    "killed": ({}, kill),
    "frozen": ({}, freeze),
    "slow (10x)": ({"latency": 10.0}, None),
    "nonsense": ({"fault": "wrong-schema=1"}, None),
}


def run(servers: Sequence[OwnProcess], rows: int, concurrency: int, fault: Fault | None) -> float:
    """The seconds in which the ask stage has asked these servers so many questions.

    Raises:
        BenchFailed: a row has no right answer.
    """
    limits = Limits(concurrency, outage_s=PATIENCE_S, rate_limit_s=PATIENCE_S)
    http = HttpClient([f"{server.url}/v1" for server in servers], limits, name="model server")
    client = ModelClient(http, "simulated", jobs.load("dog_breeds"))
    numbers = daft.from_pydict({"number": list(range(rows))}).into_batches(64)
    detection = daft.functions.to_struct(jpeg=daft.lit(os.urandom(CROP_BYTES)), label=daft.lit(client.job.label))
    frame = ask(numbers.with_column("detection", detection), client)
    began, ended, right, failures = time.perf_counter(), 0, 0, set[str]()
    for batch in frame.select("answer").to_arrow_iter():
        for row in batch.to_pylist():
            ended += 1
            right += ANSWER.items() <= (row["answer"]["fields"] or {}).items()
            failures |= {row["answer"]["failure"]["reason"]} if row["answer"]["failure"] else set()
        if fault is not None and ended >= rows // 5:
            fault(servers[-1])
            fault = None
    seconds = time.perf_counter() - began
    threading.Thread(target=http.close).start()
    print(
        f"  {rows / seconds:6.0f} rows/s; answers: {', '.join(str(each.answers) for each in http.addresses)}",
        flush=True,
    )
    if (ended, right) != (rows, rows):
        raise command.BenchFailed(f"{right} of {rows} rows are right: {'; '.join(sorted(failures))}")
    return seconds


def measure(options: argparse.Namespace) -> list[str]:
    """Print each run and the ratios; one line for each that is outside its limit."""
    collect_rarely()
    said: list[str] = []

    def seconds(number: int, ill: str | None = None) -> float:
        more, fault = ILL[ill] if ill else ({}, None)
        healthy: dict[str, object] = {"latency": options.latency, "at_once": options.at_once}
        sick = healthy | more
        if "latency" in more:
            sick["latency"] = 10 * options.latency
        each = [healthy] * number + ([sick] if ill else [])
        with ExitStack() as stack:
            servers = [stack.enter_context(own_process(**one)) for one in each]
            return run(servers, options.rows, len(each) * options.at_once, fault)

    times: dict[int, list[float]] = {1: [], 3: [], 4: []}
    for turn in range(options.repeats):
        for number in sorted(times, reverse=turn % 2 == 1):
            print(f"turn {turn + 1} of {options.repeats}, {number} servers", flush=True)
            times[number].append(seconds(number))
    one, three, four = (statistics.median(times[number]) for number in (1, 3, 4))
    print(f"four servers: {one / four:.2f} x one (three: {one / three:.2f} x)")
    if one / four < options.ratio:
        said.append(f"four servers reached {one / four:.2f} of one's rows per second: less than {options.ratio:g}")
    for ill in options.ill or ILL:
        print(f"three servers and one that is {ill}", flush=True)
        longer = seconds(3, ill) / three
        print(f"{ill}: {longer:.2f} x the time of three servers")
        if longer > options.longest:
            said.append(f"a server that is {ill}: {longer:.2f} x the time of three, more than {options.longest:g}")
    return said


def main() -> int:
    """Print the ratios; judge."""
    parser = command.Options(__doc__)
    parser.option("--rows", 1_000, "questions in each run")
    parser.option("--latency", 0.5, "seconds per answer")
    parser.option("--at-once", 8, "questions that a server works on at once")
    parser.option("--repeats", 3, "runs of one, three and four servers")
    parser.option("--ratio", 3.8, "lowest accepted ratio of four servers to one")
    parser.option("--longest", 1.5, "longest accepted time with an ill server, in that of three")
    parser.add_argument("--ill", choices=ILL, action="append", help="may be repeated (default: each)")
    options = parser.parse_args()
    return command.run(lambda: measure(options))


if __name__ == "__main__":
    sys.exit(main())
