"""Sockets on which a server that vanished without a word is noticed.

A host that lost power, or a container that was taken off its network, closes no connection: a client that waits for an
answer would wait until its request's limit. The kernel's own probes tell such a server from one that only takes long:
a busy or frozen process has a kernel that answers them.
"""

from __future__ import annotations

import socket

from aiohttp import AddrInfoType

# Silence after which the kernel probes, time between probes, and how many may be lost: 20 s until a peer is given up.
IDLE_S = 10
INTERVAL_S = 5
PROBES = 2


def make_socket(address: AddrInfoType) -> socket.socket:
    """A TCP socket for a connection to an address (as getaddrinfo has it), with probes."""
    family, kind, protocol = address[:3]
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # Linux names all; another kernel keeps its own times for those that it does not have.
    options = {
        "TCP_KEEPIDLE": IDLE_S,
        "TCP_KEEPINTVL": INTERVAL_S,
        "TCP_KEEPCNT": PROBES,
        # For data that was sent and not acknowledged, during which the kernel does not probe. Milliseconds.
        "TCP_USER_TIMEOUT": 1000 * (IDLE_S + INTERVAL_S * PROBES),
    }
    for name, value in options.items():
        if hasattr(socket, name):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made
