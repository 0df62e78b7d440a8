"""Accept connections, where there is room for them, and have each served.

What is in the queue of a listener that closes is accepted before. Knows nothing of what is served,
nor why listeners change.
"""

import contextlib
import errno
import math
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import trio

from snimux.frontend.connection import Service
from snimux.frontend.connection import serve as serve_connection
from snimux.frontend.events import InEffect
from snimux.frontend.limits import ConnectionLimits
from snimux.log import Log
from snimux.net.listeners import Listener
from snimux.net.sockets import endpoint, tune
from snimux.proto.proxy_header import Endpoint

# accept(2): these are the client's doing or the network's, and gone with the next call.
_PASSING = frozenset(
    {errno.EAGAIN, errno.ECONNABORTED, errno.EINTR, errno.EPROTO, errno.EPERM, errno.ENETDOWN,
     errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOPROTOOPT, errno.EOPNOTSUPP}
)  # fmt: skip

# With any other (EMFILE and its kin) the connection stays in the queue, and accepting again at
# once would spin, as dlundquist/sniproxy#89 and CVE-2025-46807 (sslh) did. Seconds.
_BACK_OFF = 0.1
# It is over, and worth saying anew, when it has not happened for so long (seconds): while it lasts,
# each connection that ends lets one more be accepted.
_SAY_AGAIN = 60.0

# How many connections are taken from a listener's queue when it is closed: what the kernel lets be
# queued by default (net.core.somaxconn).
_QUEUE = 4096

# How many are accepted before the others have their turn.
_AT_A_TIME = 32


@dataclass(slots=True, eq=False)
class _Bind:
    """A listener that is accepted on; the protocol that is served there may change."""

    listener: Listener
    service: Service
    """For connections that are accepted from now on."""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    closed: trio.Event = field(default_factory=trio.Event)


class Acceptor:
    """Accepts on some listeners, as long as there is room for one more connection."""

    def __init__(
        self,
        services: Iterable[Service],
        limits: ConnectionLimits,
        log: Log,
        *,
        close: Callable[[Listener], None] = Listener.close,
    ) -> None:
        """Accept nowhere yet.

        Args:
            services: what to serve connections with, one a protocol; whom each listener lets in is
                no part of them.
            limits: of the connections, over all listeners.
            log: gets a line when there is no room, or nothing can be accepted.
            close: closes a listener.
        """
        self.services = {service.entry.protocol.name: service for service in services}
        self.binds: list[_Bind] = []
        self.closing: list[trio.Event] = []  # one for each listener that is left out
        self.limits = limits
        self.log = log
        self.close = close
        self.accepting: trio.Nursery | None = None
        self.connections: trio.Nursery | None = None
        self.waiting = trio.lowlevel.ParkingLot()
        self.backed_off = -math.inf  # when last
        self.said_full = -math.inf  # when last

    @property
    def listeners(self) -> list[Listener]:
        """The listeners that are accepted on."""
        return [bind.listener for bind in self.binds]

    def open(self, accepting: trio.Nursery, connections: trio.Nursery) -> None:
        """Accept from now on, in one nursery, and serve in the other.

        Resource handling: closes each listener as soon as no more is accepted on it.
        """
        self.accepting, self.connections = accepting, connections
        for bind in self.binds:
            self.begin(bind)

    def begin(self, bind: _Bind) -> None:
        """Accept on a listener, once this is open."""
        if self.accepting is not None:
            tune(bind.listener.socket)
            self.accepting.start_soon(self.accept, bind)

    def reconcile(self, generation: InEffect) -> None:
        """Accept where that is in effect now, and nowhere else.

        A listener that is known by its socket goes on without a gap, perhaps with another protocol.

        Resource handling: closes those that are left out; ``until_closed`` waits for that.
        """
        if generation.max_connections != self.limits.limit:
            self.limits.resize(generation.max_connections)
            self.waiting.unpark_all()
        before = {bind.listener.socket: bind for bind in self.binds}
        self.binds = []
        for listener in generation.listeners:
            service = self.services[listener.protocol]
            entry = generation.config.entry_at(listener.spec, service.entry.protocol)
            service = replace(service, entry=entry)
            bind = before.pop(listener.socket, None)
            if bind is None:
                bind = _Bind(listener, service)
                self.begin(bind)
            bind.listener, bind.service = listener, service
            self.binds.append(bind)
        for bind in before.values():
            bind.scope.cancel()
            self.closing.append(bind.closed)

    async def until_closed(self) -> None:
        """Wait until all that was left out is closed."""
        while self.closing:
            await self.closing.pop().wait()

    async def accept(self, bind: _Bind) -> None:
        """Accept until cancelled; closes the listener in the end."""
        sock = bind.listener.socket
        try:
            with bind.scope:
                while True:
                    # Room is taken only for a connection that is there: else idle listeners would
                    # hold places that a busy one needs.
                    await trio.lowlevel.wait_readable(sock)
                    if not self.limits.acquire():
                        await self.wait_for_room()
                        continue
                    try:
                        self.accept_one(bind)
                        self.accept_queued(bind, most=_AT_A_TIME)
                    except OSError as error:
                        await self.back_off(error)
        finally:
            # Closing resets what is still in the queue: connections that their clients hold for
            # established. What comes faster than it is emptied is not waited for. (With a successor
            # it resets none, and what is there is as well served here.)
            with contextlib.suppress(OSError):
                self.accept_queued(bind, most=_QUEUE)
            self.close(bind.listener)
            bind.closed.set()

    def accept_queued(self, bind: _Bind, *, most: int) -> None:
        """Accept what is there and has room; raises OSError in the end, mostly EAGAIN."""
        for _ in range(most):
            if not self.limits.acquire():
                return
            self.accept_one(bind)

    def accept_one(self, bind: _Bind) -> None:
        """Accept a connection for which room is taken; if that raises, the room is given back."""
        try:
            client, name = bind.listener.socket.accept()
        except OSError:
            self.release()
            raise
        client.setblocking(False)
        assert self.connections is not None
        self.connections.start_soon(self.handle, client, endpoint(name), bind.service)

    async def wait_for_room(self) -> None:
        """Wait until there may be a place again; say so once when all are taken."""
        now = trio.current_time()
        if self.limits.should_say_full() and now - self.said_full > _SAY_AGAIN:
            self.said_full = now
            self.log.write("warning", "full", {"max_connections": self.limits.limit})
        with trio.move_on_after(self.limits.retry_after):
            await self.waiting.park()

    def release(self) -> None:
        """One connection less. Who waits looks whether there is one at his listener still."""
        self.limits.release()
        if self.waiting:
            self.waiting.unpark_all()

    async def back_off(self, error: OSError) -> None:
        """Wait where accepting again at once would fail again; say so once while it lasts."""
        if error.errno in _PASSING:
            return
        now = trio.current_time()
        if now - self.backed_off > _SAY_AGAIN:
            self.log.write("error", "accept-failed", {"detail": error.strerror})
        self.backed_off = now
        await trio.sleep(_BACK_OFF)

    async def handle(
        self, client: socket.socket, source: Endpoint | None, service: Service
    ) -> None:
        """Serve one connection, which has its room already; no fault of it is one of others'."""
        try:
            await serve_connection(client, source, service)
        except* Exception as group:  # not expected
            self.log.write("error", "connection-failed", {"detail": repr(group.exceptions)})
        finally:
            self.release()
