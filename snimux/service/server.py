"""Put together what serves connections, by one configuration after the other, until they drain.

The only place that sees all connections of a process.
"""

import contextlib
import math
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import trio

from snimux.backend.health_check import Checker, Wanted, wanted
from snimux.backend.pool import Backends
from snimux.backend.proxy_auto import Asked, Prober, asked
from snimux.config.model import Config, https_port
from snimux.frontend.acceptor import Doors
from snimux.frontend.access_log import AccessLog
from snimux.frontend.connection import Service
from snimux.frontend.events import Events, Observer
from snimux.frontend.limits import Places
from snimux.frontend.recheck import Recheck
from snimux.frontend.source_limits import Shares
from snimux.log import Log, batching
from snimux.net.listeners import Listener
from snimux.net.loop import Own, own
from snimux.net.resolver import Resolver
from snimux.proto.client_hello import TLS
from snimux.proto.http_head import HTTP
from snimux.providers.base import Snapshot
from snimux.providers.discovery import Discovery
from snimux.providers.merge import Plan, planned, reserved
from snimux.relay import portable
from snimux.relay.interface import Relay
from snimux.routing.address import AdminAddress, DialAddress, UnixAddress
from snimux.routing.routes import Backend, LiveTable, RouteTable
from snimux.service.control import answer
from snimux.service.lifecycle import SIGNALS, STOP_SIGNALS, Lifecycle, received
from snimux.service.reload import Follower, Reloader, Source, say_listeners
from snimux.service.status_server import Alone, Showing
from snimux.service.systemd import Manager
from snimux.service.upgrade import Succession
from snimux.service.watchdog import check_relay
from snimux.status.local import View
from snimux.status.metrics import Metrics
from snimux.status.refused import Refusals

# How often a worker shows that it is alive (seconds).
_WORKER_BEATS = 1.0


async def serve(
    config: Config,
    places: Places,
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
        places: of the connections, over all listeners.
        listeners: where to accept.
        log: told of every connection, once.
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
    told = manager or Manager()
    succession = succession or Succession(log, told)
    showing = Showing(status, log, succession)
    sockets = (*sockets, *own_sockets(status, told))
    async with _relay(config.relay, log) as relay:
        with _opened(orders) as supervisor:
            server = _Server(
                config, places, listeners, log, relay, told, source, supervisor, succession,
                showing, sockets, is_watched=bool(status or questions),
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
            await watch.start(server.backends.run)
            if server.view is not None:
                if questions is not None:
                    watch.start_soon(answer, questions, server.view.tell, log)
                if server.showing.listeners:
                    reloader = server.reload if isinstance(server.reload, Reloader) else None
                    await watch.start(server.showing.run, Alone(server.view, reloader))
            async with trio.open_nursery() as connections:
                upgrade = partial(connections.start_soon, life.hand_over)
                watch.start_soon(life.handle_signals, signals, upgrade)
                async with trio.open_nursery() as accepting:
                    await accepting.start(server.discovery.run)
                    await accepting.start(server.prober.run)
                    await accepting.start(server.checker.run)
                    server.doors.open(accepting, connections)
                    if supervisor is None:  # else it has said it, once for all workers
                        say_listeners(log, server.listeners)
                    accepting.start_soon(server.access_log.sum_up_now_and_then)
                    watch.start_soon(partial(server.live, is_worker=supervisor is not None))
                    watch.start_soon(life.keep_reloading)
                    task_status.started()
                    with batching(log):
                        await life.stopped_accepting.wait()
                    accepting.cancel_scope.cancel()
                if life.draining.is_set():
                    drain_time = server.config.limits.drain
                    connections.start_soon(server.succession.wait_for_predecessors, drain_time)
                server.drain(connections.cancel_scope)
                watch.start_soon(server.end, connections.cancel_scope)
            watch.cancel_scope.cancel()
        server.access_log.sum_up()
        log.write("info", "stopped", {})


class _Routing(NamedTuple):
    """What follows from the routes; how long it takes to make depends on how many they are."""

    plan: Plan
    table: RouteTable
    asked: Mapping[DialAddress, Asked]
    backends: Set[Backend]
    checked: Mapping[DialAddress, Wanted]


class _Server:
    """What all connections share."""

    def __init__(
        self,
        config: Config,
        places: Places,
        listeners: Sequence[Listener],
        log: Log,
        relay: Relay,
        manager: Manager,
        source: Source | None,
        supervisor: socket.socket | None,
        succession: Succession,
        showing: Showing,
        sockets: Sequence[DialAddress],
        *,
        is_watched: bool,
    ) -> None:
        self.config = config
        self.sockets = sockets
        self.source = source
        self.log = log
        self.relay = relay
        self.manager = manager
        self.succession = succession
        self.showing = showing
        self.table = LiveTable(RouteTable(config.routes))
        self.resolver = Resolver(log)
        self.access_log = AccessLog(log)
        self.events = Events(log)
        self.backends = Backends(self.events, config.backends, own=self.own(config, listeners))
        self.prober = Prober(log, self.backends)
        observers: list[Observer] = [self.access_log, Recheck(self.prober, self.resolver)]
        self.view: View | None = None  # where nobody looks, nothing is counted
        if is_watched:
            watchers = Metrics(), Refusals(config.keep_refused)
            observers += watchers
            self.view = View(*watchers, self.table, places, down=self.backends.down)
            self.view.states = self.backends.states
            self.view.unheard = len(config.caddys)
        self.events.register(*observers)
        self.prober.exchange(asked(config.routes, {}))
        self.checker = Checker(
            self.backends, self.prober.proved, check_timeout=config.limits.dial_timeout
        )
        self.checker.exchange(wanted(config.routes, config.backends))
        self.discovery = Discovery(config, _routing, self.route_by, log)
        self.reload = self.reloading(supervisor)
        self.life = Lifecycle(
            log,
            succession,
            self.reload,
            listeners=lambda: [*self.listeners, *showing.listeners],
            poll_now=self.discovery.poll_now,
        )
        self.places = places
        self.shares = Shares(places, config.limits)
        self.services = self.serving(config, listeners)
        self.doors = Doors(self.served(listeners), places, log, close=succession.close)
        if self.view is not None:
            self.view.listeners = listeners

    def own(self, config: Config, listeners: Iterable[Listener]) -> Own:
        """What not to pass on to."""
        sockets = dict.fromkeys(self.sockets, "a socket of snimux's own")
        return replace(own(listeners), reserved={**sockets, **reserved(config)})

    def serving(self, config: Config, listeners: Sequence[Listener]) -> dict[str, Service]:
        """What connections are served with that begin from now on, by protocol."""
        tls = Service(
            TLS,
            self.table,
            config.limits,
            self.relay,
            self.events,
            proved=self.prober.proved,
            backends=self.backends,
            look_again=self.discovery.refresh if config.caddys else None,
        )
        if config.limits.by_source:
            tls = replace(tls, enter=self.shares.enter)
        https_port = _https_port(config, listeners)
        http = replace(tls, protocol=HTTP, https_port=https_port, shown_as=HTTP.name)
        return {service.protocol.name: service for service in (tls, http)}

    def served(self, listeners: Iterable[Listener]) -> Iterator[tuple[Listener, Service]]:
        """What the connections of each listener are served with."""
        for each in listeners:
            service = self.services[each.protocol]
            yield each, replace(service, admission=self.config.admission_of(each.spec))

    @property
    def listeners(self) -> list[Listener]:
        """What is accepted on."""
        return self.doors.listeners

    def route_by(self, routing: _Routing) -> None:
        """Find routes in another table from now on; connections that have theirs keep it."""
        self.prober.exchange(routing.asked)
        self.backends.exchange(routing.backends, routing.plan.discovered)
        self.checker.exchange(routing.checked)
        self.table.current = routing.table
        if self.view is not None:
            self.view.has = routing.plan.has
            snapshots = self.discovery.snapshots
            self.view.unheard = sum(snapshots.get(x) is None for x in self.config.caddys)
            self.view.since = time.monotonic()

    def reloading(self, supervisor: socket.socket | None) -> Reloader | Follower | None:
        """What has other configurations put into effect, of a worker by its supervisor."""
        if self.source is None:
            return None
        if supervisor is None:
            return Reloader(self.source, self, self.log, self.manager)
        return Follower(self.source, self, supervisor)

    async def take(self, config: Config, listeners: Sequence[Listener], text: str) -> None:
        """Serve by another configuration, on other listeners; close those that are left out.

        Connections that have begun keep what they have.
        """
        await self.discovery.begin(config.caddys)
        exchange = partial(self.change, config, listeners)
        for closed in await self.discovery.reconfigure(config, exchange):
            await closed.wait()

    def change(
        self, config: Config, listeners: Sequence[Listener], routing: _Routing
    ) -> list[trio.Event]:
        """Be another server from one moment to the next; what is set once others are closed."""
        self.config = config
        self.log.change(form=config.log_format, level=config.log_level)
        self.discovery.turn_to(config)
        self.backends.defaults = config.backends
        self.backends.keep_off(self.own(config, listeners))
        self.checker.check_timeout = config.limits.dial_timeout
        self.route_by(routing)
        self.shares.limits = config.limits
        self.services = self.serving(config, listeners)
        if self.source is not None:
            self.doors.resize(self.source.limit(config.limits))
        if self.view is not None:
            self.view.listeners = listeners
            self.view.reloads += 1
        return self.doors.exchange(self.served(listeners))

    async def live(self, *, is_worker: bool) -> None:
        """Show, to whoever is interested, that connections are served; until cancelled."""

        def alive() -> None:
            self.places.show_life(len(self.table.current))
            self.manager.serving(self.status())

        if self.succession.has_predecessor:
            with trio.CancelScope() as until_first:
                await check_relay(self.relay, until_first.cancel, every=math.inf)
            await self.succession.take_over()
        if is_worker or self.manager.is_present:
            every = _WORKER_BEATS if is_worker else self.manager.every
            await check_relay(self.relay, alive, every=every)

    def status(self) -> str:
        """How the server is, for people."""
        routes = len(self.table.current)
        return status(self.places.taken_here, routes, draining=self.life.stopped_accepting.is_set())

    async def end(self, connections: trio.CancelScope) -> None:
        """Once told to: give open connections less time, and none."""
        if not self.life.draining.is_set():
            await self.life.draining.wait()
            self.drain(connections)
        await self.life.closing.wait()
        connections.cancel()

    def drain(self, connections: trio.CancelScope) -> None:
        """Give open connections their time to end: as much as they want, but if told to stop."""
        drain_time = self.config.limits.drain if self.life.draining.is_set() else math.inf
        if self.view is not None:
            self.view.draining = self.life.draining.is_set()  # else a successor serves
        self.manager.stopping(self.status(), within=drain_time)
        connections.deadline = trio.current_time() + drain_time
        seconds = "off" if drain_time == math.inf else drain_time
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


def _routing(config: Config, snapshots: Mapping[AdminAddress, Snapshot | None]) -> _Routing:
    plan = planned(config, snapshots)
    return _Routing(
        plan,
        RouteTable(plan.routes),
        asked(plan.routes, plan.listeners),
        {backend for route in plan.routes for backend in route.backends},
        wanted(plan.routes, config.backends),
    )


def own_sockets(status: Iterable[Listener], told: Manager) -> list[DialAddress]:
    """Where a process shows how it is, and where it is heard by its service manager."""
    notify = [UnixAddress(told.address)] if told.address.startswith("/") else []
    return [*(listener.address for listener in status), *notify]


def _https_port(config: Config, listeners: Sequence[Listener]) -> int:
    """The port at which clients find TLS; of the listeners, for port 0 is another by now."""
    names = [x.socket.getsockname() for x in listeners if x.protocol == TLS.name]
    return https_port(config, [name[1] for name in names if isinstance(name, tuple)])
