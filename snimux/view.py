"""What one process tells of itself when it is asked: in pieces, each of which is JSON.

Its routes and where they come from, its connections, whom it refused, its figures. Knows nothing
of who asks, and changes nothing.
"""

import base64
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from itertools import islice

import trio

from snimux import __version__, figures
from snimux.address import AdminAddress, DialAddress
from snimux.figures import Figures, Piece
from snimux.places import Places
from snimux.routes import Backend, LiveTable, Route

MOST_CONNECTIONS = 1_000
"""So many can be looked through; how many there are in all is told."""
MOST_ROUTES = 10_000
"""2 MB, or so; how many there are in all is told."""

_AT_A_TIME = 100  # routes


@dataclass(slots=True)
class View:
    """What there is to be seen of a server; whoever has it keeps it up to date."""

    figures: Figures
    table: LiveTable
    places: Places
    has: Mapping[str, AdminAddress] = field(default_factory=dict)
    """Of the hosts whose routes were found, which Caddy they are from."""
    draining: bool = False
    down: Set[DialAddress] = frozenset()
    """The addresses that do not answer, as far as this process knows."""

    def tell(self, what: str) -> Iterator[Piece]:
        """The answer: ``figures``, ``routes``, ``connections``, ``refused``, or with ``hellos``."""
        match what:
            case "figures":
                yield {
                    "version": __version__,
                    "routes": len(self.table.current),
                    "limit": self.places.limit,
                    "draining": self.draining,
                }
                yield from self.figures.pieces()
            case "routes":
                yield {"total": len(self.table.current)}
                yield from self._routes()
            case "connections":
                now = trio.current_time()
                yield from figures.connections(self.figures, now, most=MOST_CONNECTIONS)
            case "refused":
                yield {"refused": list(self.figures.last_refused)}
            case "hellos":
                for each in list(self.figures.last_refused):
                    kept = self.figures.hellos.get(each["number"])
                    hello = None if kept is None else base64.b64encode(kept).decode("ascii")
                    yield {"refused": [{**each, "hello": hello}]}

    def _routes(self) -> Iterator[Piece]:
        routes = islice(self.table.current, MOST_ROUTES)
        while some := list(islice(routes, _AT_A_TIME)):
            yield {"routes": [self._route(route) for route in some]}

    def _route(self, route: Route) -> Piece:
        found_at = None if route.pattern.alpn else self.has.get(route.pattern.host)
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


def _addresses(backend: Backend | None) -> list[str] | None:
    return None if backend is None else [str(address) for address in backend.addresses]
