"""Orders to a worker, with descriptors, and its answers: lines of JSON over a UNIX stream socket.

Knows how an order travels, not what comes of it. The end of the stream says that the other side
is gone.

Source: unix(7), SCM_RIGHTS: descriptors arrive with the first byte of what they were sent with.
"""

import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import trio

from snimux.log import Log

What = Literal["leave", "drain", "close", "ask", "listener", "reload", "reloaded"]

_READ_SIZE = 64 * 1024
# An order has some bytes for each listener.
_LARGEST = 1024 * 1024
# As many descriptors as Linux sends in one go (SCM_MAX_FD); an order has one.
_MOST_DESCRIPTORS = 253


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be done, or was.

    ``leave`` is to accept no more, ``drain`` and ``close`` are stages of an end; ``ask`` has the
    Caddys asked at once. ``listener`` hands over a socket: ``number`` is its, and ``address`` where
    it was to listen. ``reload`` (``number`` is the reload's) hands over the configuration's text,
    and ``serve`` says by number which listeners are for which protocol from then on: all others are
    to be closed. ``reloaded`` is the answer, also of one that ends and has nothing to reload.
    """

    what: What
    number: int = 0
    serve: Mapping[int, str] = field(default_factory=dict)
    descriptors: tuple[int, ...] = ()
    address: str = ""


class Gone(Exception):
    """The other side is gone, or does not read: this order did not reach it whole."""


def send(sock: socket.socket, order: Order) -> None:
    """Send an order, at once.

    Raises:
        Gone: it could not be sent. Nothing may be sent after that, for part of it may have been.
    """
    words = {
        "what": order.what,
        "number": order.number,
        "address": order.address,
        "serve": order.serve,
        "descriptors": len(order.descriptors),
    }
    data = json.dumps(words).encode() + b"\n"
    try:
        sent = socket.send_fds(sock, [data], order.descriptors)
    except OSError as error:  # EAGAIN: it has not read for a long time
        raise Gone(os.strerror(error.errno or 0)) from None
    if sent < len(data):
        raise Gone("it does not read its orders")


class Orders:
    """What comes in on a socket, which is non-blocking, and stays its owner's."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._received = bytearray()
        self._descriptors: list[int] = []

    async def receive(self) -> Order | None:
        """The next order; None when the other side is gone.

        Raises:
            ValueError: what came is no order, or without its descriptors.
            trio.ClosedResourceError: the socket was closed here meanwhile.

        Resource handling: whoever receives an order owns its descriptors.
        """
        while b"\n" not in self._received:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                data, descriptors, _, _ = socket.recv_fds(
                    self._socket, _READ_SIZE, _MOST_DESCRIPTORS
                )
            except BlockingIOError:
                continue
            except OSError:  # reset: it left before it had read all; or closed here
                return None
            for descriptor in descriptors:
                os.set_inheritable(descriptor, False)
            self._descriptors += descriptors
            if not data:
                return None
            self._received += data
            if len(self._received) > _LARGEST:
                raise ValueError("what came is no order")
        line, _, self._received = self._received.partition(b"\n")
        try:
            words = json.loads(line)
            count, what, number = words["descriptors"], words["what"], words["number"]
            serve = {int(each): protocol for each, protocol in words["serve"].items()}
            address = words["address"]
        except (
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RecursionError,
        ):  # of another version, perhaps
            raise ValueError("what came is no order") from None
        taken, self._descriptors = self._descriptors[:count], self._descriptors[count:]
        if len(taken) < count:  # this process has no room for more
            _close(taken)
            raise ValueError("the descriptors of an order did not arrive")
        return Order(what, number, serve, tuple(taken), address)

    def close(self) -> None:
        """Close what came and was not taken."""
        _close(self._descriptors)
        self._descriptors = []


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)


# Seconds: a worker that needs longer is stuck, or as good as that.
_PATIENCE = 1.0

_ANSWER_SIZE = 64 * 1024
# Bytes of a line: a question, and a piece of an answer, such as all that was refused. How many
# lines there are is bounded by the time.
_LONGEST_QUESTION, _LARGEST_PIECE = 64 * 1024, 16 * 1024 * 1024


def _stream(sock: socket.socket) -> trio.SocketStream:
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


async def answer(sock: socket.socket, tell: Callable[[str], Iterable[Any]], log: Log) -> None:
    """Answer questions until nobody is left who could ask, or until cancelled.

    Args:
        sock: the worker's end.
        tell: gives the pieces of an answer; others have their turn between two.
        log: told if there is none; then no question is answered any more.

    Resource handling: closes ``sock``.
    """
    with suppress(trio.BrokenResourceError):
        async with _stream(sock) as stream:
            try:
                await _answer(stream, tell)
            except trio.BrokenResourceError:
                raise
            except Exception as error:  # not expected; but who is asked must not end by that
                log.write("error", "status-failed", {"detail": repr(error)})


async def _answer(stream: trio.SocketStream, tell: Callable[[str], Iterable[Any]]) -> None:
    buffer = bytearray()
    async for data in stream:
        buffer += data
        *questions, buffer = buffer.split(b"\n")
        for question in questions:
            number, _, what = question.partition(b" ")
            for piece in tell(what.decode()):
                await stream.send_all(json.dumps(piece).encode() + b"\n")
            await stream.send_all(number + b"\n")
        if len(buffer) > _LONGEST_QUESTION:
            raise ValueError("a question without an end")


class Respondent:
    """A worker that can be asked.

    Resource handling: owns the supervisor's end of the socket; see ``close``.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.stream = _stream(sock)
        self.one_at_a_time = trio.Lock()
        self.buffer = bytearray()
        self.number = 0
        self.owes = False  # an answer, which was not waited for

    def close(self) -> None:
        """Ask nothing any more; who waits for an answer has none."""
        self.stream.socket.close()

    async def ask(self, what: str) -> list[Any] | None:
        """The pieces of the answer; None if there is none in time."""
        with (
            trio.move_on_after(_PATIENCE),
            suppress(trio.BrokenResourceError, trio.ClosedResourceError, EOFError),
            suppress(ValueError, RecursionError),
        ):
            async with self.one_at_a_time:
                # A question more would be one more that it cannot answer.
                if self.owes:
                    await self._answer()
                self.number += 1
                self.owes = True
                await self.stream.send_all(b"%d %s\n" % (self.number, what.encode()))
                return await self._answer()
        return None

    async def _answer(self) -> list[Any]:
        """The answer to the last question, from where it was read to before."""
        pieces: list[Any] = []
        end = b"%d" % self.number
        while True:
            line = await self._line()
            if line == end:
                self.owes = False
                return pieces
            pieces.append(json.loads(line))

    async def _line(self) -> bytes:
        looked_at = 0
        while (end := self.buffer.find(b"\n", looked_at)) < 0:
            looked_at = len(self.buffer)
            data = await self.stream.receive_some(_ANSWER_SIZE)
            if not data or looked_at > _LARGEST_PIECE:
                raise EOFError
            self.buffer += data
        line = bytes(self.buffer[:end])
        del self.buffer[: end + 1]
        return line
