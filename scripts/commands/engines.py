"""The engine that runs the stack, the engines that have services of it, and the lock of the commands that change it."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator, Mapping
from threading import Thread

from rich.console import Console

from pipeline import settings as job_settings
from scripts.docker import engine as compose_engine
from scripts.docker import host as docker_host
from scripts.docker.engine import ComposeEngine
from scripts.services import kind_name
from scripts.settings import NotRunning, StackSettings
from scripts.stack.devices import choose, find_gpus
from scripts.stack.engine import Engine
from scripts.stack.process_engine import ProcessEngine
from scripts.stack.services import Stack, make_stack


def plan(settings: StackSettings) -> tuple[Stack, Engine, str]:
    """The stack that this host gets, the engine that runs it, and why."""
    gpus = find_gpus(settings)
    device, preset, why = choose(settings, gpus)
    if device == "cuda":  # so that nvidia-smi is asked only once for STACK_GPUS=all
        settings = settings.model_copy(update={"gpus": ",".join(str(gpu.number) for gpu in gpus)})
    stack = make_stack(settings, device, preset, settings.user_variables(job_settings.PREFIX))
    engine, why_engine = choose_engine(settings, device, preset)
    return stack, engine, f"engine {engine.name} ({why_engine}), device {device} ({why}), preset {stack.preset}"


def choose_engine(settings: StackSettings, device: str, preset: str) -> tuple[Engine, str]:
    """The engine for a device and preset, and the reason for it."""
    process = ProcessEngine(settings, device)
    if settings.engine == "process":
        return process, "STACK_ENGINE=process"
    if settings.engine == "compose":
        docker_host.client_config()
        return ComposeEngine(settings, device, preset), "STACK_ENGINE=compose"
    if any(map(process.is_running, process.names())):
        return process, "services run as processes already"
    if reason := compose_engine.why_not(settings, device):
        return process, reason
    return ComposeEngine(settings, device, preset), "Docker answers"


def engines_in_use(settings: StackSettings, leftovers: bool = False) -> list[Engine]:
    """The engines that have services of this stack, running or not, or, with `leftovers`, anything of it."""
    process, compose = ProcessEngine(settings), ComposeEngine(settings, "cpu", "cpu")  # to find and stop: any device
    used: list[Engine] = [process] if any(map(process.started, process.names())) else []
    if (leftovers or any(map(compose.started, compose.names()))) and docker_host.answers():
        used.append(compose)
    return used


def names(engine: Engine, stack: Stack) -> list[str]:
    """The services that a command may name: those of the settings, and those that may be there."""
    return list(dict.fromkeys([*engine.names(), *(service.name for service in stack.services)]))


def known(engine: Engine, stack: Stack, name: str) -> str:
    """Check the name of a service.

    Raises:
        NotRunning: the stack has no such service.
    """
    if name not in names(engine, stack):
        raise NotRunning(f"there is no service {name}: name one of {', '.join(names(engine, stack))}")
    return name


def surplus(engine: Engine, stack: Stack) -> list[str]:
    """The model servers that were started and that the settings no longer name: after fewer GPUs, for example."""
    planned = {service.name for service in stack.services}
    return [name for name in engine.names() if name not in planned and kind_name(name) in planned]


def stop(engine: Engine, grace_s: Mapping[str, float]) -> list[str]:
    """Stop services at the same time; `grace_s` is by their names. Returns the names of those that were there.

    An error is raised when all have been stopped or have failed to. Ctrl-C does not wait for them.
    """
    there: dict[str, bool] = {}
    failures: list[Exception] = []

    def stop_one(name: str, seconds: float) -> None:
        try:
            there[name] = engine.stop(name, seconds)
        except Exception as error:
            failures.append(error)

    # Plain threads: a pool of multiprocessing needs room in /dev/shm, and one of concurrent.futures delays Ctrl-C.
    threads = [Thread(target=stop_one, args=each, daemon=True) for each in grace_s.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return [name for name in grace_s if there[name]]


@contextlib.contextmanager
def one_at_a_time(settings: StackSettings, console: Console) -> Iterator[None]:
    """Let one command at a time change the stack; the lock ends with its process."""
    settings.state.mkdir(parents=True, exist_ok=True)
    with (settings.state / "stack.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print("another command is changing the stack: waiting until it has ended")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
