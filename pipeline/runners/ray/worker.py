"""A worker: the native flow in a process of another node, on shards of the run's sources.

Nothing heavy is imported before `open`, so that a node without the packages can say so.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import queue
import socket
import threading
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.clients.address import Served
    from pipeline.flow import Work
    from pipeline.metrics.stage import Records
    from pipeline.sources.listing import Source
    from pipeline.sources.objects import Objects

# Items that the driver takes at once, and that wait for it.
TAKEN_AT_ONCE = 64
# A service answers a worker's first look within this time.
REACH_S = 4.0
# What a worker and the driver must have in the same version: what makes the rows, and what carries them.
PACKAGES = ("ray", "daft", "pyarrow", "pillow", "aiohttp", "numpy", "pydantic", "msgpack", "jsonschema-rs")
TICK_S = 0.5


def versions() -> dict[str, str]:
    """Python, and the packages that matter to a row; "none" where one is missing."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    return found


@dataclass(frozen=True)
class Needs:
    """What a worker's node must have."""

    folder: str
    """The driver's working directory: relative paths are looked up in it, where the node has it."""
    places: list[str]
    """Files and folders that the sources are in."""
    services: list[tuple[str, str]]
    """Names and addresses."""


@dataclass(frozen=True)
class Facts:
    """What a node has."""

    node: str
    versions: dict[str, str]
    cores: int
    missing: list[str]
    """Of the places."""
    unreachable: list[tuple[str, str]]
    """Of the services, those that do not answer."""


@dataclass
class Reply:
    """What a worker has to say since the last time."""

    items: list[tuple[int, pa.RecordBatch | str | None]]
    """Of a shard (its number): rows; None at its end; a text in the place of that when an error ended it."""
    crops: list[tuple[str, bytes]]
    """Files for the run's folder, where the worker cannot write them itself."""
    reason: str | None
    """Why the worker stops; rows of later than that are not among the items."""
    held_up: str | None
    waiting_for: str
    tasks: str
    allowed: dict[str, float]
    records: dict[str, Records]
    steps: list[tuple[str, Any]]
    logged: list[tuple[int, str]]
    clock: float
    """The worker's `time.perf_counter`."""
    cpu_s: float
    memory_bytes: int
    served: Served


def facts(needs: Needs) -> Facts:
    """What this node has of what a worker needs."""
    with suppress(OSError):
        os.chdir(needs.folder)
    missing = [place for place in needs.places if not Path(place).exists()]
    unreachable = [(name, url) for name, url in needs.services if not reaches(url)]
    return Facts(socket.gethostname(), versions(), len(os.sched_getaffinity(0)), missing, unreachable)


def reaches(url: str) -> bool:
    """Whether anybody listens at an address; a proxy may do so for it."""
    try:
        urllib.request.urlopen(url, timeout=REACH_S).close()
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        return not isinstance(error.reason, ConnectionError | TimeoutError | socket.gaierror)
    except (OSError, ValueError):
        return False
    return True


@dataclass
class Outbox:
    """Crops on their way to the driver; takes the place of `Path.write_bytes`."""

    folder: Path
    crops: queue.SimpleQueue[tuple[str, bytes]] = field(default_factory=queue.SimpleQueue)

    def __call__(self, path: Path, jpeg: bytes) -> None:
        """Send a crop."""
        self.crops.put((str(path.relative_to(self.folder)), jpeg))

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        """Daft pickles a stage to learn whether it can, and does not load the copy."""
        return Outbox, (self.folder,)


def drain(get: Callable[[], Any]) -> Iterable[Any]:
    """What a queue holds now."""
    with suppress(queue.Empty):
        while True:
            yield get()


class LogShipper(logging.Handler):
    """Keeps what this process logs for the driver, whose run.log has it."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.kept: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()
        logger = logging.getLogger("pipeline")
        logger.setLevel(level)
        logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self.kept.put((record.levelno, record.getMessage()))


class Worker:
    """A Ray actor; each method may run in a thread of its own."""

    def __init__(self, needs: Needs, lease_s: float) -> None:
        self.needs = needs
        self.lease_s = lease_s
        self.heard = time.monotonic()
        self.ended: queue.Queue[tuple[int, Any]] = queue.Queue(maxsize=TAKEN_AT_ONCE)

    def facts(self) -> Facts:
        """See `Facts`."""
        return facts(self.needs)

    def open(self, parts: tuple[Work, Objects, Any, tuple[str, str]], measure: bool) -> None:
        """Make what the flow needs, of its `parts`: the work, the stores, the actor that knows all contents, and a file
        of the run's folder with its text, by which a worker knows that it has the same folder."""
        import daft

        daft.set_runner_native()  # Daft sees that it is in Ray, and would plan there
        from pipeline.flow import Flow
        from pipeline.metrics.stage import RunMetrics
        from pipeline.runners.ray.claims import Claims
        from pipeline.runtime.cancellation import CancellationToken
        from pipeline.runtime.garbage import collect_rarely
        from pipeline.runtime.memory_budget import MemoryBudget
        from pipeline.runtime.open_files import allow_open_files
        from pipeline.runtime.runtime import Runtime
        from pipeline.sources.reader import Reader

        work, objects, book, token = parts
        settings = work.settings
        allow_open_files(settings.detector_concurrency + settings.model_concurrency)
        limits = (settings.detector_concurrency, settings.model_concurrency)
        cancellation = CancellationToken()
        metrics = RunMetrics.of(*limits, len(os.sched_getaffinity(0))) if measure else RunMetrics.disabled()
        self.runtime = Runtime(MemoryBudget(settings.bytes_in_flight, cancellation), cancellation, metrics)
        self.clients = work.clients(self.runtime)
        self.clients.grant(dict.fromkeys((http.name for http in self.clients.http), 0))
        self.outbox = Outbox(work.folder)
        write = Path.write_bytes if shares_folder(*token) else self.outbox
        self.flow = Flow(work, Reader(objects), self.clients, self.runtime, write)
        self.seen = Claims(book)
        self.log = LogShipper(logging.getLevelName(settings.log_level.upper()))
        self.clients.load.start()
        collect_rarely()
        self.heard = time.monotonic()
        threading.Thread(target=self._fence, name="fence", daemon=True).start()

    def _fence(self) -> None:
        """End a process that the driver does not ask any more: its shards are another's by now."""
        while time.monotonic() - self.heard < self.lease_s:
            time.sleep(TICK_S)
        os._exit(1)

    def grant(self, shares: dict[str, int]) -> None:
        """Have at most so many requests at each service from now on; returns when no more are there."""
        self.clients.grant(shares)
        while not self.clients.within(shares) and self.runtime.cancellation.reason is None:
            time.sleep(0.02)

    def begin(self, number: int, sources: list[Source], alone: set[bytes]) -> None:
        """Begin a shard; `alone`: paths of images that nobody else can have seen."""
        self.seen.alone |= alone
        threading.Thread(target=self._work, args=(number, sources), name=f"shard {number}", daemon=True).start()

    def _work(self, number: int, sources: list[Source]) -> None:
        last = None
        try:
            for batch in self.flow.batches(sources, self.seen):
                if self.runtime.cancellation.reason is not None:
                    break  # a row may have failed for that reason alone
                self.ended.put((number, batch))
        except BaseException:  # a panic in Daft is not an Exception
            last = traceback.format_exc()
        self.ended.put((number, last))

    def take(self, wait_s: float, bound: str) -> Reply:
        """What has come, after at most `wait_s` of waiting for the first item; `bound`: that of the trace's sample."""
        import psutil

        self.heard = time.monotonic()
        items: list[tuple[int, Any]] = []
        with suppress(queue.Empty):
            items.append(self.ended.get(timeout=wait_s))
            items += [item for _, item in zip(range(TAKEN_AT_ONCE - 1), drain(self.ended.get_nowait), strict=False)]
        metrics, clients = self.runtime.metrics, self.clients
        metrics.traces.bound = bound
        return Reply(
            items,
            list(drain(self.outbox.crops.get_nowait)),  # after the rows that name them
            self.runtime.cancellation.reason,
            clients.held_up(),
            clients.waiting_for(),
            clients.tasks(),
            {name: allowed() for name, allowed in clients.allowed.items()},
            {name: stage.drain() for name, stage in metrics.stages.items()},
            metrics.traces.drain(),
            list(drain(self.log.kept.get_nowait)),
            time.perf_counter(),
            time.process_time(),
            psutil.Process().memory_info().rss,
            clients.served(),
        )

    def end(self, reason: str) -> None:
        """Send no more requests."""
        self.runtime.cancellation.cancel(reason)


def shares_folder(place: str, text: str) -> bool:
    """Whether this process writes into the run's own folder: it has the token file, and can write beside it."""
    token = Path(place)
    try:
        if token.read_text() != text:
            return False
        own = token.with_name(f"{token.name}-{socket.gethostname()}-{os.getpid()}")
        own.write_text(text)
        own.unlink()
    except OSError:
        return False
    return True
