"""Which hosts can run the services as processes: Linux, and of its machines those that the locks hold on."""

from __future__ import annotations

import platform
import re

from scripts.environments import LOCKS
from scripts.settings import BuildFailed

X86, ARM = "x86_64", "aarch64"
# PyTorch's build for CPUs in a lock, with one hash: that of the wheel for x86-64. `make lock` adds the others where
# PyTorch's own index can be reached.
ONE_WHEEL = re.compile(r"^torch={2,3}\S+\+cpu \\\n +--hash=\S+$", re.MULTILINE)


def refuse_host(environment: str) -> None:
    """See that an environment can be made on this host.

    Raises:
        BuildFailed: it cannot; says where the services can run.
    """
    system, machine = platform.system(), platform.machine()
    if system != "Linux" or machine not in (X86, ARM):
        raise BuildFailed(
            f"environment {environment} needs Linux on x86-64 or aarch64, found {system} on {machine}: start the stack "
            "on such a host (Windows: in WSL 2), or name servers elsewhere with SPOTTER_MODEL_URL and "
            "SPOTTER_DETECTOR_URL"
        )
    if machine == ARM and ONE_WHEEL.search((LOCKS / f"{environment}.lock").read_text()):
        raise BuildFailed(
            f"environment {environment}: its lock has no hash of PyTorch's CPU build for aarch64: run `make lock` "
            "where PyTorch's package index can be reached, or name a server elsewhere with SPOTTER_MODEL_URL or "
            "SPOTTER_DETECTOR_URL"
        )
