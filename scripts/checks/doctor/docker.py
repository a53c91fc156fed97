"""Docker Engine and Compose: installed, and new enough."""

from __future__ import annotations

from scripts.checks.doctor.context import Context
from scripts.docker.host import DENIED, JOIN_GROUP, find_compose, find_engine
from scripts.findings import Finding, error, ok, warning
from scripts.minimum_versions import COMPOSE, DOCKER_ENGINE
from scripts.programs import dotted, version

REMEDY = "install Docker Engine and its Compose plugin, or set STACK_ENGINE=process"


def check(context: Context) -> list[Finding]:
    """The versions of engine and Compose, and whether this host reaches containers."""
    if context.settings.engine == "process":
        return [ok("docker", "not used (STACK_ENGINE=process)")]
    required = context.settings.engine == "compose"
    engine, reason = find_engine()
    if engine is None:
        if required:
            remedy = JOIN_GROUP if DENIED in reason else REMEDY
            return [error("docker", reason, f"Docker Engine {dotted(DOCKER_ENGINE)}", remedy)]
        return [ok("docker", f"none: the services run as processes ({reason})")]
    if engine.out_of_reach:
        if required:
            remedy = "set STACK_ENGINE=process, or use a Docker Engine that root runs on this host"
            return [error("docker", engine.out_of_reach, "containers that this host reaches", remedy)]
        return [ok("docker", f"not used: the services run as processes ({engine.out_of_reach})")]
    findings = [judge("docker", "Docker Engine", engine.version, DOCKER_ENGINE)]
    if compose := find_compose():
        return [*findings, judge("compose", "Compose", compose.version, COMPOSE)]
    say = error if required else warning
    return [*findings, say("compose", "docker has no Compose plugin", f"Compose {dotted(COMPOSE)}", REMEDY)]


def judge(name: str, title: str, found: str, minimum: tuple[int, ...]) -> Finding:
    """A version is new enough."""
    if version(found) < minimum:
        return error(name, f"{title} {found}", f"{dotted(minimum)} or later", f"update {title}")
    return ok(name, f"{title} {found}")
