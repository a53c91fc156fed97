"""Compare Spotter with the usual alternatives: the same questions, the same servers, one run.

The clients are in scripts/bench/clients.py; each runs in a process of its own, in turns. The simulated server answers
after a fixed time, so that only the clients differ. On the running stack, if there is one, `vllm bench serve` shows the
highest rate of the server. A client that does not finish in time is stopped and reported.

The exit code is 1 when Spotter does not finish, when answers are missing, or when Spotter reaches less than --ratio of
the rate of `vllm bench serve`; 2 for wrong usage. --quick does not judge speed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from examples.ladder.servers import JOB, question
from pipeline.sources.images import decode
from pipeline.stages.boxes import cut
from scripts import environments
from scripts.bench import command, machine, running
from scripts.bench.clients import CLIENTS, read_crops
from scripts.environments import ROOT
from scripts.stack import api_key
from tests.doubles.own_process import simulated_process, statistics_of

OURS = "Spotter"
CEILING = "vllm bench serve"

# At this many rows the friction log's client no longer finishes. A client that stops there gets fewer, once.
ROWS, FEWER = 2_000, 500
# Longest time for a client to load its modules; two idle cores take at most 2 s.
CLIENT_STARTS_S = 120.0
# The same for `vllm bench serve`: its imports took 15 s on two idle cores, a minute on busy ones.
CEILING_STARTS_S = 180.0
# vLLM on two cores answers about 50 a second.
REAL_ROWS = 300


@dataclass
class Server:
    """A model server that clients ask."""

    model_url: str
    """With its /v1."""
    model: str
    title: str
    counted: bool
    """Whether it has /stats, which count its questions."""
    key: dict[str, str] = field(default_factory=dict)
    """The variable with its key, if it needs one."""

    @property
    def variables(self) -> dict[str, str]:
        """A client's variables: the host's, without another server's key."""
        return {**api_key.without(os.environ), **self.key}

    def asked(self) -> int:
        """Questions that a counted server has received."""
        return int(statistics_of(running.origin(self.model_url))["requests"])


@dataclass
class Result:
    """One client's runs; `note` says what happened in a run that did not finish."""

    client: str
    rows: int
    seconds: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    """Of the client's process, for each row."""
    peak_mb: list[float] = field(default_factory=list)
    answered: int = 0
    """Rows with an answer that the job can use, in the worst run."""
    note: str = ""

    @property
    def rows_per_s(self) -> float | None:
        """The median."""
        return self.rows / statistics.median(self.seconds) if self.seconds else None

    def cells(self, ours: float | None) -> list[str]:
        """The figures for the table; `ours` is Spotter's rows per second."""
        if self.rows_per_s is None:
            return [*["-"] * 7, self.note]
        speeds = [self.rows / seconds for seconds in self.seconds]
        return [
            "" if self.client == OURS else f"{ours / self.rows_per_s:.2f}x" if ours else "-",
            *(f"{speed:.0f}" for speed in (self.rows_per_s, min(speeds), max(speeds))),
            f"{statistics.median(self.cpu_ms):.2f} ms" if self.cpu_ms else "-",
            f"{max(self.peak_mb):.0f} MB" if self.peak_mb else "-",
            str(self.answered),
            self.note,
        ]


def write_crops(folder: Path) -> None:
    """Cut out the bundled pictures' dogs as the pipeline does it."""
    images = json.loads((ROOT / "samples" / "truth.json").read_text())["images"]
    for name, picture in images.items():
        pixels = decode((ROOT / "samples" / "images" / name).read_bytes()).pixels
        for number, thing in enumerate(picture["objects"]):
            if thing["label"] == JOB.label:
                jpeg = cut(pixels, thing["box"], JOB.crop.margin, JOB.crop.max_side)
                (folder / f"{Path(name).stem}-{number}.jpg").write_bytes(jpeg)


@contextmanager
def simulated(latency_s: float) -> Iterator[Server]:
    """A model server in a process of its own, until the block ends.

    Raises:
        RuntimeError: it did not start.
    """
    with simulated_process(latency=latency_s) as url:
        yield Server(f"{url}/v1", "simulated", f"a simulated server that answers after {1000 * latency_s:.0f} ms", True)


def failure(errors: str, code: int) -> str:
    """A note with the last line of a program's errors."""
    last = errors.strip().splitlines()[-1:] or [f"exit code {code}"]
    return f"failed: {last[0][:120]}"


def run_client(result: Result, server: Server, crops: Path, concurrency: int, limit_s: float) -> None:
    """Run a client once and add its figures to its result, or a note if it fails or takes longer than `limit_s`.

    The limit is for the questions: it begins when the client has loaded its modules.
    """
    before = server.asked() if server.counted else 0
    with tempfile.TemporaryDirectory() as scratch:
        measured_file, loaded = Path(scratch, "measured.json"), Path(scratch, "loaded")
        options = [f"--crops={crops}", f"--rows={result.rows}", f"--concurrency={concurrency}"]
        options += [f"--model-url={server.model_url}", f"--model={server.model}"]
        options += [f"--json={measured_file}", f"--loaded={loaded}"]
        client = subprocess.Popen(
            [sys.executable, "-m", "scripts.bench.clients", result.client, *options],
            cwd=ROOT,
            env=server.variables,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            deadline = time.monotonic() + CLIENT_STARTS_S
            while not loaded.exists() and client.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            _, errors = client.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            reached = f"; {server.asked() - before} questions reached the server" if server.counted else ""
            result.note = f"did not finish {result.rows} rows in {limit_s:.0f} s{reached}"
            return
        finally:
            client.kill()
            client.communicate()
        if client.returncode or not measured_file.is_file():
            result.note = failure(errors, client.returncode)
            return
        measured = json.loads(measured_file.read_text())
    result.answered = min(result.answered, measured["answered"]) if result.seconds else measured["answered"]
    result.seconds.append(measured["seconds"])
    result.cpu_ms.append(1000 * measured["cpu_s"] / result.rows)
    result.peak_mb.append(measured["peak_bytes"] / 2**20)


def vllm_python() -> Path:
    """An interpreter that has `vllm bench serve`: this host's, or the CPU build, which is prepared if missing.

    Raises:
        EnvironmentFailed: it could not be prepared.
    """
    if environments.is_current("vllm-cuda"):
        return environments.python("vllm-cuda")
    environments.prepare("vllm-cpu")
    return environments.python("vllm-cpu")


def run_ceiling(result: Result, server: Server, crops: Path, concurrency: int, limit_s: float) -> None:
    """Let vLLM's own benchmark ask the same questions; it streams, and parses no answer."""
    with tempfile.TemporaryDirectory() as scratch:
        requests = Path(scratch, "requests.jsonl")
        asked_about = [question(server.model, crop) for crop in read_crops(crops, result.rows)]
        requests.write_text("".join(json.dumps(one["messages"][0]) + "\n" for one in asked_about))
        options = {
            "backend": "openai-chat",
            "base-url": running.origin(server.model_url),
            "endpoint": "/v1/chat/completions",
            "model": server.model,
            "extra-body": json.dumps({key: asked_about[0][key] for key in ("response_format", "temperature")}),
            "dataset-name": "custom_image",
            "dataset-path": requests,
            "num-prompts": result.rows,
            "custom-output-len": JOB.questions[0].max_tokens,
            "max-concurrency": concurrency,
            "result-dir": scratch,
            "result-filename": "result.json",
        }
        flags = ["--skip-tokenizer-init", "--enable-multimodal-chat", "--disable-tqdm", "--save-result"]
        program = [str(vllm_python().with_name("vllm")), "bench", "serve", *flags]
        variables = {**server.variables, "OPENAI_API_KEY": server.key.get(api_key.JOB_VARIABLE, "none")}
        longest_s = limit_s + CEILING_STARTS_S
        try:
            done = subprocess.run(
                program + [f"--{name}={value}" for name, value in options.items()],
                env=variables,
                capture_output=True,
                text=True,
                timeout=longest_s,
            )
        except subprocess.TimeoutExpired:
            result.note = f"did not finish {result.rows} rows in {longest_s:.0f} s"
            return
        if done.returncode:
            result.note = failure(done.stderr, done.returncode)
            return
        measured = json.loads(Path(scratch, "result.json").read_text())
    result.answered = measured["completed"]
    result.seconds.append(measured["duration"])


def compare(
    server: Server, rows: int, fewer: int, repeats: int, concurrency: int, limit_s: float, console: Console
) -> list[Result]:
    """Run all clients in turns, `repeats` times; one that does not finish `rows` tries `fewer` once, then stops."""
    names = [*CLIENTS] if server.counted else [*CLIENTS, CEILING]
    results = {name: Result(name, rows) for name in names}
    left_out: list[Result] = []
    with tempfile.TemporaryDirectory() as folder:
        crops = Path(folder)
        write_crops(crops)
        # The server's first answers are slower: no client may pay for them.
        run_client(Result(OURS, 100), server, crops, concurrency, limit_s)
        for turn in range(repeats):
            # There and back, because caches of server and host favour some positions.
            for name in names[:: 1 if turn % 2 == 0 else -1]:
                result = results[name]
                if result.note:
                    continue
                with console.status(f"{server.title}: turn {turn + 1} of {repeats}, {name} ..."):
                    once = run_ceiling if name == CEILING else run_client
                    once(result, server, crops, concurrency, limit_s)
                    if result.note.startswith("did not finish") and fewer < rows:
                        left_out.append(Result(name, fewer))
                        run_client(left_out[-1], server, crops, concurrency, limit_s)
            last = [f"{name} {rows / each.seconds[-1]:.0f}" for name, each in results.items() if each.seconds]
            console.print(f"  turn {turn + 1} of {repeats}, rows/s: {', '.join(last)}")
    return [*results.values(), *left_out]


def table(results: list[Result]) -> Table:
    """A line for each client; the first figure says how much faster Spotter is."""
    ours = next(result for result in results if result.client == OURS).rows_per_s
    shown = command.figures("client", ("Spotter is", "rows/s", "from", "to", "CPU a row", "memory", "answered"), "")
    for result in results:
        fewer = f", {result.rows} rows" if result.rows != results[0].rows and result.seconds else ""
        shown.add_row(result.client + fewer, *result.cells(ours))
    return shown


def wrong(results: list[Result], least: float = 0.0) -> list[str]:
    """One line for each fault: Spotter did not finish, a client left questions unanswered, or Spotter reached less
    than the share `least` of the server's highest rate."""
    said = [f"{OURS}: {result.note}" for result in results if result.client == OURS and result.note]
    said += [
        f"{result.client}: {result.answered} of {result.rows} rows answered"
        for result in results
        if result.seconds and result.answered < result.rows
    ]
    speeds = {result.client: result.rows_per_s for result in results if result.rows == results[0].rows}
    ours, ceiling = speeds.get(OURS), speeds.get(CEILING)
    if ours and ceiling and ours < least * ceiling:
        said.append(f"{OURS} reached {ours / ceiling:.2f} of {CEILING}'s rows per second: less than {least:g}")
    return said


def measure(options: argparse.Namespace, console: Console) -> list[str]:
    """Compare on the simulated server and on the running stack; one line for each fault."""
    said = machine.describe()
    console.print(", ".join(f"{name} {value}" for name, value in said.items()))
    written: dict[str, Any] = {"machine": said, "concurrency": options.concurrency}
    faults: list[str] = []

    def on(server: Server, rows: int) -> None:
        console.print(
            f"\n{server.title}: {rows} questions, {options.concurrency} in flight, {options.repeats} runs each"
        )
        limits = options.repeats, options.concurrency, options.limit
        results = compare(server, rows, min(FEWER, rows), *limits, console)
        console.print(table(results))
        written[server.title] = [asdict(result) for result in results]
        faults.extend(wrong(results, options.ratio))

    settings = running.settings()
    if options.only != "real":
        with simulated(options.latency) as server:
            on(server, options.rows)
    if options.only != "simulated" and (model := running.find_model(settings, console, options.only == "real")):
        url, key = str(settings.model_url).rstrip("/"), running.key_variable(settings)
        on(Server(url, model, f"the running stack's {model}", False, key), options.real_rows)
    if options.json:
        options.json.write_text(json.dumps(written, indent=2))
    return faults


def main(given: list[str]) -> int:
    """Returns the exit code of `command.run`."""
    parser = command.Options(__doc__)
    parser.option("--rows", ROWS, "questions to the simulated server")
    parser.option("--real-rows", REAL_ROWS, "questions to the stack's model")
    parser.option("--repeats", 3, "runs of each client")
    parser.option("--concurrency", 64, "questions in flight")
    parser.option("--latency", 0.05, "seconds per answer of the simulated server")
    parser.option("--limit", 60.0, "longest time of a client, in seconds")
    parser.option("--ratio", 0.95, f"lowest accepted share of {CEILING}'s rate on the real model")
    parser.add_argument("--only", choices=("simulated", "real"), help="one of the servers (default: both, if up)")
    parser.add_argument("--quick", action="store_true", help="few rows, once: to see that everything works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures there")
    options = parser.parse_args(given)
    if options.quick:
        options.rows, options.real_rows, options.repeats, options.ratio = 200, 60, 1, 0.0
    return command.run(lambda: measure(options, command.make_console()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
