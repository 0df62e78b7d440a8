"""Dial one of a backend's addresses: in order, until one connects.

Knows no TLS and no routes' patterns; sends nothing.
"""

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import trio
from trio.socket import SocketType

from snimux.address import DialAddress, TcpAddress, UnixAddress
from snimux.routes import Backend

# What socket() and connect() say when this process or machine has nothing left to dial with:
# descriptors, memory, source ports.
_EXHAUSTED = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL}
)

# How often a UNIX listener whose queue is full is tried again (seconds): there is no event for it.
_QUEUE_POLL = 0.01


@dataclass(frozen=True, slots=True)
class Dialled:
    """A connected socket, which the receiver owns, and the address that answered."""

    socket: SocketType
    address: DialAddress


@dataclass(frozen=True, slots=True)
class NotDialled:
    """No address connected; ``exhausted`` if the fault was this machine's, not a backend's."""

    detail: str
    exhausted: bool


async def dial(backend: Backend, *, dial_timeout: float) -> Dialled | NotDialled:
    """Connect to the first of a backend's addresses that answers.

    Args:
        backend: its addresses are tried in order.
        dial_timeout: seconds that each address gets, name look-up included.

    Returns:
        The socket, non-blocking, or why there is none. Raises nothing but ``trio.Cancelled``.
    """
    faults = []
    exhausted = False
    for address in backend.addresses:
        try:
            with trio.fail_after(dial_timeout):
                return Dialled(await _connect(address), address)
        except trio.TooSlowError:
            faults.append(f"{address}: no answer in {dial_timeout:g} s")
        except OSError as error:
            cause = _cause(error)
            faults.append(f"{address}: {_words(cause)}")
            exhausted = exhausted or cause.errno in _EXHAUSTED
    return NotDialled("; ".join(faults), exhausted)


async def _connect(address: DialAddress) -> SocketType:
    match address:
        case UnixAddress(path):
            return await _connect_unix(path)
        case TcpAddress(host, port) if address.is_numeric:
            sock = trio.socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
            with _closed_on_error(sock):
                await sock.connect((host, port))
                _refuse_itself(sock)
            return sock
        case TcpAddress(host, port):
            sock = await _connect_by_name(host, port)
            with _closed_on_error(sock):
                _refuse_itself(sock)
            return sock


async def _connect_unix(path: str) -> SocketType:
    # Not trio's connect: with its queue full, a UNIX listener says EAGAIN, which trio takes for
    # EINPROGRESS, and then the unconnected socket for a connected one.
    sock = socket.socket(socket.AF_UNIX)
    with _closed_on_error(sock):
        sock.setblocking(False)
        while (number := sock.connect_ex(path)) == errno.EAGAIN:  # noqa: ASYNC110
            await trio.sleep(_QUEUE_POLL)
        if number:
            raise OSError(number, os.strerror(number))
    return trio.socket.from_stdlib_socket(sock)


async def _connect_by_name(host: str, port: int) -> SocketType:
    """Look the name up, and race IPv6 with IPv4 (RFC 8305)."""
    try:
        stream = await trio.open_tcp_stream(host, port)
    except socket.gaierror:
        # Without a descriptor the resolver cannot open its files, and says that it does not know
        # the name; a socket says what it is.
        trio.socket.socket().close()
        raise
    return stream.socket


@contextlib.contextmanager
def _closed_on_error(sock: SocketType | socket.socket) -> Iterator[None]:
    try:
        yield
    except BaseException:
        sock.close()
        raise


def _refuse_itself(sock: SocketType) -> None:
    """Refuse a socket that is connected to itself.

    TCP opens one (RFC 9293 section 3.5, simultaneous open) where a port of this machine that
    nobody listens on is dialled and happens to be picked as the source port too.
    """
    if sock.getsockname() == sock.getpeername():
        raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))


def _cause(error: OSError) -> OSError:
    """The error behind "all attempts to connect failed", which is what open_tcp_stream says."""
    cause = error.__cause__
    if isinstance(cause, ExceptionGroup):
        cause = cause.exceptions[0]
    return cause if isinstance(cause, OSError) else error


def _words(error: OSError) -> str:
    # trio puts the address into strerror, where it stands already; gaierror has its own numbers
    if isinstance(error, socket.gaierror) or not error.errno:
        return error.strerror or str(error)
    return os.strerror(error.errno)
