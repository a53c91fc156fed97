"""What an engine is: it runs the stack's services on a host, as processes or in containers."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn, Protocol

from scripts.stack.services import Service, Stack
from scripts.vllm.checker import Place
from scripts.vllm.compile_cache import Kept


class Engine(Protocol):
    """Starts, watches and stops services; knows again, in a later command, what an earlier one started."""

    name: str
    """What people call it: `process`, `compose`."""

    def claim(self) -> None:
        """See that starting services here takes nobody else's away.

        Raises:
            StackError: it would; says whose, and what to do.
        """
        ...

    def prepare(self, services: list[Service]) -> None:
        """Make what the services run in (environments, images), unless it is there and current.

        Raises:
            StackError: it cannot be made.
        """
        ...

    def prepared(self, services: list[Service]) -> list[str]:
        """What services run in that is there and current, in words for people."""
        ...

    def compile_caches(self) -> list[Kept]:
        """What is kept of compiled kernels, by key."""
        ...

    def prune_compile_caches(self, current: str) -> list[str]:
        """Remove what is kept under other keys; their names."""
        ...

    def preflight_place(self) -> Place:
        """Where vLLM's own code checks a configuration: where it would serve."""
        ...

    def fetch_command(self, service: Service, arguments: list[str]) -> list[str]:
        """How to run models/hub_download.py where a service's models are kept; what it runs in has been prepared."""
        ...

    def stop_fetching(self) -> None:
        """End a download that its command has left behind; what it has is kept."""
        ...

    def is_current(self, service: Service) -> bool:
        """Whether the service runs with the settings as they are now."""
        ...

    def is_running(self, name: str) -> bool:
        """Whether the service runs, answering or not."""
        ...

    def unhealthy(self, name: str) -> str | None:
        """What the last check of a service said that runs and, by the engine's own checks, answers no more; else None.

        None as well where the engine makes no checks.
        """
        ...

    def was_started(self, name: str) -> bool:
        """Whether the service was started and not stopped since, running or not."""
        ...

    def locate(self, service: Service) -> Service:
        """The service with the address under which this host reaches it, once it has been started."""
        ...

    def start(self, service: Service) -> None:
        """Start a service; does not wait for it.

        Raises:
            StackError: its port is taken, or it cannot be started.
        """
        ...

    def stop(self, name: str, grace_s: float) -> bool:
        """Stop a service, which may take `grace_s` seconds to finish its requests; whether there was one to stop.

        Called for several services at once, each from a thread of its own.
        """
        ...

    def tear_down(self) -> None:
        """Remove what the engine keeps beside the services, once they have been stopped; caches stay.

        Raises:
            StackError: it cannot be removed.
        """
        ...

    def exit_code(self, name: str) -> int | None:
        """The exit code of a service that has ended, where it is known."""
        ...

    def memory_limit_hit(self, name: str) -> int | None:
        """The bytes that a service may use, where the system has killed it or a part of it for that; None else.

        None as well where the engine sets no limit.
        """
        ...

    def last_lines(self, name: str, count: int = 20, *, earlier: bool = False) -> str:
        """The end of a service's log since it last started; with `earlier` also of starts that it died of before."""
        ...

    def log(self, name: str) -> Path:
        """Where a service's log is, at the latest when it has been stopped."""
        ...

    def show_logs(self, names: list[str], follow: bool) -> NoReturn:
        """Become a program that shows the services' logs.

        Raises:
            StackError: there are none.
        """
        ...

    def describe(self, name: str) -> tuple[str, float | None]:
        """What a service runs as (process or container id), and for how many seconds; empty where it does not run."""
        ...

    def open_shell(self, service: Service) -> NoReturn:
        """Become a shell where the service runs.

        Raises:
            StackError: it does not run, and there is no such place without it.
        """
        ...

    def check_job(self, stack: Stack, options: list[str]) -> None:
        """See that the job can have what it needs of this host, before anything is started for it.

        Raises:
            StackError: a service's address leads nowhere from where it runs.
            UsageError: its settings cannot be.
        """
        ...

    def run_job(self, stack: Stack, options: list[str]) -> NoReturn:
        """Become the job, with these options, on the stack's services.

        Raises:
            StackError: it cannot be started.
            UsageError: its settings cannot be.
        """
        ...
