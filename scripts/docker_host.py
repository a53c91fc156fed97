"""The Docker engine of this host: whether it can be used here, and with which Compose."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from python_on_whales import DockerException

from scripts import images
from scripts.environments import STATE
from scripts.settings import StackError

# scripts/docker_engine.sh puts Compose here where the host's docker has none.
OWN_CLIENT_CONFIG = STATE / "docker" / "config"

# What `docker info` is asked for, to know whether this host reaches containers at their addresses.
REACH = "{{.OperatingSystem}} {{json .SecurityOptions}}"


def why_out_of_reach(reach: str) -> str | None:
    """Why this host does not reach containers at their addresses, from what `docker info` says to REACH; else None."""
    if "Docker Desktop" in reach:
        return "Docker Desktop keeps containers in a machine of its own, where this host does not reach them"
    if "name=rootless" in reach:
        return "a rootless Docker keeps containers in a network of its own, where this host does not reach them"
    return None


@cache
def client_config() -> Path | None:
    """The Docker client's configuration folder that has Compose: the user's own (None), or ours.

    Raises:
        StackError: no Docker engine answers, this host does not reach its containers, or there is no Compose.
    """
    reach = images.docker("info", "--format", REACH, timeout_s=20)
    if reach is None:
        raise StackError("no Docker engine answers (`docker info`): start one, or set STACK_ENGINE=process")
    if reason := why_out_of_reach(reach):
        raise StackError(f"{reason}: set STACK_ENGINE=process, or use a Docker Engine that root runs on this host")
    if images.docker("compose", "version") is not None:
        return None
    if images.docker("--config", str(OWN_CLIENT_CONFIG), "compose", "version") is not None:
        return OWN_CLIENT_CONFIG
    raise StackError(
        "docker has no Compose (`docker compose version`): install its plugin, or set STACK_ENGINE=process"
    )


def answers() -> bool:
    """Whether there are Docker and Compose to ask."""
    try:
        client_config()
    except StackError:
        return False
    return True


def docker_said(error: DockerException) -> str:
    """Why Docker did not do something, in one line."""
    said = (error.stderr or "").rstrip().splitlines()
    return f"docker: {said[-1] if said else f'ended with exit code {error.return_code}'}"
