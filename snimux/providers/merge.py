"""Merge the routes of several providers with the written ones: say who has a name.

Takes values and returns values. Knows no provider's details.
"""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from snimux.proto import hostname
from snimux.providers.caddy.sites import Sites, Unrouted
from snimux.routing.address import AdminAddress, DialAddress
from snimux.routing.routes import Backend, Pattern, Route
from snimux.routing.served import Served


@dataclass(frozen=True, slots=True)
class Claim:
    """A pattern that two Caddys serve: the first listed has it."""

    host: str
    has: AdminAddress
    wants: AdminAddress


@dataclass(frozen=True, slots=True)
class Plan:
    """The routes of several Caddys together, and what is not right with them."""

    routes: tuple[Route, ...]
    claims: tuple[Claim, ...]
    loops: tuple[Unrouted, ...]
    """Sites that are left out, since they are served where snimux itself listens."""
    listeners: Mapping[DialAddress, Served] = field(default_factory=dict)
    """What is known of the addresses at which the Caddys serve."""
    has: Mapping[str, AdminAddress] = field(default_factory=dict)
    """Of the hosts whose routes were found, which Caddy they are from."""
    discovered: frozenset[DialAddress] = frozenset()
    """The addresses of these routes: what Caddys say, and nobody has written."""
    refused: tuple[Unrouted, ...] = ()
    """Sites with an address that is reserved, which their routes are without."""


def plan(
    caddys: Iterable[tuple[AdminAddress, Sites]],
    explicit: Iterable[Route],
    is_own: Callable[[DialAddress], bool],
    *,
    auto: Container[AdminAddress] = (),
    reserved_for: Callable[[DialAddress], str | None] = lambda address: None,
) -> Plan:
    """Make routes of what is served.

    Args:
        caddys: each with its address, in the order in which they have a claim to a name.
        explicit: routes that were written; of the same pattern they win.
        is_own: whether an address is one where snimux itself listens.
        auto: the Caddys that are told who the client is, where they are proved to understand it.
        reserved_for: what an address is for that only snimux may reach; None of all others.

    Returns:
        The explicit routes and those that were found, in that order. Of these each has the lists of
        the explicit route that it is an exception from: who writes lists closes what is below them.
    """
    routes = {route.pattern: route for route in explicit}
    above: dict[str, list[Route]] = {}
    for route in routes.values():
        if "*" in route.pattern.host:
            above.setdefault(route.pattern.host, []).append(route)
    has: dict[str, AdminAddress] = {}
    claims, loops, refused = [], [], []
    discovered: set[DialAddress] = set()

    def is_left_out(address: DialAddress) -> bool:
        return is_own(address) or reserved_for(address) is not None

    listeners: dict[DialAddress, Served] = {}
    served = [(admin, site) for admin, sites in caddys for site in sites.sites]
    # A name is first of all who serves it by TLS: he answers for it on port 80, too.
    served.sort(key=lambda each: not each[1].https)
    for admin, site in served:
        for listener in (*site.https, *site.http):
            listeners.setdefault(listener.address, listener)
        proxy: Literal["auto"] | None = "auto" if admin in auto else None
        for address in dict.fromkeys(x.address for x in (*site.https, *site.http)):
            if what := reserved_for(address):
                why = f"the Caddy at {admin} says {address}, which is {what}"
                refused.append(Unrouted(site.host, why, site.host, (address,)))
        pattern, backend = Pattern(site.host), _backend(site.https, is_left_out, proxy)
        http = _backend(site.http, is_left_out, proxy)
        if backend is None and any(reserved_for(x.address) for x in site.https):
            continue
        if site.https and backend is None:
            why = f"{places(site.https)} is where snimux itself listens"
            loops.append(Unrouted(site.host, why))
        elif backend is None and http is None:
            continue
        elif site.host in has:
            claims.append(Claim(site.host, has[site.host], admin))
        elif pattern not in routes:
            has[site.host] = admin
            over = _with_lists(site.host, above)
            access = (over.access, over.access_of) if over else ()
            routes[pattern] = Route(pattern, backend, http, *access)
            for each in routes[pattern].backends:
                discovered.update(each.addresses)
    return Plan(
        tuple(routes.values()),
        tuple(claims),
        tuple(loops),
        listeners,
        has,
        frozenset(discovered),
        tuple(refused),
    )


def _with_lists(host: str, above: Mapping[str, Sequence[Route]]) -> Route | None:
    """The route whose lists a found one has, if any: of what would have hellos in its place.

    What is for an ALPN protocol or for plain HTTP alone would have only some, and the rest would go
    on to what is above it. If it has lists, they are taken all the same: better too narrow than
    open.
    """
    for pattern in hostname.patterns_matching(host):
        there = above.get(pattern, ()) if pattern != host else ()
        for route in there:
            if route.pattern.alpn is None and route.backend is not None:
                return route if route.access is not None else None
        for route in there:
            if route.access is not None:
                return route
    return None


def _backend(
    listeners: Iterable[Served],
    is_left_out: Callable[[DialAddress], bool],
    proxy: Literal["auto"] | None,
) -> Backend | None:
    # Whether the wrapper proxy_protocol works is not known from its being there: hence not v2.
    addresses = tuple(x.address for x in listeners if not is_left_out(x.address))
    return Backend(addresses, proxy) if addresses else None


def places(listeners: Sequence[Served]) -> str:
    """Return where something is served, in words: three addresses at the most."""
    more = ", ..." if len(listeners) > 3 else ""
    return ", ".join(str(listener.address) for listener in listeners[:3]) + more
