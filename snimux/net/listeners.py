"""Open the sockets to listen on: all of them, or an error that says what to do.

Never with SO_REUSEPORT: two servers on one port would each get a random half of the connections,
which is the very thing that snimux is there to end.

Knows nothing of what comes in on the sockets.
"""

import errno
import os
import socket
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from snimux.routing.address import (
    Activated,
    FdAddress,
    ListenAddress,
    TcpAddress,
    UnixAddress,
    overlaps,
)

# As much as the kernel lets be queued (it takes the lesser of this and its own bound): at the
# connection limit, new connections wait here.
_BACKLOG = 4096

# What this is for is clear without a name.
_HTTP_PORT = 80

_FLAGS = {"tls": "--listen", "http": "--http", "status": "--status"}

# How often to look for a port that is free for IPv4 and IPv6, where port 0 asks for any.
_TRIES = 20


class ListenError(Exception):
    """A socket that cannot be listened on; the message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening, non-blocking socket; whoever has it closes it, by ``close``."""

    socket: socket.socket
    inode: tuple[int, int] | None = None
    """Device and inode of the file, where it is a UNIX socket that was bound here."""
    protocol: str = "tls"
    """The name of the protocol that is to be served on it."""
    handed_over: bool = False
    """Whether it is older than this process."""
    spec: ListenAddress | None = None
    """The address as it was configured, by which it is known again; None if that is not known."""
    number: int = 0
    """By which a supervisor and its workers know it; 0 where there are none."""

    @property
    def address(self) -> TcpAddress | UnixAddress:
        """Return the address that it listens on, with the port that it got."""
        return _address(self.socket)

    def __str__(self) -> str:
        """Return the address in words."""
        return str(self.address)

    def close(self) -> None:
        """Close it, and remove its file: if it was made here, and nobody has replaced it since."""
        path = Path(self.socket.getsockname()) if self.inode else None
        self.socket.close()
        if path is not None and _inode(path) == self.inode:
            path.unlink(missing_ok=True)


def open_listeners(
    addresses: Iterable[ListenAddress],
    http: Iterable[ListenAddress] = (),
    current: Iterable[Listener] = (),
    *,
    status: Iterable[ListenAddress] = (),
) -> list[Listener]:
    """Bind and listen on every address where nothing does so yet.

    Args:
        addresses: for TLS.
        http: for plain HTTP.
        current: listeners that are open. One for an address in question is used again; for the
            other protocol it is the same socket, for it could not be bound anew while it is open.
        status: for whoever wants to see how it is.

    Returns:
        The listeners, in order: one an address and family. ``besides`` says which are new.

    Raises:
        ListenError: one of them cannot be had; then none is open that was not before.

    Resource handling: the caller owns the listeners, and those of ``current`` that are not
    among them: nothing that was open is closed here.
    """
    current = list(current)
    specs = [(x, "tls") for x in addresses] + [(x, "http") for x in http]
    specs += [(x, "status") for x in status]
    kept = _kept(specs, current)
    opened: list[Listener] = []
    listeners: list[Listener] = []
    try:
        for (address, protocol), again in zip(specs, kept, strict=True):
            family = again or _open(address, is_start=not current)
            listeners += (replace(x, protocol=protocol, spec=address) for x in family)
            opened += () if again else family
    except OSError as error:
        for listener in opened:
            listener.close()
        words = _words(address, error, _FLAGS[protocol], current)
        raise ListenError(f"cannot listen on {address}: {words}") from None
    for listener in opened:
        listener.socket.setblocking(False)
        listener.socket.set_inheritable(False)  # one that was handed over is
    return listeners


def adopted(
    number: int,
    spec: ListenAddress,
    *,
    protocol: str = "tls",
    inode: tuple[int, int] | None = None,
) -> Listener:
    """Return a listener that was handed to this process by its descriptor.

    Raises:
        OSError: the descriptor is no listening socket.
    """
    return Listener(_adopt(number), inode, protocol, isinstance(spec, FdAddress), spec)


def besides(listeners: Iterable[Listener], excluded: Iterable[Listener]) -> list[Listener]:
    """Return those of some listeners whose sockets no listener of a second list has."""
    sockets = {listener.socket for listener in excluded}
    return [listener for listener in listeners if listener.socket not in sockets]


def _kept(
    specs: Sequence[tuple[ListenAddress, str]], current: Iterable[Listener]
) -> list[list[Listener]]:
    """Return for each address and protocol the listeners that are open for it, or none.

    Rather those of the same protocol: with port 0 there may be several for one address.
    """
    openings: dict[tuple[ListenAddress | None, str, int], list[Listener]] = {}
    for listener in current:  # the families of one address have one port
        own = _address(listener.socket)
        port = own.port if isinstance(own, TcpAddress) else 0
        openings.setdefault((listener.spec, listener.protocol, port), []).append(listener)
    kept: list[list[Listener]] = [[] for _ in specs]
    for is_same in (True, False):
        for place, (address, protocol) in enumerate(specs):
            for key in [] if kept[place] else list(openings):
                if key[0] == address and (key[1] == protocol) is is_same:
                    kept[place] = openings.pop(key)
                    break
    return kept


def activated(named: Iterable[tuple[str, int]]) -> list[Activated]:
    """Return the listening sockets that were handed over, and what each is for.

    Args:
        named: name and descriptor of each. Those named ``tls`` and ``http`` are for that; of the
            others those on port 80 are for plain HTTP, and all else is for TLS.

    Raises:
        ListenError: one is no listening socket.
    """
    sockets = []
    for name, number in named:
        try:
            sock = _adopt(number)
        except OSError:
            raise ListenError(
                f"descriptor {number} ({name}) was handed over, but is no listening stream socket"
            ) from None
        address = _address(sock)
        sock.detach()
        is_on_80 = isinstance(address, TcpAddress) and address.port == _HTTP_PORT
        protocol = name if name in ("tls", "http") else "http" if is_on_80 else "tls"
        sockets.append(Activated(FdAddress(number), protocol, address))
    return sockets


def _address(sock: socket.socket) -> TcpAddress | UnixAddress:
    """Return the address that a socket listens on; no host if it has all of both families."""
    name = sock.getsockname()
    if isinstance(name, bytes):  # abstract, without a file
        return UnixAddress("@" + name[1:].decode("utf-8", "backslashreplace"))
    if isinstance(name, str):
        return UnixAddress(name)
    is_dual = sock.family == socket.AF_INET6 and not sock.getsockopt(
        socket.IPPROTO_IPV6, socket.IPV6_V6ONLY
    )
    return TcpAddress("" if is_dual and name[0] == "::" else name[0], name[1])


def _open(address: ListenAddress, *, is_start: bool) -> list[Listener]:
    match address:
        case TcpAddress():
            return [Listener(sock) for sock in _open_tcp(address)]
        case UnixAddress(path):
            return [_open_unix(path)]
        case FdAddress(number):
            if not is_start:  # the number may be anything's by now
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            return [Listener(_adopt(number), handed_over=True)]


def _open_tcp(address: TcpAddress) -> list[socket.socket]:
    for _ in range(_TRIES):
        try:
            return _open_families(address)
        except OSError as error:
            # Only where any port will do: the one free for IPv4 was taken for IPv6.
            if address.port or error.errno != errno.EADDRINUSE:
                raise
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _open_families(address: TcpAddress) -> list[socket.socket]:
    opened: list[socket.socket] = []
    port = address.port
    try:
        hosts = _hosts(address.host)
        for family, host in hosts:
            if family == socket.AF_INET6 and len(hosts) > 1 and not _has_ipv6():
                continue
            # Sets SO_REUSEADDR, and IPV6_V6ONLY for IPv6, so that each family has its own socket.
            sock = socket.create_server((host, port), family=family, backlog=_BACKLOG)
            opened.append(sock)
            port = sock.getsockname()[1]
    except OSError:
        for sock in opened:
            sock.close()
        raise
    return opened


def _hosts(host: str) -> list[tuple[socket.AddressFamily, str]]:
    """Return the families and numeric hosts of a host; IPv4 first."""
    if not host:
        return [(socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")]
    answer = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return sorted({(family, str(name[0])) for family, _, _, _, name in answer})


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True


def _open_unix(path: str) -> Listener:
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.bind(path)
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return Listener(sock, _inode(Path(path)))


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _remove_stale(path: str) -> None:
    """Remove a socket that a process left behind: one that refuses connections."""
    if not Path(path).is_socket():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # a listener whose queue is full is there, and must not be awaited
        try:
            probe.connect(path)
        except BlockingIOError:
            return
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)


def _adopt(number: int) -> socket.socket:
    sock = socket.socket(fileno=number)
    listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if sock.type != socket.SOCK_STREAM or not listens:
        sock.detach()
        raise OSError(errno.EINVAL, "the descriptor is no listening stream socket")
    return sock


def _words(address: ListenAddress, error: OSError, flag: str, current: Iterable[Listener]) -> str:
    words = _cause(address, error, flag, current)
    if flag == "--http":
        # Nobody may have asked for it: it is the default beside port 443.
        return f"{words}; or leave plain HTTP to others: {flag} off"
    return words if flag == "--listen" else f"{words} ({flag})"


def _cause(address: ListenAddress, error: OSError, flag: str, current: Iterable[Listener]) -> str:
    if isinstance(address, FdAddress) and error.errno in (errno.EBADF, errno.ENOTSOCK):
        return "no socket was handed over with that number"
    if error.errno == errno.EADDRINUSE:
        own = [x for x in current if overlaps(address, _address(x.socket))]
        return _overlaps_own(own[0]) if own else _who_holds(address)
    if error.errno == errno.EACCES and isinstance(address, TcpAddress):
        return _ways_out(address.port, flag)
    if error.errno == errno.EADDRNOTAVAIL:
        return "no interface of this machine has that address"
    return error.strerror or str(error)


def _overlaps_own(listener: Listener) -> str:
    return (
        f"it overlaps {listener}, where snimux listens now, and the system has both at once only "
        "for those who share a port; it needs a restart"
    )


def _who_holds(address: ListenAddress) -> str:
    if not isinstance(address, TcpAddress):
        return "another process listens there"
    # Only needed when things went wrong already, and slow to import.
    import psutil

    unseen = f"another process has the port; to see which: sudo lsof -nP -iTCP:{address.port}"
    everywhere = {"0.0.0.0", "::"}
    try:
        hosts = {host for _, host in _hosts(address.host)}
        holders = {
            connection.pid
            for connection in psutil.net_connections(kind="tcp")
            if connection.status == psutil.CONN_LISTEN
            and connection.pid is not None
            and connection.laddr
            and connection.laddr.port == address.port
            and (connection.laddr.ip in hosts | everywhere or hosts & everywhere)
        }
        names = [f"{psutil.Process(pid).name()} (pid {pid})" for pid in sorted(holders)]
    except (psutil.Error, OSError):
        return unseen
    if not names:
        return unseen
    hint = "; snimux doctor says how it can be" if any(x.startswith("caddy") for x in names) else ""
    return f"the port is held by {' and '.join(names)}{hint}"


def _ways_out(port: int, flag: str) -> str:
    if sys.platform == "darwin":
        return (
            f"not permitted. macOS lets an ordinary user have port {port} on all interfaces only: "
            f"{flag} :{port}"
        )
    return (
        f"not permitted: port {port} is kept for root. Ways out: "
        f"another port, such as {flag} :{4000 + port}; or "
        f"a systemd socket unit with ListenStream={port}, as in systemd/; or "
        "AmbientCapabilities=CAP_NET_BIND_SERVICE in the service unit; or "
        f"sysctl net.ipv4.ip_unprivileged_port_start={port}"
    )
