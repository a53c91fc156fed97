"""Bring the stack up, wait until it can answer, show it, take it down."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from scripts.devices import choose, find_gpus
from scripts.environments import ROOT
from scripts.process_engine import ProcessEngine, uptime
from scripts.services import Service, Stack, make_stack
from scripts.settings import StackSettings, user_variables
from scripts.warmup import is_ready, wait


def plan(settings: StackSettings) -> tuple[Stack, str]:
    """The stack that this host gets, and why.

    Raises:
        StackError: the settings cannot be met here.
    """
    gpus = find_gpus() if settings.device != "cpu" else []
    device, preset, why = choose(settings, gpus)
    stack = make_stack(settings, device, preset, user_variables("SPOTTER_"))
    return stack, f"engine process, device {device} ({why}), preset {stack.preset}"


@contextlib.contextmanager
def one_at_a_time(settings: StackSettings) -> Iterator[None]:
    """Let one command at a time change the stack; the lock dies with its process."""
    settings.state.mkdir(parents=True, exist_ok=True)
    with (settings.state / "stack.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def up(settings: StackSettings, console: Console) -> Stack:
    """Start what is not running, and return when every service answers. Does nothing where all is up.

    A failure or an interrupt (Ctrl-C) stops what this call started.

    Raises:
        StackError: a service cannot start, or died; its log's last lines were shown.
    """
    stack, why = plan(settings)
    engine = ProcessEngine(settings.state)
    with one_at_a_time(settings):
        missing = [service for service in stack.services if not engine.is_current(service)]
        if not missing and all(is_ready(service) for service in stack.services):
            return stack
        console.print(why, highlight=False)
        engine.prepare(missing)
        begun: list[Service] = []
        try:
            for service in missing:
                if engine.stop(service.name, service.stop_grace_s):
                    console.print(f"{service.name}: was running with other settings, starts anew", highlight=False)
                engine.start(service)
                begun.append(service)
                if stack.device == "cuda":  # vLLM measures the GPU's free memory: the detector must have its share
                    wait(engine, [service], settings.start_timeout_s, console)
            wait(engine, list(stack.services), settings.start_timeout_s, console)
        except BaseException:
            for service in begun:
                engine.stop(service.name, grace_s=5.0)
            raise
    return stack


def down(settings: StackSettings, console: Console) -> None:
    """Stop every service, however it was started; requests in flight may finish."""
    engine = ProcessEngine(settings.state)
    with one_at_a_time(settings):
        graces = {"vllm": 75.0, "detector": 30.0}
        stopped = [name for name, grace_s in graces.items() if engine.stop(name, grace_s)]
    console.print(f"stopped {', '.join(stopped)}" if stopped else "nothing was running", highlight=False)


def status(settings: StackSettings) -> Table:
    """Each service: state, process, address, uptime and log."""
    stack, _ = plan(settings)
    engine = ProcessEngine(settings.state)
    table = Table("service", "state", "pid", "address", "up for", "log", box=None, pad_edge=False)
    for service in stack.services:
        process = engine.running(service.name)
        if process is None:
            state = "ended by itself" if engine.started(service.name) else "down"
        else:
            state = "ready" if is_ready(service) else "starting or not answering"
            if not engine.is_current(service):
                state += " (settings have changed: make up)"
        pid, age = (str(process.pid), f"{uptime(process):.0f} s") if process else ("", "")
        log = os.path.relpath(engine.log(service.name), ROOT)
        table.add_row(service.name, state, pid, service.ready_url.rsplit("/", 1)[0], age, log)
    return table
