"""Proxy variables: requests to the hub may need a proxy, requests to this host must not use one."""

from __future__ import annotations

import urllib.parse

from scripts.checks.doctor.context import Context
from scripts.findings import Finding, ok, warning

NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


def without_secret(url: str) -> str:
    """A proxy's address without user and password."""
    parts = urllib.parse.urlsplit(url if "//" in url else f"//{url}")
    return parts.netloc.rpartition("@")[2] or "set"


def check(context: Context) -> list[Finding]:
    """NO_PROXY names this host where a proxy is set."""
    variables = {name.upper(): value for name, value in context.environment.items() if value}
    proxies = ", ".join(f"{name}={without_secret(variables[name])}" for name in NAMES if name in variables)
    host = context.settings.host
    direct = {name.strip() for name in variables.get("NO_PROXY", "").split(",")}
    if proxies and "*" not in direct and not {host, "localhost"} <= direct:
        found = f"{proxies}, and NO_PROXY does not name {host} and localhost"
        remedy = f"set NO_PROXY={host},localhost"
        return [warning("proxy", found, "direct requests from this host to the services", remedy)]
    return [ok("proxy", proxies or "none")]
