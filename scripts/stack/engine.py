"""An engine runs the stack's services on a host: as processes, or in containers."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeVar

from rich.console import Console

from scripts.services import KINDS
from scripts.settings import JobCommand, StackSettings
from scripts.stack.service import Service
from scripts.stack.services import Stack
from scripts.vllm.checker import Place
from scripts.vllm.compile_cache import Kept

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Record = TypeVar("Record", bound=DataclassInstance)


class Engine(ABC):
    """Starts, watches and stops services; a later command recognises what an earlier one started, by its record.

    What cannot be done raises StackError, with what, why and the remedy. An engine overrides those of the methods with
    a body that it has more to say to.
    """

    name: ClassVar[str]
    """The engine's name for people: `process` or `compose`."""

    def __init__(self, settings: StackSettings, device: str, records: Path) -> None:
        """`records`: the folder with a file for each service that was started."""
        self.settings = settings
        self.device = device
        self.records = records
        self.logs = settings.state / "logs"

    # What was started

    def names(self) -> list[str]:
        """The services that may be there: each kind's first server, and further ones that were started."""
        further = [path.stem for name in KINDS for path in sorted(self.records.glob(f"{name}-[0-9]*.json"))]
        return [*KINDS, *further]

    def nodes(self) -> list[str]:
        """The nodes of the Ray cluster that may be there."""
        return []

    def record(self, name: str, kind: type[Record]) -> Record | None:
        """Read a service's record; None where there is none."""
        try:
            return kind(**json.loads((self.records / f"{name}.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def write_record(self, name: str, started: Any) -> None:
        """Write a service's record, a dataclass."""
        self.records.mkdir(parents=True, exist_ok=True)
        (self.records / f"{name}.json").write_text(json.dumps(asdict(started)))

    def remove_record(self, name: str) -> None:
        """Remove a service's record: it was stopped."""
        (self.records / f"{name}.json").unlink(missing_ok=True)

    @abstractmethod
    def started(self, name: str) -> object | None:
        """The record of a service that was started and not stopped since, running or not."""

    @abstractmethod
    def is_running(self, name: str) -> bool:
        """Whether the service runs, answering or not."""

    @abstractmethod
    def is_current(self, service: Service) -> bool:
        """Whether the service runs with the settings as they are now."""

    @abstractmethod
    def describe(self, name: str) -> tuple[str, float | None]:
        """The id of a service's process or container, and for how many seconds it runs; empty where it does not."""

    def locate(self, service: Service) -> Service:
        """The service with the address under which this host reaches it, once it has been started."""
        return service

    # Before a start

    def claim(self) -> None:
        """Refuse a start that would replace services of another checkout."""
        return

    @abstractmethod
    def prepare(self, services: Sequence[Service]) -> None:
        """Make the environments or images of services, unless they are there and current."""

    @abstractmethod
    def prepared(self, services: Sequence[Service]) -> list[str]:
        """The environments or images of services that are there and current, for people."""

    @abstractmethod
    def preflight_place(self) -> Place:
        """Where vLLM's own code checks a configuration: where it would serve."""

    @abstractmethod
    def fetch_command(self, service: Service, arguments: list[str]) -> list[str]:
        """The command that runs models/hub_download.py where a service's models are kept."""

    @abstractmethod
    def in_models(self, script: str) -> list[str]:
        """The command of a shell whose folder is the hub's cache of the services' models; it makes the folder."""

    def stop_fetching(self) -> None:
        """End a download that outlived its command; it keeps what it has."""
        return

    @abstractmethod
    def compile_caches(self) -> list[Kept]:
        """The caches of compiled kernels, by key."""

    @abstractmethod
    def remove_compile_caches(self, names: Sequence[str]) -> None:
        """Remove the caches of these keys."""

    # Start and stop

    @abstractmethod
    def start(self, service: Service) -> None:
        """Start a service; does not wait for it."""

    @abstractmethod
    def stop(self, name: str, grace_s: float) -> bool:
        """Stop a service, which may take `grace_s` seconds to finish its requests; whether there was one.

        Several threads call it at once, one for each service.
        """

    def tear_down(self) -> None:
        """Remove what the engine keeps beside stopped services; caches stay."""
        return

    # How a service is

    def unhealthy(self, name: str) -> str | None:
        """The output of the last failed health check, if the engine itself checks services; else None."""
        return None

    @abstractmethod
    def exit_code(self, name: str) -> int | None:
        """The exit code of a service that has ended, where it is known."""

    def memory_limit_hit(self, name: str) -> int | None:
        """The memory limit in bytes for which the system killed a service or a part of it; None otherwise."""
        return None

    def log(self, name: str) -> Path:
        """Where a service's log is, at the latest when it has been stopped."""
        return self.logs / f"{name}.log"

    def last_lines(self, name: str, count: int = 20, *, earlier: bool = False) -> str:
        """The last lines of a service's log since it last started; with `earlier` also of failed starts before."""
        try:
            return "\n".join(self.log(name).read_text(errors="replace").rstrip().splitlines()[-count:])
        except OSError:
            return ""

    # Programs that take this process's place

    @abstractmethod
    def show_logs(self, names: Sequence[str], follow: bool) -> NoReturn:
        """Become a program that shows the services' logs."""

    @abstractmethod
    def open_shell(self, stack: Stack, name: str) -> NoReturn:
        """Become a shell where this service of the stack, or node of its cluster, runs.

        Raises:
            NotRunning: it does not run.
        """

    def check_job(self, stack: Stack, job: JobCommand) -> None:
        """Check that the job can reach its images, folders and services, before anything starts for it."""
        return

    def start_cluster(self, stack: Stack, job: JobCommand, console: Console) -> None:
        """Start the Ray cluster that a job on the stack asks for; return when every node answers."""
        return

    @abstractmethod
    def run_job(self, stack: Stack, job: JobCommand) -> NoReturn:
        """Become the job, on the stack's services.

        Raises:
            UsageError: invalid settings.
        """
