"""How long the tiny stack takes to become ready, cold and warm, by phase, and the time that `up` itself adds.

    python -m scripts.bench.ready
    python -m scripts.bench.ready --starts 3

A stack of its own on the process engine starts and stops, the first time with empty compile caches. A thread asks each
service's health address every 20 ms. After the first good answer the server is ready; the time until `up` ends is the
first request of the model, measured by `up`, and the rest, which `up` adds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts import environments
from scripts.bench import command
from scripts.commands.smoke import free_port
from scripts.environments import ROOT, STATE
from scripts.services import KINDS
from scripts.settings import PREFIX, StackSettings
from scripts.stack.services import images_of, make_stack
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
    """The whole command `up`."""
    before_s: float
    """Of it, before the services start: plan, preflight, environments."""
    start: Start
    """The model server's start, by phase."""
    ours_s: float
    """From the model server's first good health check to the end of `up`, without the first request."""


def first_ready(settings: StackSettings, found: dict[str, float], over: threading.Event) -> None:
    """Record the time at which each service first answers its health check."""
    services = make_stack(settings, "cpu", "cpu", {}).services
    while not over.wait(LOOK_S) and len(found) < len(services):
        for service in services:
            if service.name not in found and is_ready(service):
                found[service.name] = time.monotonic()


def operate(command: str, variables: dict[str, str]) -> None:
    """Run one of the operator's commands.

    Raises:
        subprocess.CalledProcessError: it failed; its output was shown.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith((PREFIX, "SPOTTER_"))}
    python = environments.python("operator")
    subprocess.run([python, "-m", "scripts", command], cwd=ROOT, env=inherited | variables, check=True)


def measure(kind: str, settings: StackSettings, variables: dict[str, str]) -> Measured:
    """Start and stop the stack once."""
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


def show(measured: list[Measured]) -> None:
    """Print a line for each start."""
    names = list(dict.fromkeys(name for each in measured for name in each.start.phases))
    table = command.figures("start", ("up", "before", *names, "added by up"))
    for each in measured:
        phases = [f"{each.start.phases.get(name, 0.0):.1f} s" for name in names]
        table.add_row(each.kind, f"{each.up_s:.1f} s", f"{each.before_s:.1f} s", *phases, f"{each.ours_s:.2f} s")
    command.make_console().print(table)


def measure_starts(starts: int) -> list[str]:
    """Measure the starts of a stack of its own; nothing is judged."""
    state: Path = STATE / "bench-ready"
    shutil.rmtree(state, ignore_errors=True)
    own: dict[str, Any] = {"engine": "process", "device": "cpu", "preset": "cpu", "state": state}
    settings = StackSettings.model_validate(own | {f"{name}_port": free_port() for name in KINDS})
    variables = {PREFIX + name.upper(): str(getattr(settings, name)) for name in settings.model_fields_set}
    try:
        for image in images_of(settings, "cpu"):
            environments.prepare(image.name)
        show([measure("warm" if n else "cold", settings, variables) for n in range(starts)])
    finally:
        shutil.rmtree(state, ignore_errors=True)
    return []


def main() -> int:
    """0: measured. 1: a start failed."""
    parser = command.Options(__doc__)
    parser.option("--starts", 2, "number of starts: the first is cold, the others are warm")
    options = parser.parse_args()
    return command.run(lambda: measure_starts(options.starts))


if __name__ == "__main__":
    raise SystemExit(main())
