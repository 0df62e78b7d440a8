"""Merge the routes of several providers with the written ones: say who has a name.

Takes values and returns values. Knows no provider's details.
"""

import functools
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from snimux.config.model import Config
from snimux.config.settings import table_of
from snimux.proto import hostname
from snimux.proto.client_hello import TLS
from snimux.providers.base import Claim, Site, Snapshot, Unrouted
from snimux.routing.address import (
    DialAddress,
    FileAddress,
    ProviderAddress,
    TcpAddress,
    UnixAddress,
    is_own,
    reserved_for,
)
from snimux.routing.routes import Backend, Pattern, Route, targets
from snimux.routing.served import Served

DEFAULT_ADMIN = TcpAddress("localhost", 2019)
"""Where a Caddy has its admin API whose configuration says nothing else."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The routes of several providers together, and what is not right with them."""

    routes: tuple[Route, ...]
    claims: tuple[Claim, ...]
    loops: tuple[Unrouted, ...]
    """Sites that are left out, since they are served where snimux itself listens."""
    listeners: Mapping[DialAddress, Served] = field(default_factory=dict)
    """What is known of the addresses at which sites are served."""
    has: Mapping[str, ProviderAddress] = field(default_factory=dict)
    """By pattern, of those that are not written: the provider that has it."""
    discovered: frozenset[DialAddress] = frozenset()
    """The addresses of these routes: what providers say, and the configuration does not."""
    refused: tuple[Unrouted, ...] = ()
    """Sites with an address that is reserved, which their routes are without."""
    silent: tuple[ProviderAddress, ...] = ()
    """The providers of which it is not known what they serve."""


def planned(config: Config, snapshots: Mapping[ProviderAddress, Snapshot | None]) -> Plan:
    """Return the routes of a configuration, with those of what its providers serve."""
    own = (*config.addresses(), *config.handed_over)
    # Thousands of sites have but a few addresses.
    merged = plan(
        [(address, snapshots.get(address) or Snapshot()) for address in config.providers],
        config.routes,
        functools.cache(partial(is_own, own)),
        auto=set(config.providers) - config.without_proxy,
        reserved_for=functools.cache(partial(reserved_for, reserved(config))),
    )
    return replace(
        merged,
        refused=(*merged.refused, *_nowhere(config, merged)),
        silent=tuple(x for x in config.providers if snapshots.get(x) is None),
    )


def _nowhere(config: Config, merged: Plan) -> Iterator[Unrouted]:
    """Yield the routes of providers that are for a listener that there is not."""
    names = {None, *(entry.name for entry in config.entrypoints)}
    for route in merged.routes:
        pattern = str(route.pattern)
        if route.pattern.listener not in names and pattern in merged.has:
            whose = title(merged.has[pattern])
            why = f"{whose} says that it is for a listener, and none is so called"
            yield Unrouted(pattern, why, route.pattern.host)


def reserved(config: Config) -> dict[DialAddress, str]:
    """Return what only snimux may reach, and what each address is.

    Whoever can dial an admin API can change all of its Caddy, so none of them says where another's
    is and has strangers sent there. One that is known by a file is presumed where Caddys are.
    """
    addresses: dict[DialAddress, str] = {}
    for admin in config.caddys:
        address = DEFAULT_ADMIN if isinstance(admin, FileAddress) else admin
        addresses.setdefault(address, f"the admin API of {title(admin)}")
    if isinstance(config.status, TcpAddress | UnixAddress):
        addresses.setdefault(config.status, "where snimux shows its status")
    return addresses


def title(provider: ProviderAddress) -> str:
    """Return what to call a provider in a sentence."""
    return f"the {table_of(provider).noun} at {provider}"


def plan(
    providers: Iterable[tuple[ProviderAddress, Snapshot]],
    explicit: Iterable[Route],
    is_own: Callable[[DialAddress], bool],
    *,
    auto: Container[ProviderAddress] = (),
    reserved_for: Callable[[DialAddress], str | None] = lambda address: None,
) -> Plan:
    """Make routes of what is served.

    Args:
        providers: each with all that it serves, in the order in which they have a claim to a name.
        explicit: routes that the configuration has; of the same pattern they win.
        is_own: whether an address is one where snimux itself listens.
        auto: the providers whose sites are sent who the client is, where they are proved to
            understand it.
        reserved_for: what an address is for that only snimux may reach; None of all others.

    Returns:
        The explicit routes and those of providers, in that order. Of these each that has no lists
        of its own has those of the written route that it is an exception from: who writes lists
        closes what is below them.
    """
    providers = list(providers)
    routes = {route.pattern: route for route in explicit}
    above = _Above(routes.values())
    has: dict[str, ProviderAddress] = {}
    claims = [claim for _, snapshot in providers for claim in snapshot.claims]
    loops: list[Unrouted] = []
    refused: list[Unrouted] = []
    offers = [(name, route) for name, x in providers for route in _offers(x, auto=name in auto)]
    # A name is first of all who serves it by TLS: he answers for it on port 80, too.
    offers.sort(key=lambda offer: TLS.name not in offer[1].targets)
    within = functools.cache(partial(_within, lambda x: not is_own(x) and not reserved_for(x)))
    for name, offer in offers:
        pattern, host = offer.pattern, str(offer.pattern)
        refused += _refused(name, offer, reserved_for)
        route = replace(offer, targets=targets(**{k: within(x) for k, x in offer.targets.items()}))
        lost = None if TLS.name in route.targets else offer.targets.get(TLS.name)
        if lost and any(map(reserved_for, lost.addresses)):
            continue
        if lost:
            why = f"{_listed(lost.addresses)} is where snimux itself listens"
            loops.append(Unrouted(host, why))
        elif not route.backends and not route.refuses:
            continue
        elif host in has:
            claims.append(Claim(host, has[host], name))
        elif pattern not in routes:
            has[host] = name
            routes[pattern] = route
    _close(routes, has, above, providers)
    offered = [route for route in routes.values() if str(route.pattern) in has]
    return Plan(
        tuple(routes.values()),
        tuple(claims),
        tuple(loops),
        _listeners(snapshot for _, snapshot in providers),
        has,
        frozenset(x for route in offered for backend in route.backends for x in backend.addresses),
        tuple(refused),
    )


def _refused(
    name: ProviderAddress, offer: Route, reserved_for: Callable[[DialAddress], str | None]
) -> Iterator[Unrouted]:
    """Yield what a provider offers at addresses that only snimux may reach."""
    host = str(offer.pattern)
    for address in dict.fromkeys(x for backend in offer.backends for x in backend.addresses):
        if what := reserved_for(address):
            why = f"{title(name)} says {address}, which is {what}"
            yield Unrouted(host, why, host, (address,))


def _close(
    routes: dict[Pattern, Route],
    has: dict[str, ProviderAddress],
    above: "_Above",
    providers: Iterable[tuple[ProviderAddress, Snapshot]],
) -> None:
    """Give routes of providers the lists above them; and those that one listener alone has."""
    # What somebody has written is an exception from the configuration alone, not from its like.
    written = dict.fromkeys(
        route.pattern
        for name, snapshot in providers
        for route in snapshot.routes
        if has.get(str(route.pattern)) == name
    )
    sites = [pattern for pattern in routes if str(pattern) in has and pattern not in written]
    for patterns in (written, sites):
        closed = [(x, pattern) for pattern in patterns for x in above.close(routes[pattern])]
        for route, pattern in closed:
            if route.pattern == pattern or route.pattern not in routes:
                routes[route.pattern] = route
                has[str(route.pattern)] = has[str(pattern)]
        above.add(route for route, _ in closed)


def _offers(snapshot: Snapshot, *, auto: bool) -> Iterator[Route]:
    """Return the routes that a provider would have, if it were alone."""
    # Whether the wrapper proxy_protocol works is not known from its being there: hence not v2.
    backend = functools.cache(partial(_backend, "auto" if auto else None))
    for site in snapshot.sites:
        yield Route(Pattern(site.host), targets(tls=backend(site.https), http=backend(site.http)))
    yield from snapshot.routes


def _backend(proxy: Literal["auto"] | None, listeners: Sequence[Served]) -> Backend | None:
    return Backend(tuple(x.address for x in listeners), proxy) if listeners else None


def _within(is_allowed: Callable[[DialAddress], bool], backend: Backend) -> Backend | None:
    """Return a backend with those of its addresses that are allowed; None if none is."""
    if all(map(is_allowed, backend.addresses)):
        return backend
    places = [place for place, x in enumerate(backend.addresses) if is_allowed(x)]
    addresses = tuple(backend.addresses[place] for place in places)
    weights = tuple(backend.weights[place] for place in places) if backend.weights else ()
    return replace(backend, addresses=addresses, weights=weights) if places else None


def _listeners(snapshots: Iterable[Snapshot]) -> dict[DialAddress, Served]:
    sites: Iterable[Site] = (site for snapshot in snapshots for site in snapshot.sites)
    in_order = sorted(sites, key=lambda site: not site.https)
    listeners: dict[DialAddress, Served] = {}
    for site in in_order:
        for listener in (*site.https, *site.http):
            listeners.setdefault(listener.address, listener)
    return listeners


class _Above:
    """Routes that somebody has written, by host: what closes each, closes what is below it."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.by_host: dict[str, list[Route]] = {}
        self.listeners: dict[str, None] = {}  # in order
        self.add(routes)

    def add(self, routes: Iterable[Route]) -> None:
        for route in routes:
            self.by_host.setdefault(route.pattern.host, []).append(route)
            if route.pattern.listener is not None:
                self.listeners[route.pattern.listener] = None

    def close(self, route: Route) -> Iterator[Route]:
        """Yield a route with the lists above it; and one for each listener where others are."""
        general = self.with_lists(route)
        yield general
        for name in self.listeners if route.pattern.listener is None else ():
            own = self.with_lists(replace(route, pattern=replace(route.pattern, listener=name)))
            if (own.access, own.refuses) != (general.access, general.refuses):
                yield own

    def with_lists(self, route: Route) -> Route:
        """Give a route that has none the lists, if any, of what would have hellos in its place.

        If that refuses, so does the route.

        What is for an ALPN protocol or for plain HTTP alone would have only some, and the rest
        would go on to what is above it. If it has lists, they are taken all the same: better too
        narrow than open.
        """
        own, by_host = route.pattern, self.by_host
        is_open = route.access is None and not route.refuses
        for host in hostname.patterns_matching(own.host) if is_open else ():
            # Of the same host, what is for no protocol is above what is for one.
            near = [
                x
                for x in by_host.get(host, ())
                if x.pattern.listener in (None, own.listener)
                and (host != own.host or (own.alpn is not None and x.pattern.alpn is None))
            ]
            near.sort(key=lambda x: x.pattern.listener is None)
            whole = (
                x for x in near if x.pattern.alpn is None and (TLS.name in x.targets or x.refuses)
            )
            over = next(whole, None) or next((x for x in near if x.access or x.refuses), None)
            if over is not None and over.refuses:
                whose = over.access_from or over.pattern
                return replace(route, targets=targets(), access_from=whose, refuses=True)
            if over is not None:
                return replace(route, access=over.access, access_from=over.access_of)
        return route


def places(listeners: Sequence[Served]) -> str:
    """Return where something is served, in words: three addresses at the most."""
    return _listed([listener.address for listener in listeners])


def _listed(addresses: Sequence[DialAddress]) -> str:
    return ", ".join(map(str, addresses[:3])) + (", ..." if len(addresses) > 3 else "")
