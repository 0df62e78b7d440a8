"""Accept connections, within limits, until told to stop; then drain.

The only place that lists the protocols, and the only one that sees all connections.
"""

import contextlib
import errno
import math
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator, Sequence

import trio

from snimux.client_hello import TLS
from snimux.config import Config
from snimux.connection import Outcome, Service, endpoint
from snimux.connection import serve as serve_connection
from snimux.listeners import close_listener, describe
from snimux.log import Level, Log
from snimux.proxy_header import Endpoint
from snimux.relay import Relay, portable
from snimux.routes import RouteTable
from snimux.verdict import Reason

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

# They come to every open port of the Internet by the minute: counted, not listed.
_SCANNERS = frozenset({Reason.NO_BYTES, Reason.HTTP, Reason.SSH, Reason.SSLV2, Reason.NOISE})
_SUM_UP_EVERY = 600.0  # seconds

_LEVELS: dict[Reason, Level] = {
    **dict.fromkeys(_SCANNERS, "debug"),
    Reason.BACKEND_DOWN: "warning",
    Reason.OUT_OF_DESCRIPTORS: "warning",
}


async def serve(
    config: Config,
    max_connections: int,
    listeners: Sequence[socket.socket],
    log: Log,
    *,
    relay: Relay = portable.relay,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal closes what is still open.

    Args:
        config: what to serve, and within which limits.
        max_connections: how many at a time, over all listeners.
        listeners: listening, non-blocking sockets.
        log: told of every connection, once.
        relay: moves the bytes.
        task_status: told once signals are heeded and connections accepted.

    Resource handling: closes the listeners, as soon as it stops accepting.
    """
    server = _Server(config, max_connections, log, relay)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as watch:
            async with trio.open_nursery() as connections:
                async with trio.open_nursery() as accepting:
                    for listener in listeners:
                        log.write("info", "listening", {"address": describe(listener)})
                        accepting.start_soon(server.accept, listener, connections)
                    accepting.start_soon(server.sum_up_now_and_then)
                    task_status.started()
                    await anext(signals)
                    accepting.cancel_scope.cancel()
                server.drain(connections.cancel_scope)
                watch.start_soon(_cancel_on_signal, signals, connections.cancel_scope)
            watch.cancel_scope.cancel()
    server.sum_up()
    log.write("info", "stopped", {})


async def _cancel_on_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    await anext(signals)
    scope.cancel()


class _Server:
    """What all connections share: their number, by source too, and the counts of scanners."""

    def __init__(self, config: Config, max_connections: int, log: Log, relay: Relay) -> None:
        self.limits = config.limits
        self.log = log
        self.service = Service(TLS, RouteTable(config.routes), config.limits, relay, self.report)
        self.max_connections = max_connections
        self.room = trio.Semaphore(max_connections, max_value=max_connections)
        self.is_full = False
        self.backed_off = -math.inf  # when last
        self.by_source: Counter[str | bytes] = Counter()
        self.scanners: Counter[Reason] = Counter()
        self.summed_up = trio.current_time()

    async def accept(self, listener: socket.socket, connections: trio.Nursery) -> None:
        """Accept until cancelled; closes the listener in the end."""
        try:
            while True:
                # Room is taken only for a connection that is there: else idle listeners would hold
                # places that a busy one needs.
                await trio.lowlevel.wait_readable(listener)
                await self.take_room()
                try:
                    self.accept_one(listener, connections)
                except OSError as error:
                    await self.back_off(error)
        finally:
            # Closing resets what is still in the queue: connections that their clients hold for
            # established.
            with contextlib.suppress(OSError, trio.WouldBlock):
                while True:
                    self.room.acquire_nowait()
                    self.accept_one(listener, connections)
            close_listener(listener)

    def accept_one(self, listener: socket.socket, connections: trio.Nursery) -> None:
        """Accept a connection for which room is taken; if that raises, the room is given back."""
        try:
            client, name = listener.accept()
        except OSError:
            self.room.release()
            raise
        connections.start_soon(self.handle, client, endpoint(name))

    async def take_room(self) -> None:
        """Wait until there may be one connection more; say so once when the limit is reached."""
        try:
            self.room.acquire_nowait()
        except trio.WouldBlock:
            if not self.is_full:
                self.is_full = True
                self.log.write("warning", "full", {"max_connections": self.max_connections})
            await self.room.acquire()

    def give_room(self) -> None:
        """One connection less. Full is over when a tenth is free, so that it is not said often."""
        self.room.release()
        if self.is_full and self.room.value > self.max_connections // 10:
            self.is_full = False

    async def back_off(self, error: OSError) -> None:
        """Wait where accepting again at once would fail again; say so once while it lasts."""
        if error.errno in _PASSING:
            return
        now = trio.current_time()
        if now - self.backed_off > _SAY_AGAIN:
            self.log.write("error", "accept-failed", {"detail": error.strerror})
        self.backed_off = now
        await trio.sleep(_BACK_OFF)

    async def handle(self, client: socket.socket, source: Endpoint | None) -> None:
        """Serve one connection, which has its room already."""
        key = _source_key(source)
        limit = self.limits.max_connections_per_source
        too_many = limit is not None and source is not None and self.by_source[key] >= limit
        share = 0 if too_many else 1  # who is refused does not use up the source's share
        self.by_source[key] += share
        try:
            await serve_connection(
                trio.socket.from_stdlib_socket(client),
                source,
                self.service,
                refused=Reason.TOO_MANY_FROM_SOURCE if too_many else None,
            )
        finally:
            self.by_source[key] -= share
            if not self.by_source[key]:
                del self.by_source[key]
            self.give_room()

    def report(self, outcome: Outcome) -> None:
        """Log and count how a connection ended."""
        reason = outcome.reason
        level: Level = "error" if outcome.ended == "failed" else "info"
        if reason is not None:
            level = _LEVELS.get(reason, level)
            if reason in _SCANNERS:
                self.scanners[reason] += 1
        self.log.write(level, "connection", outcome.fields())

    async def sum_up_now_and_then(self) -> None:
        """Sum the scanners up every ``_SUM_UP_EVERY`` seconds."""
        while True:
            await trio.sleep(_SUM_UP_EVERY)
            self.sum_up()

    def sum_up(self) -> None:
        """Log how many scanners came since the last time, by reason, if any."""
        now = trio.current_time()
        if self.scanners:
            counts = {str(reason): count for reason, count in sorted(self.scanners.items())}
            self.log.write("info", "scanners", {"seconds": round(now - self.summed_up), **counts})
        self.scanners.clear()
        self.summed_up = now

    def drain(self, connections: trio.CancelScope) -> None:
        """Give open connections their time to end."""
        drain = self.limits.drain
        connections.deadline = trio.current_time() + drain
        open_now = self.max_connections - self.room.value
        seconds = "off" if drain == math.inf else drain
        self.log.write("info", "draining", {"connections": open_now, "seconds": seconds})


def _source_key(source: Endpoint | None) -> str | bytes:
    """What counts as one source: an IPv4 address, or an IPv6 /64, which is one household."""
    if source is None:
        return ""
    host = source[0]
    return socket.inet_pton(socket.AF_INET6, host)[:8] if ":" in host else host
