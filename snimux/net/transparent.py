"""Dial from a client's own address, so that the backend sees that, and needs no PROXY header.

Linux alone, with a capability. That the backend's answers come back here is for the machine's
routes to see to (docs/configuration.rst, "The client's own address").

Source: ip(7), IP_TRANSPARENT and IP_BIND_ADDRESS_NO_PORT; Linux, networking/tproxy.rst.
"""

import socket
import sys
from collections.abc import Iterable

from snimux.proto.proxy_header import Endpoint
from snimux.routing.routes import Route

# linux/in.h, linux/in6.h; Python has no names for them.
_IP_TRANSPARENT = 19
_IPV6_TRANSPARENT = 75
_IP_BIND_ADDRESS_NO_PORT = 24

_LACKS = (
    "which needs the capability CAP_NET_RAW. In the service unit: AmbientCapabilities=CAP_NET_RAW, "
    "CapabilityBoundingSet=CAP_NET_RAW, PrivateUsers=no. As root: setpriv --ambient-caps=+net_raw "
    "--inh-caps=+net_raw --reuid=USER --clear-groups snimux ..."
)


def missing(routes: Iterable[Route]) -> str | None:
    """Return why this process cannot serve the routes that are transparent; None if it can."""
    transparent = (x for x in routes if any(y.transparent for y in x.backends))
    first = next(transparent, None)
    if first is None:
        return None
    what = f"the route of {first.pattern} is transparent"
    if sys.platform != "linux":
        return f"{what}, which Linux alone can be"
    try:
        with socket.socket() as sock:
            allow(sock)
    except PermissionError:
        return f"{what}, {_LACKS}"
    return None


def allow(sock: socket.socket) -> None:
    """Let a socket have an address that is none of this machine's; raises OSError."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)


def bind_as(sock: socket.socket, source: Endpoint) -> None:
    """Bind a socket to a client's address, with a port of its own; raises OSError.

    The port is chosen when the socket connects: else no more connections than there are ports could
    come from one address, whatever they go to.
    """
    allow(sock)
    sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
    sock.bind((source[0], 0))
