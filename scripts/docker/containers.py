"""A stack's containers as Docker sees them: whether they run, how they ended, what they said."""

from __future__ import annotations

import signal
import sys
import time
from datetime import datetime
from pathlib import Path

from python_on_whales import Container, DockerClient
from python_on_whales.exceptions import NoSuchContainer

from scripts.docker import host as docker_host
from scripts.docker import images
from scripts.docker.project import CHECKOUT_LABEL, is_elsewhere

# A container's state is asked for this often at most: asking takes 30 ms of CPU.
STATE_AGE_S = 0.5
# The exit code of what was killed. Whether it was for its memory Docker tells in an event, which may come this late.
KILLED = 128 + signal.SIGKILL
LATE_S = 5.0
# An event of the current second is not always among the answers.
EVENT_S = 1.5
LOOK_S = 0.4


class Containers:
    """The containers of a Compose project's services, one of each; only this checkout's."""

    def __init__(self, project: str) -> None:
        """None is asked for yet."""
        self.project = project
        self._seen: dict[str, tuple[float, Container | None]] = {}
        self._restarts: dict[str, int] = {}

    def name(self, service: str) -> str:
        """Compose's name for the one container of a service."""
        return f"{self.project}-{service}-1"

    def find(self, name: str) -> Container | None:
        """A service's container, running or not, as of the last STATE_AGE_S; None where we have none."""
        asked, found = self._seen.get(name, (0.0, None))
        if time.monotonic() - asked > STATE_AGE_S:
            try:
                found = DockerClient(config=docker_host.client_config()).container.inspect(self.name(name))
                if is_elsewhere((found.config.labels or {}).get(CHECKOUT_LABEL, "")):
                    found = None
            except NoSuchContainer:
                found = None
            self._seen[name] = (time.monotonic(), found)
        return found

    def forget(self, name: str) -> None:
        """Ask for a service's container anew the next time."""
        self._seen.pop(name, None)

    def begin(self, name: str) -> None:
        """Take what comes now for a service's first start: none before it counts as a restart."""
        self.forget(name)
        self._restarts[name] = 0

    def is_running(self, name: str) -> bool:
        """Whether the service's container runs, and has not been restarted since this engine first looked."""
        container = self.find(name)
        if container is None:
            return False
        before = self._restarts.setdefault(name, container.restart_count or 0)
        return container.state.status == "running" and (container.restart_count or 0) <= before

    def unhealthy(self, name: str) -> str | None:
        """What the container's last health check said, once Docker holds it for unhealthy."""
        container = self.find(name)
        health = container.state.health if container else None
        if health is None or health.status != "unhealthy":
            return None
        last = health.log[-1] if health.log else None
        return (last.output or "").strip() if last else ""

    def exit_code(self, name: str) -> int | None:
        """The exit code of a service's container when it last ended; also after a restart."""
        container = self.find(name)
        if container is None:
            return None
        if container.state.status == "exited":
            return container.state.exit_code
        died = events(container.id, "die", container.created)
        return int(died[-1]) if died else None

    def memory_limit_hit(self, name: str) -> int | None:
        """The limit, in bytes, of a service's container that the system has killed, or a process in it, for it."""
        container = self.find(name)
        if container is None or not container.host_config.memory:
            return None
        if container.state.oom_killed:
            return container.host_config.memory
        # Of a process in it this was told long before the container's end.
        wait_s = LATE_S if self.exit_code(name) == KILLED else 0.0
        return container.host_config.memory if events(container.id, "oom", container.created, wait_s) else None

    def address(self, name: str, network: str) -> str | None:
        """The address of a service's container in a network of the project; None where it has none."""
        container = self.find(name)
        networks = (container.network_settings.networks or {}) if container else {}
        inside = networks.get(f"{self.project}_{network}")
        return (inside.ip_address or None) if inside else None

    def describe(self, name: str) -> tuple[str, float | None]:
        """What a service runs as, and for how many seconds."""
        container = self.find(name)
        if container is None:
            return "", None
        age = time.time() - container.state.started_at.timestamp() if container.state.started_at else None
        return container.id[:12], age

    def last_lines(self, name: str, count: int, *, earlier: bool) -> str | None:
        """The end of a service's log, since Docker last started it or from before; None where there is no container."""
        container = self.find(name)
        if container is None:
            return None
        # When the start before ended: Docker notes that this one has started after its first lines may be out.
        ended = container.state.finished_at
        begun = ended if not earlier and ended is not None and ended.year > 1 else None
        return log(container.id, count, begun).rstrip()

    def remove(self, name: str, grace_s: float, kept: Path) -> bool:
        """Stop and remove a service's container; its log is kept in a file. Whether there was one."""
        self.forget(name)
        try:
            container = self.find(name)
            if container is None:
                return False
            container.stop(time=round(grace_s))
            said = log(container.id)
            container.remove(force=True)
            try:
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_text(said)
            except OSError as error:  # a full disk keeps nothing from being stopped
                print(f"{name}: its log cannot be kept in {kept}: {error.strerror}", file=sys.stderr)
        except NoSuchContainer:  # another command was quicker
            return False
        finally:
            self.forget(name)
        return True


def log(identifier: str, count: int | None = None, begun: datetime | None = None) -> str:
    """A container's output, both streams in the order in which they were written; the whole, or what is asked for.

    That is its last `count` lines, and of them those since `begun`.
    """
    since = ["--since", begun.isoformat()] if begun else []
    return images.feed(["docker", "logs", "--tail", str(count or "all"), *since, identifier], "")[1]


def events(container: str, action: str, since: datetime, wait_s: float = EVENT_S) -> list[str]:
    """Docker's events of a kind about a container (its name or id), which may be gone: each one's exit code, if any."""
    deadline = time.monotonic() + wait_s
    while True:
        seen = images.docker(
            *("events", "--since", since.isoformat(), "--until", "0s", "--filter", f"event={action}"),
            *("--filter", f"container={container}", "--format", "-{{.Actor.Attributes.exitCode}}"),
        )
        if seen or time.monotonic() >= deadline:
            return [line.removeprefix("-") for line in (seen or "").splitlines()]
        time.sleep(LOOK_S)
