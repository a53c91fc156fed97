"""The Ray cluster of a stack in containers: a head, and workers that see of this host what the job sees."""

from __future__ import annotations

import json
import math
import secrets
import subprocess
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from scripts import files as whole_file
from scripts.docker.files import OVERLAYS, ComposeFiles, hand_over, read_compose
from scripts.services import nth
from scripts.settings import ServiceDied

if TYPE_CHECKING:  # it loads Daft: see scripts/docker/engine.py
    from scripts.docker import job as job_container

HEAD, WORKER = "ray-head", "ray-worker"
OVERLAY = OVERLAYS / "ray.yaml"


def nodes(workers: int) -> list[str]:
    """The names of the head and its workers."""
    return [HEAD, *(nth(WORKER, number) for number in range(1, workers + 1))]


def workers_overlay(told: job_container.Told, workers: int) -> dict[str, Any]:
    """A compose file with each worker: its user, folders and access to buckets are those of the job's container."""
    block: Mapping[str, Any] = read_compose(OVERLAY)["services"][WORKER]
    seen = told.overlay["services"]["pipeline"]
    own = {**block, **seen, "environment": {**block["environment"], **told.access}}
    return {"services": {name: {**own, "hostname": name} for name in nodes(workers)[1:]}}


def up(files: ComposeFiles, told: job_container.Told, workers: int, limit_s: float) -> None:
    """Start what does not run of a cluster, or runs with other settings; returns when every node answers.

    Raises:
        ServiceDied: a node does not start.
    """
    if not files.token_file.exists():
        hand_over(secrets.token_hex(32), files.token_file)
    whole_file.write(files.cluster, json.dumps(workers_overlay(told, workers)).encode(), 0o600)
    wait = ["--wait", "--wait-timeout", str(math.ceil(limit_s))]
    command = files.command("up", "--detach", "--no-build", *wait, *nodes(workers), also=(OVERLAY, files.cluster))
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if done.returncode:
        said = done.stdout.rstrip().rpartition("\n")[2]
        raise ServiceDied(f"the Ray cluster does not start: {said}: `make logs SERVICE={HEAD}` or {WORKER} may say why")
