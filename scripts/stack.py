"""Bring the stack up, wait until it can answer, show it, take it down."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from typing import NoReturn

from rich.console import Console
from rich.table import Table

from scripts import compose_engine, images
from scripts.compose_engine import ComposeEngine
from scripts.devices import choose, find_gpus
from scripts.engine import Engine
from scripts.environments import ROOT
from scripts.preflight import command as preflight
from scripts.process_engine import ProcessEngine
from scripts.services import STOP_GRACE_S, Service, Stack, make_stack
from scripts.settings import StackError, StackSettings, user_variables
from scripts.warmup import is_ready, wait


def plan(settings: StackSettings) -> tuple[Stack, Engine, str]:
    """The stack that this host gets, the engine that runs it, and why.

    Raises:
        StackError: the settings cannot be met here.
    """
    gpus = find_gpus() if settings.device != "cpu" else []
    device, preset, why = choose(settings, gpus)
    stack = make_stack(settings, device, preset, user_variables("SPOTTER_"))
    engine, why_engine = choose_engine(settings, device, preset)
    return stack, engine, f"engine {engine.name} ({why_engine}), device {device} ({why}), preset {stack.preset}"


def choose_engine(settings: StackSettings, device: str, preset: str) -> tuple[Engine, str]:
    """The engine for a device and preset, and the reason for it.

    Raises:
        StackError: containers were asked for, and Docker or Compose does not answer.
    """
    process = ProcessEngine(settings.state)
    if settings.engine == "process":
        return process, "STACK_ENGINE=process"
    if settings.engine == "compose":
        compose_engine.client_config()
        return ComposeEngine(settings, device, preset), "STACK_ENGINE=compose"
    if any(process.is_running(name) for name in STOP_GRACE_S):
        return process, "services run as processes already"
    if reason := compose_engine.why_not(device):
        return process, reason
    return ComposeEngine(settings, device, preset), "Docker answers"


def engines_in_use(settings: StackSettings, leftovers: bool = False) -> list[Engine]:
    """The engines that have services of this stack, running or not, or, with `leftovers`, anything of it."""
    used: list[Engine] = []
    process = ProcessEngine(settings.state)
    if any(process.was_started(name) for name in STOP_GRACE_S):
        used.append(process)
    containers = any((settings.state / "containers").glob("*.json"))
    if (containers or leftovers) and compose_engine.answers():
        used.append(ComposeEngine(settings, "cpu", "cpu"))  # to find and stop containers, one device is as good as any
    return used


@contextlib.contextmanager
def one_at_a_time(settings: StackSettings) -> Iterator[None]:
    """Let one command at a time change the stack; the lock dies with its process."""
    settings.state.mkdir(parents=True, exist_ok=True)
    with (settings.state / "stack.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def up(settings: StackSettings, console: Console) -> tuple[Stack, Engine]:
    """Start what is not running, and return when every service answers. Does nothing where all is up.

    A failure or an interrupt (Ctrl-C) stops what this call started.

    Raises:
        StackError: a service cannot start, or died; its log's last lines were shown.
    """
    with one_at_a_time(settings):
        stack, engine, why = plan(settings)
        for other in engines_in_use(settings):
            if other.name != engine.name:
                raise StackError(f"the stack has services on the {other.name} engine: 'make down' stops them")
        missing = [service for service in stack.services if not engine.is_current(service)]
        if not missing and all(is_ready(engine.locate(service)) for service in stack.services):
            return stack, engine
        console.print(why, highlight=False)
        if any(service.name == "vllm" for service in missing):
            preflight.require(settings, console, in_containers=engine.name == "compose")
        engine.prepare(missing)
        begun: list[Service] = []
        try:
            for service in missing:
                if engine.stop(service.name, service.stop_grace_s):
                    console.print(f"{service.name}: was running with other settings, starts anew", highlight=False)
                begun.append(service)
                engine.start(service)
                if stack.device == "cuda":  # vLLM measures the GPU's free memory: the detector must have its share
                    wait(engine, [engine.locate(service)], settings.start_timeout_s, console, state=settings.state)
            wait(
                engine,
                [engine.locate(service) for service in stack.services],
                settings.start_timeout_s,
                console,
                state=settings.state,
            )
        except BaseException:
            for service in begun:
                engine.stop(service.name, grace_s=5.0)
            if not any(engine.is_running(service.name) for service in stack.services):
                engine.tear_down()
            raise
    return stack, engine


def down(settings: StackSettings, console: Console) -> None:
    """Stop every service, however it was started; requests in flight may finish.

    Raises:
        StackError: something cannot be stopped.
    """
    with one_at_a_time(settings):
        stopped = []
        for engine in engines_in_use(settings, leftovers=True):
            stopped += [name for name, grace_s in STOP_GRACE_S.items() if engine.stop(name, grace_s)]
            engine.tear_down()
    console.print(f"stopped {', '.join(stopped)}" if stopped else "nothing was running", highlight=False)


def status(settings: StackSettings) -> Table:
    """Each service: state, what it runs as, address, uptime and log."""
    stack, engine, _ = plan(settings)
    table = Table("service", "state", "id", "address", "up for", "log", box=None, pad_edge=False)
    for service in map(engine.locate, stack.services):
        identifier, age_s = engine.describe(service.name)
        if engine.is_running(service.name):
            state = "ready" if is_ready(service) else "starting or not answering"
            if not engine.is_current(service):
                state += " (settings have changed: make up)"
        else:
            state = "ended by itself" if engine.was_started(service.name) else "down"
        age = "" if age_s is None else f"{age_s:.0f} s"
        log = os.path.relpath(engine.log(service.name), ROOT)
        table.add_row(service.name, state, identifier, service.ready_url.rsplit("/", 1)[0], age, log)
    return table


def run(settings: StackSettings, console: Console, options: list[str]) -> NoReturn:
    """Bring the stack up, and become the job on it.

    Raises:
        StackError: the stack cannot come up.
        UsageError: the job's settings cannot be.
    """
    if {"-h", "--help"} & set(options):  # the same words from every engine
        ProcessEngine(settings.state).run_job(Stack("", "", (), {}), options)
    stack, engine = up(settings, console)
    engine.run_job(stack, options)


def logs(settings: StackSettings, names: list[str], follow: bool) -> NoReturn:
    """Show the services' logs.

    Raises:
        StackError: there are none.
    """
    _, engine, _ = plan(settings)
    engine.show_logs(names, follow)


def shell(settings: StackSettings, name: str) -> NoReturn:
    """Open a shell where a service runs.

    Raises:
        StackError: the service does not run, or runs elsewhere.
    """
    stack, engine, _ = plan(settings)
    for service in stack.services:
        if service.name == name:
            engine.open_shell(service)
    raise StackError(f"{name} runs elsewhere: an address is set for it")


def build(settings: StackSettings, console: Console) -> None:
    """Build the images of this host's device, where they are missing or old.

    Raises:
        StackError: there is no Docker, or one cannot be built.
    """
    compose_engine.client_config()
    gpus = find_gpus() if settings.device != "cpu" else []
    device, _, _ = choose(settings, gpus)
    images.ensure(list(images.OF_DEVICE[device]), settings.state / "logs", console)
    for name in images.OF_DEVICE[device]:
        console.print(f"{images.IMAGES[name].tag:<32}{images.size(images.IMAGES[name]):>10}", highlight=False)
