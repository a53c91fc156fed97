"""What to do when a service refuses or cannot be reached, found out before the first image is read."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

import aiohttp

from pipeline.clients.http import RequestFailed
from pipeline.clients.network import proxy_for
from pipeline.clients.retries import KEY, PROXY, QUOTA, REDIRECT, UNREACHABLE, Refused
from pipeline.errors import ServiceRefuses, ServiceUnreachable, UsageError

CONNECT_S = 3.0
# Errors of OpenSSL at a server that answers in plain text.
NO_TLS = (
    "WRONG_VERSION_NUMBER",
    "RECORD_LAYER_FAILURE",
    "HTTP_REQUEST",
    "UNEXPECTED_MESSAGE",
    "PACKET_LENGTH_TOO_LONG",
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A service that was asked."""

    name: str
    url: str
    """The address as set, without a slash at its end."""
    setting: str
    """The variable that holds it."""
    key_set: bool | None = None
    """Whether a key is sent; None: this service gets none."""

    def said(self) -> str:
        """The service and its address."""
        return f"{self.name} {self.url}"


def explained(error: RequestFailed, asked: Asked, path: str) -> UsageError | None:
    """One line with the remedy for a request to `path` that failed for a reason that lies between job and service;
    None for another reason."""
    if error.cause == KEY and asked.key_set is None:
        return ServiceRefuses(
            f"{asked.said()} asks for a key, and Spotter sends none: set {asked.setting} to one without"
        )
    if error.cause == KEY:
        word = "correct" if asked.key_set else "set"
        return ServiceRefuses(f"{asked.said()} refuses the key: {word} SPOTTER_API_KEY ({error})")
    if error.cause == QUOTA:
        return ServiceRefuses(f"{asked.said()} refuses for lack of quota: see to the account there ({error})")
    if error.cause == PROXY:
        return ServiceRefuses(
            f"the proxy {host_of(proxy_for(asked.url) or '')} asks for a user and a password: write them into "
            f"HTTPS_PROXY or HTTP_PROXY, or name {host_of(asked.url)} in NO_PROXY ({error})"
        )
    if error.cause == REDIRECT:
        return ServiceRefuses(f"{asked.said()} {elsewhere(error, asked, path)}")
    if asked.url.startswith("http:") and (error.cause == UNREACHABLE or "HTTP 400" in str(error)) and speaks_tls(asked):
        return ServiceRefuses(f"{asked.said()} speaks https: set {asked.setting}=https{asked.url[4:]}")
    if error.cause == UNREACHABLE:
        return ServiceUnreachable(f"{asked.said()} cannot be reached ({error}): {remedy(error, asked)}")
    return None


def elsewhere(error: RequestFailed, asked: Asked, path: str) -> str:
    """Where a redirect leads, and which address to set; a page to log in at is no address of an API."""
    target = error.__cause__.target if isinstance(error.__cause__, Refused) else ""
    try:
        address = urljoin(asked.url + path, target) if target else ""
    except ValueError:  # not an address
        address = target
    if address.endswith(path) or address.endswith(path + "/"):
        return f"redirects: set {asked.setting}={address.rstrip('/').removesuffix(path)[:200]}"
    return f"redirects to {address[:200] or 'nowhere'}: set {asked.setting} to an address that answers by itself"


def remedy(error: BaseException, asked: Asked) -> str:
    """What to do about a connection that failed."""
    cause: BaseException | None = error
    while cause and not isinstance(cause, aiohttp.ClientError):
        cause = cause.__cause__
    if isinstance(cause, aiohttp.ClientConnectorCertificateError):
        return certificate_remedy(cause.certificate_error, asked)
    if isinstance(cause, aiohttp.ClientConnectorSSLError):
        if any(reason in str(cause.os_error) for reason in NO_TLS):
            return f"it speaks http: set {asked.setting}=http{asked.url.removeprefix('https')}"
        return f"its TLS does not fit: check {asked.setting}"
    if isinstance(cause, aiohttp.ClientProxyConnectionError):
        proxy = host_of(proxy_for(asked.url) or "")
        return f"correct the proxy {proxy} in HTTPS_PROXY or HTTP_PROXY, or name {host_of(asked.url)} in NO_PROXY"
    return f"start the stack with 'make up', or set {asked.setting}"


def certificate_remedy(error: Exception, asked: Asked) -> str:
    """What to do about a certificate that cannot be verified; a key is never sent without."""
    code = getattr(error, "verify_code", None)
    if code in (62, 64):  # another host name, another IP address
        return f"set {asked.setting} to a name that its certificate holds"
    if code in (9, 10):  # not yet valid, expired
        return "have its certificate renewed, and check this host's clock"
    return "if you trust it, set SPOTTER_CA_FILE to its certificate or its CA's (PEM)"


def speaks_tls(asked: Asked) -> bool:
    """Whether a server answers a TLS handshake; nothing is sent to it, so its certificate does not matter."""
    parts = urlsplit(asked.url)
    if proxy_for(asked.url) or not parts.hostname:
        return False
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((parts.hostname, parts.port or 80), CONNECT_S) as plain,
            context.wrap_socket(plain, server_hostname=parts.hostname),
        ):
            return True
    except ssl.SSLError as error:  # a server that wants a certificate of ours has shaken hands too
        return "ALERT" in str(error.reason)
    except (OSError, ValueError):
        return False


def host_of(url: str) -> str:
    """An address's host and port, without a user and a password."""
    return urlsplit(url).netloc.rpartition("@")[2]
