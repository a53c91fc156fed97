"""Take a service away in the middle of a run, in containers, and see that every row is answered all the same.

    python -m scripts.bench.outages
    python -m scripts.bench.outages --service vllm --fault cut --seconds 60 --pictures 600

A stack of its own, with the tiny models, comes up beside whatever is running, and is removed in the end. One run
without a fault shows how long the job takes; then each case is a run of its own over the same drawn pictures. The exit
code is 1 when a row was lost or not answered.

    kill    SIGKILL to every process of the container; Docker starts it again
    freeze  SIGSTOP to every process of the container: its connections stay, nobody answers
    cut     the container is taken off its network and put back: no connection is closed, packets just get lost
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
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
from rich.console import Console
from rich.table import Table

from samples.scenes import make_scene
from scripts import environments
from scripts import settings as stack_settings
from scripts.commands import clean, stack
from scripts.docker import images
from scripts.docker.engine import ComposeEngine
from scripts.environments import ROOT
from scripts.settings import StackError, StackSettings
from scripts.stack.services import Service

# A service is in the middle of its work when it has answered this many requests, and has others open.
AT_WORK_ANSWERS = 8
# How often its counters are read, and how long they may take: a service that just came back may be slow.
LOOK_S = 0.1
ANSWER_S = 5.0
# Docker starts a container again 0.1 s after it first ended, and waits longer each time.
RESTART_S = 60.0
# Of the pictures; no training used it.
SEED = 9_500_000

# Each service's metrics that say how many requests are open, and how many were answered.
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
    """What a docker command prints.

    Raises:
        StackError: it failed; with what it said.
    """
    done = subprocess.run(["docker", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise StackError(f"docker {' '.join(arguments)}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout.strip()


def signal_all(target: Target, name: str) -> tuple[str, ...]:
    """The docker command that sends a signal to every process of a container but its init."""
    return "exec", target.container, "/bin/sh", "-c", f"kill -{name} -1"


@contextlib.contextmanager
def killed(target: Target) -> Iterator[None]:
    """Kill every process of a container, and wait until Docker has started it again."""

    def restarts() -> int:
        return int(docker("inspect", "--format", "{{.RestartCount}}", target.container))

    before, deadline = restarts(), time.monotonic() + RESTART_S
    # From inside: a kill by `docker kill` counts as a wish, and the restart policy leaves the container down. The shell
    # ends with its container, so its exit code says nothing.
    images.docker(*signal_all(target, "KILL"))
    while restarts() == before:
        if time.monotonic() > deadline:
            raise StackError(f"{target.container} was killed and is not started again after {RESTART_S:g} s")
        time.sleep(LOOK_S)
    yield


@contextlib.contextmanager
def frozen(target: Target) -> Iterator[None]:
    """Stop every process of a container where it is, and let it go on in the end.

    By signals: `docker pause` now and then failed on a busy host.
    """
    docker(*signal_all(target, "STOP"))
    try:
        yield
    finally:
        docker(*signal_all(target, "CONT"))


@contextlib.contextmanager
def cut_off(target: Target) -> Iterator[None]:
    """Take a container off its network, without a word to those it talks to, and put it back in the end."""
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
    """What is done to a service."""

    kind: str
    """Of FAULTS."""
    seconds: float = 0.0
    """How long it lasts; a restart takes the time that it takes."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a run."""

    seconds: float
    exit_code: int
    output: str
    pictures: int
    """Pictures that have a row."""
    detections: int
    """Rows that a question belongs to."""
    answered: int
    failed: int
    """Pictures and detections that failed."""
    retries: int
    """Requests beyond the first, to both services."""
    slowest_s: float
    """The longest request to the model that was answered, from sending it to its last byte."""

    def shortfall(self, pictures: int) -> str | None:
        """What is wrong with a run over this many pictures; None when every row is there and answered."""
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
    """Runs of the job on a stack that is up, with services taken away meanwhile."""

    def __init__(self, settings: StackSettings) -> None:
        """Find the stack of these settings.

        Raises:
            StackError: one of its services does not run in a container.
        """
        plan, engine, _ = stack.plan(settings)
        if not isinstance(engine, ComposeEngine) or len(plan.services) < len(SERVICES):
            raise StackError("both services have to run in containers here: STACK_ENGINE=compose, and no SPOTTER_*_URL")
        self.engine = engine
        self.services = {service.name: service for service in plan.services}
        given = settings.model_dump(exclude_none=True)
        self.variables = {f"STACK_{name.upper()}": str(value) for name, value in given.items()}
        self._over = threading.Event()

    def target(self, service: str) -> Target:
        """A service's container and network."""
        return Target(service, self.engine.containers.name(service), f"{self.engine.project}_inside")

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
        """Return when a service has answered some requests from now on, and has others open.

        Raises:
            StackError: the run ended before.
        """
        begun_at: int | None = None
        while not self._over.wait(LOOK_S):
            seen = self.traffic(service)
            if seen is None:
                continue
            waiting, answered = seen
            if begun_at is None or answered < begun_at:  # it has started anew
                begun_at = answered
            if waiting and answered - begun_at >= AT_WORK_ANSWERS:
                return
        raise StackError(f"the run ended before {service.name} was at work: give more --pictures")

    def take_away(self, name: str, faults: Sequence[Fault]) -> None:
        """Give a service one fault after the other, each in the middle of its work.

        Raises:
            StackError: the run ended too early for one of them, or Docker refused.
        """
        for fault in faults:
            self.wait_until_at_work(self.services[name])
            with FAULTS[fault.kind](self.target(name)):
                self._over.wait(fault.seconds)

    def run(self, pictures: Path, output: Path, faults: Mapping[str, Sequence[Fault]]) -> Result:
        """Run the job over a folder of pictures while each service of `faults` has its faults, one after the other.

        Raises:
            StackError: the run ended before all faults were had.
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
            start_new_session=True,  # Ctrl-C is for the bench, which ends what it started in order
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


def measure(
    bench: Bench, folder: Path, services: Sequence[str], faults: Sequence[str], seconds: float, count: int
) -> tuple[Table, bool]:
    """Run each case over `count` pictures drawn into a folder; a table of them, and whether every row was answered.

    `slowest` is the longest request to the model that was answered.
    """
    columns = ("service", "fault", "run", "pictures", "dogs", "answered", "retries", "slowest", "outcome")
    table = Table(*columns, box=None, pad_edge=False)
    complete = True
    draw(folder / "images", count)
    cases = [("none", "none"), *((service, fault) for fault in faults for service in services)]
    for number, (service, fault) in enumerate(cases):
        wanted = {service: [Fault(fault, 0.0 if fault == "kill" else seconds)]} if fault in FAULTS else {}
        result = bench.run(folder / "images", folder / str(number), wanted)
        wrong = result.shortfall(count)
        complete = complete and wrong is None
        if wrong:
            print(result.output, file=sys.stderr)
        figures = [str(figure) for figure in (result.pictures, result.detections, result.answered, result.retries)]
        times = (f"{result.seconds:.0f} s", f"{result.slowest_s:.1f} s")
        table.add_row(service, fault, times[0], *figures, times[1], wrong or "complete")
        print(f"{service}, {fault}: {times[0]}, {wrong or 'complete'}", flush=True)
    return table, complete


def main() -> int:
    """Print a line for each case and a table; 0 when every row of every run was answered."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--service", choices=SERVICES, action="append", help="may be repeated (default: each)")
    parser.add_argument("--fault", choices=FAULTS, action="append", help="may be repeated (default: each)")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="how long a service is frozen or cut off (default: %(default)g)"
    )
    parser.add_argument("--pictures", type=int, default=600, help="for each run (default: %(default)s)")
    arguments = parser.parse_args()
    console = Console()
    try:
        settings = stack_settings.load()
        own = {"engine": "compose", "device": "cpu", "preset": "cpu", "state": settings.state / "outages"}
        settings = settings.model_copy(update=own)
        with tempfile.TemporaryDirectory(prefix="outages-") as folder:
            try:
                stack.up(settings, console)
                table, complete = measure(
                    Bench(settings),
                    Path(folder),
                    arguments.service or SERVICES,
                    arguments.fault or tuple(FAULTS),
                    arguments.seconds,
                    arguments.pictures,
                )
            finally:
                clean.run(settings, Console(quiet=True), caches=True, confirmed=True)
                shutil.rmtree(settings.state)
        console.print(table)
    except (StackError, environments.EnvironmentFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
