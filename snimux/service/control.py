"""Orders to a worker, and questions: lines over two UNIX stream sockets, some with descriptors.

An order and its answer are each a line of JSON. A question has a number, by which the end of its
answer is known, whose pieces are JSON as well. Knows how they travel, not what comes of them. The
end of a stream says that the other side is gone.

Two sockets, because a supervisor of one version has workers of another while a new one is being
installed: each has both, and speaks on both, whichever the other is.

Source: unix(7), SCM_RIGHTS: descriptors arrive with the first byte of what they were sent with.
"""

import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import trio

from snimux.log import Log

What = Literal["leave", "drain", "close", "ask", "listener", "reload", "reloaded"]

_READ_SIZE = 64 * 1024
# As many descriptors as Linux sends in one go (SCM_MAX_FD); an order has one.
_MOST_DESCRIPTORS = 253

# Bytes of a line: an order has some for each listener; a piece of an answer may be all that was
# refused. How many lines an answer has is bounded by the time.
_LARGEST_ORDER, _LARGEST_QUESTION, _LARGEST_PIECE = 2**20, 2**16, 2**24

# Seconds: a worker that needs longer for an answer is stuck, or as good as that.
_PATIENCE = 1.0


@dataclass(frozen=True, slots=True)
class Order:
    """A thing to be done, or one that was.

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


class Lines:
    """Lines that come in on a socket, which is non-blocking, and stays its owner's."""

    def __init__(self, sock: socket.socket, *, longest: int = _LARGEST_ORDER) -> None:
        """Begin to read. A line with more bytes than the longest has no end."""
        self._socket = sock
        self._longest = longest
        self.received = bytearray()
        self.descriptors: list[int] = []

    async def next(self) -> bytes | None:
        """Wait for the next line, and return it without its end; None when the other side is gone.

        Raises:
            ValueError: what came has no end.
            trio.ClosedResourceError: the socket was closed here meanwhile.
        """
        searched = 0
        while (end := self.received.find(b"\n", searched)) < 0:
            searched = len(self.received)
            if searched > self._longest:
                raise ValueError("a line without an end")
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
            self.descriptors += descriptors
            if not data:
                return None
            self.received += data
        line = bytes(self.received[:end])
        del self.received[: end + 1]
        return line

    def close(self) -> None:
        """Close what came and was not taken."""
        for descriptor in self.descriptors:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self.descriptors.clear()


async def receive(lines: Lines) -> Order | None:
    """Wait for the next order, and return it; None when the other side is gone.

    Raises:
        ValueError: what came is no order, or without its descriptors.
        trio.ClosedResourceError: as of ``Lines.next``.

    Resource handling: whoever receives an order owns its descriptors.
    """
    try:
        line = await lines.next()
        if line is None:
            return None
        words = json.loads(line)
        count, what, number = words["descriptors"], words["what"], words["number"]
        serve = {int(each): protocol for each, protocol in words["serve"].items()}
        address = words["address"]
    # of another version, perhaps
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ValueError("what came is no order") from None
    if len(lines.descriptors) < count:  # this process had no room for more
        lines.close()
        raise ValueError("the descriptors of an order did not arrive")
    descriptors = tuple(lines.descriptors[:count])
    del lines.descriptors[:count]
    return Order(what, number, serve, descriptors, address)


def _stream(sock: socket.socket) -> trio.SocketStream:
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


async def answer(sock: socket.socket, tell: Callable[[str], Iterable[Any]], log: Log) -> None:
    """Answer questions until nobody is left who could ask, or until cancelled.

    Args:
        sock: the worker's end.
        tell: returns the pieces of an answer; others have their turn between two.
        log: gets why there is none, if so; then no question is answered any more.

    Resource handling: closes ``sock``.
    """
    lines = Lines(sock, longest=_LARGEST_QUESTION)
    with contextlib.suppress(trio.BrokenResourceError):
        async with _stream(sock) as stream:
            try:
                while (question := await lines.next()) is not None:
                    number, _, what = question.partition(b" ")
                    for piece in tell(what.decode()):
                        await stream.send_all(json.dumps(piece).encode() + b"\n")
                    await stream.send_all(number + b"\n")
            except trio.BrokenResourceError:
                raise
            except Exception as error:  # not expected; but who is asked must not end by that
                log.write("error", "status-failed", {"detail": repr(error)})


class Respondent:
    """A worker that can be asked.

    Resource handling: owns the supervisor's end of the socket; see ``close``.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._stream = _stream(sock)
        self.lines = Lines(sock, longest=_LARGEST_PIECE)
        self._one_at_a_time = trio.Lock()
        self._number = 0
        self._owes = False  # an answer, which was not waited for

    def close(self) -> None:
        """Ask nothing any more; who waits for an answer has none."""
        self._stream.socket.close()

    async def ask(self, what: str) -> list[Any] | None:
        """Ask, and return the pieces of the answer; None if there is none in time."""
        with (
            trio.move_on_after(_PATIENCE),
            contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError),
            contextlib.suppress(ValueError, RecursionError),
        ):
            async with self._one_at_a_time:
                # A question more would be one more that it cannot answer.
                if self._owes and await self._answer() is None:
                    return None
                self._number += 1
                self._owes = True
                await self._stream.send_all(b"%d %s\n" % (self._number, what.encode()))
                return await self._answer()
        return None

    async def _answer(self) -> list[Any] | None:
        """Return the answer to the last question, from where it was read to before."""
        pieces: list[Any] = []
        end = b"%d" % self._number
        while (line := await self.lines.next()) is not None:
            if line == end:
                self._owes = False
                return pieces
            pieces.append(json.loads(line))
        return None
