"""Find the route of a hello: an immutable table from (listener, protocol, hello) to a route.

Exact beats longest suffix beats default; with the same host pattern, one that names an ALPN
protocol beats one that does not, and matches only hellos that offer the protocol; of two with the
same host and ALPN protocol, the one for this listener alone beats the one for all.

Knows names and addresses as values; nothing of sockets, and not where the routes were written.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

from snimux.proto import hostname
from snimux.proto.proxy_header import Version
from snimux.proto.verdict import Hello, Protocol
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
    """A host pattern (see ``hostname``), and what else a client must match."""

    host: str
    alpn: bytes | None = None
    """The ALPN protocol that must be offered; None matches whatever is."""
    listener: str | None = None
    """The name of the listener where the client must come in; None matches all listeners."""

    def __str__(self) -> str:
        """Write it as HOST[@LISTENER][/ALPN]."""
        at = "" if self.listener is None else f"@{self.listener}"
        return self.host + at + ("" if self.alpn is None else f"/{self.alpn.decode('latin-1')}")


@dataclass(frozen=True, slots=True)
class Backend:
    """Addresses that connections go to, tried until one connects.

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
        """Return those that can be dialled for a client: all, or of its family if transparent.

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


Targets = Mapping[str, Backend]
"""Backends by the name of the protocol that they are for."""


@lru_cache(1024)
def targets(**backends: Backend | None) -> Targets:
    """Return the targets that there are: of 100,000 routes most share a few."""
    return {protocol: backend for protocol, backend in backends.items() if backend is not None}


@dataclass(frozen=True, slots=True)
class Route:
    """Clients that match the pattern go to the target for the protocol that they speak.

    Where there is none they are redirected, if the protocol has that; else the route is not for
    them. ``access`` says who is served; None: everybody.
    """

    pattern: Pattern
    targets: Targets
    access: Access | None = None
    access_from: Pattern | None = None
    """Of the route that ``access`` or ``refuses`` was written in, if it is another."""
    refuses: bool = False
    """Whether it refuses whoever matches; then it has neither targets nor ``access``."""

    @property
    def access_of(self) -> Pattern | None:
        """The pattern of the route that ``access`` was written in; None where there is none."""
        return None if self.access is None else self.access_from or self.pattern

    @property
    def backends(self) -> tuple[Backend, ...]:
        """All targets."""
        return tuple(self.targets.values())


def parse_pattern(text: str, listener: str | None = None) -> Pattern:
    """Read a pattern as typed: ``HOST`` or ``HOST/ALPN``, such as ``*.example`` or ``*/h2``.

    Args:
        text: what was typed.
        listener: the name of the listener that it is for; None is for all.

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
        host = hostname.pattern_from_user(host)
        return Pattern(host, alpn.encode("ascii") if slash else None, listener)
    except hostname.HostnameError as error:
        raise PatternError(str(error)) from None


def read_pattern(text: str) -> Pattern:
    """Read a pattern as ``str`` writes it, with the name of its listener.

    Raises:
        PatternError: it is none.
    """
    host, slash, alpn = text.partition("/")
    host, at, listener = host.partition("@")
    return parse_pattern(host + slash + alpn, listener if at else None)


class RouteTable:
    """An immutable table of routes; look-ups cost the same however many hosts there are."""

    __slots__ = ("_by_host", "_count", "_routes")

    def __init__(self, routes: Iterable[Route] = ()) -> None:
        """Make a table of routes with distinct patterns; of two with the same the first counts."""
        self._routes = tuple(routes)
        # Nearly always there is one: a tuple of one would be one object more for the collector,
        # which looks through all of them and stops everything meanwhile.
        self._by_host: dict[str, Route | list[Route]] = {}
        for route in self._routes:
            same = self._by_host.setdefault(route.pattern.host, route)
            if isinstance(same, list):
                same.append(route)
            elif same is not route:
                self._by_host[route.pattern.host] = [same, route]
        self._count = len({route.pattern for route in self._routes})

    def __len__(self) -> int:
        """Return how many patterns have a route."""
        return self._count

    def __iter__(self) -> Iterator[Route]:
        """Yield the routes in the order in which they were given."""
        return iter(self._routes)

    def find(self, protocol: Protocol, hello: Hello, listener: str | None = None) -> Route | None:
        """Return the route of a hello, or None.

        Args:
            protocol: the one that the client speaks.
            hello: what it says. Of its ALPN protocols, where patterns for several match, the first
                that it names wins.
            listener: the name of the listener where it came in, if that has one.
        """
        return next(self.candidates(protocol, hello, listener), None)

    def candidates(
        self, protocol: Protocol, hello: Hello, listener: str | None = None
    ) -> Iterator[Route]:
        """Yield every route that a hello matches; it goes by the first. See ``find``."""
        name, redirects = protocol.name, protocol.redirect is not None
        for host in hostname.patterns_matching(hello.name):
            routes = self._by_host.get(host)
            if routes is None:
                continue
            same = (routes,) if isinstance(routes, Route) else _ordered(routes, hello.alpn)
            for route in same:
                pattern = route.pattern
                if (
                    (pattern.alpn is None or pattern.alpn in hello.alpn)
                    and (pattern.listener is None or pattern.listener == listener)
                    and (
                        name in route.targets
                        or route.refuses
                        or (redirects and pattern.alpn is None)
                    )
                ):
                    yield route


def _ordered(routes: Iterable[Route], alpn: Sequence[bytes]) -> list[Route]:
    """Sort the routes of one host: by the client's order of protocols, then for one listener."""
    places = {protocol: place for place, protocol in reversed([*enumerate(alpn)])}

    def place(route: Route) -> tuple[int, bool]:
        pattern = route.pattern
        rank = len(alpn) if pattern.alpn is None else places.get(pattern.alpn, 0)
        return rank, pattern.listener is None

    return sorted(routes, key=place)
