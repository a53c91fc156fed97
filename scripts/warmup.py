"""Wait until the services can answer; tell at once when one cannot."""

from __future__ import annotations

import time
import urllib.error
import urllib.request

from rich.console import Console
from rich.live import Live
from rich.text import Text

from scripts.engine import Engine
from scripts.services import Service
from scripts.settings import StackError

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


def wait(engine: Engine, services: list[Service], timeout_s: float, console: Console) -> None:
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
                if not engine.is_running(service.name):
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


def progress(engine: Engine, waiting: list[str], elapsed: float, width: int) -> Text:
    """What is waited for, and what it says."""
    lines = (f"{name}: starting, {elapsed:.0f} s  {engine.last_lines(name, 1)}"[: width - 1] for name in waiting)
    return Text("\n".join(lines), style="dim")


def died(engine: Engine, service: Service) -> StackError:
    """The error for a service that ended while it was waited for."""
    code = engine.exit_code(service.name)
    how = f"ended with exit code {code}" if code is not None else "ended"
    lines = engine.last_lines(service.name)
    return StackError(
        f"{service.name} {how} before it was ready. Its last lines:\n{lines}\nWhole log: {engine.log(service.name)}"
    )
