"""Answer for one process what is asked about it: in pieces, each of which is JSON.

Its routes and where they come from, its connections, whom it refused, its figures: all is read from
the server when it is asked for, and nothing is kept here. Knows nothing of who asks.
"""

import base64
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Protocol

import trio

from snimux import __version__
from snimux.backend.pool import Backends
from snimux.frontend.limits import ConnectionLimits
from snimux.net.listeners import Listener
from snimux.proto.client_hello import TLS
from snimux.proto.http_head import HTTP
from snimux.providers.base import Fault
from snimux.providers.merge import Plan
from snimux.routing.access import Access
from snimux.routing.routes import Backend, Route, RouteTable
from snimux.status import metrics
from snimux.status.metrics import Metrics, Piece
from snimux.status.refused import Refusals
from snimux.text import cut

MOST_CONNECTIONS = 1_000
"""So many can be looked through; how many there are in all is told."""
MOST_ROUTES = 10_000
"""2 MB, or so; how many there are in all is told."""

MOST_NETWORKS = 1_000
"""Of all lists together: to write as many takes 2 ms, and whoever has lists of whole countries has
ten times as many."""

MOST_LIVE = 100
"""Rows of each table that is told every second: more than a person looks through."""
MOST_LAST = 10
"""Of the last refused that are told every second."""

MOST_FAULTS, LONGEST_FAULT = 10, 300
"""Of what is wrong with providers, and characters of each: what a person reads; the log has all."""

_AT_A_TIME = 100  # routes


class Shown(Protocol):
    """The part of what is in effect that is shown; see ``service.generation``."""

    @property
    def table(self) -> RouteTable:
        """The routes."""

    @property
    def plan(self) -> Plan:
        """The same with whose they are, and who is silent."""

    @property
    def reloads(self) -> int:
        """The number of configurations that were in effect before."""


class Current(Protocol):
    """Holds what is in effect."""

    @property
    def value(self) -> Shown:
        """All that is in effect now."""

    @property
    def since(self) -> float:
        """The time since when, by the machine's monotonic clock."""


class Server(Protocol):
    """The server of a process, as far as it is shown."""

    @property
    def current(self) -> Current:
        """The holder of what is in effect."""

    @property
    def listeners(self) -> Sequence[Listener]:
        """The listeners that connections are accepted on."""

    @property
    def limits(self) -> ConnectionLimits:
        """The limits on connections."""

    @property
    def pool(self) -> Backends:
        """The pool, which knows how addresses are."""

    @property
    def faults(self) -> Iterable[Fault]:
        """The faults that providers have now."""

    @property
    def draining(self) -> bool:
        """True while connections end and none is accepted."""

    @property
    def metrics(self) -> Metrics:
        """The figures."""

    @property
    def refusals(self) -> Refusals:
        """The clients that were refused last."""


class Local:
    """Answers for the server of this process."""

    def __init__(self, server: Server) -> None:
        self._server = server

    @property
    def draining(self) -> bool:
        """True while connections end and none is accepted."""
        return self._server.draining

    @property
    def _table(self) -> RouteTable:
        return self._server.current.value.table

    def tell(self, what: str) -> Iterator[Piece]:
        """Answer ``figures``, ``routes``, ``connections``, ``refused``, or with ``hellos``.

        ``live`` is of several a little; ``find`` is followed by what routes are to have in them,
        in small letters. With routes, or their number, goes how new they are: of two processes
        the one whose ``generation`` is greater has the newer ones.
        """
        word, _, text = what.partition(" ")
        server, shown = self._server, self._server.current.value
        table, refused = shown.table, server.refusals.last
        generation = [shown.reloads, -len(shown.plan.silent), server.current.since]
        match word:
            case "figures":
                yield {
                    "generation": generation,
                    "version": __version__,
                    "routes": len(table),
                    "limit": server.limits.limit,
                    "draining": server.draining,
                    "listeners": self._listeners(),
                }
                yield from server.metrics.pieces()
            case "routes":
                yield {"generation": generation, "total": len(table)}
                yield from self._routes()
            case "connections":
                now = trio.current_time()
                yield from metrics.connections(server.metrics, now, most=MOST_CONNECTIONS)
            case "refused":
                yield {"refused": list(refused)}
            case "hellos":
                for each in list(refused):
                    kept = server.refusals.hellos.get(each["number"])
                    hello = None if kept is None else base64.b64encode(kept).decode("ascii")
                    yield {"refused": [{**each, "hello": hello}]}
            case "live":
                last = list(refused)[-MOST_LAST:]
                routes = [self._route(route) for route in islice(table, MOST_LIVE)]
                total = len(table)
                yield {"generation": generation, "total": total, "routes": routes, "refused": last}
                yield {"down": len(server.pool.down), "backends": self._backends()}
                faults = islice(server.faults, MOST_FAULTS)
                yield {"faults": [cut(str(fault), LONGEST_FAULT) for fault in faults]}
            case "find":
                yield {"generation": generation}
                yield from self._matching(text)

    def _listeners(self) -> list[Piece]:
        # None that is closed has an address any more.
        open_ones = (x for x in self._server.listeners if x.socket.fileno() != -1)
        return [{"protocol": x.protocol, "address": str(x)} for x in open_ones]

    def _routes(self) -> Iterator[Piece]:
        """Some at a time, with the lists that are new: each is told once, and has a number."""
        routes, lists = islice(self._table, MOST_ROUTES), _Lists()
        while some := list(islice(routes, _AT_A_TIME)):
            rows = [{**self._route(x), "list": lists.number(x.access)} for x in some]
            yield {"routes": rows, "lists": lists.new()}

    def _matching(self, text: str) -> Iterator[Piece]:
        """Yield how many routes have a text in them, and the first of these."""
        rows: list[Piece] = []
        routes, total = iter(self._table), 0
        while some := list(islice(routes, _AT_A_TIME)):
            for route in some:
                if text in str(route.pattern).lower() or text in _backends_of(route):
                    total += 1
                    if len(rows) < MOST_LIVE:
                        rows.append(self._route(route))
            yield {}
        yield {"total": total, "routes": rows}

    def _backends(self) -> list[Piece]:
        """Some of the addresses of which anything is known, with what is; first those down."""
        down, states = self._server.pool.down, self._server.pool.states
        some = dict.fromkeys((*islice(down, MOST_LIVE), *islice(states, MOST_LIVE)))
        now = trio.current_time()
        rows = []
        for address in islice(some, MOST_LIVE):
            state = states.get(address)
            since = None if state is None else state.silent_since
            silent_for = None if since is None else round(now - since, 3)
            is_up = address not in down
            rows.append({"backend": str(address), "is_up": is_up, "silent_for": silent_for})
        return rows

    def _route(self, route: Route) -> Piece:
        shown, down = self._server.current.value, self._server.pool.down
        provider = shown.plan.has.get(str(route.pattern))
        tls, http = (route.targets.get(x.name) for x in (TLS, HTTP))
        addresses = [x for to in route.backends for x in to.addresses]
        return {
            "pattern": str(route.pattern),
            "listen": route.pattern.listener,
            "refuses": route.refuses,
            "backend": _addresses(tls),
            "proxy": tls and tls.proxy,
            "http": _addresses(http),
            "http_proxy": http and http.proxy,
            "source": "configuration" if provider is None else str(provider),
            "access_of": route.access_of and str(route.access_of),
            "not_answering": [str(x) for x in dict.fromkeys(addresses) if x in down],
        }


class _Lists:
    """The lists of routes, as far as there is room for them; many may have the same."""

    def __init__(self) -> None:
        # By identity, as to compare long ones takes a while; the routes keep them.
        self._numbers: dict[int, int | None] = {}
        self._rows: list[Piece] = []
        self._begin = 0
        self._room = MOST_NETWORKS

    def number(self, access: Access | None) -> int | None:
        """Return the number of a list; None if there is none, or no room for it."""
        if access is None:
            return None
        if id(access) not in self._numbers:
            lists = [x for x in (access.allow, access.deny) if x is not None]
            size = sum(len(x.listed) for x in lists)
            has_room = size <= self._room
            self._numbers[id(access)] = len(self._rows) if has_room else None
            if has_room:
                self._room -= size
                self._rows.append(_access(access))
        return self._numbers[id(access)]

    def new(self) -> list[Piece]:
        """Return those that are new since the last call."""
        new, self._begin = self._rows[self._begin :], len(self._rows)
        return new


def _access(access: Access) -> Piece:
    return {
        "allow": None if access.allow is None else access.allow.words,
        "deny": None if access.deny is None else access.deny.words,
        "acme_exempt": access.acme_exempt,
    }


def _backends_of(route: Route) -> str:
    addresses = (str(x) for backend in route.backends for x in backend.addresses)
    return " ".join(addresses).lower()  # of a UNIX socket it may have capitals


def _addresses(backend: Backend | None) -> list[str] | None:
    return None if backend is None else [str(address) for address in backend.addresses]
