"""Which backend a hello goes to: an immutable table from (server name, ALPN) to a route.

Exact beats longest suffix beats default; with the same host pattern, one that names an ALPN
protocol beats one that does not, and matches only hellos that offer the protocol.

Knows names and addresses as values; nothing of sockets, and not where the routes were written.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from snimux.proto import hostname
from snimux.proto.proxy_header import Version
from snimux.routing.access import Access
from snimux.routing.address import DialAddress, TcpAddress

Balance = Literal["first", "round_robin", "least_conn", "ip_hash"]
"""How to choose among addresses: the first that is well; by turns; the one that has the fewest
connections for its weight; always the same for a source."""

BALANCES: tuple[Balance, ...] = get_args(Balance)

Check = Literal["off", "tcp", "tls"]
"""How an address is asked whether it is up: not; by a connection; by a hello for its name."""


class PatternError(ValueError):
    """A route pattern that is none; the message says why."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """A host pattern (see ``hostname``), and the ALPN protocol that must be offered, if any."""

    host: str
    alpn: bytes | None = None

    def __str__(self) -> str:
        return self.host if self.alpn is None else f"{self.host}/{self.alpn.decode('latin-1')}"


@dataclass(frozen=True, slots=True)
class Backend:
    """Where connections go: addresses, tried until one connects.

    ``proxy`` is the version of the PROXY protocol header that it is sent, if any; "auto" is v2 to
    the addresses that are proved to understand it, which others know. ``transparent`` says that it
    is dialled from the client's own address. What is None is as the settings of the same name say.
    """

    addresses: tuple[DialAddress, ...]
    proxy: Version | Literal["auto"] | None = None
    weights: tuple[int, ...] = ()
    """Of each address; empty where all are equal."""
    balance: Balance | None = None
    """Which address a connection goes to."""
    wait: float | None = None
    """Seconds that a connection waits for an address to come back."""
    check: Check | None = None
    transparent: bool = False

    def __str__(self) -> str:
        return ",".join(map(str, self.addresses))

    def addresses_for(self, host: str | None) -> tuple[DialAddress, ...]:
        """Those that can be dialled for a client: of its family, where it is to be seen there.

        Args:
            host: the client's IP address in text; None if it has none.
        """
        if not self.transparent:
            return self.addresses
        is_v6 = None if host is None else ":" in host
        return tuple(
            x for x in self.addresses if isinstance(x, TcpAddress) and (":" in x.host) is is_v6
        )


NO_SOURCE = "transparent, and the client has no address of the family that the backend has"
"""Why a client is refused for which a backend has no address."""


@dataclass(frozen=True, slots=True)
class Route:
    """Hellos that match the pattern go to the backend, and plain HTTP for the names to ``http``.

    Where there is no backend, hellos are not for this route; where there is no ``http``, requests
    are redirected to https. One of both there is. ``access`` says who is served; None: everybody.
    """

    pattern: Pattern
    backend: Backend | None
    http: Backend | None = None
    access: Access | None = None
    access_from: Pattern | None = None
    """Of the route that ``access`` was written in, if it is another."""

    @property
    def access_of(self) -> Pattern | None:
        """Of the route that ``access`` was written in; None where there is none."""
        return None if self.access is None else self.access_from or self.pattern

    @property
    def backends(self) -> tuple[Backend, ...]:
        """Those that it has, of the two."""
        return tuple(x for x in (self.backend, self.http) if x is not None)


def parse_pattern(text: str) -> Pattern:
    """A pattern as typed: ``HOST`` or ``HOST/ALPN``, such as ``*.example`` or ``*/h2``.

    Raises:
        PatternError: it is none.
    """
    if "://" in text:
        raise PatternError("a URL, not a host; leave out the scheme, the port and the path")
    host, slash, alpn = text.partition("/")
    # RFC 7301 section 3.1: a protocol name has 1 to 255 bytes. Registered ones are visible ASCII.
    # None has a comma, which is between several patterns.
    if slash and not re.fullmatch(r"[!-+\-.-~]{1,255}", alpn):
        raise PatternError("behind the / goes an ALPN protocol, such as h2 or acme-tls/1")
    try:
        return Pattern(hostname.pattern_from_user(host), alpn.encode("ascii") if slash else None)
    except hostname.HostnameError as error:
        raise PatternError(str(error)) from None


class RouteTable:
    """An immutable table of routes; look-ups cost the same however many there are."""

    # Flat, for the collector looks through whatever holds others, and stops all the while.
    __slots__ = ("_any", "_by_alpn", "_count", "_plain")

    def __init__(self, routes: Iterable[Route] = ()) -> None:
        """Routes with distinct patterns; of two with the same pattern the first counts."""
        self._any: dict[str, Route] = {}
        self._by_alpn: dict[str, dict[bytes, Route]] = {}
        self._plain: dict[str, Route] = {}
        patterns = set()
        for route in routes:
            patterns.add(route.pattern)
            host, alpn = route.pattern.host, route.pattern.alpn
            if alpn is None:
                self._plain.setdefault(host, route)
                if route.backend is not None:
                    self._any.setdefault(host, route)
            elif route.backend is not None:
                self._by_alpn.setdefault(host, {}).setdefault(alpn, route)
        self._count = len(patterns)

    def __len__(self) -> int:
        """How many patterns have a route."""
        return self._count

    def __iter__(self) -> Iterator[Route]:
        """Each route that something is for, once."""
        yield from self._any.values()
        for by_alpn in self._by_alpn.values():
            yield from by_alpn.values()
        for host, route in self._plain.items():
            if self._any.get(host) is not route:
                yield route

    def find(self, name: str | None, alpn: Sequence[bytes]) -> Route | None:
        """The route of a hello, or None.

        Args:
            name: the canonical server name; None where the hello has none.
            alpn: the protocols offered, in the client's order; where patterns for several of them
                match, the client's first choice among them wins.
        """
        return next(self.candidates(name, alpn), None)

    def candidates(self, name: str | None, alpn: Sequence[bytes]) -> Iterator[Route]:
        """Every route that a hello matches; it goes by the first. See ``find``."""
        for host in hostname.patterns_matching(name):
            by_alpn = self._by_alpn.get(host)
            if by_alpn is not None:
                yield from (by_alpn[protocol] for protocol in alpn if protocol in by_alpn)
            route = self._any.get(host)
            if route is not None:
                yield route

    def find_plain(self, name: str | None) -> Route | None:
        """The route of a plain HTTP request for a canonical name, or None."""
        return next(self.plain_candidates(name), None)

    def plain_candidates(self, name: str | None) -> Iterator[Route]:
        """Every route that a plain HTTP request matches; it goes by the first."""
        for host in hostname.patterns_matching(name):
            route = self._plain.get(host)
            if route is not None:
                yield route
