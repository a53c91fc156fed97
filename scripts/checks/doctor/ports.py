"""The ports of the services."""

from __future__ import annotations

import socket

from scripts.checks.doctor.context import Context
from scripts.findings import Finding, error, ok
from scripts.services import KINDS
from scripts.stack.process_engine import ProcessEngine, owner_of


def check(context: Context) -> list[Finding]:
    """Each port is free, belongs to this stack's own service, or is not needed."""
    settings = context.settings
    ports = {name: settings.port(name) for name in KINDS}
    return [
        ok(f"port {ports[name]}", f"not used: {kind.url_variable} says where {name} is")
        if kind.url_variable and settings.user_variables(kind.url_variable)
        else of_service(context, name, ports[name])
        for name, kind in KINDS.items()
    ]


def of_service(context: Context, name: str, port: int) -> Finding:
    """The port of a service that runs on this host."""
    check, settings = f"port {port}", context.settings
    if ProcessEngine(settings).is_running(name) or f":{port}->" in (context.container(name, "{{.Ports}}") or ""):
        return ok(check, f"{name} of this stack listens")
    if context.in_containers and not settings.publish:
        return ok(check, f"not used: {name} listens in its container alone (STACK_PUBLISH)")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, port))
        except OSError as failure:
            found = f"{failure.strerror}{owner_of(port)}"
            return error(check, found, f"free, for {name}", f"end that program, or set STACK_{name.upper()}_PORT")
    return ok(check, "free")
