"""The ports of the services."""

from __future__ import annotations

from scripts.checks.doctor.context import Context
from scripts.findings import Finding, error, ok
from scripts.services import KINDS, kind_name, kind_of
from scripts.stack.process_engine import ProcessEngine, why_taken


def check(context: Context) -> list[Finding]:
    """Each port is free, belongs to this stack's own service, or is not needed."""
    settings = context.settings
    ports = {name: settings.port(name) for name in KINDS} | {each.name: each.port for each in context.servers}
    return [
        ok(f"port {port}", f"not used: {kind_of(name).url_variable} says where {name} is")
        if kind_of(name).url_variable and settings.user_variables(kind_of(name).url_variable)
        else of_service(context, name, port)
        for name, port in ports.items()
    ]


def of_service(context: Context, name: str, port: int) -> Finding:
    """The port of a service that runs on this host."""
    check, settings = f"port {port}", context.settings
    if ProcessEngine(settings).is_running(name) or f":{port}->" in (context.container(name, "{{.Ports}}") or ""):
        return ok(check, f"{name} of this stack listens")
    if context.in_containers and not settings.publish:
        return ok(check, f"not used: {name} listens in its container alone (STACK_PUBLISH)")
    if taken := why_taken(settings.host, port):
        return error(
            check, taken, f"free, for {name}", f"end that program, or set STACK_{kind_name(name).upper()}_PORT"
        )
    return ok(check, "free")
