"""The Ray runner against the native one, on clusters of this host: `python -m scripts.bench.cluster`.

Nodes are separate `ray start` processes of one CPU each; the servers are simulated, in a process of their own. Runs
take turns, and ratios are printed, because a busy host changes the times of both alike.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow.parquet as pq

from scripts import environments
from scripts.environments import ROOT
from tests.doubles.own_process import simulated_process
from tests.pictures import write_plain
from tests.ray_cluster import Cluster, cluster

# Nodes of the cluster that is compared with the native runner; seconds that a slow image takes more to read.
PAIRED, READING_S = 2, 0.05
BOUNDS = {"detector": 16, "model": 64}
# `python -m pipeline`, whose reading takes so many seconds more for each image: the driver sends the same code to all.
READING = """
import os, sys
import pipeline.runners.ray.crew as crew
class Worker(crew.Worker):
    def open(self, parts, measure):
        super().open(parts, measure)
        import time
        from pipeline.stages import read
        key = read.content_key
        read.content_key = lambda data, inputs: (time.sleep({seconds}), key(data, inputs))[1]
crew.Worker = Worker
from pipeline.__main__ import main
code = main(sys.argv[1:])
sys.stdout.flush()
os._exit(code)
"""


@dataclass(frozen=True, slots=True)
class Figures:
    """What a run of the bench shows."""

    rows_per_s: float
    """Of its flow, which begins with the first image."""
    start_s: float
    """From the listing to the first image."""
    requests: int
    """At the model."""
    memory: list[int]
    """The driver's, in bytes, five times a second."""
    content: str
    """A digest of its tables, without times, and of its crops."""


class Bench:
    """Runs over one folder of pictures, in a folder of their own."""

    def __init__(self, url: str, images: Path, pictures: int, output: Path, *, step: int = 0) -> None:
        """Each picture's file is so many bytes longer than the one before: photographs have different sizes."""
        self.url, self.images, self.output = url, images, output
        self.runs = 0
        write_plain(images, pictures)
        for number, path in enumerate(sorted(images.iterdir()) if step else ()):
            with path.open("ab") as file:
                file.write(bytes(number * step))

    def seen(self) -> dict[str, dict[str, int]]:
        """What both servers saw so far."""
        with urllib.request.urlopen(f"{self.url}/stats") as response:
            found: dict[str, dict[str, int]] = json.load(response)
        return found

    def begin(
        self, nodes: Cluster | None, reading_s: float = 0.0, variables: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start the next run, natively or on a cluster."""
        self.runs += 1
        program = ["-c", READING.format(seconds=reading_s)] if reading_s else ["-m", "pipeline"]
        options = [f"--images={self.images}", f"--output={self.folder.parent}", f"--run-name={self.folder.name}"]
        servers = {"SPOTTER_DETECTOR_URL": self.url, "SPOTTER_MODEL_URL": f"{self.url}/v1"}
        runner = {"SPOTTER_RUNNER": "ray", **nodes.settings} if nodes else {}
        return subprocess.Popen(
            [environments.python("ray"), *program, *options, "--annotated=none"],
            cwd=ROOT,
            env={**os.environ, **servers, **runner, **(variables or {})},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    @property
    def folder(self) -> Path:
        """Of the last run."""
        return self.output / f"run{self.runs}"

    def run(self, nodes: Cluster | None, reading_s: float = 0.0) -> Figures:
        """One run.

        Raises:
            SystemExit: the run failed.
        """
        before, memory = self.seen(), []
        process = self.begin(nodes, reading_s)
        driver = psutil.Process(process.pid)
        while process.poll() is None:
            with suppress(psutil.Error):
                memory.append(driver.memory_info().rss)
            time.sleep(0.2)
        if process.wait():
            raise SystemExit(f"the run ended with {process.returncode}: {self.folder / 'run.log'}")
        rows = pq.read_metadata(self.folder / "detections.parquet").num_rows
        profile = json.loads((self.folder / "profile" / "profile.json").read_text())
        flow = next(phase for phase in profile["phases"] if phase["name"] == "flow")
        found = Figures(
            rows_per_s=rows / (flow["end_s"] - flow["start_s"]),
            start_s=flow["start_s"],
            requests=self.seen()["model"]["requests"] - before["model"]["requests"],
            memory=memory,
            content=content(self.folder),
        )
        shutil.rmtree(self.folder)
        return found


def content(folder: Path) -> str:
    """A digest of a run's tables, without times, and of its crops."""
    digest = hashlib.sha256()
    for name in ("images", "detections"):
        table = pq.read_table(folder / f"{name}.parquet")
        kept = table.drop_columns([each for each in table.column_names if each.endswith("_s")])
        digest.update(repr(kept.to_pydict()).encode())
    for crop in sorted((folder / "crops").iterdir()):
        digest.update(crop.name.encode() + crop.read_bytes())
    return digest.hexdigest()


def pairs(bench: Bench, nodes: Cluster, number: int) -> None:
    """Print the ratio of rows/s, Ray to native, in interleaved pairs, and whether both made the same."""
    native, ray = [], []
    for _ in range(number):
        native.append(bench.run(None))
        ray.append(bench.run(nodes))
        print(f"  native {native[-1].rows_per_s:.0f} rows/s, ray {ray[-1].rows_per_s:.0f} rows/s", flush=True)
    ratios = [one.rows_per_s / other.rows_per_s for one, other in zip(ray, native, strict=True)]
    runs = native + ray
    print(f"rows/s, ray to native: median {statistics.median(ratios):.2f} of {number} pairs")
    print(f"start: native {native[-1].start_s:.1f} s, ray {ray[-1].start_s:.1f} s")
    print(f"tables and crops: {'equal' if len({run.content for run in runs}) == 1 else 'DIFFERENT'}")
    requests = {run.requests for run in runs}
    print(f"requests at the model: {'equal' if len(requests) == 1 else sorted(requests)}")
    print(f"the driver's memory: at most {max(max(run.memory) for run in ray) / 1e6:.0f} MB")
    for name, most in BOUNDS.items():
        print(f"peak at the {name}: {bench.seen()[name]['peak_in_flight']} of {most}")


def memory(bench: Bench, nodes: Cluster) -> None:
    """Print the driver's memory over a run."""
    found = bench.run(nodes)
    tenths = [found.memory[len(found.memory) * tenth // 10 - 1] / 1e6 for tenth in range(1, 11)]
    print(f"{len(nodes.nodes)} nodes, {found.rows_per_s:.0f} rows/s, {found.requests} requests")
    print(f"the driver's memory after each tenth of the time: {', '.join(f'{each:.0f}' for each in tenths)} MB")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print ratios."""
    parser = argparse.ArgumentParser(prog="cluster", description=__doc__)
    parser.add_argument("--images", type=int, default=2000, help="pictures of a run, of 3 boxes each")
    parser.add_argument("--step", type=int, default=16, help="bytes that a file is longer than the one before; 0: none")
    parser.add_argument("--pairs", type=int, default=5, help="interleaved pairs of a native run and one on two nodes")
    parser.add_argument("--nodes", type=int, default=3, help="most nodes of the cluster")
    parser.add_argument("--slow", type=int, default=2400, help="pictures that take 50 ms more to read; 0: leave out")
    parser.add_argument("--memory", type=int, default=0, help="pictures of a run on all nodes, for the driver's memory")
    given = parser.parse_args(arguments)
    environments.prepare("ray")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))

        def bench(pictures: int, boxes: int, step: int = 0) -> Bench:
            url = stack.enter_context(simulated_process(latency=0.05, boxes=boxes))
            return Bench(url, folder / f"images{pictures}-{boxes}", pictures, folder / "runs", step=step)

        nodes = stack.enter_context(cluster(1))
        usual = bench(given.images, 3, given.step) if given.pairs else None
        slow = bench(given.slow, 1) if given.slow else None  # one box, so that to read is the work
        alone = 0.0
        for number in range(1, given.nodes + 1):
            if number > 1:
                nodes.add()
            if slow:
                found = slow.run(nodes, reading_s=READING_S)
                alone = alone or found.rows_per_s
                ratio = f"{found.rows_per_s:.0f} rows/s, {found.rows_per_s / alone:.2f} x one node"
                print(f"{number} nodes, slow reading: {ratio}; start {found.start_s:.1f} s", flush=True)
            if number == PAIRED and usual and given.pairs:
                pairs(usual, nodes, given.pairs)
        if given.memory:
            memory(bench(given.memory, 1), nodes)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
