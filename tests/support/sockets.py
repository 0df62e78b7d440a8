"""Connected pairs of real sockets, and what tests do with an end: read, send, FIN and RST."""

import fcntl
import gc
import os
import socket
import struct
import sys
import termios
from pathlib import Path

import trio
from trio.socket import SocketType

BLOCK = 64 * 1024

Pair = tuple[socket.socket, SocketType]
"""What the code under test holds, non-blocking, and the far end."""


async def tcp_pair() -> Pair:
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        far = trio.socket.socket()
        await far.connect(listener.getsockname())
        near, _ = await listener.accept()
    for sock in (near, far):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return plain(near), far


def plain(sock: SocketType) -> socket.socket:
    """The same socket without trio around it."""
    own = socket.socket(fileno=sock.detach())
    own.setblocking(False)
    return own


async def unix_pair() -> Pair:
    near, far = trio.socket.socketpair()
    return plain(near), far


async def send_all(sock: SocketType, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[await sock.send(rest) :]


async def read(sock: SocketType, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = await sock.recv(count - len(data))
        assert piece, f"ended after {len(data)} of {count} bytes"
        data += piece
    return bytes(data)


async def read_to_end(sock: SocketType) -> tuple[bytes, bool]:
    """All that comes until the end, and whether that was a reset."""
    data = bytearray()
    while True:
        try:
            piece = await sock.recv(BLOCK)
        except ConnectionResetError:
            return bytes(data), True
        if not piece:
            return bytes(data), False
        data += piece


def reset(sock: SocketType) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def unacknowledged(sock: SocketType) -> int:
    """Bytes that were sent, and not acknowledged yet. Linux: tcp(7), SIOCOUTQ."""
    answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
    return int.from_bytes(answer, sys.byteorder)


def fin(sock: SocketType) -> None:
    sock.shutdown(socket.SHUT_WR)


_cleared_for = [""]


def open_descriptors() -> int:
    """How many descriptors this process has open; without what tests before left to the collector.

    It would close them at any time, within a test that counts.
    """
    test = os.environ.get("PYTEST_CURRENT_TEST", "")
    if _cleared_for[0] != test:
        gc.collect()
        _cleared_for[0] = test
    return len(list(Path("/dev/fd").iterdir()))
