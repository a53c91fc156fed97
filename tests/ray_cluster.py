"""A Ray cluster of several nodes on this host: separate `ray start` processes on loopback, one CPU each."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from scripts import environments
from scripts.commands.smoke import free_port
from scripts.environments import ROOT

# Below 200 MB of objects: batches of rows on their way.
STORE_BYTES = 160 * 1024**2
# A node ends when its agents do not start within 15 s by default, which a busy host does not always do.
TRIES, START_S = 3, 120.0
VARIABLES = {
    "RAY_agent_register_timeout_ms": f"{START_S * 1000:.0f}",
    "RAY_AUTH_MODE": "disabled",  # else a token in this user's home turns it on
    "RAY_worker_niceness": "0",
    "RAY_prestart_worker_first_driver": "0",  # a process that no run uses: its environment is another
}
# Parts are small, and a worker that is silent is given up soon. An image that holds POISON kills its worker, and a
# worker on a BLIND node cannot write a file.
BLIND = {"RAY_TEST_BLIND": "1"}
DRIVER = """
import os, signal, sys
from pathlib import Path
from pipeline.output import parts
from pipeline.runners.ray import cluster, crew, shards
parts.PART_IMAGES, shards.LEAST, shards.MOST = 20, 16, {most}
crew.LEASE_S, crew.SILENT_S = 6.0, 9.0
class Worker(crew.Worker):
    def open(self, parts, measure):
        if os.environ.get("RAY_TEST_BLIND"):
            def refuse(path, content):
                raise PermissionError(path)
            Path.write_bytes = Path.write_text = refuse
        super().open(parts, measure)
        from pipeline.stages import read
        key = read.content_key
        def content_key(data, inputs):
            if {poison!r} in data:
                os.kill(os.getpid(), signal.SIGKILL)
            return key(data, inputs)
        read.content_key = content_key
crew.Worker = Worker
from pipeline.__main__ import main
code = main(sys.argv[1:])
sys.stdout.flush()
os._exit(code)
"""
POISON = b"this image is poison"


@dataclass
class Node:
    """One node."""

    process: subprocess.Popen[bytes]
    seen: dict[int, psutil.Process] = field(default_factory=dict)

    def members(self) -> list[psutil.Process]:
        """Its processes; a worker outlives its parent for a moment, and is still one of them."""
        for each in psutil.process_iter():
            with suppress(psutil.Error, ProcessLookupError, PermissionError):
                if os.getsid(each.pid) == self.process.pid:  # workers have sessions of their own
                    self.seen |= {member.pid: member for member in (each, *each.children(recursive=True))}
        return [each for each in self.seen.values() if each.is_running()]

    @property
    def raylet(self) -> psutil.Process | None:
        """The process that Ray calls the node's raylet."""
        return next((each for each in self.members() if each.name() == "raylet"), None)

    def worker(self) -> psutil.Process | None:
        """Spotter's worker on it."""
        for each in self.members():
            with suppress(psutil.Error):
                if each.cmdline()[:1] and each.cmdline()[0].startswith("ray::Worker"):
                    return each
        return None

    def end(self) -> None:
        """Kill all of its processes."""
        for each in self.members():
            with suppress(psutil.Error):
                each.kill()
        self.process.wait()


@dataclass
class Cluster:
    """Nodes that know each other."""

    python: Path
    variables: dict[str, str] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    port: int = field(default_factory=free_port)
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="ray", dir="/tmp")))
    """Of its logs and sockets, whose paths must be short."""

    @property
    def address(self) -> str:
        """Of its head."""
        return f"127.0.0.1:{self.port}"

    @property
    def settings(self) -> dict[str, str]:
        """The environment variables of a run on it."""
        return {**VARIABLES, "RAY_ADDRESS": self.address, **self.variables}

    def add(self, variables: Mapping[str, str] | None = None, before: Sequence[str] = (), cpus: int = 1) -> Node:
        """Start a node whose processes have these variables, through the program `before`; the first is the head.

        Raises:
            TimeoutError: it does not start.
        """
        for _ in range(TRIES):
            known = self._agents()
            node, deadline = Node(self._start([*before], cpus, variables or {})), time.monotonic() + START_S
            while time.monotonic() < deadline and node.process.poll() is None:
                if self._agents() - known and node.raylet:
                    self.nodes.append(node)
                    return node
                time.sleep(0.2)
            node.end()
        raise TimeoutError("no node of Ray starts")

    def _agents(self) -> set[Path]:
        """A file of each node's last agent, which is there when it has started."""
        return set(self.folder.glob("session_2*/dashboard_agent_listen_port_*"))

    def _start(self, before: list[str], cpus: int, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
        place = [f"--address={self.address}"] if self.nodes else ["--head", f"--port={self.port}"]
        return subprocess.Popen(
            [
                *before,
                *(self.python.with_name("ray"), "start", "--block", "--node-ip-address=127.0.0.1"),
                *(f"--num-cpus={cpus}", f"--object-store-memory={STORE_BYTES}", "--disable-usage-stats", *place),
                *("--include-log-monitor=false", "--no-monitor"),
                *([] if self.nodes else ["--include-dashboard=false", f"--temp-dir={self.folder}"]),
            ],
            env={**os.environ, **VARIABLES, **self.variables, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def remove(self, node: Node) -> None:
        """Kill a node, and wait until the others know it."""
        node.end()
        self.nodes.remove(node)
        time.sleep(2)

    def end(self) -> None:
        """Kill all nodes."""
        for node in self.nodes:
            node.end()
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, options: list[str], variables: dict[str, str], most: int = 64) -> subprocess.Popen[str]:
        """Start a run on it, in shards of at most so many images."""
        driver = DRIVER.format(poison=POISON, most=most)
        return subprocess.Popen(
            [self.python, "-c", driver, "--runner=ray", "--annotated=none", *options],
            cwd=ROOT,
            env={**os.environ, **self.settings, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


@contextmanager
def cluster(nodes: int, python: Path | None = None, **variables: str) -> Iterator[Cluster]:
    """A cluster of so many nodes until the block ends."""
    environments.prepare("ray")
    made = Cluster(python or environments.python("ray"), variables)
    try:
        for _ in range(nodes):
            made.add()
        yield made
    finally:
        made.end()
