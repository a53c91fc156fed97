"""The stack's containers: whether they run, how they ended, and their logs."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from datetime import datetime

from python_on_whales import Container
from python_on_whales.exceptions import NoSuchContainer

from scripts.docker.client import ask, client, command
from scripts.docker.project import CHECKOUT_LABEL, is_elsewhere, project_name
from scripts.services import NODE, kind_of
from scripts.settings import StackSettings
from scripts.stack.engine import Engine
from scripts.stack.service import Service

# A container's state is kept for this long: to ask Docker takes 30 ms of CPU.
STATE_AGE_S = 0.5
# The exit code of a killed container. Docker's event that it was killed for its memory may come this late.
KILLED = 128 + signal.SIGKILL
LATE_S = 5.0
# Docker's answer does not always include the events of the current second.
EVENT_S = 1.5
LOOK_S = 0.4


@dataclass(frozen=True, slots=True)
class Started:
    """A container that was started for a service, and the fingerprint of its settings."""

    id: str
    fingerprint: str


class ContainerEngine(Engine):
    """Looks at the containers of a stack's services, one for each, and stops them; only those of this checkout."""

    def __init__(self, settings: StackSettings, device: str) -> None:
        super().__init__(settings, device, settings.state / "containers")
        self.project = project_name(settings.state)
        self._seen: dict[str, tuple[float, Container | None]] = {}
        self._restarts: dict[str, int] = {}

    def names(self) -> list[str]:
        return [*super().names(), *self.nodes()]

    def nodes(self) -> list[str]:
        return sorted(path.stem for path in self.records.glob(f"{NODE.name}-*.json"))

    def started(self, name: str) -> Started | None:
        return self.record(name, Started)

    def container_name(self, service: str) -> str:
        """Compose's name for the one container of a service."""
        return f"{self.project}-{service}-1"

    def find(self, name: str) -> Container | None:
        """A service's container, running or not, at most STATE_AGE_S old; None where this checkout has none."""
        asked, found = self._seen.get(name, (0.0, None))
        if time.monotonic() - asked > STATE_AGE_S:
            try:
                found = client().container.inspect(self.container_name(name))
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
        container = self.find(name)
        if container is None or not container.host_config.memory:
            return None
        if container.state.oom_killed:
            return container.host_config.memory
        # The event of a killed process in it comes long before the container ends.
        wait_s = LATE_S if self.exit_code(name) == KILLED else 0.0
        return container.host_config.memory if events(container.id, "oom", container.created, wait_s) else None

    def locate(self, service: Service) -> Service:
        """The service at its container's address in the inner network; unchanged where none runs."""
        container, kind = self.find(service.name), kind_of(service.name)
        networks = (container.network_settings.networks or {}) if container else {}
        inside = networks.get(f"{self.project}_inside")
        if inside is None or not inside.ip_address:
            return service
        address = f"http://{inside.ip_address}:{kind.port}{kind.ready_path}"
        return replace(service, ready_url=address, port=kind.port)

    def describe(self, name: str) -> tuple[str, float | None]:
        container = self.find(name)
        if container is None:
            return "", None
        age = time.time() - container.state.started_at.timestamp() if container.state.started_at else None
        return container.id[:12], age

    def last_lines(self, name: str, count: int = 20, *, earlier: bool = False) -> str:
        container = self.find(name)
        if container is None:
            return super().last_lines(name, count)
        # From the end of the start before: a container may write lines before Docker notes its start.
        ended = container.state.finished_at
        begun = ended if not earlier and ended is not None and ended.year > 1 else None
        return log(container.id, count, begun).rstrip()

    def stop(self, name: str, grace_s: float) -> bool:
        """Stop and remove a service's container, and keep its log in a file; whether there was one."""
        self.forget(name)
        try:
            if container := self.find(name):
                ask("stop", "--time", str(round(grace_s)), container.id)
                said = log(container.id)
                container.remove(force=True)
                self.keep_log(name, said)
        except NoSuchContainer:  # another command was quicker
            container = None
        finally:
            self.forget(name)
        self.remove_record(name)
        return container is not None

    def keep_log(self, name: str, text: str) -> None:
        """Write a removed container's log to a file; a full disk must not keep a container up."""
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
            self.log(name).write_text(text)
        except OSError as error:
            print(f"{name}: its log cannot be kept in {self.log(name)}: {error.strerror}", file=sys.stderr)


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
