"""Find the Ray cluster, or start one on this host, and see that it can do the run's work."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

# Before the import: Ray reports its use unless told otherwise, and lets the workers that it starts here be nice (15).
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")

import ray

from pipeline.errors import ClusterUnusable
from pipeline.runners.ray.checks import ADDRESS, CONNECT_S, see
from pipeline.runtime import library_messages

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[3]

# Objects are batches of rows on their way to the driver.
STORE_BYTES = 256 * 1024**2
# What the workers' processes need beside the code.
VARIABLES = {"DO_NOT_TRACK": "true", "DAFT_PROGRESS_BAR": "0", "RAY_USAGE_STATS_ENABLED": "0"}


def within(limit_s: float, do: Callable[[], T]) -> T:
    """What a function gives that may hang.

    Raises:
        TimeoutError: it did not end in time; it goes on.
    """
    ended: list[T | BaseException] = []

    def run() -> None:
        try:
            ended.append(do())
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit_s)
    if not ended:
        raise TimeoutError
    if isinstance(ended[0], BaseException):
        raise ended[0]
    return ended[0]


def connect() -> None:
    """Connect to the cluster at RAY_ADDRESS; without it start one that ends with this process.

    Raises:
        ClusterUnusable: there is no cluster, or it does not take this process.
    """
    address = os.environ.get(ADDRESS) or "local"
    options: dict[str, Any] = {"address": address}
    if address == "local":
        options |= {"num_cpus": len(os.sched_getaffinity(0)), "object_store_memory": STORE_BYTES}
        options |= {"include_dashboard": False}
    elif address != "auto":
        see(address)
    environment = {"py_modules": [str(ROOT / "pipeline"), str(ROOT / "imaging")], "env_vars": VARIABLES}

    def join() -> None:
        ray.init(**options, log_to_driver=False, logging_level="FATAL", runtime_env=environment)

    try:
        if address == "local":
            join()  # in this thread: the processes of the cluster end with the thread that starts them
        else:
            with library_messages.logged():  # each try of a wrong token is a line of Ray's
                within(CONNECT_S, join)
    except TimeoutError:
        raise refused(address, f"it did not answer within {CONNECT_S:g} s") from None
    except Exception as error:
        said = " ".join(str(error).split())
        if "ersion mismatch" in said:
            found = ", ".join(re.findall(r"(?:Ray|Python): [\w.]+", said))
            raise ClusterUnusable(
                f"ray: the cluster at {address} has other versions ({found}): use the same image on all nodes and here"
            ) from error
        raise refused(address, said[:200]) from error


def refused(address: str, said: str) -> ClusterUnusable:
    """The error of a cluster that is there and does not take this process."""
    if os.environ.get("RAY_AUTH_MODE") == "token":
        remedy = "check that RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH is the cluster's token"
    else:
        remedy = "if it wants a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
    return ClusterUnusable(
        f"ray: the cluster at {address} cannot be joined ({said}): {remedy}, and that this host is one of its nodes "
        f"('ray start --address={address} --num-cpus=0')"
    )


def nodes() -> dict[str, str]:
    """The nodes that can have a worker: their addresses by their ids."""
    alive = (node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1)
    return {node["NodeID"]: node["NodeManagerAddress"] for node in alive}
