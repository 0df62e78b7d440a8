"""The relay for Linux: one task moves the bytes of all connections, through an epoll of its own.

A connection's own trio task is parked while it is relayed, and stays the owner: of its sockets,
its deadlines and its cancellation. Small reads are copied. A read that fills the buffer switches
its direction to ``splice`` through a pipe, where bytes never leave the kernel; when it runs dry
the pipe goes back. So a connection on which nothing moves holds no buffer, no pipe and no timer.

Source: epoll(7) for what an edge tells, splice(2).
"""

import contextlib
import errno
import os
import select
import socket
import sys
from collections.abc import AsyncIterator
from math import inf

import outcome
import trio

from snimux.relay.interface import End, Relay, Tally
from snimux.relay.pipes import Pipe, Pipes
from snimux.relay.reset import prepare_reset

assert sys.platform == "linux"  # also tells mypy, for whom the rest is not there elsewhere

# A read that fills this is a bulk transfer's.
_BUFFER = 64 * 1024
# And what moves less than this at a time is one no longer.
_SMALL = 16 * 1024

# What one direction may move in one turn, in bytes; then it is the others'. Half of what a pipe
# holds costs no more for each byte than all of it, and halves what a new connection's first byte
# waits for behind bulk transfers.
_TURN = 512 * 1024

_EVENTS = 128  # taken from the kernel at a time; then trio's other tasks have their turn

# Idle connections are looked for this often at the most (seconds).
_IDLE_EVERY = 1.0

# Behind the bytes there is something that no further edge will tell of: FIN, an error, or bytes
# behind an urgent one, at which a read stops short.
_MORE = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR | select.EPOLLPRI
_TO_READ = select.EPOLLIN | _MORE
_EDGES = select.EPOLLIN | select.EPOLLOUT | select.EPOLLPRI | select.EPOLLRDHUP | select.EPOLLET
_SPLICE = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE

# What splice says of the pipe or of the call, and not of the socket.
_NOT_THE_SOCKETS = frozenset({errno.EAGAIN, errno.EINVAL, errno.ENOMEM})


def _family(sock: socket.socket) -> int:
    """The family as a number: ``sock.family`` looks an enum's member up, which takes 2 µs."""
    return super(socket.socket, sock).family


class _Side:
    """One of the two sockets of a connection."""

    __slots__ = ("fd", "inward", "lost", "more", "outward", "readable", "socket", "when_lost")

    def __init__(self, sock: socket.socket, when_lost: End) -> None:
        self.socket = sock
        self.fd = sock.fileno()
        self.when_lost = when_lost
        self.readable = False  # there may be bytes: an edge says so, and a short read that not
        # A short read does not say so: see _MORE. Nor does one of a UNIX socket, where it may have
        # stopped at descriptors that were passed.
        self.more = _family(sock) == socket.AF_UNIX
        self.lost = False
        self.outward: _Way
        self.inward: _Way


class _Way:
    """One direction of a connection."""

    __slots__ = ("again", "blocked", "bulk", "connection", "done", "held", "in_pipe", "pipe",
                 "sink", "source")  # fmt: skip

    def __init__(self, connection: "_Connection", source: _Side, sink: _Side) -> None:
        self.connection = connection
        self.source = source
        self.sink = sink
        source.outward = sink.inward = self
        self.held = b""  # read, and not sent yet
        self.bulk = False
        self.pipe: Pipe | None = None
        self.in_pipe = 0  # bytes
        self.blocked = False  # the sink takes no more; an edge will say when it does
        self.again = False  # its turn ended before its bytes did
        self.done = False


class _Connection:
    """A connection that is being relayed, and the task that waits for its end."""

    __slots__ = ("backend", "client", "down", "end", "idle_timeout", "moved", "reset", "tally",
                 "task", "up")  # fmt: skip

    def __init__(
        self, client: socket.socket, backend: socket.socket, tally: Tally, idle_timeout: float
    ) -> None:
        self.client = _Side(client, End.CLIENT_RESET)
        self.backend = _Side(backend, End.BACKEND_RESET)
        self.up = _Way(self, self.client, self.backend)
        self.down = _Way(self, self.backend, self.client)
        self.tally = tally
        self.idle_timeout = idle_timeout
        self.moved = 0.0  # when a byte was moved last, by trio's clock
        self.end: End | None = None
        self.reset: _Side | None = None  # the side to reset in the end
        self.task: trio.lowlevel.Task | None = None  # while it is parked


@contextlib.asynccontextmanager
async def engine() -> AsyncIterator[Relay]:
    """Run an engine for as long as the context lasts; gives its relay.

    Resource handling: owns an epoll and pipes. Connections must have ended before the context.
    """
    running = _Engine()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(running.run)
            nursery.start_soon(running.watch_idle)
            yield running.relay
            nursery.cancel_scope.cancel()
    finally:
        running.close()


class _Engine:
    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.sides: dict[int, _Side] = {}
        self.again: list[_Way] = []
        self.pipes = Pipes()
        self.buffer = memoryview(bytearray(_BUFFER))
        self.into = [self.buffer]
        self.now = trio.current_time()
        self.idle = trio.CancelScope(deadline=inf)

    def close(self) -> None:
        self.pipes.close()
        self.epoll.close()

    # The owner's side: what a connection's own task does.

    async def relay(
        self,
        client: socket.socket,
        backend: socket.socket,
        tally: Tally,
        *,
        head: bytearray,
        idle_timeout: float,
    ) -> End:
        """See ``snimux.relay.Relay``."""
        connection = _Connection(client, backend, tally, idle_timeout)
        connection.up.held = bytes(head)
        head.clear()
        try:
            self.begin(connection)
        except BaseException:
            self.forget(connection)
            raise
        if connection.end is None:
            connection.task = trio.lowlevel.current_task()

            def abort(_: object) -> trio.lowlevel.Abort:
                self.forget(connection)
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)
        if connection.reset is not None:
            await prepare_reset(connection.reset.socket)
        assert connection.end is not None
        return connection.end

    def begin(self, connection: _Connection) -> None:
        """Send the head, and take the connection into the engine's care."""
        self.now = connection.moved = trio.current_time()
        for side in (connection.client, connection.backend):
            self.sides[side.fd] = side
            self.epoll.register(side.fd, _EDGES)
        if self.now + connection.idle_timeout < self.idle.deadline:
            self.idle.deadline = self.now + connection.idle_timeout
        self.step(connection.up)

    def forget(self, connection: _Connection) -> None:
        """Do nothing for a connection any more; its sockets are about to be closed."""
        # Closing takes them out of the epoll as well; until then, edges at them are not heeded.
        for side in (connection.client, connection.backend):
            if self.sides.get(side.fd) is side:
                del self.sides[side.fd]
        for way in (connection.up, connection.down):
            way.done = True
            way.held = b""
            self.release_pipe(way)

    # The engine's side.

    async def run(self) -> None:
        """Serve what is ready, again and again."""
        while True:
            if self.again:
                await trio.lowlevel.checkpoint()
            else:
                await trio.lowlevel.wait_readable(self.epoll.fileno())
            self.serve()

    def serve(self) -> bool:
        """Give what is ready one turn; True if there may be more that is."""
        self.now = trio.current_time()
        waiting, self.again = self.again, []
        ready = self.epoll.poll(0, _EVENTS)
        for fd, events in ready:
            side = self.sides.get(fd)
            if side is not None:  # else it ended earlier in this pass
                try:
                    self.heed(side, events)
                except Exception as error:
                    self.fail(side.outward.connection, error)
        for way in waiting:
            way.again = False
            if not way.done:
                try:
                    self.step(way)
                except Exception as error:
                    self.fail(way.connection, error)
        return len(ready) == _EVENTS

    def fail(self, connection: _Connection, error: Exception) -> None:
        """Hand an error that nobody expected to the connection's own task: the others go on."""
        self.forget(connection)
        assert connection.task is not None  # while it begins, errors are its own
        trio.lowlevel.reschedule(connection.task, outcome.Error(error))

    def heed(self, side: _Side, events: int) -> None:
        """Do what the edges at a socket call for."""
        inward, outward = side.inward, side.outward
        if events & _TO_READ:
            side.readable = True
            if events & _MORE:
                side.more = True
                # Reading may show no more than a FIN that came before the error.
                side.lost = side.lost or bool(events & select.EPOLLERR)
            if not outward.done:
                if not (outward.blocked or outward.again):
                    self.step(outward)
            elif events & (select.EPOLLHUP | select.EPOLLERR) and not inward.done:
                # It had sent its FIN, and is lost now, though nobody writes to it.
                self.finish(outward.connection, side.when_lost, reset=outward.sink)
        if inward.blocked and events & (select.EPOLLOUT | _MORE) and not inward.done:
            inward.blocked = False
            self.step(inward)

    def step(self, way: _Way) -> None:
        """Give a direction its turn: until it would block, runs dry, or has had its share."""
        if (way.held and not self.flush(way)) or (way.pipe is not None and not self.drain(way)):
            return
        source, left = way.source, _TURN
        while source.readable:
            count = self.splice(way) if way.bulk else self.copy(way)
            if count <= 0:
                break
            left -= count
            if left <= 0:
                way.again = True
                self.again.append(way)
                break

    def copy(self, way: _Way) -> int:
        """Copy what is there; how much that was, 0 if that was all for now."""
        source = way.source
        try:
            count = os.readv(source.fd, self.into)
        except BlockingIOError:
            source.readable = False
            return 0
        except OSError:
            return self.end_of(way, lost=True)
        if not count:
            return self.end_of(way)
        if count == _BUFFER:
            way.bulk = True
        elif not source.more:
            source.readable = False
        return count if self.send(way, self.buffer[:count]) else 0

    def flush(self, way: _Way) -> bool:
        """Send what is held; False if some of it is held still."""
        held, way.held = way.held, b""
        return self.send(way, held)

    def send(self, way: _Way, data: bytes | memoryview) -> bool:
        """Send some bytes; what the sink does not take is held, and then it is False."""
        try:
            count = os.write(way.sink.fd, data)
        except BlockingIOError:
            count = 0
        except OSError:
            self.lose_sink(way)
            return False
        self.count(way, count)
        if count < len(data):
            way.held = bytes(data[count:])
            way.blocked = True
            return False
        return True

    def splice(self, way: _Way) -> int:
        """Move what is there through a pipe; how much that was, 0 if that was all for now."""
        if way.pipe is None:
            way.pipe = self.pipes.take()
            if way.pipe is None:
                way.bulk = False
                return self.copy(way)
        try:
            count = os.splice(way.source.fd, way.pipe.writer, _TURN, flags=_SPLICE)
        except OSError as error:
            # The kernel tells of a reset once: the next read would show no more than a FIN.
            way.source.lost = way.source.lost or error.errno not in _NOT_THE_SOCKETS
            count = 0
        if not count:
            # Dry, or the end, or an urgent byte, which splice does not step over: reading tells.
            self.release_pipe(way)
            return self.copy(way)
        if count < _SMALL:
            way.bulk = False
        way.in_pipe = count
        return count if self.drain(way) else 0

    def drain(self, way: _Way) -> bool:
        """Move what is in the pipe to the sink; False if something stays in it."""
        while way.in_pipe:
            assert way.pipe is not None
            try:
                count = os.splice(way.pipe.reader, way.sink.fd, way.in_pipe, flags=_SPLICE)
            except BlockingIOError:
                way.blocked = True
                return False
            except OSError:
                self.lose_sink(way)
                return False
            way.in_pipe -= count
            self.count(way, count)
        if way.pipe is not None and not way.bulk:
            self.release_pipe(way)
        return True

    def count(self, way: _Way, count: int) -> None:
        if not count:
            return
        connection, tally = way.connection, way.connection.tally
        connection.moved = self.now
        if way is connection.up:
            tally.up += count
        else:
            tally.answered = tally.answered or self.now
            tally.down += count

    # Ends.

    def end_of(self, way: _Way, *, lost: bool = False) -> int:
        """The source has no more: by FIN, or because it is lost."""
        connection, source, sink = way.connection, way.source, way.sink
        way.done = True
        self.release_pipe(way)
        if lost or source.lost:
            self.finish(connection, source.when_lost, reset=sink)
        elif sink.outward.done:
            self.finish(connection, End.EOF)
        else:
            # A sink that is lost already cannot be shut down; reading from it tells that it is.
            with contextlib.suppress(OSError):
                sink.socket.shutdown(socket.SHUT_WR)
        return 0

    def lose_sink(self, way: _Way) -> None:
        """The sink takes nothing any more; what it had sent is still to be read, then it ends."""
        way.done = True
        way.held = b""
        self.release_pipe(way)
        sink = way.sink
        if sink.outward.done:
            self.finish(way.connection, sink.when_lost, reset=way.source)
        else:
            sink.lost = sink.readable = sink.more = True
            if not (sink.outward.blocked or sink.outward.again):
                self.step(sink.outward)

    def finish(self, connection: _Connection, end: End, reset: _Side | None = None) -> None:
        """The connection has ended: hand it back to its task."""
        connection.end, connection.reset = end, reset
        self.forget(connection)
        if connection.task is not None:
            trio.lowlevel.reschedule(connection.task)

    async def catch_up(self) -> None:
        """Serve all that is ready by now: what is there is read before anybody is judged."""
        for _ in range(len(self.sides) // _EVENTS + 1):
            if not self.serve():
                break
            await trio.lowlevel.checkpoint()
        for way in self.again:  # ``run`` may wait for an edge: here is one
            self.epoll.modify(way.source.fd, _EDGES)

    def give_up(self, connection: _Connection) -> None:
        """Nothing has moved for the idle limit: a reset that could not be passed on yet is now."""
        for way in (connection.up, connection.down):
            if way.source.lost:
                self.finish(connection, way.source.when_lost, reset=way.sink)
                return
        self.finish(connection, End.IDLE)

    def release_pipe(self, way: _Way) -> None:
        """Give the pipe back, or close it if there are bytes in it that nobody wants any more."""
        if way.pipe is not None:
            if way.in_pipe:
                self.pipes.drop(way.pipe)
            else:
                self.pipes.give_back(way.pipe)
            way.pipe, way.in_pipe = None, 0

    async def watch_idle(self) -> None:
        """End connections on which nothing has moved for their idle limit."""
        while True:
            with self.idle:
                await trio.sleep_forever()
            await self.catch_up()
            now = self.now
            connections = {side.outward.connection for side in self.sides.values()}
            for connection in connections:
                if connection.moved + connection.idle_timeout <= now:
                    self.give_up(connection)
            limits = (c.moved + c.idle_timeout for c in connections if c.end is None)
            self.idle = trio.CancelScope(deadline=max(min(limits, default=inf), now + _IDLE_EVERY))
