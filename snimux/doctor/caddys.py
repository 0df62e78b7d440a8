"""Judge what each Caddy says: what of it no route reaches, and what of it shows past snimux."""

import shlex
from collections.abc import Iterable, Iterator

from snimux.doctor.caddyfile import QUIET, places
from snimux.doctor.facts import Caddy, Facts, Port
from snimux.doctor.findings import Colour, Finding, in_options, in_servers, tls_servers
from snimux.proto.client_hello import TLS
from snimux.proto.verdict import Hello
from snimux.providers.caddy.sites import Sites
from snimux.routing.address import TcpAddress, is_own
from snimux.routing.routes import RouteTable
from snimux.routing.served import Served
from snimux.text import listed


def findings(facts: Facts) -> Iterator[Finding]:
    """Judge what the Caddys say, or that they say nothing."""
    yield from _caddys(facts)
    yield from _claims(facts)
    yield from _refused(facts)
    yield from _faults(facts)
    yield from _servers(facts)


def _caddys(facts: Facts) -> Iterator[Finding]:
    reached = RouteTable(facts.plan.routes)
    for caddy in facts.caddys:
        if caddy.sites is None:
            if not any(_shares_admin(port, caddy) for port in facts.ports):
                yield _silent(facts, caddy)
            continue
        names = [site.host for site in caddy.sites.sites if site.https or site.http]
        count = f"{len(names)} name{'' if len(names) == 1 else 's'}"
        yield Finding("caddy", Colour.GREEN, str(caddy), f"{caddy} answers: {count}")
        yield from _unrouted(caddy, caddy.sites)
        if not caddy.is_listed:
            yield from _unreached(caddy, caddy.sites, reached)


def _shares_admin(port: Port, caddy: Caddy) -> bool:
    return (
        len(port.holders) > 1
        and isinstance(caddy.admin, TcpAddress)
        and is_own([port.address], caddy.admin)
    )


def _silent(facts: Facts, caddy: Caddy) -> Finding:
    place = next(place for place in places(facts) if place.caddy == caddy)
    where = f" at {caddy.admin}" if caddy.admin and caddy.process else ""
    lines = in_options(caddy, (f"admin {place.admin}",))
    if not caddy.admin:
        lines = ("sudo snimux doctor  # or name its address: snimux doctor --caddy ADDR", *lines)
    if not caddy.process:
        lines = (f"# start it, or leave out --caddy {caddy.admin}",)
    meaning = "Its names get no routes, or those that they had."
    if caddy.answers_at:
        meaning = f"{caddy.admin} is not its admin address: {caddy.answers_at} is."
        lines = (f"snimux --caddy {shlex.quote(str(caddy.answers_at))}  # not {caddy.admin}",)
    return Finding(
        "admin-down",
        Colour.RED if caddy.is_listed else Colour.YELLOW,
        str(caddy),
        f"{caddy} does not tell{where} what it serves: {caddy.fault}",
        meaning,
        lines,
    )


def _unrouted(caddy: Caddy, sites: Sites) -> Iterator[Finding]:
    for unrouted in sites.unrouted:
        where = ",".join(map(str, unrouted.at)) or "ADDR"
        route = shlex.quote(f"{unrouted.host or 'HOST'}={where}")
        default = f"snimux --default {shlex.quote(where)}  # or --route {route}"
        yield Finding(
            "no-route",
            Colour.YELLOW,
            unrouted.what,
            f"{unrouted.what}: {unrouted.why}",
            f"No route is made of that, in {caddy}; where it is served is for you to say.",
            (f"snimux --route {route}" if unrouted.host else default,),
        )


def _unreached(caddy: Caddy, sites: Sites, reached: RouteTable) -> Iterator[Finding]:
    def is_reached(host: str, listeners: Iterable[Served]) -> bool:
        route = reached.find(TLS, Hello(host, (), ech=False, size=0))
        if route is None or route.refuses:
            return route is not None  # which somebody wants so
        addresses = route.targets[TLS.name].addresses
        return any(listener.address in addresses for listener in listeners)

    names = [x.host for x in sites.sites if x.https and not is_reached(x.host, x.https)]
    if names:
        yield Finding(
            "no-route",
            Colour.YELLOW,
            str(caddy),
            f"{caddy} has what no route reaches: {listed(names)}",
            "It was found running; snimux was not told of it.",
            (f"snimux --caddy {caddy.admin}  # or in the file: [[caddy]]",),
        )


def _claims(facts: Facts) -> Iterator[Finding]:
    for claim in facts.plan.claims:
        yield Finding(
            "name-claimed",
            Colour.YELLOW,
            claim.host,
            f"{claim.host} is served by two: {claim.has} has it, and {claim.wants} wants it",
            "The one that is listed first gets all its connections.",
            (f"# take {claim.host} out of one of the two, or list the other one first",),
        )


def _refused(facts: Facts) -> Iterator[Finding]:
    for refused in facts.plan.refused:
        yield Finding(
            "reserved-address",
            Colour.RED,
            refused.what,
            f"{refused.what} is refused: {refused.why}",
            "Strangers would speak there with what only snimux may reach. "
            "See whether somebody means to.",
            (f"# take {refused.what} out of that Caddy, or give it another address",),
        )


def _faults(facts: Facts) -> Iterator[Finding]:
    for fault in facts.faults:
        yield Finding(
            "routes-unread",
            Colour.RED,
            fault.what,
            f"routes cannot be read of {fault}",
            "What snimux has of there is what it was before, or nothing.",
            ("# mend that; snimux sees it by itself",),
        )


def _servers(facts: Facts) -> Iterator[Finding]:
    for caddy in facts.caddys:
        ports = sorted({x.redirect_port for x in tls_servers(caddy) if x.redirect_port})
        for port in ports:
            yield Finding(
                "port-in-redirect",
                Colour.YELLOW,
                str(caddy),
                f"{caddy} puts its private port into redirects: https://HOST:{port}/",
                "Visitors are sent past snimux, to a port that they may not reach.",
                (
                    *in_options(caddy, (f"https_port {port}",)),
                    f"# and the sites without it: HOST, not HOST:{port}",
                ),
            )
        if any(
            server.http3 and not _is_public(facts, server.listeners)
            for server in tls_servers(caddy)
        ):
            yield Finding(
                "http3",
                Colour.YELLOW,
                str(caddy),
                f"{caddy} offers HTTP/3 on its private port (Alt-Svc)",
                "Browsers try it, past snimux.",
                in_servers(caddy, QUIET),
            )


def _is_public(facts: Facts, listeners: Iterable[Served]) -> bool:
    return any(is_own(facts.listen, listener.address) for listener in listeners)
