"""The relay for Linux: one task moves the bytes of all connections, through an epoll of its own.

A connection's own trio task is parked while it is relayed, and stays the owner: of its sockets,
its deadlines and its cancellation. What is ready is moved by ``mover``. A connection on which
nothing moves holds no buffer, no pipe and no timer.

Source: epoll(7).
"""

import contextlib
import select
import socket
import sys
from collections.abc import AsyncIterator
from math import inf

import outcome
import trio

from snimux.relay.interface import End, Relay, Tally
from snimux.relay.reset import prepare_reset

assert sys.platform == "linux"  # also tells mypy, for whom the rest is not there elsewhere

from snimux.relay.mover import EDGES, Mover, Pair  # noqa: E402

_EVENTS = 128  # taken from the kernel at a time; then trio's other tasks have their turn

# Idle connections are looked for this often at the most (seconds).
_IDLE_EVERY = 1.0


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


# An epoll of its own, because trio's waits are for one descriptor and one task each: a task switch
# and a system call for every wait are 45 to 73 us a round trip, and 15 are all of it here. Edges,
# because each socket is registered once, for ever: with levels, every pause of a direction would
# be a system call to say that it is of no interest now, and one to say that it is again. In return
# what an edge said is to be remembered (``readable``, ``blocked``), and so is that no edge will
# come (``more``, ``lost``, ``again``).
class _Engine:
    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.mover = Mover()
        self.idle = trio.CancelScope(deadline=inf)

    def close(self) -> None:
        self.mover.close()
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
        """Relay as ``interface.Relay`` says."""
        pair = Pair(client, backend, tally, idle_timeout)
        pair.up.held = bytes(head)
        head.clear()
        try:
            self.begin(pair)
        except BaseException:
            self.mover.forget(pair)
            raise
        if pair.end is None:
            pair.task = trio.lowlevel.current_task()

            def abort(_: object) -> trio.lowlevel.Abort:
                self.mover.forget(pair)
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)
        if pair.reset is not None:
            await prepare_reset(pair.reset.socket)
        assert pair.end is not None
        return pair.end

    def begin(self, pair: Pair) -> None:
        """Send the head, and take the pair into the engine's care."""
        now = trio.current_time()
        self.mover.add(pair, now)
        for side in (pair.client, pair.backend):
            self.epoll.register(side.fd, EDGES)
        if now + pair.idle_timeout < self.idle.deadline:
            self.idle.deadline = now + pair.idle_timeout
        self.mover.step(pair.up)

    # The engine's side.

    async def run(self) -> None:
        """Serve what is ready, again and again."""
        while True:
            if self.mover.again:
                await trio.lowlevel.checkpoint()
            else:
                await trio.lowlevel.wait_readable(self.epoll.fileno())
            self.serve()

    def serve(self) -> bool:
        """Give what is ready one turn; True if there may be more that is."""
        mover = self.mover
        waiting = mover.begin_pass(trio.current_time())
        ready = self.epoll.poll(0, _EVENTS)
        for fd, events in ready:
            side = mover.sides.get(fd)
            if side is not None:  # else it ended earlier in this pass
                try:
                    mover.take_edges(side, events)
                except Exception as error:
                    self.fail(side.outward.pair, error)
        for way in waiting:
            way.again = False
            if not way.done:
                try:
                    mover.step(way)
                except Exception as error:
                    self.fail(way.pair, error)
        return len(ready) == _EVENTS

    def fail(self, pair: Pair, error: Exception) -> None:
        """Hand an error that nobody expected to the connection's own task: the others go on."""
        self.mover.forget(pair)
        assert pair.task is not None  # while it begins, errors are its own
        trio.lowlevel.reschedule(pair.task, outcome.Error(error))

    async def catch_up(self) -> None:
        """Serve all that is ready by now: what is there is read before anybody is judged."""
        for _ in range(len(self.mover.sides) // _EVENTS + 1):
            if not self.serve():
                break
            await trio.lowlevel.checkpoint()
        for way in self.mover.again:  # ``run`` may wait for an edge: here is one
            if not way.done:  # of a pair that has ended meanwhile, the descriptor is closed
                self.epoll.modify(way.source.fd, EDGES)

    async def watch_idle(self) -> None:
        """End connections on which nothing has moved for their idle limit."""
        while True:
            with self.idle:
                await trio.sleep_forever()
            await self.catch_up()
            now = self.mover.now
            pairs = {side.outward.pair for side in self.mover.sides.values()}
            for pair in pairs:
                if pair.moved + pair.idle_timeout <= now:
                    self.mover.give_up(pair)
            limits = (pair.moved + pair.idle_timeout for pair in pairs if pair.end is None)
            self.idle = trio.CancelScope(deadline=max(min(limits, default=inf), now + _IDLE_EVERY))
