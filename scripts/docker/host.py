"""The Docker engine of this host: whether it can be used here, and with which Compose."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from python_on_whales import DockerException

from scripts import minimum_versions as floors
from scripts.environments import STATE
from scripts.programs import ask, dotted, version
from scripts.settings import StackError

# scripts/docker_engine.sh puts Compose here where the host's docker has none.
OWN_CLIENT_CONFIG = STATE / "docker" / "config"

# What `docker info` is asked for: the engine's version, and what tells whether host and containers reach each other.
# Some clients fill this in with nothing where no engine answers, and end with 0 (docker/cli, issue 5900).
ABOUT = "{{.ServerVersion}} / {{.OperatingSystem}} {{json .SecurityOptions}}"

# What an engine says to a user who may not use it, and what helps him.
DENIED = "permission denied"
JOIN_GROUP = "join the group docker and log in anew, or set STACK_ENGINE=process"

# What keeps the stack out of an engine's containers, by what `docker info` says then.
OUT_OF_REACH = {
    "Docker Desktop": "Docker Desktop keeps containers in a machine of its own, where this host does not reach them",
    "name=rootless": "a rootless Docker keeps containers in a network of its own, where this host does not reach them",
    "name=userns": "this Docker's containers have other users than this host (userns-remap), who may not write here",
    "name=selinux": "this Docker's SELinux keeps containers from this host's files",
}


@dataclass(frozen=True, slots=True)
class Engine:
    """A Docker engine that answers."""

    version: str
    out_of_reach: str | None
    """Why the stack cannot run in its containers; None where it can."""


def find_engine() -> tuple[Engine | None, str]:
    """The engine that docker talks to; None and the reason where none answers."""
    said, reason = ask("docker", "info", "--format", ABOUT)
    number = (said or "").partition("/")[0].strip()
    if not said or not number:
        return None, reason or "no engine answers"
    return Engine(number, elsewhere() or next((why for sign, why in OUT_OF_REACH.items() if sign in said), None)), ""


def elsewhere() -> str | None:
    """Why containers of the engine would not be on this host; None where they are."""
    address = os.environ.get("DOCKER_HOST")
    address = address or ask("docker", "context", "inspect", "--format", "{{.Endpoints.docker.Host}}")[0] or ""
    parts = urlsplit(address)
    if parts.scheme not in ("tcp", "ssh", "http", "https") or parts.hostname in ("localhost", "127.0.0.1", "::1"):
        return None
    return f"this Docker is on {parts.hostname}, which has no folder of this host"


@dataclass(frozen=True, slots=True)
class Compose:
    """Docker's Compose plugin, in a configuration folder of the client's; None: the user's own."""

    config: Path | None
    version: str

    @property
    def is_old(self) -> bool:
        """Whether it does not read the compose files; one that tells no number is taken for new."""
        return () < version(self.version) < floors.COMPOSE


def find_compose() -> Compose | None:
    """The Compose that is new enough, or else one that is not; None where docker has none."""
    found = []
    for config in (None, OWN_CLIENT_CONFIG):
        option = () if config is None else ("--config", str(config))
        said, _ = ask("docker", *option, "compose", "version", "--short")
        if said:
            found.append(Compose(config, said))
            if not found[-1].is_old:
                return found[-1]
    return found[0] if found else None


@cache
def client_config() -> Path | None:
    """The Docker client's configuration folder that has Compose: the user's own (None), or ours.

    Raises:
        StackError: no Docker engine answers, its containers and this host do not reach each other, or there is no
            Compose that reads the compose files.
    """
    engine, reason = find_engine()
    if engine is None and DENIED in reason:
        raise StackError(f"this user may not use the Docker engine (`docker info`): {JOIN_GROUP}")
    if engine is None:
        raise StackError("no Docker engine answers (`docker info`): start one, or set STACK_ENGINE=process")
    if engine.out_of_reach:
        raise StackError(
            f"{engine.out_of_reach}: set STACK_ENGINE=process, or use a Docker Engine that root runs on this host, as "
            "its packages set it up"
        )
    compose = find_compose()
    if compose is None:
        raise StackError(
            "docker has no Compose (`docker compose version`): install its plugin, or set STACK_ENGINE=process"
        )
    if compose.is_old:
        raise StackError(
            f"docker's Compose is {compose.version}, and the compose files need {dotted(floors.COMPOSE)} or later: "
            "update its plugin, or set STACK_ENGINE=process"
        )
    return compose.config


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
