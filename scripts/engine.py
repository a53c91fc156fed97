"""What an engine is: it runs the stack's services on a host, as processes or in containers."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from scripts.services import Service


class Engine(Protocol):
    """Starts, watches and stops services; knows again, in a later command, what an earlier one started."""

    name: str
    """What people call it: `process`, `compose`."""

    def prepare(self, services: list[Service]) -> None:
        """Make what the services run in (environments, images), unless it is there and current.

        Raises:
            StackError: it cannot be made.
        """
        ...

    def is_current(self, service: Service) -> bool:
        """Whether the service runs with the settings as they are now."""
        ...

    def is_running(self, name: str) -> bool:
        """Whether the service runs, answering or not."""
        ...

    def start(self, service: Service) -> None:
        """Start a service; does not wait for it.

        Raises:
            StackError: its port is taken, or it cannot be started.
        """
        ...

    def stop(self, name: str, grace_s: float) -> bool:
        """Stop a service, which may take `grace_s` seconds to finish its requests; whether there was one to stop."""
        ...

    def exit_code(self, name: str) -> int | None:
        """The exit code of a service that has ended, where it is known."""
        ...

    def last_lines(self, name: str, count: int = 20) -> str:
        """The end of a service's log."""
        ...

    def log(self, name: str) -> Path:
        """Where a service's log is, or how to see it."""
        ...
