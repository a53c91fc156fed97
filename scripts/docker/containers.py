"""A stack's containers: whether they run, how they ended, and their logs."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

from python_on_whales import Container
from python_on_whales.exceptions import NoSuchContainer

from scripts.docker.client import ask, client, command
from scripts.docker.project import CHECKOUT_LABEL, is_elsewhere

# A container's state is kept for this long: to ask Docker takes 30 ms of CPU.
STATE_AGE_S = 0.5
# The exit code of a killed container. Docker's event that it was killed for its memory may come this late.
KILLED = 128 + signal.SIGKILL
LATE_S = 5.0
# Docker's answer does not always include the events of the current second.
EVENT_S = 1.5
LOOK_S = 0.4


class Containers:
    """The containers of a Compose project's services, one for each; only those of this checkout."""

    def __init__(self, project: str) -> None:
        self.project = project
        self._seen: dict[str, tuple[float, Container | None]] = {}
        self._restarts: dict[str, int] = {}

    def name(self, service: str) -> str:
        """Compose's name for the one container of a service."""
        return f"{self.project}-{service}-1"

    def find(self, name: str) -> Container | None:
        """A service's container, running or not, at most STATE_AGE_S old; None where this checkout has none."""
        asked, found = self._seen.get(name, (0.0, None))
        if time.monotonic() - asked > STATE_AGE_S:
            try:
                found = client().container.inspect(self.name(name))
                if is_elsewhere((found.config.labels or {}).get(CHECKOUT_LABEL, "")):
                    found = None
            except NoSuchContainer:
                found = None
            self._seen[name] = (time.monotonic(), found)
        return found

    def forget(self, name: str) -> None:
        """Ask Docker again the next time."""
        self._seen.pop(name, None)

    def begin(self, name: str) -> None:
        """Count a service's restarts from now."""
        self.forget(name)
        self._restarts[name] = 0

    def is_running(self, name: str) -> bool:
        """Whether the service's container runs, without a restart since this object first looked at it."""
        container = self.find(name)
        if container is None:
            return False
        before = self._restarts.setdefault(name, container.restart_count or 0)
        return container.state.status == "running" and (container.restart_count or 0) <= before

    def unhealthy(self, name: str) -> str | None:
        """The output of the last health check of a container that Docker calls unhealthy; else None."""
        container = self.find(name)
        health = container.state.health if container else None
        if health is None or health.status != "unhealthy":
            return None
        last = health.log[-1] if health.log else None
        return (last.output or "").strip() if last else ""

    def exit_code(self, name: str) -> int | None:
        """The exit code with which a service's container last ended, also where it was restarted since."""
        container = self.find(name)
        if container is None:
            return None
        if container.state.status == "exited":
            return container.state.exit_code
        died = events(container.id, "die", container.created)
        return int(died[-1]) if died else None

    def memory_limit_hit(self, name: str) -> int | None:
        """The memory limit in bytes, if the system killed the container, or a process in it, for exceeding it."""
        container = self.find(name)
        if container is None or not container.host_config.memory:
            return None
        if container.state.oom_killed:
            return container.host_config.memory
        # The event of a killed process in it comes long before the container ends.
        wait_s = LATE_S if self.exit_code(name) == KILLED else 0.0
        return container.host_config.memory if events(container.id, "oom", container.created, wait_s) else None

    def address(self, name: str, network: str) -> str | None:
        """The address of a service's container in one of the project's networks; None where it has none."""
        container = self.find(name)
        networks = (container.network_settings.networks or {}) if container else {}
        inside = networks.get(f"{self.project}_{network}")
        return (inside.ip_address or None) if inside else None

    def describe(self, name: str) -> tuple[str, float | None]:
        """The short id of a service's container, and for how many seconds it runs."""
        container = self.find(name)
        if container is None:
            return "", None
        age = time.time() - container.state.started_at.timestamp() if container.state.started_at else None
        return container.id[:12], age

    def last_lines(self, name: str, count: int, *, earlier: bool) -> str | None:
        """The last lines of a log, of this start or, if `earlier`, of those before too; None without a container."""
        container = self.find(name)
        if container is None:
            return None
        # From the end of the start before: a container may write lines before Docker notes its start.
        ended = container.state.finished_at
        begun = ended if not earlier and ended is not None and ended.year > 1 else None
        return log(container.id, count, begun).rstrip()

    def remove(self, name: str, grace_s: float, kept: Path) -> bool:
        """Stop and remove a service's container, and keep its log in a file; whether there was one."""
        self.forget(name)
        try:
            container = self.find(name)
            if container is None:
                return False
            ask("stop", "--time", str(round(grace_s)), container.id)
            said = log(container.id)
            container.remove(force=True)
            try:
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_text(said)
            except OSError as error:  # a full disk must not keep a container up
                print(f"{name}: its log cannot be kept in {kept}: {error.strerror}", file=sys.stderr)
        except NoSuchContainer:  # another command was quicker
            return False
        finally:
            self.forget(name)
        return True


def log(identifier: str, count: int | None = None, begun: datetime | None = None) -> str:
    """A container's output in the order in which it was written: the last `count` lines, or all, since `begun`."""
    since = ["--since", begun.isoformat()] if begun else []
    asked = command("logs", "--tail", str(count or "all"), *since, identifier)
    done = subprocess.run(asked, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    return done.stdout


def events(container: str, action: str, since: datetime, wait_s: float = EVENT_S) -> list[str]:
    """The exit codes, if any, of Docker's events of a kind about a container (name or id), which may be gone."""
    deadline = time.monotonic() + wait_s
    while True:
        seen, _ = ask(
            *("events", "--since", since.isoformat(), "--until", "0s", "--filter", f"event={action}"),
            *("--filter", f"container={container}", "--format", "-{{.Actor.Attributes.exitCode}}"),
        )
        if seen or time.monotonic() >= deadline:
            return [line.removeprefix("-") for line in (seen or "").splitlines()]
        time.sleep(LOOK_S)
