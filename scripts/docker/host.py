"""The Docker engine of this host: whether the stack can use it, and with which Compose."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from scripts import minimum_versions as minimum
from scripts.docker.client import ask
from scripts.environments import STATE
from scripts.findings import Finding, error, errors, ok
from scripts.programs import ANSWER_S, dotted, version
from scripts.settings import NoEngine

# scripts/docker_engine.sh puts Compose here where the host's docker has none.
OWN_CLIENT_CONFIG = STATE / "docker" / "config"

REMEDY = "install Docker Engine and its Compose plugin, or set STACK_ENGINE=process"
# What an engine says to a user who may not use it, and the remedy.
DENIED = "permission denied"
JOIN_GROUP = "join the group docker and log in anew, or set STACK_ENGINE=process"

# What keeps the stack out of an engine's containers, by a sign in `docker info`.
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
    about: Mapping[str, Any]
    """All that `docker info` tells."""


def find_engine() -> tuple[Engine | None, str]:
    """The engine that docker talks to; None and the reason where none answers."""
    said, reason = ask("info", "--format", "{{json .}}", timeout_s=ANSWER_S)
    try:
        about = json.loads(said or "{}")
    except ValueError:
        about = {}
    # Some clients end with 0 and name no version where no engine answers (docker/cli, issue 5900).
    if not about.get("ServerVersion"):
        return None, reason or " ".join(about.get("ServerErrors") or ["it names no version"])
    signs = f"{about.get('OperatingSystem')} {about.get('SecurityOptions')}"
    out_of_reach = elsewhere() or next((why for sign, why in OUT_OF_REACH.items() if sign in signs), None)
    return Engine(about["ServerVersion"], out_of_reach, about), ""


def elsewhere() -> str | None:
    """Why containers of the engine would not be on this host; None where they are."""
    context = ("context", "inspect", "--format", "{{.Endpoints.docker.Host}}")
    parts = urlsplit(os.environ.get("DOCKER_HOST") or ask(*context, timeout_s=ANSWER_S)[0] or "")
    if parts.scheme not in ("tcp", "ssh", "http", "https") or parts.hostname in ("localhost", "127.0.0.1", "::1"):
        return None
    return f"this Docker is on {parts.hostname}, which has no folder of this host"


@dataclass(frozen=True, slots=True)
class Compose:
    """Docker's Compose plugin."""

    config: Path | None
    """The client's configuration folder that has it; None: the user's own."""
    version: str


def find_compose() -> Compose | None:
    """The Compose that is new enough, or else one that is not; None where docker has none."""
    found = []
    for config in (None, OWN_CLIENT_CONFIG):
        option = () if config is None else ("--config", str(config))
        said, _ = ask(*option, "compose", "version", "--short", timeout_s=ANSWER_S)
        if said:
            found.append(Compose(config, said))
            if not is_old(said, minimum.COMPOSE):
                return found[-1]
    return found[0] if found else None


def examine() -> tuple[list[Finding], Compose | None]:
    """The engine and Compose: their versions, or why the stack cannot use them; and that Compose.

    One finding alone says that no engine can be used.
    """
    engine, reason = find_engine()
    required = f"Docker Engine {dotted(minimum.DOCKER_ENGINE)} or later"
    if engine is None and DENIED in reason:
        return [error("docker", "this user may not use the Docker engine", required, JOIN_GROUP)], None
    if engine is None:
        return [error("docker", f"no Docker engine answers: {reason}", required, REMEDY)], None
    if engine.out_of_reach:
        remedy = "set STACK_ENGINE=process, or use a Docker Engine that root runs on this host, as its packages do"
        return [error("docker", engine.out_of_reach, "containers that this host reaches", remedy)], None
    found = judge("docker", "Docker Engine", engine.version, minimum.DOCKER_ENGINE)
    compose = find_compose()
    if compose is None:
        required = f"Compose {dotted(minimum.COMPOSE)} or later"
        return [found, error("compose", "docker has no Compose plugin", required, REMEDY)], None
    return [found, judge("compose", "Compose", compose.version, minimum.COMPOSE)], compose


def is_old(found: str, least: tuple[int, ...]) -> bool:
    """Whether a version is below the least; one without a number counts as new."""
    return () < version(found) < least


def judge(name: str, title: str, found: str, least: tuple[int, ...]) -> Finding:
    """A version is new enough."""
    if is_old(found, least):
        remedy = f"update {title}, or set STACK_ENGINE=process"
        return error(name, f"{title} is {found}", f"{dotted(least)} or later", remedy)
    return ok(name, f"{title} {found}")


@cache
def fault() -> Finding | None:
    """Why the stack cannot use Docker; None where it can."""
    return next(iter(errors(examine()[0])), None)


@cache
def client_config() -> Path | None:
    """The Docker client's configuration folder that has Compose: the user's own (None), or this checkout's.

    Raises:
        NoEngine: no Docker engine answers, its containers and this host do not reach each other, or there is no
            Compose that reads the compose files.
    """
    findings, compose = examine()
    for wrong in errors(findings):
        raise NoEngine(f"{wrong.found} (required: {wrong.required}): {wrong.remedy}")
    return compose.config if compose else None


def answers() -> bool:
    """Whether there are Docker and Compose to ask."""
    return fault() is None
