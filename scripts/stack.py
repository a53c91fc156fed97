"""Bring the stack up, wait until it can answer, show it, take it down."""

from __future__ import annotations

import contextlib
import fcntl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from scripts import environments
from scripts.devices import choose, find_gpus
from scripts.process_engine import ProcessEngine, uptime
from scripts.services import Service, Stack, make_stack
from scripts.settings import StackError, StackSettings, user_variables

POLL_S = 0.25
# Without a terminal a line this often shows what is being waited for.
PLAIN_LINE_S = 15.0


def is_ready(service: Service) -> bool:
    """Whether a service answers its health check now."""
    # No proxy: the services are on this host, and a proxy's answer would be taken for theirs.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(service.ready_url, timeout=2) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError, ValueError):
        return False


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
        missing = [service for service in stack.services if not is_current(engine, service)]
        if not missing and all(is_ready(service) for service in stack.services):
            return stack
        console.print(why, highlight=False)
        try:
            for name in dict.fromkeys(service.environment for service in missing):
                environments.prepare(name)
        except environments.EnvironmentFailed as failure:
            raise StackError(str(failure)) from failure
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


def is_current(engine: ProcessEngine, service: Service) -> bool:
    """Whether a service runs, with the settings as they are now."""
    known = engine.started(service.name)
    return known is not None and known.fingerprint == service.fingerprint and engine.running(service.name) is not None


def wait(engine: ProcessEngine, services: list[Service], timeout_s: float, console: Console) -> None:
    """Return when all services are ready, showing each one's state and last log line.

    Raises:
        StackError: one died (told at once, with its last lines) or is not ready after `timeout_s` seconds.
    """
    begin = time.monotonic()
    ready_after: dict[str, float] = {}
    next_line = begin + PLAIN_LINE_S
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        while True:
            elapsed = time.monotonic() - begin
            for service in services:
                if service.name in ready_after:
                    continue
                if engine.running(service.name) is None:
                    raise died(engine, service)
                if is_ready(service):
                    ready_after[service.name] = elapsed
                    console.print(f"{service.name}: ready after {elapsed:.0f} s", highlight=False)
            waiting = [service.name for service in services if service.name not in ready_after]
            if not waiting:
                return
            if elapsed > timeout_s:
                raise StackError(
                    f"{', '.join(waiting)}: not ready after {timeout_s:.0f} s: see {engine.log(waiting[0])}, or raise "
                    "STACK_START_TIMEOUT_S"
                )
            if console.is_terminal:
                live.update(progress(engine, waiting, elapsed, console.width))
            elif time.monotonic() >= next_line:
                next_line += PLAIN_LINE_S
                console.print(f"waiting for {', '.join(waiting)}, {elapsed:.0f} s", highlight=False)
            time.sleep(POLL_S)


def progress(engine: ProcessEngine, waiting: list[str], elapsed: float, width: int) -> Text:
    """What is waited for, and what it says."""
    lines = (f"{name}: starting, {elapsed:.0f} s  {engine.last_lines(name, 1)}"[: width - 1] for name in waiting)
    return Text("\n".join(lines), style="dim")


def died(engine: ProcessEngine, service: Service) -> StackError:
    """The error for a service that ended while it was waited for."""
    code = engine.exit_code(service.name)
    how = f"ended with exit code {code}" if code is not None else "ended"
    lines = engine.last_lines(service.name)
    return StackError(
        f"{service.name} {how} before it was ready. Its last lines:\n{lines}\nWhole log: {engine.log(service.name)}"
    )


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
            if not is_current(engine, service):
                state += " (settings have changed: make up)"
        table.add_row(
            service.name,
            state,
            str(process.pid) if process else "",
            service.ready_url.rsplit("/", 1)[0],
            f"{uptime(process):.0f} s" if process else "",
            str(engine.log(service.name)),
        )
    return table
