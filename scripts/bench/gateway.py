"""Run the job through a real LiteLLM proxy, and check that all is answered and that each refusal has its remedy.

    python -m scripts.bench.gateway
    python -m scripts.bench.gateway --stack

The proxy is installed from the package index into an environment of its own, which stays under .spotter/envs-bench.
Behind it stands the simulated model, or with --stack the model of the running stack; the detector is simulated. Each
case is a command of its own. The exit code is 1 when a row is not answered, or a line is not the expected one.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from pipeline import settings as pipeline_settings
from scripts import environments
from scripts.bench import command, running
from scripts.bench.installed import installed
from scripts.commands.smoke import free_port
from tests.doubles.faults import grid, misbehave
from tests.doubles.simulated import serve
from tests.pictures import encoded, gradient

VERSION = "1.108.7"
START_S = 180.0

KEY = "sk-spotter"
PICTURES, BOXES = 20, 3
ROWS = PICTURES * BOXES
# Requests a minute of the model `limited`: fewer than there are rows, so that one pause is needed.
RATE = 40

# Shares of all requests.
FAULTS = {"cdn-timeout": 0.1, "error": 0.1, "reset": 0.05}


@dataclass(frozen=True, slots=True)
class Case:
    """One run of the job, and what it has to show."""

    name: str
    variables: dict[str, str | None]
    line: str | None = None
    """What its one line of an error matches; None: all rows are answered."""
    faulty: bool = False
    """Whether one request in four fails behind the proxy."""
    tries: int = 1
    """How often a row may have been tried, at most."""


@dataclass(slots=True)
class Outcome:
    """What a case showed."""

    seconds: float
    answered: int
    tries: int
    line: str
    problems: list[str] = field(default_factory=list)


CASES = (
    Case("all answered", {}),
    Case("a pattern for a name", {"SPOTTER_MODEL": "any/{model}"}),
    Case("one request in four fails", {}, faulty=True, tries=20),
    Case("rate limit", {"SPOTTER_MODEL": "limited"}),
    Case("no key", {"SPOTTER_API_KEY": None}, r"set SPOTTER_API_KEY"),
    Case("wrong key", {"SPOTTER_API_KEY": "sk-wrong"}, r"refuses the key: correct SPOTTER_API_KEY \(HTTP 4"),
    Case("unknown model", {"SPOTTER_MODEL": "dog"}, r"does not serve 'dog', but lists dogs, .*: correct SPOTTER_MODEL"),
    Case("no model", {"SPOTTER_MODEL": None}, r"serves dogs, .*: choose one with SPOTTER_MODEL"),
    Case("address without /v1", {"SPOTTER_MODEL_URL": "{url}/nothing"}, r"HTTP 404: .*ends in /v1"),
)


def configuration(upstream: str, model: str, key: str) -> dict[str, Any]:
    """LiteLLM's: the model under one name, with a limit of its rate under another, and any name after `any/`."""
    there = {"api_base": upstream, "api_key": key, "max_retries": 0}
    named = there | {"model": f"openai/{model}"}
    return {
        "model_list": [
            {"model_name": "dogs", "litellm_params": named},
            {"model_name": "limited", "litellm_params": named | {"rpm": RATE}},
            {"model_name": "any/*", "litellm_params": there | {"model": "openai/*"}},
        ],
        "general_settings": {"master_key": KEY},
        "router_settings": {
            "num_retries": 0,
            "disable_cooldowns": True,
            "optional_pre_call_checks": ["enforce_model_rate_limits"],
        },
    }


@contextmanager
def gateway(folder: Path, upstream: str, model: str, key: str) -> Iterator[str]:
    """Run the proxy in front of a model server until the block ends; its address without a path.

    Raises:
        BenchFailed: it did not start.
    """
    executable, port = installed("litellm[proxy]", VERSION) / "bin" / "litellm", free_port()
    file = folder / "litellm.yaml"
    file.write_text(yaml.safe_dump(configuration(upstream, model, key)))
    inherited = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")}
    local = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "PYTHONUNBUFFERED": "1"}
    options = ["--config", str(file), "--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"]
    url, log = f"http://127.0.0.1:{port}", folder / "litellm.log"
    with log.open("w") as output:
        server = subprocess.Popen([executable, *options], stdout=output, stderr=output, env=inherited | local)
    try:
        deadline = time.monotonic() + START_S
        while not answers(f"{url}/health/liveliness"):
            if server.poll() is not None or time.monotonic() > deadline:
                raise command.BenchFailed(f"litellm did not start: {log.read_text()[-2000:]}")
            time.sleep(0.5)
        yield url
    finally:
        server.terminate()
        server.wait()


def answers(url: str) -> bool:
    """Whether an address answers with 200."""
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def run_case(case: Case, folder: Path, url: str, detector: str, model: str) -> Outcome:
    """Run the job as a user does."""
    variables: dict[str, str | None] = {
        "SPOTTER_MODEL_URL": f"{url}/v1",
        "SPOTTER_DETECTOR_URL": detector,
        "SPOTTER_MODEL": "dogs",
        "SPOTTER_API_KEY": KEY,
        "SPOTTER_ATTEMPTS": "20",
    }
    variables |= {name: value and value.format(url=url, model=model) for name, value in case.variables.items()}
    environment = {name: value for name, value in os.environ.items() if not name.startswith(pipeline_settings.PREFIX)}
    environment |= {name: value for name, value in variables.items() if value is not None}
    output = folder / re.sub(r"\W+", "-", case.name)
    arguments = ["--images", str(folder / "images"), "--output", str(output), "--run-name", "one"]
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        cwd=environments.ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    seconds = time.monotonic() - began
    table = output / "one" / "detections.parquet"
    rows = pq.read_table(table).to_pylist() if table.exists() else []
    outcome = Outcome(
        seconds,
        sum(row["outcome"] == "answered" for row in rows),
        max((row["attempts"] or 0 for row in rows), default=0),
        done.stderr.strip() or "-",
    )
    outcome.problems = complaints(case, done.returncode, outcome)
    return outcome


def complaints(case: Case, code: int, outcome: Outcome) -> list[str]:
    """What is wrong with a case's outcome."""
    said = outcome.line[:500]
    if case.line is not None:
        right = code == 2 and len(outcome.line.splitlines()) == 1 and re.search(case.line, outcome.line)
        return [] if right else [f"{case.name}: exit code {code}, {said!r}, expected one line like {case.line!r}"]
    wrong = []
    if (code, outcome.answered) != (0, ROWS):
        wrong.append(f"{case.name}: {outcome.answered} of {ROWS} rows answered, exit code {code}: {said}")
    if outcome.tries > case.tries:
        wrong.append(f"{case.name}: a row took {outcome.tries} tries, more than {case.tries}")
    return wrong


def measure(stack: bool) -> list[str]:
    """Run each case and print a table; a line for each thing that is wrong."""
    table = command.figures("case", ("time", "answered", "tries"), "what was said")
    problems = list[str]()
    with tempfile.TemporaryDirectory(prefix="gateway-") as scratch, serve() as simulated:
        folder = Path(scratch)
        (folder / "images").mkdir()
        for number in range(PICTURES):
            (folder / "images" / f"{number}.jpg").write_bytes(encoded(gradient(400 + number, 60)))
        simulated.boxes = lambda image: grid(BOXES)
        upstream, model, key = f"{simulated.url}/v1", simulated.models[0], "none"
        if stack:
            found = running.settings()
            upstream, model = str(found.model_url).rstrip("/"), running.find(found).model
            key = found.api_key.get_secret_value() if found.api_key else key
        with gateway(folder, upstream, model, key) as url:
            for case in CASES:
                if case.faulty and stack:
                    continue
                simulated.model_fault = misbehave(FAULTS if case.faulty else {})
                outcome = run_case(case, folder, url, simulated.url, model)
                problems += outcome.problems
                figures = (f"{outcome.seconds:.0f} s", str(outcome.answered), str(outcome.tries))
                table.add_row(case.name, *figures, outcome.line[:300])
    command.make_console().print(table)
    return problems


def main() -> int:
    """Run the bench."""
    parser = command.Options(__doc__)
    parser.add_argument("--stack", action="store_true", help="in front of the running stack's model")
    options = parser.parse_args()
    return command.run(lambda: measure(options.stack))


if __name__ == "__main__":
    sys.exit(main())
