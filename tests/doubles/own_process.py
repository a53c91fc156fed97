"""The simulated servers in a process of their own, so that the measured program does not pay for them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from scripts.commands.smoke import free_port
from scripts.environments import ROOT


@dataclass(frozen=True, slots=True)
class OwnProcess:
    """Both servers in a process of their own."""

    url: str
    """Without a path."""
    process: subprocess.Popen[bytes]


@contextmanager
def simulated_process(**options: float) -> Iterator[str]:
    """See `own_process`: the address alone."""
    with own_process(**options) as server:
        yield server.url


@contextmanager
def own_process(**options: object) -> Iterator[OwnProcess]:
    """Both servers, until the block ends; `options` are those of `tests.doubles.faults`.

    Raises:
        RuntimeError: they did not start.
    """
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "tests.doubles.faults", f"--port={port}"]
    command += [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(url).close()
                break
            except OSError:
                time.sleep(0.1)
        else:
            raise RuntimeError("the simulated servers did not start")
        yield OwnProcess(url, server)
    finally:
        server.kill()  # They keep nothing, and would first answer clients that were stopped.
        server.wait()


def statistics_of(url: str) -> dict[str, Any]:
    """The model server's counts so far: `requests` and `peak_in_flight`."""
    with urllib.request.urlopen(f"{url}/stats") as response:
        found: dict[str, Any] = json.load(response)["model"]
        return found
