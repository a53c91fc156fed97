"""The ports that the services will listen on."""

from __future__ import annotations

import socket

from scripts.doctor.context import Context
from scripts.findings import Finding
from scripts.process_engine import ProcessEngine, owner_of


def check(context: Context) -> list[Finding]:
    """Each port is free, or this stack's own service has it."""
    settings = context.settings
    engine = ProcessEngine(settings.state)
    findings = []
    for name, port in (("detector", settings.detector_port), ("vllm", settings.vllm_port)):
        if engine.is_running(name):
            findings.append(Finding(f"port {port}", "ok", f"{name} of this stack listens"))
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((settings.host, port))
            except OSError as error:
                found = f"{error.strerror}{owner_of(port)}"
                remedy = f"end that program, or set STACK_{name.upper()}_PORT"
                findings.append(Finding(f"port {port}", "error", found, f"free, for {name}", remedy))
            else:
                findings.append(Finding(f"port {port}", "ok", "free"))
    return findings
