"""The simulated servers in a process of their own, so that what they cost is not the measured program's."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from scripts.commands.smoke import free_port
from scripts.environments import ROOT


@contextmanager
def simulated_process(**options: float) -> Iterator[str]:
    """Both servers' address without a path, until the block ends; `options` are those of `tests.doubles.faults`.

    Raises:
        RuntimeError: they did not start.
    """
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "tests.doubles.faults", f"--port={port}"]
    command += [f"--{name}={value}" for name, value in options.items()]
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
        yield url
    finally:
        server.kill()  # they have nothing to keep, and would answer those first whose clients were stopped
        server.wait()
