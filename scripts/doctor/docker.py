"""Docker Engine and Compose: there, and new enough."""

from __future__ import annotations

from scripts.docker_host import OWN_CLIENT_CONFIG, REACH, why_out_of_reach
from scripts.doctor import floors
from scripts.doctor.context import Context, ask, dotted, version
from scripts.findings import Finding, Severity

REMEDY = "install Docker Engine and its Compose plugin, or set STACK_ENGINE=process"


def check(context: Context) -> list[Finding]:
    """The engine and Compose by their versions, and whether this host reaches containers."""
    if context.settings.engine == "process":
        return [Finding("docker", "ok", "not used (STACK_ENGINE=process)")]
    found, reason = ask("docker", "info", "--format", "{{.ServerVersion}}")
    if not found:
        wanted = f"Docker Engine {dotted(floors.DOCKER_ENGINE)}"
        if context.settings.engine == "compose":
            return [Finding("docker", "error", reason, wanted, REMEDY)]
        return [Finding("docker", "ok", f"none: the services run as processes ({reason})")]
    if why := why_out_of_reach(ask("docker", "info", "--format", REACH)[0] or ""):
        if context.settings.engine == "compose":
            remedy = "set STACK_ENGINE=process, or use a Docker Engine that root runs on this host"
            return [Finding("docker", "error", why, "containers that this host reaches", remedy)]
        return [Finding("docker", "ok", f"not used: the services run as processes ({why})")]
    findings = [judge("docker", "Docker Engine", found, floors.DOCKER_ENGINE)]
    compose = compose_version()
    if compose:
        findings.append(judge("compose", "Compose", compose, floors.COMPOSE))
    else:
        severity: Severity = "error" if context.settings.engine == "compose" else "warning"
        required = f"Compose {dotted(floors.COMPOSE)}"
        findings.append(Finding("compose", severity, "docker has no Compose plugin", required, REMEDY))
    return findings


def compose_version() -> str | None:
    """Compose's version: the user's plugin, or the one that scripts/docker_engine.sh has put beside the stack."""
    for config in ((), ("--config", str(OWN_CLIENT_CONFIG))):
        found, _ = ask("docker", *config, "compose", "version", "--short")
        if found:
            return found
    return None


def judge(name: str, title: str, found: str, floor: tuple[int, ...]) -> Finding:
    """A version against its floor."""
    if version(found) < floor:
        return Finding(name, "error", f"{title} {found}", f"{dotted(floor)} or later", f"update {title}")
    return Finding(name, "ok", f"{title} {found}")
