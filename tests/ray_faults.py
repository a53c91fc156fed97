"""Faults of a Ray cluster with the runner's real limits, which are too slow for CI: `python -m tests.ray_faults`.

It needs root, for disks and folders that only one node sees. The exit code is 1 when a check fails.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil

from scripts import environments
from scripts.bench.cluster import Bench, content
from scripts.commands.smoke import free_port
from tests.doubles.own_process import simulated_process
from tests.ray_cluster import Cluster, Node, cluster

# A refusal comes within so many seconds, and Ctrl-C ends a run in these; a worker is frozen for so long.
REFUSED_S, INTERRUPTED_S, FROZEN_S = 15.0, 5.0, 60.0
PICTURES, BOXES = 1500, 3
OWN_MOUNTS = ("unshare", "--mount", "--propagation", "private")


class Faults:
    """Does what can go wrong, and prints what came of it."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        self.bench, self.folder = bench, folder
        self.failed = 0

    def check(self, what: str, good: bool, figures: str) -> None:
        """Print a line."""
        self.failed += not good
        print(f"{'ok    ' if good else 'FAILED'} {what}: {figures}", flush=True)

    def refused(self, what: str, nodes: Cluster, said: str, **variables: str) -> None:
        """A run ends with one line before it asks about an image."""
        began, asked = time.monotonic(), self.bench.seen()["detector"]["requests"]
        run = self.bench.begin(nodes, variables=variables)
        error = run.communicate()[1].strip()
        took, more = time.monotonic() - began, self.bench.seen()["detector"]["requests"] - asked
        good = run.returncode == 2 and took < REFUSED_S and more <= 1 and said in error and error.count("\n") == 0
        self.check(what, good, f"exit code {run.returncode} after {took:.1f} s: {error}")

    def begun(self, nodes: Cluster) -> subprocess.Popen[str]:
        """A run that has asked a third of its questions."""
        due = self.bench.seen()["model"]["requests"] + PICTURES * BOXES / 3
        run = self.bench.begin(nodes)
        while self.bench.seen()["model"]["requests"] < due:
            assert run.poll() is None, run.communicate()[1]
            time.sleep(0.05)
        return run

    def interrupt(self, nodes: Cluster) -> None:
        """Ctrl-C."""
        run = self.begun(nodes)
        run.send_signal(signal.SIGINT)
        began = time.monotonic()
        code, took = run.wait(), time.monotonic() - began
        self.check("Ctrl-C", code == 130 and took < INTERRUPTED_S, f"exit code {code} after {took:.1f} s")

    def frozen(self, nodes: Cluster) -> None:
        """SIGSTOP of a worker, and SIGCONT."""
        self.bench.begin(None).wait()
        native = content(self.bench.folder)
        before = self.bench.seen()["model"]["requests"]
        run = self.begun(nodes)
        worker = nodes.nodes[-1].worker()
        assert worker is not None
        worker.suspend()
        time.sleep(FROZEN_S)
        with suppress(psutil.Error):
            worker.resume()
        code = run.wait()
        again = self.bench.seen()["model"]["requests"] - before - PICTURES * BOXES
        same = code == 0 and content(self.bench.folder) == native
        said = f"exit code {code}, {'equal' if same else 'other'} tables and crops, {again} questions asked again"
        self.check(f"a worker frozen for {FROZEN_S:.0f} s", same, said)

    def full_disk(self, nodes: Cluster, node: Node) -> None:
        """The crops' folder is on a disk of 64 KiB for one node's worker."""
        run = self.begun(nodes)
        worker = node.worker()
        assert worker is not None
        crops = self.bench.folder / "crops"
        mount = ("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(crops))
        subprocess.run(["nsenter", f"--target={worker.pid}", "--mount", *mount], check=True)
        code = run.wait()
        result = json.loads((self.bench.folder / "run.json").read_text())
        counts = result["counts"]
        failed = counts["images"]["failed"] + counts["detections"]["failed"]
        good = code == 1 and "No space left" in result["reason"] and failed == 0
        self.check("a full disk at a worker", good, f"exit code {code}, {failed} failed rows: {result['reason']}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Do all of it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="ray_faults", description=__doc__)
    parser.add_argument("--other-ray", type=Path, metavar="PYTHON", help="one that has another version of Ray")
    given = parser.parse_args(arguments)
    environments.prepare("ray")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = stack.enter_context(simulated_process(latency=0.05, boxes=BOXES))
        faults = Faults(Bench(url, folder / "images", PICTURES, folder / "runs"), folder)
        token, other = folder / "token", folder / "other"
        token.write_text("a" * 64)
        other.write_text("b" * 64)
        (folder / "older" / "pillow-1.0.dist-info").mkdir(parents=True)
        (folder / "older" / "pillow-1.0.dist-info" / "METADATA").write_text("Name: pillow\nVersion: 1.0\n")
        if given.other_ray:
            strange = stack.enter_context(cluster(1, python=given.other_ray))
            faults.refused("another version of Ray", strange, "has other versions")
            strange.end()
        nodes = stack.enter_context(cluster(0, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token)))
        nodes.add(cpus=0)
        nowhere = f"127.0.0.1:{free_port()}"
        faults.refused("a wrong token", nodes, "is the cluster's token", RAY_AUTH_TOKEN_PATH=str(other))
        faults.refused("no token", nodes, "if it wants a token", RAY_AUTH_MODE="disabled")
        faults.refused("a wrong address", nodes, "no cluster answers", RAY_ADDRESS=nowhere)
        faults.refused("no worker", nodes, "no worker started")
        node = nodes.add({"PYTHONPATH": str(folder / "older")})
        faults.refused("another version of a package", nodes, "pillow 1.0, here")
        nodes.remove(node)
        hides = f'mount -t tmpfs tmpfs {faults.bench.images} && exec "$@"'
        node = nodes.add(before=[*OWN_MOUNTS, "sh", "-c", hides, "sh"])
        faults.refused("a hidden folder", nodes, "does not see")
        nodes.end()
        nodes = stack.enter_context(cluster(1))
        node = nodes.add(before=OWN_MOUNTS)
        faults.interrupt(nodes)
        faults.full_disk(nodes, node)
        faults.frozen(nodes)
    return 1 if faults.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
