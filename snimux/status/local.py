"""What one process tells of itself when it is asked: in pieces, each of which is JSON.

Its routes and where they come from, its connections, whom it refused, its figures: to be asked for
these has what is known by then counted, and changes nothing else. Knows nothing of who asks.
"""

import base64
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import islice

import trio

from snimux import __version__
from snimux.backend.state import State
from snimux.frontend.limits import Places
from snimux.net.listeners import Listener
from snimux.routing.access import Access
from snimux.routing.address import AdminAddress, DialAddress
from snimux.routing.routes import Backend, LiveTable, Route
from snimux.status import metrics
from snimux.status.metrics import Metrics, Piece
from snimux.status.refused import Refusals

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

_AT_A_TIME = 100  # routes


@dataclass(slots=True)
class View:
    """What there is to be seen of a server; whoever has it keeps it up to date."""

    metrics: Metrics
    refusals: Refusals
    table: LiveTable
    places: Places
    has: Mapping[str, AdminAddress] = field(default_factory=dict)
    """Of the hosts whose routes were found, which Caddy they are from."""
    draining: bool = False
    down: Set[DialAddress] = frozenset()
    """The addresses that do not answer, as far as this process knows."""
    states: Mapping[DialAddress, State] = field(default_factory=dict)
    """What it knows of addresses, of these and of others."""
    listeners: Sequence[Listener] = ()
    reloads: int = 0
    """How many this process has done."""
    unheard: int = 0
    """Of how many Caddys it does not know what they serve."""
    since: float = 0.0
    """When its routes came into effect, by the machine's monotonic clock."""

    def tell(self, what: str) -> Iterator[Piece]:
        """The answer: ``figures``, ``routes``, ``connections``, ``refused``, or with ``hellos``.

        ``live`` is of several a little; ``find`` is followed by what routes are to have in them,
        in small letters. With routes, or their number, is told how new they are: of two processes
        the one whose ``generation`` is greater has the newer ones.
        """
        word, _, wanted = what.partition(" ")
        generation = [self.reloads, -self.unheard, self.since]
        match word:
            case "figures":
                yield {
                    "generation": generation,
                    "version": __version__,
                    "routes": len(self.table.current),
                    "limit": self.places.limit,
                    "draining": self.draining,
                    "listeners": self._listeners(),
                }
                yield from self.metrics.pieces()
            case "routes":
                yield {"generation": generation, "total": len(self.table.current)}
                yield from self._routes()
            case "connections":
                now = trio.current_time()
                yield from metrics.connections(self.metrics, now, most=MOST_CONNECTIONS)
            case "refused":
                yield {"refused": list(self.refusals.last)}
            case "hellos":
                for each in list(self.refusals.last):
                    kept = self.refusals.hellos.get(each["number"])
                    hello = None if kept is None else base64.b64encode(kept).decode("ascii")
                    yield {"refused": [{**each, "hello": hello}]}
            case "live":
                last = list(self.refusals.last)[-MOST_LAST:]
                routes = [self._route(route) for route in islice(self.table.current, MOST_LIVE)]
                total = len(self.table.current)
                yield {"generation": generation, "total": total, "routes": routes, "refused": last}
                yield {"down": len(self.down), "backends": self._backends()}
            case "find":
                yield {"generation": generation}
                yield from self._found(wanted)

    def _listeners(self) -> list[Piece]:
        # None that is closed has an address any more.
        there = (x for x in self.listeners if x.socket.fileno() != -1)
        return [{"protocol": x.protocol, "address": str(x)} for x in there]

    def _routes(self) -> Iterator[Piece]:
        """Some at a time, with the lists that are new: each is told once, and has a number."""
        routes, lists = islice(self.table.current, MOST_ROUTES), _Lists()
        while some := list(islice(routes, _AT_A_TIME)):
            rows = [{**self._route(x), "list": lists.number(x.access)} for x in some]
            yield {"routes": rows, "lists": lists.new()}

    def _found(self, wanted: str) -> Iterator[Piece]:
        """How many routes have a text in them, and the first of these."""
        found: list[Piece] = []
        routes, total = iter(self.table.current), 0
        while some := list(islice(routes, _AT_A_TIME)):
            for route in some:
                if wanted in str(route.pattern).lower() or wanted in _backends_of(route):
                    total += 1
                    if len(found) < MOST_LIVE:
                        found.append(self._route(route))
            yield {}
        yield {"total": total, "routes": found}

    def _backends(self) -> list[Piece]:
        """Some of the addresses of which anything is known, with what is; first those down."""
        some = dict.fromkeys((*islice(self.down, MOST_LIVE), *islice(self.states, MOST_LIVE)))
        now = trio.current_time()
        rows = []
        for address in islice(some, MOST_LIVE):
            state = self.states.get(address)
            since = None if state is None else state.silent_since
            silent_for = None if since is None else round(now - since, 3)
            is_up = address not in self.down
            rows.append({"backend": str(address), "is_up": is_up, "silent_for": silent_for})
        return rows

    def _route(self, route: Route) -> Piece:
        found_at = self.has.get(str(route.pattern))
        addresses = [x for to in (route.backend, route.http) if to for x in to.addresses]
        return {
            "pattern": str(route.pattern),
            "backend": _addresses(route.backend),
            "proxy": route.backend and route.backend.proxy,
            "http": _addresses(route.http),
            "http_proxy": route.http and route.http.proxy,
            "source": "configuration" if found_at is None else str(found_at),
            "access_of": route.access_of and str(route.access_of),
            "not_answering": [str(x) for x in dict.fromkeys(addresses) if x in self.down],
        }


class _Lists:
    """The lists of routes, as far as there is room for them; many may have the same."""

    def __init__(self) -> None:
        # By identity, as to compare long ones takes a while; the routes keep them.
        self._numbers: dict[int, int | None] = {}
        self._told: list[Piece] = []
        self._begin = 0
        self._room = MOST_NETWORKS

    def number(self, access: Access | None) -> int | None:
        """Which it is; None if there is none, or no room for it."""
        if access is None:
            return None
        if id(access) not in self._numbers:
            lists = [x for x in (access.allow, access.deny) if x is not None]
            size = sum(len(x.listed) for x in lists)
            has_room = size <= self._room
            self._numbers[id(access)] = len(self._told) if has_room else None
            if has_room:
                self._room -= size
                self._told.append(_access(access))
        return self._numbers[id(access)]

    def new(self) -> list[Piece]:
        """Those that were not there when last asked for."""
        new, self._begin = self._told[self._begin :], len(self._told)
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
