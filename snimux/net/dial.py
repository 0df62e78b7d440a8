"""Dial an address: a connected socket, or why there is none.

Knows no TLS and no routes, and not what became of earlier dials; sends nothing.
"""

import errno
import os
import socket
from dataclasses import dataclass
from typing import Any

import trio

from snimux.net.loop import NOWHERE, Own, is_behind, listener_at, listener_behind, reserved_at
from snimux.net.transparent import bind_as
from snimux.proto.proxy_header import Endpoint
from snimux.routing.address import DialAddress, TcpAddress, UnixAddress

# What socket() and connect() say when this process or machine has nothing left to dial with:
# descriptors, memory, source ports.
_EXHAUSTED = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL}
)

RESERVED = ", which only snimux may reach"
"""How the detail ends of what was refused for where it led to."""

# How often a UNIX listener whose queue is full is tried again (seconds): there is no event for it.
_QUEUE_POLL = 0.01


@dataclass(frozen=True, slots=True)
class Dialled:
    """A connected, non-blocking socket, which the receiver owns, and the address that answered.

    ``waited`` is for how many seconds it was tried, where somebody waited for it.
    """

    socket: socket.socket
    address: DialAddress
    waited: float | None = None


@dataclass(frozen=True, slots=True)
class NotDialled:
    """No address connected; ``exhausted`` if the fault was this machine's, not a backend's.

    ``waited`` is for how many seconds it was tried, where somebody waited for it.
    """

    detail: str
    exhausted: bool
    waited: float | None = None


async def dial(
    address: DialAddress,
    *,
    dial_timeout: float,
    source: Endpoint | None = None,
    own: Own = NOWHERE,
) -> Dialled | NotDialled:
    """Connect to an address.

    Args:
        address: where to.
        dial_timeout: seconds for it, name look-up included.
        source: an address, of a client, from which an IP address is dialled; None: from here.
        own: where this snimux listens, and what is reserved, which is no backend.

    Returns:
        The socket, or why there is none. Raises nothing but ``trio.Cancelled``.
    """
    try:
        sock = await _connect(address, dial_timeout, source, own)
        if own.reserved:
            await _refuse_reserved(sock, address, dial_timeout, source, own)
        return Dialled(sock, address)
    except trio.TooSlowError:
        return NotDialled(f"{address}: no answer in {dial_timeout:g} s", False)
    except OSError as error:
        cause = _cause(error)
        return NotDialled(f"{address}: {_words(cause)}", cause.errno in _EXHAUSTED)


async def _connect(
    address: DialAddress, timeout: float, source: Endpoint | None, own: Own
) -> socket.socket:
    if isinstance(address, TcpAddress) and not address.is_numeric:
        sock = await _connect_by_name(address.host, address.port, timeout)
    else:
        sock = socket.socket(_family(address))
    try:
        sock.setblocking(False)
        if source is not None:
            _bind_as(sock, source)
        match address:
            case UnixAddress(path):
                await _connect_unix(sock, path, timeout)
                listener = listener_at(own, path)
            case TcpAddress(host, port):
                if address.is_numeric:
                    await _connect_tcp(sock, _socket_address(host, port), timeout)
                listener = _refuse_itself(sock, own, transparent=source is not None)
        if listener is not None:
            raise ConnectionRefusedError(f"it is snimux itself (listener {listener})")
    except BaseException:
        sock.close()
        raise
    return sock


def _bind_as(sock: socket.socket, source: Endpoint) -> None:
    try:
        bind_as(sock, source)
    except OSError as error:  # a link-local address, say: that is no fault of the backend
        raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL)) from error


def _family(address: DialAddress) -> socket.AddressFamily:
    if isinstance(address, UnixAddress):
        return socket.AF_UNIX
    return socket.AF_INET6 if ":" in address.host else socket.AF_INET


def _socket_address(host: str, port: int) -> Any:
    """Return host and port as a socket takes them; a zone (fe80::1%eth0) becomes its number."""
    if "%" not in host:
        return host, port
    numeric = socket.AI_NUMERICHOST
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=numeric)[0][4]


async def _connect_tcp(sock: socket.socket, name: Any, timeout: float) -> None:
    number = sock.connect_ex(name)
    if number == errno.EINPROGRESS and not _is_connected(sock):
        with trio.fail_after(timeout):
            await trio.lowlevel.wait_writable(sock)
        number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if number not in (0, errno.EINPROGRESS) and not _has_bytes(sock):
        raise OSError(number, os.strerror(number))


def _is_connected(sock: socket.socket) -> bool:
    """Return whether a connection that was begun is made by now, as on loopback it mostly is."""
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _has_bytes(sock: socket.socket) -> bool:
    """Return whether bytes came: so it was connected, though it may be reset by now.

    The relay delivers them, and learns of the reset when it sends.
    """
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except OSError:
        return False


async def _connect_unix(sock: socket.socket, path: str, timeout: float) -> None:
    number = sock.connect_ex(path)
    if number == errno.EAGAIN:  # the listener's queue is full
        with trio.fail_after(timeout):
            while number == errno.EAGAIN:
                await trio.sleep(_QUEUE_POLL)
                number = sock.connect_ex(path)
    if number:
        raise OSError(number, os.strerror(number))


async def _connect_by_name(host: str, port: int, timeout: float) -> socket.socket:
    """Look the name up, and race IPv6 with IPv4 (RFC 8305)."""
    try:
        with trio.fail_after(timeout):
            stream = await trio.open_tcp_stream(host, port)
    except socket.gaierror:
        # Without a descriptor the resolver cannot open its files, and says that it does not know
        # the name; a socket says what it is.
        socket.socket().close()
        raise
    return socket.socket(fileno=stream.socket.detach())


def _refuse_itself(sock: socket.socket, own: Own, *, transparent: bool) -> str | None:
    """Refuse a socket that is connected to itself; return the own listener that another came to.

    TCP opens one (RFC 9293 section 3.5, simultaneous open) where a port of this machine that
    nobody listens on is dialled and happens to be picked as the source port too.
    """
    try:
        here, peer = sock.getsockname(), sock.getpeername()
    except OSError:  # reset meanwhile
        if _has_bytes(sock):
            return None
        raise
    if here == peer:
        raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
    return listener_behind(own, here, peer, transparent=transparent)


async def _refuse_reserved(
    sock: socket.socket, address: DialAddress, timeout: float, source: Endpoint | None, own: Own
) -> None:
    """Refuse a socket that has come to what only snimux may reach, and close it then."""
    try:
        try:
            here, peer = sock.getsockname(), sock.getpeername()
        except OSError:  # reset meanwhile: nothing can be sent there, but something has come
            if _has_bytes(sock):
                return
            raise
        if isinstance(address, UnixAddress):
            what = reserved_at(own, address.path, peer)
        else:
            what = None
            for each, name in own.reserved.items():
                if isinstance(each, TcpAddress) and each.port == peer[1]:
                    hosts = await _look_up(each, timeout)
                    if is_behind(hosts, here, peer, transparent=source is not None):
                        what = name
        if what is not None:
            raise ConnectionRefusedError(f"it is {what}{RESERVED}")
    except BaseException:
        sock.close()
        raise


async def _look_up(address: TcpAddress, timeout: float) -> list[str]:
    """Return the IP addresses of a host."""
    if address.is_numeric:
        return [address.host]
    if not address.host or address.host == "localhost":
        return ["127.0.0.1", "::1"]
    try:
        with trio.fail_after(timeout):
            answer = await trio.socket.getaddrinfo(address.host, None, type=socket.SOCK_STREAM)
    except (OSError, trio.TooSlowError):
        raise ConnectionRefusedError(f"{address} is not resolved, and may be this") from None
    return [str(name[0]) for *_, name in answer]


def _cause(error: OSError) -> OSError:
    """Return the error behind the "all attempts to connect failed" of open_tcp_stream."""
    cause = error.__cause__
    if not isinstance(cause, ExceptionGroup):
        return error
    faults = [x for x in cause.exceptions if isinstance(x, OSError)]
    # One that lacked a descriptor says nothing of the backend, so nor do all together.
    return next((x for x in faults if x.errno in _EXHAUSTED), [*faults, error][0])


def _words(error: OSError) -> str:
    # trio puts the address into strerror, where it stands already; gaierror has its own numbers
    if isinstance(error, socket.gaierror) or not error.errno:
        return error.strerror or str(error)
    return os.strerror(error.errno)
