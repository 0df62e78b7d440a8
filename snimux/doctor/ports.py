"""Judge who listens where: ports that are shared, taken, or open to the network."""

from collections.abc import Callable, Iterator

from snimux.doctor.caddyfile import QUIET, Place, is_everywhere, places
from snimux.doctor.facts import Caddy, Facts, Port, Process
from snimux.doctor.findings import (
    SEE,
    Colour,
    Finding,
    holders,
    in_options,
    in_servers,
    meets,
    tls_servers,
)
from snimux.routing.address import FdAddress, FileAddress, ListenAddress, TcpAddress, is_own


def findings(facts: Facts) -> Iterator[Finding]:
    """Judge who listens where."""
    yield from _shared_ports(facts)
    yield from _own_ports(facts)
    yield from _loops(facts)
    yield from _http3_ports(facts)
    yield from _open_ports(facts)


def _shared_ports(facts: Facts) -> Iterator[Finding]:
    for port in facts.ports:
        if len(port.holders) > 1 and port.kind == "tcp" and _concerns(facts, port):
            yield (_shared_admin if _is_admin(facts, port) else _shared_port)(facts, port)


def _shared_admin(facts: Facts, port: Port) -> Finding:
    return Finding(
        "admin-shared",
        Colour.RED,
        str(port.address),
        f"{len(port.holders)} processes have one admin address, {port.address}: {holders(port)}",
        "Each question, and each `caddy reload`, reaches one of them at random.",
        _for_each(facts, port, lambda place: f"admin {place.admin}"),
    )


def _shared_port(facts: Facts, port: Port) -> Finding:
    def line(place: Place) -> str:
        is_plain = _is_plain(facts, port)
        return f"http_port {place.http}" if is_plain else f"https_port {place.https}"

    return Finding(
        "port-shared",
        Colour.RED,
        str(port.address),
        f"{len(port.holders)} processes share port {port.number}: {holders(port)}",
        "Connections are dealt out among them at random (SO_REUSEPORT), so requests reach the "
        "wrong one, and fail. Nothing says so.",
        _for_each(facts, port, line),
    )


def _concerns(facts: Facts, port: Port) -> bool:
    own = {caddy.process for caddy in facts.caddys if caddy.process}
    return (
        bool(own & set(port.holders))
        or any(meets(own, port) for own in facts.listen)
        or _is_admin(facts, port)
    )


def _is_admin(facts: Facts, port: Port) -> bool:
    admins = [caddy.admin for caddy in facts.caddys if not isinstance(caddy.admin, FileAddress)]
    return any(admin is not None and is_own([port.address], admin) for admin in admins)


def _is_plain(facts: Facts, port: Port) -> bool:
    """Return whether a port is for plain HTTP: HTTPS has a UDP port beside it by default."""
    if any(meets(own, port) for own in facts.listen):
        return any(meets(own, port) for own in facts.http)
    if port.number in (80, 443):
        return port.number == 80
    return not any(other.kind == "udp" and other.number == port.number for other in facts.ports)


def _for_each(facts: Facts, port: Port, line: Callable[[Place], str]) -> tuple[str, ...]:
    """A line for the Caddyfile of each Caddy that holds a port."""
    if None in port.holders:
        return SEE
    return tuple(
        text
        for place in places(facts)
        if place.caddy.process and place.caddy.process in port.holders
        for text in in_options(place.caddy, (line(place),))
    )


def _own_ports(facts: Facts) -> Iterator[Finding]:
    for own in facts.listen:
        held = [port for port in facts.ports if port.kind == "tcp" and meets(own, port)]
        # Those that are shared have been judged.
        holders = {holder for port in held if len(port.holders) == 1 for holder in port.holders}
        for holder in holders:
            yield _own_port(facts, own, holder)
        # What is handed over has a port already, which cannot be seen from here.
        if not held and not isinstance(own, FdAddress):
            is_any = isinstance(own, TcpAddress) and own.port == 0
            title = f"{own} is any port that is free" if is_any else f"{own} is free for snimux"
            yield Finding("own-port", Colour.GREEN, str(own), title)


def _own_port(facts: Facts, own: ListenAddress, holder: Process | None) -> Finding:
    if holder is None:
        return Finding(
            "own-port",
            Colour.YELLOW,
            str(own),
            f"{own} is held by a process that cannot be seen",
            "It is snimux, or snimux cannot have the port.",
            SEE,
        )
    if holder.is_snimux:
        return Finding("own-port", Colour.GREEN, str(own), f"snimux listens on {own}")
    if not holder.is_caddy:
        title = f"{own} is held by {holder}"
        lines = (f"kill {holder.pid}  # or snimux --listen with another port",)
        return Finding("own-port", Colour.RED, str(own), title, "snimux cannot have it.", lines)
    return _taken(facts, own, next((x for x in facts.caddys if x.process == holder), None), holder)


def _taken(
    facts: Facts, own: ListenAddress, caddy: Caddy | None, holder: Process | None
) -> Finding:
    """A Caddy has a port that is snimux's."""
    place = next((place for place in places(facts) if place.caddy == caddy), None)
    lines: tuple[str, ...] = ()
    if place and caddy:
        is_plain = own in facts.http
        line = f"http_port {place.http}" if is_plain else f"https_port {place.https}"
        lines = in_options(caddy, (line, "default_bind 127.0.0.1"))
    return Finding(
        "caddy-on-public-port",
        Colour.RED,
        str(own),
        f"{caddy or holder} listens on {own} itself",
        "snimux is to have that port, and send on to the Caddy on a private one.",
        lines,
    )


def _http3_ports(facts: Facts) -> Iterator[Finding]:
    for own in facts.tls:
        for port in facts.ports:
            if port.kind != "udp" or not meets(own, port):
                continue
            yield Finding(
                "udp-port",
                Colour.YELLOW,
                f"udp/{port.address}",
                f"UDP port {port.number} is held by {holders(port)}",
                "Browsers that try HTTP/3 go past snimux, and reach this server whatever the name.",
                SEE
                if None in port.holders
                else tuple(
                    line
                    for caddy in facts.caddys
                    if caddy.process and caddy.process in port.holders
                    for line in in_servers(caddy, QUIET)
                ),
            )


def _open_ports(facts: Facts) -> Iterator[Finding]:
    for caddy in facts.caddys:
        open_ports = sorted(
            {
                str(port.number)
                for port in facts.ports
                if port.kind == "tcp" and is_everywhere(port) and port.holders == (caddy.process,)
                if caddy.process and not any(meets(own, port) for own in facts.listen)
            }
        )
        if open_ports:
            is_one = len(open_ports) == 1
            yield Finding(
                "port-open",
                Colour.YELLOW,
                str(caddy),
                f"{caddy} listens on every interface: port{'' if is_one else 's'} "
                f"{' and '.join(open_ports)}",
                "The network reaches it past snimux.",
                in_options(caddy, ("default_bind 127.0.0.1",)),
            )


def _loops(facts: Facts) -> Iterator[Finding]:
    judged = {holder for own in facts.listen for holder in _holders(facts, own)}
    for caddy in facts.caddys:
        listeners = [x for server in tls_servers(caddy) for x in server.listeners]
        for own in facts.listen if caddy.process not in judged or not caddy.process else ():
            if any(is_own([own], listener.address) for listener in listeners):
                yield _taken(facts, own, caddy, None)


def _holders(facts: Facts, own: ListenAddress) -> Iterator[Process | None]:
    for port in facts.ports:
        if port.kind == "tcp" and meets(own, port):
            yield from port.holders
