"""The rules for each request to a service: which proxy it takes, whose certificates it trusts, and errors in words."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import urllib.request
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

from yarl import URL

from pipeline.errors import InvalidSetting

# The services' names in compose.yaml, and Docker's name for the host: no proxy knows them.
CONTAINERS = frozenset({"detector", "vllm", "host.docker.internal"})


def proxy_for(url: str) -> str | None:
    """The proxy for an address by HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY; None: it is reached directly.

    Loopback and the services' containers are always reached directly. NO_PROXY may hold networks, such as 10.0.0.0/8.

    Raises:
        InvalidSetting: the proxy is of a kind that Spotter does not speak.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if host in CONTAINERS or is_loopback(host):
        return None
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2]) or in_network(host, proxies.get("no")):
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    try:
        scheme, place = urlsplit(proxy).scheme, URL(proxy).host
    except ValueError:  # a password with a character such as `]` or `/`
        scheme, place = "", None
    if scheme not in ("http", "https") or not place:  # it may hold a password: not shown
        said = (
            f"is {scheme}://" if place and scheme else "is not an address (%-encode the password's special characters)"
        )
        raise InvalidSetting(
            f"the proxy for {host} {said}, expected http://host:port: correct {parts.scheme.upper()}_PROXY or "
            f"ALL_PROXY, or name {host} in NO_PROXY"
        )
    return proxy


def is_loopback(host: str) -> bool:
    """Whether a host is this one."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def is_private(host: str) -> bool:
    """Whether all addresses of a host are of a private network; also where its name leads nowhere."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
        return all(ipaddress.ip_address(address.partition("%")[0]).is_private for address in found)
    except (OSError, ValueError):
        return True  # nothing is sent there


def in_network(host: str, spared: str | None) -> bool:
    """Whether an address is in a network that NO_PROXY names."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    for entry in (spared or "").split(","):
        try:
            if "/" in entry and address in ipaddress.ip_network(entry.strip(), strict=False):
                return True
        except ValueError:
            continue
    return False


@lru_cache  # the system's certificates take 10 ms to load, and the load poller asks each second
def tls_context(ca_file: Path | None) -> ssl.SSLContext | bool:
    """How to verify servers: by the system's certificates, and those of a file if there is one.

    Raises:
        InvalidSetting: the file holds no certificates.
    """
    if ca_file is None:
        return True
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(cafile=ca_file.expanduser())
    except (OSError, ssl.SSLError) as error:
        reason = f"SPOTTER_CA_FILE={ca_file} holds no certificates in PEM form ({describe_os(error)})"
        raise InvalidSetting(reason) from error
    return context


def opener(url: str, ca_file: Path | None = None) -> urllib.request.OpenerDirector:
    """The same rules for urllib."""
    proxy, context = proxy_for(url), tls_context(ca_file)
    proxies = {urlsplit(url).scheme: proxy} if proxy else {}
    https = urllib.request.HTTPSHandler(context=context if isinstance(context, ssl.SSLContext) else None)
    return urllib.request.build_opener(urllib.request.ProxyHandler(proxies), https)


def describe_os(error: BaseException) -> str:
    """An error of the system or of OpenSSL without its number and place in the source."""
    words = getattr(error, "verify_message", None) or getattr(error, "reason", None)
    return str(words or getattr(error, "strerror", None) or error)
