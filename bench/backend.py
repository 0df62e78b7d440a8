"""The servers behind: ``python -m bench.backend MODE`` prints its port and serves until killed.

One process a mode, each a loop as lean as Python allows: it is not what is measured. They speak
no TLS; to a proxy that passes bytes through there is no difference.
"""

import contextlib
import select
import socket
import sys

from bench import names

REPLY = b"served\n"
CHUNK = 256 * 1024  # bytes a send of the streaming server

_MSG_TRUNC = socket.MSG_TRUNC  # on TCP: take the bytes, but do not copy them anywhere
_ROOM = bytearray(1024 * 1024)


def answer(listener: socket.socket) -> None:
    """Read a hello of one record, reply a few bytes, close."""
    while True:
        connection, _ = listener.accept()
        with contextlib.suppress(ConnectionError):
            data = connection.recv(16384)
            while data and len(data) < 5 + int.from_bytes(data[3:5], "big"):
                more = connection.recv(16384)
                if not more:
                    break
                data += more
            connection.send(REPLY)
        connection.close()


def echoes(listener: socket.socket) -> None:
    """Send back what comes, the hello included."""
    open_: dict[int, socket.socket] = {}
    poller = _poller(listener)
    while True:
        for fd, _ in poller.poll():
            connection = open_.get(fd)
            if connection is None:
                _accept_all(listener, open_, poller, select.EPOLLIN)
                continue
            try:
                data = connection.recv(16384)
                connection.send(data)
            except OSError:
                data = b""
            if not data:
                open_.pop(fd).close()


def stream(listener: socket.socket) -> None:
    """After the first bytes came, send for as long as somebody takes it."""
    open_: dict[int, socket.socket] = {}
    poller = _poller(listener)
    chunk = memoryview(bytes(range(256)) * (CHUNK // 256))
    while True:
        for fd, event in poller.poll():
            connection = open_.get(fd)
            if connection is None:
                _accept_all(listener, open_, poller, select.EPOLLIN)
                continue
            try:
                if event & select.EPOLLIN:
                    if not connection.recv(16384):
                        raise ConnectionError
                    poller.modify(fd, select.EPOLLIN | select.EPOLLOUT)
                if event & select.EPOLLOUT:
                    connection.send(chunk)
            except BlockingIOError:
                pass
            except OSError:
                open_.pop(fd).close()


def upload(listener: socket.socket) -> None:
    """Take what comes."""
    open_: dict[int, socket.socket] = {}
    poller = _poller(listener)
    while True:
        for fd, _ in poller.poll():
            connection = open_.get(fd)
            if connection is None:
                _accept_all(listener, open_, poller, select.EPOLLIN)
                continue
            try:
                if connection.recv_into(_ROOM, 0, _MSG_TRUNC):
                    continue
            except BlockingIOError:
                continue
            except OSError:
                pass
            open_.pop(fd).close()


def _poller(
    listener: socket.socket,
) -> "select.epoll":  # quoted: macOS, where tests import this, has none
    listener.setblocking(False)
    poller = select.epoll()
    poller.register(listener, select.EPOLLIN)
    return poller


def _accept_all(
    listener: socket.socket,
    open_: dict[int, socket.socket],
    poller: "select.epoll",
    events: int,
) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            connection, _ = listener.accept()
            connection.setblocking(False)
            open_[connection.fileno()] = connection
            poller.register(connection, events)


_SERVE = {
    names.ANSWER: answer,
    names.ECHOES: echoes,
    names.STREAM: stream,
    names.UPLOAD: upload,
}


def main() -> None:
    """Listen on a free port, print it, serve."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    print(listener.getsockname()[1], flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        _SERVE[sys.argv[1]](listener)


if __name__ == "__main__":
    main()
