"""Take services away in the middle of a run, in containers: kill, freeze or cut one off, and read the rows.

tests/stack/test_compose_faults.py does so for seconds, scripts/bench/outages.py for a minute and with a table.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin

import pyarrow.compute as pc
import pyarrow.parquet as pq
from prometheus_client.parser import text_string_to_metric_families

from samples.scenes import make_scene
from scripts import environments
from scripts.commands import engines
from scripts.docker.client import ask
from scripts.docker.engine import ComposeEngine
from scripts.environments import ROOT
from scripts.settings import StackError, StackSettings
from scripts.stack.service import Service

# A service is at work when it has answered this many requests since the start, and has others open.
AT_WORK_ANSWERS = 8
# Its counters are read at this interval; a service that has just come back may take ANSWER_S to send them.
LOOK_S = 0.1
ANSWER_S = 5.0
# Longest wait for a restart: Docker restarts a container 0.1 s after its first end, and waits longer each time.
RESTART_S = 60.0
# Seed of the scenes; no training used it.
SEED = 9_500_000

# Metrics of each service: its open requests, and the number that it has answered.
OPEN = {"detector": ("detector_remaining_task",), "vllm": ("vllm:num_requests_running", "vllm:num_requests_waiting")}
ANSWERED = {"detector": "detector_throughput_total", "vllm": "vllm:request_success_total"}
SERVICES = tuple(OPEN)


@dataclass(frozen=True, slots=True)
class Target:
    """A service's container, and the network on which the job reaches it under the service's name."""

    service: str
    container: str
    network: str


def docker(*arguments: str) -> str:
    """The output of a docker command.

    Raises:
        StackError: it failed; the message holds its stderr.
    """
    said, reason = ask(*arguments)
    if said is None:
        raise StackError(f"docker {' '.join(arguments)}: {reason}")
    return said


def signal_all(target: Target, name: str) -> tuple[str, ...]:
    """The docker command that sends a signal to every process of a container except its init."""
    return "exec", target.container, "/bin/sh", "-c", f"kill -{name} -1"


@contextlib.contextmanager
def killed(target: Target) -> Iterator[None]:
    """Kill every process of a container, and wait until Docker has started it again."""

    def restarts() -> int:
        return int(docker("inspect", "--format", "{{.RestartCount}}", target.container))

    before, deadline = restarts(), time.monotonic() + RESTART_S
    # From inside: after `docker kill` the restart policy leaves the container down. The shell is killed too, so its
    # exit code means nothing.
    ask(*signal_all(target, "KILL"))
    while restarts() == before:
        if time.monotonic() > deadline:
            raise StackError(f"{target.container} was killed, and Docker did not restart it within {RESTART_S:g} s")
        time.sleep(LOOK_S)
    yield


@contextlib.contextmanager
def frozen(target: Target) -> Iterator[None]:
    """Stop every process of a container, and continue them at the end.

    By signals, because `docker pause` sometimes failed on a busy host.
    """
    docker(*signal_all(target, "STOP"))
    try:
        yield
    finally:
        docker(*signal_all(target, "CONT"))


@contextlib.contextmanager
def cut_off(target: Target) -> Iterator[None]:
    """Take a container off its network without closing its connections, and put it back at the end."""
    docker("network", "disconnect", target.network, target.container)
    try:
        yield
    finally:
        docker("network", "connect", "--alias", target.service, target.network, target.container)


FAULTS: dict[str, Callable[[Target], AbstractContextManager[None]]] = {
    "kill": killed,
    "freeze": frozen,
    "cut": cut_off,
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a service."""

    kind: str
    """A key of FAULTS."""
    seconds: float = 0.0
    """How long it lasts; unused for a kill, which lasts as long as the restart."""


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of a run."""

    seconds: float
    exit_code: int
    output: str
    pictures: int
    """Pictures that have a row."""
    detections: int
    """Rows with a question."""
    answered: int
    failed: int
    """Pictures and detections that failed."""
    retries: int
    """Requests beyond the first, to both services."""
    slowest_s: float
    """The longest answered request to the model, from its first byte sent to the last received."""

    def shortfall(self, pictures: int) -> str | None:
        """The fault of a run over this many images; None when every row is there and answered."""
        if self.exit_code:
            return f"the run ended with {self.exit_code}"
        if self.pictures != pictures:
            return f"{pictures - self.pictures} pictures lost"
        if self.failed or self.answered != self.detections:
            return f"{self.failed} rows failed"
        return None


def read_result(folder: Path, seconds: float, exit_code: int, output: str) -> Result:
    """The result of the run in a folder; a run that left no tables has no rows."""
    try:
        pictures = pq.read_table(folder / "images.parquet", columns=["outcome", "attempts"])
        detections = pq.read_table(folder / "detections.parquet", columns=["outcome", "attempts", "latency_s"])
    except FileNotFoundError:
        return Result(seconds, exit_code, output, 0, 0, 0, 0, 0, 0.0)

    def count(outcome: str) -> int:
        return sum(pc.sum(pc.equal(table["outcome"], outcome)).as_py() or 0 for table in (pictures, detections))

    return Result(
        seconds=seconds,
        exit_code=exit_code,
        output=output,
        pictures=pictures.num_rows,
        detections=detections.num_rows,
        answered=count("answered"),
        failed=count("failed"),
        retries=sum((pc.sum(pc.subtract(t["attempts"], 1)).as_py() or 0) for t in (pictures, detections)),
        slowest_s=pc.max(detections["latency_s"]).as_py() or 0.0,
    )


class Bench:
    """Runs the job on a running stack, and takes services away meanwhile."""

    def __init__(self, settings: StackSettings) -> None:
        """Find the stack of these settings.

        Raises:
            StackError: a service does not run in a container.
        """
        plan, engine, _ = engines.plan(settings)
        if not isinstance(engine, ComposeEngine) or len(plan.services) < len(SERVICES):
            raise StackError("both services must run in containers: set STACK_ENGINE=compose, unset SPOTTER_*_URL")
        self.engine = engine
        self.services = {service.name: service for service in plan.services}
        given = settings.model_dump(exclude_none=True)
        self.variables = {f"STACK_{name.upper()}": str(value) for name, value in given.items()}
        self._over = threading.Event()

    def target(self, service: str) -> Target:
        """A service's container and network."""
        return Target(service, self.engine.container_name(service), f"{self.engine.project}_inside")

    def traffic(self, service: Service) -> tuple[int, int] | None:
        """A service's open requests, and those answered since it started; None while it does not answer."""
        url = urljoin(self.engine.locate(service).ready_url, "/metrics")
        try:
            with urllib.request.urlopen(url, timeout=ANSWER_S) as response:
                families = list(text_string_to_metric_families(response.read().decode()))
        except OSError:
            return None

        def total(*names: str) -> int:
            samples = [sample for family in families for sample in family.samples if sample.name in names]
            return int(sum(sample.value for sample in samples))

        return total(*OPEN[service.name]), total(ANSWERED[service.name])

    def wait_until_at_work(self, service: Service) -> None:
        """Return when a service has answered some requests since the call, and has others open.

        Raises:
            StackError: the run ended first.
        """
        begun_at: int | None = None
        while not self._over.wait(LOOK_S):
            seen = self.traffic(service)
            if seen is None:
                continue
            waiting, answered = seen
            if begun_at is None or answered < begun_at:  # it has restarted
                begun_at = answered
            if waiting and answered - begun_at >= AT_WORK_ANSWERS:
                return
        raise StackError(f"the run ended before {service.name} was at work: give more --pictures")

    def take_away(self, name: str, faults: Sequence[Fault]) -> None:
        """Give a service one fault after the other, each while it is at work.

        Raises:
            StackError: the run ended too early for one of them, or Docker refused.
        """
        for fault in faults:
            self.wait_until_at_work(self.services[name])
            with FAULTS[fault.kind](self.target(name)):
                self._over.wait(fault.seconds)

    def run(self, pictures: Path, output: Path, faults: Mapping[str, Sequence[Fault]]) -> Result:
        """Run the job over a folder of images while each service of `faults` has its faults, one after the other.

        Raises:
            StackError: the run ended before all faults had happened.
        """
        self._over.clear()
        begun = time.monotonic()
        where = ("--images", str(pictures), "--output", str(output), "--run-name", "run")
        job = subprocess.Popen(
            [environments.python("operator"), "-m", "scripts", "run", *where],
            cwd=ROOT,
            env={**os.environ, **self.variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # Ctrl-C reaches the bench alone, which ends its processes in order
        )
        printed: list[str] = []

        def follow() -> None:
            printed.append(job.communicate()[0])
            self._over.set()

        with ThreadPoolExecutor() as threads:
            following = threads.submit(follow)
            schedules = [threads.submit(self.take_away, name, row) for name, row in faults.items()]
            try:
                for schedule in schedules:
                    schedule.result()
                following.result()
            except BaseException:
                self._over.set()
                job.terminate()
                raise
        return read_result(output / "run", time.monotonic() - begun, job.returncode, printed[0])


def draw(folder: Path, count: int) -> None:
    """Draw new scenes into a folder."""
    folder.mkdir(parents=True)
    for number in range(count):
        make_scene(SEED + number).image.save(folder / f"{number:05}.jpg", quality=92)
