"""Docker Engine and Compose: there, and new enough."""

from __future__ import annotations

from scripts import minimum_versions as floors
from scripts.checks.doctor.context import Context
from scripts.docker.host import DENIED, JOIN_GROUP, find_compose, find_engine
from scripts.findings import Finding, Severity
from scripts.programs import dotted, version

REMEDY = "install Docker Engine and its Compose plugin, or set STACK_ENGINE=process"


def check(context: Context) -> list[Finding]:
    """The engine and Compose by their versions, and whether this host reaches containers."""
    if context.settings.engine == "process":
        return [Finding("docker", "ok", "not used (STACK_ENGINE=process)")]
    engine, reason = find_engine()
    if engine is None:
        wanted = f"Docker Engine {dotted(floors.DOCKER_ENGINE)}"
        if context.settings.engine == "compose":
            return [Finding("docker", "error", reason, wanted, JOIN_GROUP if DENIED in reason else REMEDY)]
        return [Finding("docker", "ok", f"none: the services run as processes ({reason})")]
    if engine.out_of_reach:
        if context.settings.engine == "compose":
            remedy = "set STACK_ENGINE=process, or use a Docker Engine that root runs on this host"
            return [Finding("docker", "error", engine.out_of_reach, "containers that this host reaches", remedy)]
        return [Finding("docker", "ok", f"not used: the services run as processes ({engine.out_of_reach})")]
    findings = [judge("docker", "Docker Engine", engine.version, floors.DOCKER_ENGINE)]
    compose = find_compose()
    if compose:
        findings.append(judge("compose", "Compose", compose.version, floors.COMPOSE))
    else:
        severity: Severity = "error" if context.settings.engine == "compose" else "warning"
        required = f"Compose {dotted(floors.COMPOSE)}"
        findings.append(Finding("compose", severity, "docker has no Compose plugin", required, REMEDY))
    return findings


def judge(name: str, title: str, found: str, floor: tuple[int, ...]) -> Finding:
    """A version against its floor."""
    if version(found) < floor:
        return Finding(name, "error", f"{title} {found}", f"{dotted(floor)} or later", f"update {title}")
    return Finding(name, "ok", f"{title} {found}")
