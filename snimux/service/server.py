"""Put together what serves connections, by one configuration after the other, until they drain.

The only place that sees all connections of a process.
"""

import contextlib
import math
import socket
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

import trio

from snimux.backend.health_check import Checker
from snimux.backend.pool import Backends
from snimux.backend.proxy_auto import Prober
from snimux.config.model import Config
from snimux.frontend.acceptor import Acceptor
from snimux.frontend.access_log import AccessLog
from snimux.frontend.connection import Service
from snimux.frontend.events import Events
from snimux.frontend.limits import ConnectionLimits
from snimux.frontend.recheck import Recheck
from snimux.frontend.source_limits import SourceLimits
from snimux.log import Log
from snimux.net.listeners import Listener
from snimux.net.resolver import Resolver
from snimux.proto.client_hello import TLS
from snimux.proto.http_head import HTTP
from snimux.providers.base import Fault, Snapshot
from snimux.providers.discovery import Discovery
from snimux.providers.merge import planned
from snimux.relay import portable
from snimux.relay.interface import Relay
from snimux.routing.address import DialAddress, ProviderAddress, UnixAddress
from snimux.routing.decide import EntryPoint
from snimux.runtime.background import in_thread
from snimux.service.control import answer
from snimux.service.generation import Current, Generation, basis, following
from snimux.service.lifecycle import SIGNALS, STOP_SIGNALS, Lifecycle, received
from snimux.service.reload import Follower, Reloader, Source, say_listeners
from snimux.service.status_server import Alone, StatusServer
from snimux.service.systemd import Manager
from snimux.service.upgrade import Succession
from snimux.service.watchdog import check_relay
from snimux.status.local import Local
from snimux.status.metrics import Metrics
from snimux.status.refused import Refusals

# How often a worker shows that it is alive (seconds).
_WORKER_BEATS = 1.0


async def serve(
    config: Config,
    limits: ConnectionLimits,
    listeners: Sequence[Listener],
    log: Log,
    *,
    orders: int | None = None,
    manager: Manager | None = None,
    source: Source | None = None,
    succession: Succession | None = None,
    status: Sequence[Listener] = (),
    questions: socket.socket | None = None,
    sockets: Iterable[DialAddress] = (),
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal closes what is still open.

    SIGHUP, but of a worker, has the Caddys asked at once, and the configuration read again.
    SIGUSR2 hands over to a successor, and lets open connections end without haste.

    Args:
        config: what to serve, and within which limits.
        limits: of the connections, over all listeners.
        listeners: where to accept.
        log: gets a line for every connection.
        orders: of a worker, the socket from its supervisor: an order to stop is as good as a
            signal, its end as good as the first one.
        manager: told that connections are served, for as long as it is so; a worker has none.
        source: where the configuration comes from, if it can be read again.
        succession: who came before this process, and who comes after it; a worker has none.
        status: where to show how it is; a worker has none.
        questions: of a worker whose supervisor shows that, where it asks.
        sockets: what no Caddy may have strangers sent to, beside all that this process knows of.
        task_status: told once signals are heeded and connections accepted.

    Resource handling: closes the listeners, as soon as it stops accepting, those of ``status`` in
    the end, ``orders`` and ``questions``.
    """
    manager = manager or Manager()
    succession = succession or Succession(log, manager)
    status_server = StatusServer(status, log, succession)
    sockets = (*sockets, *own_sockets(status, manager))
    async with _relay(config.relay, log) as relay:
        with _opened(orders) as supervisor:
            ground = basis(config, listeners, limits.limit, sockets)
            first = await in_thread(lambda: following(ground, planned(config, {})))
            server = _Server(
                first, limits, log, relay, manager, source, supervisor, succession, status_server,
                sockets, is_watched=bool(status or questions),
            )  # fmt: skip
            await _serve(server, log, supervisor, questions, task_status)


@contextlib.contextmanager
def _opened(orders: int | None) -> Iterator[socket.socket | None]:
    """The socket from a supervisor, if there is one."""
    if orders is None:
        yield None
    else:
        with socket.socket(fileno=orders) as supervisor:
            supervisor.setblocking(False)
            yield supervisor


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
    log: Log,
    supervisor: socket.socket | None,
    questions: socket.socket | None,
    task_status: trio.TaskStatus[None],
) -> None:
    """Start the parts of a server in order, and end them in the opposite one."""
    heeded = STOP_SIGNALS if supervisor else SIGNALS
    life = server.life
    with received(heeded) as signals:
        async with trio.open_nursery() as watch:
            watch.start_soon(server.succession.listen_to_predecessors)
            watch.start_soon(life.handle_successor)
            if supervisor is not None:
                watch.start_soon(life.handle_orders, supervisor)
            # These go on while connections drain.
            await watch.start(server.resolver.run)
            await watch.start(server.pool.run)
            if questions is not None:
                watch.start_soon(answer, questions, Local(server).tell, log)
            if server.status_server.listeners:
                reloader = server.reload if isinstance(server.reload, Reloader) else None
                await watch.start(server.status_server.run, Alone(server, reloader))
            async with trio.open_nursery() as connections:
                upgrade = partial(connections.start_soon, life.hand_over)
                watch.start_soon(life.handle_signals, signals, upgrade)
                async with trio.open_nursery() as accepting:
                    await accepting.start(server.discovery.run)
                    await accepting.start(server.prober.run)
                    await accepting.start(server.checker.run)
                    server.acceptor.open(accepting, connections)
                    if supervisor is None:  # else it has said it, once for all workers
                        say_listeners(log, server.listeners)
                    accepting.start_soon(server.access_log.sum_up_now_and_then)
                    watch.start_soon(partial(server.live, is_worker=supervisor is not None))
                    watch.start_soon(life.keep_reloading)
                    task_status.started()
                    with log.batching():
                        await life.stopped_accepting.wait()
                    accepting.cancel_scope.cancel()
                if life.draining.is_set():
                    drain_time = server.config.limits.drain
                    connections.start_soon(server.succession.wait_for_predecessors, drain_time)
                is_ending = server.drain(connections.cancel_scope)
                end = partial(server.end, is_draining=is_ending)
                watch.start_soon(end, connections.cancel_scope)
            watch.cancel_scope.cancel()
        server.access_log.sum_up()
        log.write("info", "stopped", {})


class _Part(Protocol):
    """A part with tasks for what is in effect."""

    def reconcile(self, generation: Generation) -> None:
        """Have what is in effect from now on; waits for nothing."""


class _Server:
    """Owns all that connections share, and what is in effect."""

    def __init__(
        self,
        first: Generation,
        limits: ConnectionLimits,
        log: Log,
        relay: Relay,
        manager: Manager,
        source: Source | None,
        supervisor: socket.socket | None,
        succession: Succession,
        status_server: StatusServer,
        sockets: Sequence[DialAddress],
        *,
        is_watched: bool,
    ) -> None:
        """Have the first generation in effect, by parts that do not run yet."""
        config = first.config
        self.current = Current(first)
        self.limits = limits
        self.log = log
        self.relay = relay
        self.manager = manager
        self.source = source
        self.succession = succession
        self.status_server = status_server
        self.sockets = sockets
        self.resolver = Resolver(log)
        self.events = Events(log)
        self.pool = Backends(self.events)
        self.prober = Prober(log, self.pool)
        self.checker = Checker(self.pool)
        self.discovery = Discovery(config, self.following, self.put_into_effect, log)
        self.reload = self.reloading(supervisor)
        self.life = Lifecycle(
            log,
            succession,
            self.reload,
            listeners=lambda: [*self.listeners, *status_server.listeners],
            poll_now=self.discovery.poll_now,
        )
        self.access_log = AccessLog(log)
        self.metrics, self.refusals = Metrics(), Refusals(config.keep_refused)
        self.events.register(self.access_log, Recheck(self.prober, self.resolver))
        if is_watched:  # where nobody looks, nothing is counted
            self.events.register(self.metrics, self.refusals)
        service = Service(
            EntryPoint(TLS), self.current, relay, self.pool, SourceLimits(limits, self.current),
            self.events, refresh=self.discovery.refresh,
        )  # fmt: skip
        services = [service, replace(service, entry=EntryPoint(HTTP))]
        self.acceptor = Acceptor(services, limits, log, close=succession.close)
        self.parts: tuple[_Part, ...] = (
            self.prober, self.pool, self.checker, self.discovery, self.acceptor,
        )  # fmt: skip
        self.put_into_effect(first)

    @property
    def config(self) -> Config:
        """The configuration that is in effect."""
        return self.current.value.config

    @property
    def listeners(self) -> Sequence[Listener]:
        """The listeners that connections are accepted on."""
        return self.acceptor.listeners

    @property
    def faults(self) -> Iterable[Fault]:
        """The faults that providers have now."""
        return self.discovery.faults()

    @property
    def draining(self) -> bool:
        """True once connections are to end and no successor serves."""
        return self.life.draining.is_set()

    def following(
        self,
        config: Config,
        snapshots: Mapping[ProviderAddress, Snapshot | None],
        new_basis: Generation | None = None,
    ) -> Generation:
        """Return what follows what is in effect: by a provider's news, or by a reload."""
        return following(self.current.value, planned(config, snapshots), new_basis)

    def put_into_effect(self, generation: Generation) -> None:
        """Serve by another generation from one moment to the next.

        Connections that have their route keep it.
        """
        self.current.put(generation)
        for part in self.parts:
            part.reconcile(generation)
        self.events.in_effect(generation)

    def reloading(self, supervisor: socket.socket | None) -> Reloader | Follower | None:
        """Return what has other configurations put into effect, of a worker by its supervisor."""
        if self.source is None:
            return None
        if supervisor is None:
            return Reloader(self.source, self, self.log, self.manager)
        return Follower(self.source, self, supervisor)

    async def take(self, config: Config, listeners: Sequence[Listener], text: str) -> None:
        """Serve by another configuration, on other listeners; close those that are left out.

        Connections that have begun keep what they have.
        """
        assert self.source is not None
        try:
            await self.discovery.begin(config.providers)
            new = basis(config, listeners, self.source.limit(config.limits), self.sockets)
            await self.discovery.reconfigure(config, partial(self.following, new_basis=new))
        except BaseException:  # or what has begun for it would go on
            self.discovery.end_unlisted()
            raise
        await self.acceptor.until_closed()

    async def live(self, *, is_worker: bool) -> None:
        """Show, to whoever is interested, that connections are served; until cancelled."""

        def alive() -> None:
            self.limits.show_life(len(self.current.value.table))
            self.manager.serving(self.status())

        if self.succession.has_predecessor:
            with trio.CancelScope() as until_first:
                await check_relay(self.relay, until_first.cancel, every=math.inf)
            await self.succession.take_over()
        if is_worker or self.manager.is_present:
            every = _WORKER_BEATS if is_worker else self.manager.every
            await check_relay(self.relay, alive, every=every)

    def status(self) -> str:
        """Return how the server is, for people."""
        routes, is_leaving = len(self.current.value.table), self.life.stopped_accepting.is_set()
        return status(self.limits.acquired, routes, draining=is_leaving)

    async def end(self, connections: trio.CancelScope, *, is_draining: bool) -> None:
        """Give open connections less time when that is ordered, and none at the end."""
        if not is_draining:
            await self.life.draining.wait()
            self.drain(connections)
        await self.life.closing.wait()
        connections.cancel()

    def drain(self, connections: trio.CancelScope) -> bool:
        """Give open connections their time to end: as much as they want, but if told to stop.

        Returns:
            Whether this process was told to stop by now.
        """
        is_draining = self.life.draining.is_set()
        drain_time = self.config.limits.drain if is_draining else math.inf
        self.manager.stopping(self.status(), within=drain_time)
        connections.deadline = trio.current_time() + drain_time
        seconds = "off" if drain_time == math.inf else drain_time
        open_now = self.limits.acquired
        self.log.write("info", "draining", {"connections": open_now, "seconds": seconds})
        return is_draining


def status(connections: int, routes: int, *, workers: int = 0, draining: bool = False) -> str:
    """Return how a service is, in one line for people; without its workers where they are 0."""
    counts = {
        "connection": connections,
        "route": routes,
        **({"worker": workers} if workers else {}),
    }
    words = ", ".join(f"{count} {what}{'s' * (count != 1)}" for what, count in counts.items())
    return f"draining: {words}" if draining else words


def own_sockets(status: Iterable[Listener], manager: Manager) -> list[DialAddress]:
    """Return where a process shows how it is, and where its service manager hears it."""
    notify = [UnixAddress(manager.address)] if manager.address.startswith("/") else []
    return [*(listener.address for listener in status), *notify]
