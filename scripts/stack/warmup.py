"""Wait until the services answer a real request; show the phases, and fail at once with the cause."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from pipeline.settings import Settings
from scripts.settings import NotReady, ServiceDied, StackError
from scripts.stack.engine import Engine
from scripts.stack.plain_lines import PlainLines
from scripts.stack.service import Service
from scripts.stack.start_history import StartHistory
from scripts.stack.vllm_server import STARTS
from scripts.vllm.startup_causes import GIVEN_UP, Cause, at_limit, find_cause, remedy_for
from scripts.vllm.startup_phases import LAST_PHASE, Phases, summary

POLL_S = 0.25
# Phases change slowly, and a container's log takes 0.1 to 0.2 s to read.
READ_LOG_S = 1.0
# A start writes fewer lines, so that they include its first phase.
LOG_LINES = 400

FirstRequest = Callable[[Service], None]


def first_request(service: Service, job: Settings | None = None) -> None:
    """Ask a service one real question of the job; by default, of the one that environment and `.env` name."""
    from scripts.stack.first_request import ask  # not above: its client loads longer than most commands take

    ask(service, job or Settings())


def is_ready(service: Service) -> bool:
    """Whether a service answers its health check now."""
    # No proxy: the services are on this host, and a proxy's answer would count as theirs.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(service.ready_url, timeout=2) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError, ValueError):
        return False


class Start:
    """One service on its way to the first answer."""

    def __init__(self, engine: Engine, service: Service, history: StartHistory | None, together: int = 1) -> None:
        """`together`: the number of servers of its kind that start at the same time."""
        self.engine = engine
        self.service = service
        self.together = together
        self.history = history
        self.usual_s = history.usual_s(self.key) if history else None
        self.was_ready: bool | None = None
        self.phases = Phases()
        self.ready_s: float | None = None
        self.answer: Future[None] | None = None
        self.next_read_s = 0.0
        self.given_up = False

    @property
    def key(self) -> str:
        """Names comparable starts: of the same service, preset, kind of start and engine."""
        preset = [path.stem for path in self.service.inputs[:1]]
        start = [path.stem for path in self.service.inputs if path.parent == STARTS]
        kind = self.service.kind
        kind += f" x {self.together}" if self.together > 1 else ""
        return "/".join([self.engine.name, kind, *preset, *start])

    def check(self) -> None:
        """Raise ServiceDied where the service has ended, or its engine calls it unhealthy."""
        if not self.engine.is_running(self.service.name):
            raise died(self.engine, self.service)
        if (said := self.engine.unhealthy(self.service.name)) is not None:
            raise turned_unhealthy(self.engine, self.service, said)

    def look(self, elapsed_s: float, ask: FirstRequest, pool: ThreadPoolExecutor) -> bool:
        """Read the start's progress; whether it has just become ready.

        Raises:
            ServiceDied: the service died or is unhealthy.
            NotReady: it refuses the first request.
        """
        name = self.service.name
        self.check()
        if elapsed_s >= self.next_read_s and self.answer is None:
            self.next_read_s = elapsed_s + READ_LOG_S
            log = self.engine.last_lines(name, LOG_LINES, earlier=self.given_up)
            if self.given_up:  # a second ago: by now the log has the whole reason
                raise failed(self.engine, self.service, "cannot start: it gave up", reason(log))
            self.given_up = GIVEN_UP.search(log) is not None
            self.phases.read(log, elapsed_s)
        healthy = self.answer is None and is_ready(self.service)
        if self.was_ready is None:
            self.was_ready = healthy
        if healthy:
            # Again: a quick start may have gone through several phases since.
            self.phases.read(self.engine.last_lines(name, LOG_LINES), elapsed_s)
            self.phases.open(LAST_PHASE, elapsed_s)
            self.answer = pool.submit(ask, self.service)
        if self.answer is None or not self.answer.done():
            return False
        try:
            self.answer.result()
        except StackError:
            if not self.engine.is_running(name):  # its log says more than the broken connection
                raise died(self.engine, self.service) from None
            raise
        self.ready_s = elapsed_s
        return True

    def tell_ready(self, console: Console) -> None:
        """Say how long the start took, by phase, and record it, unless the service was ready before."""
        if self.was_ready or self.ready_s is None:
            return
        phases = self.phases.seconds(self.ready_s)
        details = f" ({summary(phases)})" if summary(phases) else ""
        console.print(f"{self.service.name}: ready after {self.ready_s:.0f} s{details}", soft_wrap=True)
        slower = self.history.add(self.key, self.service.fingerprint, self.ready_s, phases) if self.history else None
        if slower:
            console.print(f"{self.service.name}: {slower}")

    def __str__(self) -> str:
        return f"{self.service.name}: {self.phases.current}"


def wait(
    engine: Engine,
    services: list[Service],
    timeout_s: float,
    console: Console,
    *,
    state: Path | None = None,
    ask: FirstRequest = first_request,
) -> None:
    """Return when all services have answered a real request; meanwhile show each one's phase and last log line.

    `state` is the folder with the history of starts; without it there are no estimates.

    Raises:
        StackError: one died or turned unhealthy, before or after it was ready (at once, with the cause in its log),
            refuses the job's request, or is not ready after `timeout_s` seconds.
    """
    begin = time.monotonic()
    history = None if state is None else StartHistory(state)
    kinds = Counter(service.kind for service in services if not is_ready(service))
    starts = [Start(engine, service, history, kinds[service.kind]) for service in services]
    lines = PlainLines(console)
    pool = ThreadPoolExecutor(max_workers=max(len(services), 1))
    try:
        with Live(console=console, refresh_per_second=4, transient=True) as live:
            while any(start.ready_s is None for start in starts):
                elapsed = time.monotonic() - begin
                for start in starts:
                    if start.ready_s is not None:
                        start.check()
                    elif start.look(elapsed, ask, pool):
                        start.tell_ready(console)
                waiting = [start for start in starts if start.ready_s is None]
                if waiting and elapsed > timeout_s:
                    names = ", ".join(str(start) for start in waiting)
                    raise NotReady(
                        f"{names}: not ready after {timeout_s:.0f} s: see {engine.log(waiting[0].service.name)}, or "
                        "raise STACK_START_TIMEOUT_S"
                    )
                if waiting and console.is_terminal:
                    live.update(progress(waiting, elapsed, console.width))
                elif waiting and lines.due():
                    shown = ", ".join(str(start) for start in waiting)
                    console.print(f"waiting for {shown}, {clock(waiting, elapsed)}")
                if waiting:
                    time.sleep(POLL_S)
    finally:
        # A request to a dead server ends by itself.
        pool.shutdown(wait=False, cancel_futures=True)


def clock(waiting: list[Start], elapsed_s: float) -> str:
    """The time so far, and the usual time."""
    usual = max((start.usual_s for start in waiting if start.usual_s is not None), default=None)
    return f"{elapsed_s:.0f} s" + (f" of about {usual:.0f} s" if usual is not None else "")


def progress(waiting: list[Start], elapsed_s: float, width: int) -> Text:
    """A line for each service: phase, time, and its last log line."""
    lines = (
        f"{start}, {clock([start], elapsed_s)}  {start.engine.last_lines(start.service.name, 1)}"[: width - 1]
        for start in waiting
    )
    return Text("\n".join(lines), style="dim")


def died(engine: Engine, service: Service) -> ServiceDied:
    """The error for a service that ended during the wait."""
    code = engine.exit_code(service.name)
    how = f"ended with exit code {code}" if code is not None else "ended"
    limit = engine.memory_limit_hit(service.name)
    told = engine.last_lines(service.name, LOG_LINES, earlier=True)
    return failed(engine, service, how, reason(told) if limit is None else at_limit(service.name, limit))


def reason(log: str) -> Cause:
    """The cause that a log names, or that it names none."""
    return find_cause(log) or Cause("no line of its log names an error", None)


def turned_unhealthy(engine: Engine, service: Service, said: str) -> ServiceDied:
    """The error for a running service with a failing health check; `said` is the check's last output."""
    shown = " ".join(said.split()) or "no answer in time"
    cause = Cause(f"its health check says: {shown}", remedy_for(said))
    return failed(engine, service, "turned unhealthy", cause)


def failed(engine: Engine, service: Service, how: str, cause: Cause) -> ServiceDied:
    """The error for a service that kept the stack from being ready."""
    remedy = cause.remedy or "what the lines below say; `make doctor` names what this host lacks"
    return ServiceDied(
        f"{service.name} {how} before the stack was ready.\nThe cause: {cause.message}\nWhat helps: {remedy}\n"
        f"Its last lines:\n{engine.last_lines(service.name, earlier=True)}\nWhole log: {engine.log(service.name)}"
    )
