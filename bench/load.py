"""The clients in front: loops that make connections, round trips and streams, and count them.

Lean on purpose, because they are not what is measured: blocking sockets that are served in turn
need no event loop, and while one is waited for the others' answers queue up in the kernel.

``python -m bench.load PORT STREAMS`` takes so many streams until it is killed.
"""

import contextlib
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Protocol

from bench import names
from bench.backend import CHUNK, REPLY

_IN_FLIGHT = 64  # new connections under way at a time
_ROOM = bytearray(1024 * 1024)


class LoadError(Exception):
    """What came back is not what the backend sent."""


class Load(Protocol):
    """Something to do through a proxy for a while; its sockets are open within ``with``."""

    lead: float
    """Seconds to run right before what is measured."""
    settle: float
    """Seconds that the proxy has after a run, to do what is left to do for the work counted."""

    def __enter__(self) -> "Load": ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None: ...

    def run(self, seconds: float) -> float:
        """Do it for so long; returns how many units of work were done."""


class _Sockets:
    """The sockets that a load has open."""

    lead = 0.0
    settle = 0.0

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        for each in self.sockets:
            each.close()
        self.sockets.clear()


class Connections(_Sockets):
    """New connections: connect, send a hello, read the reply up to its end, close."""

    settle = 0.02  # the last clients have just gone

    def __init__(self, port: int, hello: bytes) -> None:
        super().__init__()
        self._address = ("127.0.0.1", port)
        self._hello = hello

    def __enter__(self) -> "Connections":
        return self

    def run(self, seconds: float) -> float:
        """Make connections for so long; returns how many."""
        under_way: deque[socket.socket] = deque()
        made = 0
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for _ in range(8):
                under_way.append(self._begin())
                if len(under_way) >= _IN_FLIGHT:
                    _finish(under_way.popleft())
            made += 8
        while under_way:
            _finish(under_way.popleft())
        return made

    def _begin(self) -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        made.connect(self._address)
        made.send(self._hello)
        return made


def _finish(connection: socket.socket) -> None:
    # More is asked for than there is, so this returns at the end of the stream.
    reply = connection.recv(64, socket.MSG_WAITALL)
    connection.close()
    if reply != REPLY:
        raise LoadError(f"a new connection got {reply!r} instead of the reply")


class RoundTrips(_Sockets):
    """Small messages and their echo, each connection with one of them under way all the time."""

    def __init__(self, port: int, connections: int, size: int = 200) -> None:
        super().__init__()
        self._port = port
        self._connections = connections
        self._message = bytes(size)

    def __enter__(self) -> "RoundTrips":
        self.sockets += open_echoing(self._port, self._connections)
        for each in self.sockets:
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self

    def run(self, seconds: float) -> float:
        """Exchange messages for so long, until none is under way; returns how many came back."""
        turn, done = deque(self.sockets), 0
        end = time.monotonic() + seconds
        for connection in turn:
            connection.send(self._message)
        while time.monotonic() < end:
            for _ in range(16):
                connection = turn[0]
                turn.rotate(-1)
                self._receive(connection)
                connection.send(self._message)
            done += 16
        for connection in turn:
            self._receive(connection)
        return done + len(turn)

    def _receive(self, connection: socket.socket) -> None:
        size = len(self._message)
        if len(connection.recv(size, socket.MSG_WAITALL)) != size:
            raise LoadError("a connection was closed between two round trips")


def open_echoing(port: int, number: int) -> Iterator[socket.socket]:
    """Open connections to the echoing backend, each ready: its hello has come back."""
    hello = names.hello("curl", names.ECHOES)
    under_way: deque[socket.socket] = deque()
    for _ in range(number):
        made = socket.create_connection(("127.0.0.1", port))
        made.send(hello)
        under_way.append(made)
        if len(under_way) >= _IN_FLIGHT:
            yield _echoed(under_way.popleft(), hello)
    while under_way:
        yield _echoed(under_way.popleft(), hello)


def _echoed(connection: socket.socket, sent: bytes) -> socket.socket:
    if connection.recv(len(sent), socket.MSG_WAITALL) != sent:
        raise LoadError("what came back is not what was sent")
    return connection


class Streams(_Sockets):
    """Bulk, one way, on several connections; counted in bytes at this end."""

    lead = 0.1  # buffers that filled, or ran empty, while nobody came are as in mid-stream again

    def __init__(self, port: int, streams: int, *, up: bool) -> None:
        super().__init__()
        self._port = port
        self._streams = streams
        self._up = up
        self._poller = select.epoll()

    def __enter__(self) -> "Streams":
        hello = names.hello("curl", names.UPLOAD if self._up else names.STREAM)
        events = select.EPOLLOUT if self._up else select.EPOLLIN
        for _ in range(self._streams):
            made = socket.create_connection(("127.0.0.1", self._port))
            made.send(hello)
            made.setblocking(False)
            self._poller.register(made, events)
            self.sockets.append(made)
        return self

    def run(self, seconds: float) -> float:
        """Move bytes for so long; returns how many gigabytes (10^9)."""
        by_number = {each.fileno(): each for each in self.sockets}
        chunk = memoryview(bytes(CHUNK))
        moved, end = 0, time.monotonic() + seconds
        while time.monotonic() < end:
            for fd, _ in self._poller.poll(1.0):
                try:
                    if self._up:
                        moved += by_number[fd].send(chunk)
                    else:
                        moved += _take(by_number[fd])
                except BlockingIOError:
                    pass
        return moved / 1e9


def _take(connection: socket.socket) -> int:
    # MSG_TRUNC: the bytes are taken, but not copied.
    count = connection.recv_into(_ROOM, 0, socket.MSG_TRUNC)
    if not count:
        raise LoadError("a stream ended that has no end")
    return count


def first_bytes(port: int, hello: bytes, seconds: float) -> list[float]:
    """The seconds from connect to the first byte of the reply, of connections one by one."""
    found: list[float] = []
    end = time.monotonic() + seconds
    while (started := time.monotonic()) < end:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.send(hello)
            if not connection.recv(len(REPLY)):
                raise LoadError("no reply")
            found.append(time.monotonic() - started)
        time.sleep(0.001)
    return found


def main() -> None:
    """Take streams until killed: what runs beside the measurement of `first_bytes`."""
    port, streams = map(int, sys.argv[1:])
    with Streams(port, streams, up=False) as load, contextlib.suppress(KeyboardInterrupt):
        load.run(0.1)
        print("streaming", flush=True)
        load.run(3600)


if __name__ == "__main__":
    main()
