"""Accept connections, within limits, until told to stop; then drain.

The only place that lists the protocols, and the only one that sees all connections.
"""

import contextlib
import errno
import math
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace

import trio

from snimux.address import FdAddress, TcpAddress
from snimux.backends import Backends
from snimux.caddy import Plan
from snimux.checks import Checker
from snimux.client_hello import TLS
from snimux.config import Config
from snimux.connection import Entry, Outcome, Service, endpoint, tune
from snimux.connection import serve as serve_connection
from snimux.discovery import Discovery
from snimux.http_head import HTTP
from snimux.listeners import Listener
from snimux.log import Level, Log
from snimux.names import Names
from snimux.places import Places
from snimux.proxy_auto import Prober, asked
from snimux.proxy_header import Endpoint
from snimux.pulse import pulse
from snimux.relay import Relay, portable
from snimux.routes import LiveTable, RouteTable
from snimux.systemd import Manager
from snimux.verdict import Reason

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

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

# How often a worker shows that it is alive (seconds).
_WORKER_BEATS = 1.0

# How many are accepted before the others have their turn.
_AT_A_TIME = 32

# They come to every open port of the Internet by the minute: counted, not listed.
_SCANNERS = frozenset(
    {Reason.NO_BYTES, Reason.HTTP, Reason.TLS, Reason.SSH, Reason.SSLV2, Reason.NOISE}
)
_SUM_UP_EVERY = 600.0  # seconds

# Bytes: an answer that is none, or a refusal of a PROXY protocol header (an alert; nginx's and
# Caddy's HTTP 400), is shorter, and the first flight of a TLS handshake is longer.
_SHORT = 512

_LEVELS: dict[Reason, Level] = {
    **dict.fromkeys(_SCANNERS, "debug"),
    Reason.BACKEND_DOWN: "warning",
    Reason.OUT_OF_RESOURCES: "warning",
}


async def serve(
    config: Config,
    places: Places,
    listeners: Sequence[Listener],
    log: Log,
    *,
    orders: int | None = None,
    manager: Manager | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal closes what is still open.

    Args:
        config: what to serve, and within which limits.
        places: of the connections, over all listeners.
        listeners: where to accept.
        log: told of every connection, once.
        orders: of a worker, the pipe from its supervisor: a byte is as good as a signal, its end
            as good as the first one.
        manager: told that connections are served, for as long as it is so; a worker has none.
        task_status: told once signals are heeded and connections accepted.

    Resource handling: closes the listeners, as soon as it stops accepting, and ``orders``.
    """
    async with _relay(config.relay, log) as relay:
        https_port = _https_port(config, listeners)
        server = _Server(config, places, log, relay, https_port, manager or Manager())
        await _serve(server, listeners, log, orders, task_status)


class _Flusher(trio.abc.Instrument):
    """Writes the lines of a batched log when there is nothing else to do."""

    def __init__(self, log: Log) -> None:
        self.log = log

    def before_io_wait(self, timeout: float) -> None:
        """Called by trio, which waits for so many seconds next."""
        if timeout > 0:
            self.log.flush()
        else:
            self.log.flush_if_due()


@contextlib.contextmanager
def _batching(log: Log) -> Iterator[None]:
    """Write the log's lines when the event loop is about to wait, many in one go under load."""
    flusher = _Flusher(log)
    trio.lowlevel.add_instrument(flusher)
    log.batches = True
    try:
        yield
    finally:
        log.batches = False
        trio.lowlevel.remove_instrument(flusher)
        log.flush()


@contextlib.asynccontextmanager
async def _relay(kind: str, log: Log) -> AsyncIterator[Relay]:
    """The relay to use; says in the log which it is."""
    if kind == "auto" and sys.platform == "linux":
        from snimux.relay.engine import engine

        log.write("info", "relay", {"relay": "engine"})
        async with engine() as relay:
            yield relay
    else:
        log.write("info", "relay", {"relay": "portable"})
        yield portable.relay


async def _serve(
    server: "_Server",
    listeners: Sequence[Listener],
    log: Log,
    orders: int | None,
    task_status: trio.TaskStatus[None],
) -> None:
    drain, close = stages = trio.Event(), trio.Event()
    with trio.open_signal_receiver(*STOP_SIGNALS) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # one may be waiting already
        async with trio.open_nursery() as watch:
            watch.start_soon(_heed, signals, stages)
            if orders is not None:
                watch.start_soon(_obey, orders, stages, log)
            # These go on while connections drain.
            await watch.start(server.names.run)
            await watch.start(server.backends.run)
            async with trio.open_nursery() as connections:
                async with trio.open_nursery() as accepting:
                    if server.config.caddys:
                        await accepting.start(server.discovery.run)
                    await accepting.start(server.prober.run)
                    await accepting.start(server.checker.run)
                    for listener in listeners:
                        if orders is None:  # else the supervisor has said it, once for all workers
                            where = {"address": str(listener), "protocol": listener.protocol}
                            log.write("info", "listening", where)
                        tune(listener.socket)
                        service = server.service(listener)
                        accepting.start_soon(server.accept, listener, service, connections)
                    accepting.start_soon(server.sum_up_now_and_then)
                    if server.manager.is_there:
                        watch.start_soon(server.show_life, server.manager.every)
                    elif orders is not None:
                        watch.start_soon(server.show_life, _WORKER_BEATS)
                    task_status.started()
                    with _batching(log):
                        await drain.wait()
                    accepting.cancel_scope.cancel()
                server.drain(connections.cancel_scope)
                watch.start_soon(_cancel_when, close, connections.cancel_scope)
            watch.cancel_scope.cancel()
        server.sum_up()
        log.write("info", "stopped", {})


async def _heed(signals: AsyncIterator[int], stages: Sequence[trio.Event]) -> None:
    for stage in stages:
        await anext(signals)
        stage.set()


async def _obey(orders: int, stages: Sequence[trio.Event], log: Log) -> None:
    """Heed the supervisor.

    Signals and orders are counted apart: what stops a whole service (systemd) signals each of its
    processes, and one wish that comes both ways is still one.
    """
    left = iter(stages)
    async with trio.lowlevel.FdStream(orders) as stream:
        async for data in stream:
            for _, stage in zip(data, left, strict=False):
                stage.set()
        log.write("error", "supervisor-gone", {})
        stages[0].set()


async def _cancel_when(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


class _Server:
    """What all connections share: their places, and the counts of scanners."""

    def __init__(
        self,
        config: Config,
        places: Places,
        log: Log,
        relay: Relay,
        https_port: int,
        manager: Manager,
    ) -> None:
        self.config = config
        self.drain_time = config.limits.drain
        self.log = log
        self.relay = relay
        self.manager = manager
        self.draining = False
        self.table = LiveTable(RouteTable(config.routes))
        self.names = Names(log)
        self.backends = Backends(log, config.backends, doubt_name=self.names.doubt)
        self.prober = Prober(log)
        self.prober.exchange(asked(config.routes, {}))
        self.checker = Checker(
            self.backends, self.prober.proved, check_timeout=config.limits.dial_timeout
        )
        self.checker.exchange(config.routes)
        self.discovery = Discovery(config, self.exchange, log)
        self.places = places
        self.per_source = config.limits.max_connections_per_source
        self.pace = config.limits.pace
        tls = Service(
            TLS,
            self.table,
            config.limits,
            relay,
            self.report,
            proved=self.prober.proved,
            backends=self.backends,
            look_again=self.discovery.look_again if config.caddys else None,
        )
        if config.limits.by_source:
            tls = replace(tls, enter=self.enter)
        http = replace(tls, protocol=HTTP, https_port=https_port, shown_as=HTTP.name)
        self.services = {service.protocol.name: service for service in (tls, http)}
        self.waiting = trio.lowlevel.ParkingLot()
        self.backed_off = -math.inf  # when last
        self.said_full = -math.inf  # when last
        self.scanners: Counter[Reason] = Counter()
        self.summed_up = trio.current_time()

    def service(self, listener: Listener) -> Service:
        """What a listener's connections are served with."""
        service = self.services[listener.protocol]
        return replace(service, admission=self.config.admission_of(listener.wanted))

    async def accept(self, listener: Listener, service: Service, connections: trio.Nursery) -> None:
        """Accept until cancelled; closes the listener in the end."""
        try:
            while True:
                # Room is taken only for a connection that is there: else idle listeners would hold
                # places that a busy one needs.
                await trio.lowlevel.wait_readable(listener.socket)
                if not self.places.take():
                    await self.wait_for_room()
                    continue
                try:
                    self.accept_one(listener, service, connections)
                    self.accept_queued(listener, service, connections, most=_AT_A_TIME)
                except OSError as error:
                    await self.back_off(error)
        finally:
            # Closing resets what is still in the queue: connections that their clients hold for
            # established. What comes faster than it is emptied is not waited for.
            with contextlib.suppress(OSError):
                self.accept_queued(listener, service, connections, most=_QUEUE)
            listener.close()

    def accept_queued(
        self, listener: Listener, service: Service, connections: trio.Nursery, *, most: int
    ) -> None:
        """Accept what is there and has room; raises OSError in the end, mostly EAGAIN."""
        for _ in range(most):
            if not self.places.take():
                return
            self.accept_one(listener, service, connections)

    def accept_one(self, listener: Listener, service: Service, connections: trio.Nursery) -> None:
        """Accept a connection for which room is taken; if that raises, the room is given back."""
        try:
            client, name = listener.socket.accept()
        except OSError:
            self.give_room()
            raise
        client.setblocking(False)
        connections.start_soon(self.handle, client, endpoint(name), service)

    async def wait_for_room(self) -> None:
        """Wait until there may be a place again; say so once when all are taken."""
        now = trio.current_time()
        if self.places.is_news_that_full() and now - self.said_full > _SAY_AGAIN:
            self.said_full = now
            self.log.write("warning", "full", {"max_connections": self.places.limit})
        with trio.move_on_after(self.places.look_again):
            await self.waiting.park()

    def give_room(self) -> None:
        """One connection less. Who waits looks whether there is one at his listener still."""
        self.places.give()
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
        """Serve one connection, which has its room already."""
        try:
            await serve_connection(client, source, service)
        finally:
            self.give_room()

    def enter(self, source: Endpoint | None, refused: Reason | None) -> Entry | None:
        """Count a client among those of its source, or among those of it that are refused.

        Who is refused uses up no share of the source's, but a place while the refusal is said: a
        source that has as many of those as well is closed without a word.
        """
        if source is None:
            return Entry(lambda: None, refused)
        key = _source_key(source)
        if refused is None:
            entry = self.enter_of(key)
            if isinstance(entry, Entry):
                return entry
            refused = entry
        most = self.per_source or self.config.limits.max_burst_per_source
        leave = self.places.enter(b"refused " + key, most)
        return None if leave is None else Entry(leave, refused)

    def enter_of(self, key: bytes) -> Entry | Reason:
        """Count one more of a source, or say why there may not be one more."""
        if self.pace and not self.places.arrive(key, self.pace, time.monotonic_ns()):
            return Reason.RATE_LIMITED
        if self.per_source is None:
            return Entry(lambda: None)
        leave = self.places.enter(key, self.per_source)
        return Reason.TOO_MANY_FROM_SOURCE if leave is None else Entry(leave)

    def exchange(self, found: Plan) -> None:
        """Serve other routes, but for connections that have theirs."""
        self.prober.exchange(asked(found.routes, found.listeners))
        self.backends.exchange(found.routes)
        self.checker.exchange(found.routes)
        self.table.current = RouteTable(found.routes)

    def report(self, outcome: Outcome) -> None:
        """Log and count how a connection ended."""
        if outcome.to is not None and outcome.tally.down < _SHORT:
            self.prober.doubt(outcome.to)
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

    async def show_life(self, every: float) -> None:
        """Show, to whoever is interested, that connections are served; until cancelled."""

        def alive() -> None:
            self.places.show_life(len(self.table.current))
            self.manager.serving(self.status())

        await pulse(self.relay, alive, every=every)

    def status(self) -> str:
        """How the server is, for people."""
        routes = len(self.table.current)
        return status(self.places.taken_here, routes, draining=self.draining)

    def drain(self, connections: trio.CancelScope) -> None:
        """Give open connections their time to end."""
        self.draining = True
        self.manager.stopping(self.status(), within=self.drain_time)
        connections.deadline = trio.current_time() + self.drain_time
        seconds = "off" if self.drain_time == math.inf else self.drain_time
        open_now = self.places.taken_here
        self.log.write("info", "draining", {"connections": open_now, "seconds": seconds})


def status(connections: int, routes: int, *, workers: int = 0, draining: bool = False) -> str:
    """How a service is, in one line for people; without its workers where they are 0."""
    counts = {
        "connection": connections,
        "route": routes,
        **({"worker": workers} if workers else {}),
    }
    words = ", ".join(f"{count} {what}{'s' * (count != 1)}" for what, count in counts.items())
    return f"draining: {words}" if draining else words


def _https_port(config: Config, listeners: Sequence[Listener]) -> int:
    """The port at which clients find TLS, as far as it can be known here.

    It is 443 where that is listened on, or where what is listened on was handed over or is no TCP
    port: then something stands before it. Else it is the first port of those that are listened on.
    """
    handed_over = any(isinstance(address, FdAddress) for address in config.listen)
    ports = [address.port for address in config.listen if isinstance(address, TcpAddress)]
    if handed_over or TLS.default_port in ports:
        return TLS.default_port
    for listener in listeners:  # port 0 is another by now
        name = listener.socket.getsockname()
        if listener.protocol == TLS.name and isinstance(name, tuple):
            return int(name[1])
    return TLS.default_port


def _source_key(source: Endpoint) -> bytes:
    """What counts as one source: an IPv4 address, or an IPv6 /64, which is one household."""
    host = source[0]
    return socket.inet_pton(socket.AF_INET6, host)[:8] if ":" in host else host.encode()
