"""What a run wants of its runner."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from pipeline.clients.address import Served
from pipeline.clients.server_load import LoadPoller
from pipeline.metrics.profile import WorkerProfile


class Runner(Protocol):
    """Makes the rows of a run. The run alone commits them."""

    @property
    def load(self) -> LoadPoller:
        """Polls the servers' load."""

    @property
    def allowed(self) -> Mapping[str, Callable[[], float]]:
        """How many rows each asking stage may send now."""

    @property
    def clock(self) -> Callable[[], float]:
        """The moment (of `time.perf_counter`) up to which the stage metrics know all."""

    @property
    def usage(self) -> Callable[[], tuple[float, int]]:
        """CPU seconds and memory in bytes of its other processes."""

    @property
    def workers(self) -> Callable[[float], list[WorkerProfile]]:
        """What each of its workers did, with times since a moment of that clock."""

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of the plan's sources, each once, as they end; fewer when the run is cancelled."""

    def held_up(self) -> str | None:
        """Why no row may end now, though the run goes on; None if there is no reason."""

    def waiting_for(self) -> str:
        """What the runner waits for now, in words."""

    def served(self) -> Served:
        """What each address of the services did."""

    def tasks(self) -> str:
        """Where its asynchronous tasks wait, a line for each place."""

    def close(self) -> None:
        """Let go of all that the runner holds; called from another thread, once."""
