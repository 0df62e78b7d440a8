"""Move the bytes of connections on Linux: copied or spliced, as edges allow, in turns.

Knows no epoll and no time: ``engine`` says at which socket which edges were, and what time it is.
A connection that has ended is handed back to the task that waits for it.

Source: epoll(7) for what an edge tells, splice(2).
"""

import contextlib
import errno
import os
import select
import socket
import sys

import trio

from snimux.relay.interface import End, Tally
from snimux.relay.pipes import Pipe, Pipes

assert sys.platform == "linux"  # also tells mypy, for whom the rest is not there elsewhere

# A read that fills this is a bulk transfer's.
_BUFFER = 64 * 1024
# And what moves less than this at a time is one no longer.
_SMALL = 16 * 1024

# What one direction may move in one turn, in bytes; then it is the others'. Half of what a pipe
# holds costs no more for each byte than all of it, and halves what a new connection's first byte
# waits for behind bulk transfers.
_TURN = 512 * 1024

# Behind the bytes there is something that no further edge will tell of: FIN, an error, or bytes
# behind an urgent one, at which a read stops short.
_MORE = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR | select.EPOLLPRI
_TO_READ = select.EPOLLIN | _MORE
EDGES = select.EPOLLIN | select.EPOLLOUT | select.EPOLLPRI | select.EPOLLRDHUP | select.EPOLLET
_SPLICE = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE

# What splice says of the pipe or of the call, and not of the socket.
_NOT_THE_SOCKETS = frozenset({errno.EAGAIN, errno.EINVAL, errno.ENOMEM})


def _family(sock: socket.socket) -> int:
    """Return the family as a number: ``sock.family`` looks an enum's member up, 2 µs."""
    return super(socket.socket, sock).family


class Side:
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
        self.outward: Way
        self.inward: Way


class Way:
    """One direction of a pair."""

    __slots__ = ("again", "blocked", "bulk", "done", "held", "in_pipe", "pair", "pipe", "sink",
                 "source")  # fmt: skip

    def __init__(self, pair: "Pair", source: Side, sink: Side) -> None:
        self.pair = pair
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


class Pair:
    """A client and a backend that are relayed, and the task that waits for the end of that."""

    __slots__ = ("backend", "client", "down", "end", "idle_timeout", "moved", "reset", "tally",
                 "task", "up")  # fmt: skip

    def __init__(
        self, client: socket.socket, backend: socket.socket, tally: Tally, idle_timeout: float
    ) -> None:
        self.client = Side(client, End.CLIENT_RESET)
        self.backend = Side(backend, End.BACKEND_RESET)
        self.up = Way(self, self.client, self.backend)
        self.down = Way(self, self.backend, self.client)
        self.tally = tally
        self.idle_timeout = idle_timeout
        self.moved = 0.0  # when a byte was moved last, by trio's clock
        self.end: End | None = None
        self.reset: Side | None = None  # the side to reset in the end
        self.task: trio.lowlevel.Task | None = None  # while it is parked


class Mover:
    """The sockets that are relayed, and what is done for them when something can be done."""

    def __init__(self) -> None:
        self.sides: dict[int, Side] = {}
        """By descriptor."""
        self.again: list[Way] = []
        """Whose turn ended before their bytes did."""
        self.now = 0.0
        """Trio's clock, as it was when this pass began."""
        self.pipes = Pipes()
        self.buffer = memoryview(bytearray(_BUFFER))
        self.into = [self.buffer]

    def add(self, pair: Pair, now: float) -> None:
        """Take a pair, which is forgotten once it ends."""
        self.now = pair.moved = now
        for side in (pair.client, pair.backend):
            self.sides[side.fd] = side

    def begin_pass(self, now: float) -> list[Way]:
        """Begin a pass, and return those whose turn ended in the last one before their bytes."""
        self.now = now
        waiting, self.again = self.again, []
        return waiting

    def close(self) -> None:
        """Close the pipes; sockets are their owners'."""
        self.pipes.close()

    def forget(self, pair: Pair) -> None:
        """Do nothing for a pair any more; its sockets are about to be closed."""
        # Closing takes them out of the epoll as well; until then, edges at them are nobody's.
        for side in (pair.client, pair.backend):
            if self.sides.get(side.fd) is side:
                del self.sides[side.fd]
        for way in (pair.up, pair.down):
            way.done = True
            way.held = b""
            self.release_pipe(way)

    def take_edges(self, side: Side, events: int) -> None:
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
                self.finish(outward.pair, side.when_lost, reset=outward.sink)
        if inward.blocked and events & (select.EPOLLOUT | _MORE) and not inward.done:
            inward.blocked = False
            self.step(inward)

    def step(self, way: Way) -> None:
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

    def copy(self, way: Way) -> int:
        """Copy one buffer's worth; return how much that was, 0 if it was all for now."""
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

    def flush(self, way: Way) -> bool:
        """Send what is held; False if some of it is held still."""
        held, way.held = way.held, b""
        return self.send(way, held)

    def send(self, way: Way, data: bytes | memoryview) -> bool:
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

    def splice(self, way: Way) -> int:
        """Move bytes through a pipe; return how many, 0 if that was all for now."""
        # A splice into a pipe and one out of it cost more than a read and a write of few bytes, and
        # half as much where there are many, which need not pass through Python's memory. So only
        # a read that filled its buffer leads here, and a pipe is held for as long as it pays.
        if way.pipe is None:
            way.pipe = self.pipes.take()
            if way.pipe is None:
                way.bulk = False
                return self.copy(way)
        try:
            count = os.splice(way.source.fd, way.pipe.writer, _TURN, flags=_SPLICE)
        except OSError as error:
            # The kernel tells of a reset once, to whatever call comes first: the read below would
            # show no more than a FIN, and what was cut off would be taken for whole.
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

    def drain(self, way: Way) -> bool:
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

    def count(self, way: Way, count: int) -> None:
        """Count bytes that the sink has taken."""
        if not count:  # none is no sign of life
            return
        pair, tally = way.pair, way.pair.tally
        pair.moved = self.now
        if way is pair.up:
            tally.up += count
        else:
            tally.answered = tally.answered or self.now
            tally.down += count

    # Ends. A side that is lost may have sent bytes before, which are the other's due: its direction
    # goes on until they are delivered, and ends in a reset then. A reset sent sooner would discard
    # them over there (RFC 9293 section 3.10.7.4), and a FIN would say that they were all.

    def end_of(self, way: Way, *, lost: bool = False) -> int:
        """End the direction of a source that has no more: by FIN, or because it is lost."""
        pair, source, sink = way.pair, way.source, way.sink
        way.done = True
        self.release_pipe(way)
        if lost or source.lost:
            self.finish(pair, source.when_lost, reset=sink)
        elif sink.outward.done:
            self.finish(pair, End.EOF)
        else:
            # A sink that is lost already cannot be shut down; reading from it tells that it is.
            with contextlib.suppress(OSError):
                sink.socket.shutdown(socket.SHUT_WR)
        return 0

    def lose_sink(self, way: Way) -> None:
        """End the direction to a sink that takes nothing any more; what it had sent is read yet."""
        way.done = True
        way.held = b""
        self.release_pipe(way)
        sink = way.sink
        if sink.outward.done:
            self.finish(way.pair, sink.when_lost, reset=way.source)
        else:
            sink.lost = sink.readable = sink.more = True
            if not (sink.outward.blocked or sink.outward.again):
                self.step(sink.outward)

    def finish(self, pair: Pair, end: End, reset: Side | None = None) -> None:
        """Hand a pair that has ended back to its task, which resets a side if that is due."""
        pair.end, pair.reset = end, reset
        self.forget(pair)
        if pair.task is not None:
            trio.lowlevel.reschedule(pair.task)

    def give_up(self, pair: Pair) -> None:
        """End a pair that was idle for too long; a reset that waited for its bytes comes now."""
        for way in (pair.up, pair.down):
            if way.source.lost:
                self.finish(pair, way.source.when_lost, reset=way.sink)
                return
        self.finish(pair, End.IDLE)

    def release_pipe(self, way: Way) -> None:
        """Give the pipe back, or close it if there are bytes in it that nobody wants any more."""
        if way.pipe is not None:
            if way.in_pipe:
                self.pipes.drop(way.pipe)
            else:
                self.pipes.give_back(way.pipe)
            way.pipe, way.in_pipe = None, 0
