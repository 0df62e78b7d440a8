"""Small things that every connected socket needs: its address, and its options."""

import contextlib
import socket
import sys
from typing import Any

from snimux.proto.proxy_header import Endpoint

# Seconds without traffic before the kernel asks whether the peer is still there: less than the
# minutes after which home routers and balancers forget a connection.
_KEEPALIVE = 60
if sys.platform == "darwin":
    _KEEPALIVE_OPTION = socket.TCP_KEEPALIVE
else:
    _KEEPALIVE_OPTION = socket.TCP_KEEPIDLE


def endpoint(name: Any) -> Endpoint | None:
    """Return a socket's address as an endpoint; None for a UNIX socket.

    The zone of a link-local address is left out, and IPv4 that a dual-stack socket shows mapped
    into IPv6 is IPv4 again.
    """
    if not isinstance(name, tuple):
        return None
    host = name[0].partition("%")[0]
    if host.startswith("::ffff:") and "." in host:
        host = host.removeprefix("::ffff:")
    return host, name[1]


def tune(sock: socket.socket) -> None:
    """Have no delay for small writes, and a kernel that notices a peer that has gone.

    What a listener is tuned to, the sockets that it accepts are too. A UNIX socket has nothing to
    tune.
    """
    with contextlib.suppress(OSError):  # a UNIX socket; or reset meanwhile: reading will tell
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, _KEEPALIVE_OPTION, _KEEPALIVE)
