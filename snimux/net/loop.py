"""See that a connection that was dialled has come to this very snimux: it would be a loop.

What a name stands for is known only then. The addresses alone do not prove it: a packet filter may
send elsewhere what is for an address of this machine, as Kubernetes does by IPVS. So Linux is asked
where the connection's other end is; elsewhere, and for loopback, the addresses have to do.

Refuses nothing itself, and knows nothing of what is to be sent.

Source: Linux, sock_diag(7).
"""

import contextlib
import os
import socket
import struct
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from snimux.net.listeners import Listener
from snimux.routing.address import DialAddress, UnixAddress, plain_host

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h, net/tcp_states.h; Python has no names for
# them.
_AF_NETLINK, _NETLINK_SOCK_DIAG = 16, 4
_SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST = 20, 1
_ANY_STATE, _ANY_COOKIE = 0xFFFFFFFF, (0xFFFFFFFF, 0xFFFFFFFF)
_TCP_LISTEN = 10
# nlmsghdr; inet_diag_req_v2 as far as the ports, which are in network order, and behind the hosts.
_HEADER, _REQUEST, _PORTS, _REST = "=IHHII", "=BBBxI", "!HH", "=III"
_ANSWER_SIZE = 4096


@dataclass(frozen=True, slots=True)
class Own:
    """The places where this snimux listens: what not to pass on to."""

    by_port: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    """The numeric hosts of TCP listeners, and how each listener is called."""
    by_file: Mapping[tuple[int, int], str] = field(default_factory=dict)
    """Device and inode of UNIX listeners."""
    reserved: Mapping[DialAddress, str] = field(default_factory=dict)
    """What only snimux may reach, and what it is: nothing that a Caddy says may lead there. Each
    connection is looked at, for names, links and IPv4 in IPv6 hide where it leads until then."""


NOWHERE = Own()
"""For who dials and does not pass on."""


def own(listeners: Iterable[Listener]) -> Own:
    """Return the places of some listeners; only of UNIX sockets that were bound here."""
    by_port: dict[int, dict[str, str]] = {}
    by_file: dict[tuple[int, int], str] = {}
    for listener in listeners:
        if listener.inode is not None:
            by_file[listener.inode] = str(listener)
        elif listener.socket.family in (socket.AF_INET, socket.AF_INET6):
            name = listener.socket.getsockname()
            hosts = by_port.setdefault(name[1], {})
            hosts[_host(name)] = str(listener)
            if str(listener).startswith(":"):  # of both families
                hosts["0.0.0.0"] = str(listener)
    return Own(by_port, by_file)


def listener_at(own: Own, path: str) -> str | None:
    """Return the listener that a path of a UNIX socket leads to, by whatever links, or None."""
    if own.by_file:
        with contextlib.suppress(OSError):
            file = os.stat(path)  # noqa: PTH116 (a path is no object here)
            return own.by_file.get((file.st_dev, file.st_ino))
    return None


def reserved_at(own: Own, path: str, name: object) -> str | None:
    """Return what is reserved of where a connection to a UNIX socket has come to, or None.

    Args:
        own: what is reserved.
        path: what was dialled; it may lead elsewhere by now.
        name: what the socket that it came to was bound to, which does not change.
    """
    places = {_inode(path), _inode(name if isinstance(name, str) else "")} - {None}
    files = ((x.path, what) for x, what in own.reserved.items() if isinstance(x, UnixAddress))
    return next((what for file, what in files if _inode(file) in places), None)


def _inode(path: str) -> tuple[int, int] | None:
    try:
        file = os.stat(path)  # noqa: PTH116 (a path is no object here)
    except (OSError, ValueError):
        return None
    return file.st_dev, file.st_ino


def is_behind(hosts: Iterable[str], here: Any, peer: Any, *, transparent: bool = False) -> bool:
    """Return whether a TCP connection has come to one of some hosts, whose port is that dialled.

    Where one of them is this machine, all of its addresses are the same: what listens there may
    listen on every interface.
    """
    hosts = [plain_host(host) for host in hosts]
    source, target = (plain_host(_host(name)) for name in (here, peer))
    is_near = transparent or source == target or _is_here(target)
    return target in hosts or (is_near and any(map(_is_here, hosts)))


def _is_here(host: str) -> bool:
    """Return whether an IP address is one of this machine's."""
    # A datagram socket can be bound to those alone, sends nothing by it, and disturbs no port.
    with contextlib.suppress(OSError):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind((host, 0))
        return True
    return False


def listener_behind(own: Own, here: Any, peer: Any, *, transparent: bool = False) -> str | None:
    """Return the listener that a TCP connection has come to, or None.

    Args:
        own: where this snimux listens.
        here: the connection's name on this side, as a socket says it.
        peer: its name on the other.
        transparent: whether this side's is a client's: it says nothing of this machine then.
    """
    hosts = own.by_port.get(peer[1])
    if hosts is None:
        return None
    source, target = _host(here), _host(peer)
    everywhere = hosts.get("::" if ":" in target else "0.0.0.0")
    listener = hosts.get(target, everywhere)
    # Debian's hosts file has the machine's own name at 127.0.1.1.
    if listener is None or target == "::1" or target.startswith("127."):
        return listener
    # Who dials an address of its own machine does so from that address.
    is_near = transparent or target in hosts or source == target
    return listener if is_near and _ends_here(here, peer) else None


def _host(name: Any) -> str:
    """Return the host of a socket's name, in one spelling; that of a link with its zone."""
    host: str = name[0]
    if ":" in host and "." in host:  # IPv4 in IPv6
        return host.rpartition(":")[2]
    zone = name[3] if len(name) > 3 else 0
    return f"{host}%{zone}" if zone and "%" not in host else host


def _ends_here(here: Any, peer: Any) -> bool:
    """Return whether a connection's other end is a socket of this machine; no if none can tell."""
    if sys.platform != "linux":
        return True
    with contextlib.suppress(OSError, struct.error):
        with socket.socket(_AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as asking:
            asking.send(_question(here, peer))  # answered by then
            answer = asking.recv(_ANSWER_SIZE, socket.MSG_DONTWAIT)
        kind = struct.unpack_from(_HEADER, answer)[1]
        state = answer[struct.calcsize(_HEADER) + 1]
        # Where there is no such connection a listener is found, which may have it all the same.
        return kind == _SOCK_DIAG_BY_FAMILY and state != _TCP_LISTEN
    return False


def _question(here: Any, peer: Any) -> bytes:
    """Return the question for the socket that has these names the other way round."""
    source, target = (_host(name).partition("%")[0] for name in (here, peer))
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    zone = peer[3] if len(peer) > 3 else 0
    hosts = (socket.inet_pton(family, host).ljust(16, b"\0") for host in (target, source))
    request = struct.pack(_REQUEST, family, socket.IPPROTO_TCP, 0, _ANY_STATE)
    request += struct.pack(_PORTS, peer[1], here[1]) + b"".join(hosts)
    request += struct.pack(_REST, zone, *_ANY_COOKIE)
    size = struct.calcsize(_HEADER) + len(request)
    return struct.pack(_HEADER, size, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0) + request
