"""Proxy variables: the hub may need one, the services on this host must not go through it."""

from __future__ import annotations

import urllib.parse

from scripts.checks.doctor.context import Context
from scripts.findings import Finding

NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


def without_secret(url: str) -> str:
    """A proxy's address without user and password."""
    parts = urllib.parse.urlsplit(url if "//" in url else f"//{url}")
    return parts.netloc.rpartition("@")[2] or "set"


def check(context: Context) -> list[Finding]:
    """Where a proxy is set, it leaves this host out."""
    variables = {name.upper(): value for name, value in context.environment.items() if value}
    proxies = {name: without_secret(variables[name]) for name in NAMES if name in variables}
    if not proxies:
        return [Finding("proxy", "ok", "none")]
    shown = ", ".join(f"{name}={value}" for name, value in proxies.items())
    spared = {host.strip() for host in variables.get("NO_PROXY", "").split(",")}
    if "*" not in spared and not {context.settings.host, "localhost"} <= spared:
        return [
            Finding(
                "proxy",
                "warning",
                f"{shown}, and NO_PROXY does not name {context.settings.host} and localhost",
                "programs of this host reach the services directly",
                f"set NO_PROXY={context.settings.host},localhost",
            )
        ]
    return [Finding("proxy", "ok", shown)]
