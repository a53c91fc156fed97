"""See that an address is that of a cluster, and that a node has what a worker needs; without Ray."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from pipeline.errors import ClusterUnusable
from pipeline.runners.ray.worker import Facts, versions

# Of Ray's own variable, the address of a cluster that is there.
ADDRESS = "RAY_ADDRESS"
# How long the cluster may take to answer.
CONNECT_S = 8.0


def see(address: str) -> None:
    """See that somebody listens at an address.

    Raises:
        ClusterUnusable: nobody does, or it is no address.
    """
    place = urlsplit(f"//{address}" if "://" not in address else address)
    try:
        host, port = place.hostname, place.port
    except ValueError:
        host, port = None, None
    if "://" in address or not host or not port:
        raise ClusterUnusable(
            f"ray: {ADDRESS}={address} is no address of a cluster: give HOST:PORT of its head, without a scheme"
        )
    try:
        socket.create_connection((host, port), timeout=CONNECT_S / 2).close()
    except OSError as error:
        raise ClusterUnusable(
            f"ray: no cluster answers at {ADDRESS}={address} ({error.strerror or error}): check the address, and that "
            "'ray start --head' runs there; without the variable Spotter starts a cluster of its own"
        ) from error


def fault(facts: Facts) -> str | None:
    """Why a node cannot have a worker; None if it can."""
    own = versions()
    other = [f"{name} {facts.versions[name]}, here {own[name]}" for name in own if facts.versions[name] != own[name]]
    if other:
        return f"ray: node {facts.node} has {'; '.join(other)}: use the same image on all nodes and here"
    if facts.missing:
        return (
            f"ray: node {facts.node} does not see {facts.missing[0]}: mount it at the same path on all nodes, or give "
            "an absolute path, or s3://"
        )
    for name, url in facts.unreachable:
        return f"ray: node {facts.node} cannot reach the {name} at {url}: give an address that all nodes can reach"
    return None
