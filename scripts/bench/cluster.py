"""The Ray runner against the native one, on clusters of this host: `python -m scripts.bench.cluster`.

Nodes are separate `ray start` processes of one CPU each; the servers are simulated, in a process of their own. Runs
take turns, and ratios are printed, because a busy host changes the times of both alike.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
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


class Bench:
    """Runs over one folder of pictures, in a folder of their own."""

    def __init__(self, url: str, images: Path, output: Path) -> None:
        self.url, self.images, self.output = url, images, output
        self.runs = 0

    def seen(self) -> dict[str, dict[str, int]]:
        """What both servers saw so far."""
        with urllib.request.urlopen(f"{self.url}/stats") as response:
            found: dict[str, dict[str, int]] = json.load(response)
        return found

    def run(self, nodes: Cluster | None, reading_s: float = 0.0) -> dict[str, float]:
        """One run, natively or on a cluster: rows/s of its flow, requests, and the driver's largest memory in bytes."""
        self.runs += 1
        name, before = f"run{self.runs}", self.seen()
        program = ["-c", READING.format(seconds=reading_s)] if reading_s else ["-m", "pipeline"]
        options = [f"--images={self.images}", f"--output={self.output}", f"--run-name={name}", "--annotated=none"]
        variables = {"SPOTTER_DETECTOR_URL": self.url, "SPOTTER_MODEL_URL": f"{self.url}/v1"}
        if nodes:
            variables |= {"SPOTTER_RUNNER": "ray", **nodes.settings}
        process = subprocess.Popen(
            [environments.python("ray"), *program, *options],
            cwd=ROOT,
            env={**os.environ, **variables},
            stdout=subprocess.DEVNULL,
        )
        memory, driver = 0, psutil.Process(process.pid)
        while process.poll() is None:
            try:
                memory = max(memory, driver.memory_info().rss)
            except psutil.Error:
                break
            time.sleep(0.2)
        if process.wait():
            raise SystemExit(f"run {name} ended with {process.returncode}: {self.output / name / 'run.log'}")
        after = self.seen()
        rows = pq.read_metadata(self.output / name / "detections.parquet").num_rows
        profile = json.loads((self.output / name / "profile" / "profile.json").read_text())
        flow_s = next(phase["end_s"] - phase["start_s"] for phase in profile["phases"] if phase["name"] == "flow")
        shutil.rmtree(self.output / name)
        return {
            "rows_per_s": rows / flow_s,
            "requests": after["model"]["requests"] - before["model"]["requests"],
            "memory": memory,
        }


def pairs(bench: Bench, nodes: Cluster, number: int) -> None:
    """Print the ratio of rows/s, Ray to native, in interleaved pairs."""
    ratios, requests, memory = [], set[float](), 0.0
    for _ in range(number):
        native, ray = bench.run(None), bench.run(nodes)
        ratios.append(ray["rows_per_s"] / native["rows_per_s"])
        requests |= {native["requests"], ray["requests"]}
        memory = max(memory, ray["memory"])
        print(f"  native {native['rows_per_s']:.0f} rows/s, ray {ray['rows_per_s']:.0f} rows/s", flush=True)
    print(f"rows/s, ray to native: median {statistics.median(ratios):.2f} of {number} pairs")
    print(f"requests at the model: {'equal' if len(requests) == 1 else sorted(requests)}")
    print(f"the driver's memory: at most {memory / 1e6:.0f} MB")
    for name, most in BOUNDS.items():
        print(f"peak at the {name}: {bench.seen()[name]['peak_in_flight']} of {most}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print ratios."""
    parser = argparse.ArgumentParser(prog="cluster", description=__doc__)
    parser.add_argument("--images", type=int, default=2000, help="pictures of a run")
    parser.add_argument("--pairs", type=int, default=5, help="interleaved pairs of a native run and one on two nodes")
    parser.add_argument("--nodes", type=int, default=3, help="most nodes of the cluster")
    parser.add_argument("--slow", type=int, default=500, help="pictures that take 50 ms more to read; 0: leave out")
    given = parser.parse_args(arguments)
    environments.prepare("ray")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = stack.enter_context(simulated_process(latency=0.05))
        bench = Bench(url, folder / "images", folder / "runs")
        slow = Bench(url, folder / "slow", folder / "runs")
        for each, pictures in ((bench, given.images), (slow, given.slow)):
            each.images.mkdir()
            write_plain(each.images, pictures)
        nodes = stack.enter_context(cluster(1))
        alone = 0.0
        for number in range(1, given.nodes + 1):
            if number > 1:
                nodes.add()
            if given.slow:
                rate = slow.run(nodes, reading_s=READING_S)["rows_per_s"]
                alone = alone or rate
                print(f"{number} nodes, slow reading: {rate:.0f} rows/s, {rate / alone:.2f} x one node", flush=True)
            if number == PAIRED and given.pairs:
                pairs(bench, nodes, given.pairs)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
