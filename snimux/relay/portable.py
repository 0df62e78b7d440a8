"""The relay that works wherever trio does: one loop of ``recv`` and ``send`` a direction.

Source: RFC 9293 section 3.6 (half-close), for what is passed on.
"""

import contextlib
import socket
from dataclasses import dataclass

import trio
from trio.socket import SocketType, from_stdlib_socket

from snimux.relay.interface import End, Tally
from snimux.relay.reset import prepare_reset

# What one direction holds in memory at the most, besides the kernel's buffers.
_CHUNK = 64 * 1024

# A side that has sent its FIN stays readable, so waiting cannot tell that it was reset later; its
# error is asked for instead, this often (seconds), until the other side has ended as well.
_WATCH_EVERY = 1.0


async def relay(
    client: socket.socket,
    backend: socket.socket,
    tally: Tally,
    *,
    head: bytearray,
    idle_timeout: float,
) -> End:
    """Relay as ``interface.Relay`` says."""
    return await _PortableRelay(client, backend, tally, idle_timeout).run(head)


@dataclass(eq=False, slots=True)
class _Side:
    """One of the two sockets: whether it has sent its FIN, or was lost."""

    plain: socket.socket
    socket: SocketType
    when_lost: End
    finished: bool = False
    lost: bool = False


class _PortableRelay:
    def __init__(
        self, client: socket.socket, backend: socket.socket, tally: Tally, idle_timeout: float
    ) -> None:
        self.client = _Side(client, from_stdlib_socket(client), End.CLIENT_RESET)
        self.backend = _Side(backend, from_stdlib_socket(backend), End.BACKEND_RESET)
        self.tally = tally
        self.idle_timeout = idle_timeout
        self.idle = trio.CancelScope(deadline=trio.current_time() + idle_timeout)
        self.pumps = trio.CancelScope()
        self.end = End.EOF
        self.reset: _Side | None = None  # the side to reset in the end

    async def run(self, head: bytearray) -> End:
        with self.idle, self.pumps:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.pump, self.backend, self.client, bytearray())
                await self.pump(self.client, self.backend, head)
        if self.idle.cancelled_caught:
            self.end = End.IDLE
            for lost, other in ((self.client, self.backend), (self.backend, self.client)):
                # A reset that nobody saw, since what came before it was not taken.
                if lost.lost or lost.plain.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    self.lose(lost, other)
        if self.reset is not None:
            await prepare_reset(self.reset.plain)
        return self.end

    async def pump(self, source: _Side, sink: _Side, head: bytearray) -> None:
        """Move one direction, until the source's FIN or until one of the two is lost."""
        await self.send(sink, head)
        head.clear()
        while not sink.lost and await self.forward(source, sink):
            pass
        if sink.lost:
            # What the lost sink had sent is still to be read: the other direction does that, and
            # ends in the reset. Unless it has ended before.
            if sink.finished:
                self.lose(sink, source)
        elif source.lost:
            self.lose(source, sink)
        elif self.finish(source, sink):
            await self.watch(source, sink)

    async def forward(self, source: _Side, sink: _Side) -> bool:
        """Pass the source's next bytes on; False at its end, of whichever kind.

        A frame of its own: while it waits for bytes, it holds none.
        """
        try:
            data = await source.socket.recv(_CHUNK)
        except OSError:
            source.lost = True
            return False
        await self.send(sink, data)
        return bool(data)

    async def send(self, sink: _Side, data: bytes | bytearray) -> None:
        """Send everything, unless the sink is lost."""
        rest = memoryview(data)
        try:
            while rest:
                # Not by trio's send, which lets others run before it raises: the kernel tells of a
                # reset once, and the other direction would read no more than a FIN meanwhile.
                try:
                    sent = sink.plain.send(rest)
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(sink.plain)
                    continue
                rest = rest[sent:]
                now = trio.current_time()
                if sink is self.backend:
                    self.tally.up += sent
                else:
                    self.tally.answered = self.tally.answered or now
                    self.tally.down += sent
                self.idle.deadline = now + self.idle_timeout
        except OSError:
            sink.lost = True

    def finish(self, source: _Side, sink: _Side) -> bool:
        """Pass the source's FIN on; False if that was the last thing to do."""
        source.finished = True
        if sink.finished:
            self.pumps.cancel()
        # A sink that is lost already cannot be shut down; the other direction reads that it is.
        with contextlib.suppress(OSError):
            sink.socket.shutdown(socket.SHUT_WR)
        return not sink.finished

    async def watch(self, finished: _Side, other: _Side) -> None:
        """Find out that a side which has sent its FIN is then lost, though nobody writes to it."""
        while not finished.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):  # noqa: ASYNC110
            await trio.sleep(_WATCH_EVERY)
        self.lose(finished, other)

    def lose(self, lost: _Side, other: _Side) -> None:
        """End by a side that is lost: the other has what came before, and is to be reset."""
        self.end, self.reset = lost.when_lost, other
        self.pumps.cancel()
