"""Ask a worker, and answer a supervisor: lines over a UNIX stream socket, one question at a time.

A question is a number and a word. The answer is lines of JSON, and then the number alone. Whoever
asks does not wait for ever; what comes too late is known by its number, and is no answer to what
was asked since.

Knows nothing of what is asked.
"""

import json
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import trio

from snimux.log import Log

# Seconds: a worker that needs longer is stuck, or as good as that.
_PATIENCE = 1.0

_READ_SIZE = 64 * 1024
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
            data = await self.stream.receive_some(_READ_SIZE)
            if not data or looked_at > _LARGEST_PIECE:
                raise EOFError
            self.buffer += data
        line = bytes(self.buffer[:end])
        del self.buffer[: end + 1]
        return line
