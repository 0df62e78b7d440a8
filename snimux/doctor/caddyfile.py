"""Say what to write so that several Caddys live on one host with snimux in front: lines and ports.

For each Caddy the global options of its Caddyfile, with ports that nobody has; for snimux a file.
Values come in, text goes out.

Source: caddyserver.com, Global options; tried with Caddy 2.6.2 and 2.11.7. A ``servers`` block
without an address is the one that reaches every listener, also where there is a ``default_bind``.
"""

import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from snimux.doctor.facts import Caddy, Facts, Port
from snimux.routing.address import (
    AdminAddress,
    FileAddress,
    ListenAddress,
    TcpAddress,
    UnixAddress,
    is_same,
)

_ADMIN, _HTTP, _HTTPS = 2019, 8080, 8443  # from here up; the first is Caddy's default
_EVERYWHERE = ("", "0.0.0.0", "::")

# What goes into the block ``servers``. Caddy takes one such block only ("duplicate listener
# addresses"), so none of these brings its own.
QUIET = ("protocols h1 h2",)
"""Keeps Caddy from offering HTTP/3."""
STRICT = ("strict_sni_host on",)
"""Makes Caddy answer 421 to a request that is another server's."""
PROXY = (
    "listener_wrappers {",
    "    proxy_protocol {",
    "        allow 127.0.0.1/32 ::1/128",
    "    }",
    "    tls",
    "}",
)
"""Makes Caddy (2.7 and later) believe the PROXY protocol header of a process of this host."""


@dataclass(frozen=True, slots=True)
class Place:
    """The addresses at which a Caddy is to be asked, and to serve."""

    caddy: Caddy
    admin: AdminAddress
    http: int
    https: int


def places(facts: Facts) -> tuple[Place, ...]:
    """A place of its own for each Caddy: what it has is kept, where nobody else has it, too."""
    own_ports = {address.port for address in facts.listen if isinstance(address, TcpAddress)}
    kept: set[AdminAddress | int] = set()
    placed = []

    def port(current: int | None, first: int, caddy: Caddy) -> int:
        taken = own_ports | {x.number for x in facts.ports if x.number and not _is_its(x, caddy)}
        is_own = current is not None and current not in kept and _is_alone(facts, current)
        chosen = current if is_own else next(x for x in count(first) if x not in taken | kept)
        assert chosen is not None
        kept.add(chosen)
        return chosen

    for caddy in facts.caddys:
        admin = _admin_of(caddy)
        if admin is None or admin in kept or isinstance(admin, TcpAddress):
            current = admin.port if isinstance(admin, TcpAddress) else None
            chosen = port(current, _ADMIN, caddy)
            if admin is None or current != chosen:
                admin = TcpAddress("localhost", chosen)
        kept.add(admin)
        http = port(_http(caddy), _HTTP, caddy)
        placed.append(Place(caddy, admin, http, port(_https(caddy), _HTTPS, caddy)))
    return tuple(placed)


def _admin_of(caddy: Caddy) -> AdminAddress | None:
    """Return where a Caddy may be asked, or is to be, as configured; None if nowhere."""
    if caddy.sites is not None:
        return caddy.admin
    return caddy.admin if caddy.is_listed and not isinstance(caddy.admin, FileAddress) else None


def _is_its(port: Port, caddy: Caddy) -> bool:
    """Return whether a port is a Caddy's own, also of one that does not tell."""
    return caddy.process is not None and port.holders == (caddy.process,)


def _is_alone(facts: Facts, port: int) -> bool:
    """Return whether one process at most listens on a port, and snimux is not to have it."""
    is_own_port = any(isinstance(own, TcpAddress) and own.port == port for own in facts.listen)
    held = [x for x in facts.ports if x.kind == "tcp" and x.number == port]
    return not is_own_port and all(len(x.holders) == 1 for x in held)


def _https(caddy: Caddy) -> int | None:
    servers = caddy.sites.servers if caddy.sites else ()
    return _first(x.address for server in servers for x in server.listeners)


def _http(caddy: Caddy) -> int | None:
    sites = caddy.sites.sites if caddy.sites else ()
    return _first(x.address for site in sites for x in site.http)


def _first(addresses: Iterable[TcpAddress | UnixAddress]) -> int | None:
    return next((x.port for x in addresses if isinstance(x, TcpAddress)), None)


def is_everywhere(port: Port) -> bool:
    """Return whether it is listened on at every interface, not on loopback alone."""
    return isinstance(port.address, TcpAddress) and port.address.host in _EVERYWHERE


def needs_nothing(place: Place, facts: Facts) -> bool:
    """Return whether a Caddy is all that it should be already."""
    caddy, sites = place.caddy, place.caddy.sites
    return (
        sites is not None
        and place.admin == caddy.admin
        and _https(caddy) in (place.https, None)
        and _http(caddy) in (place.http, None)
        and not any(x.http3 or x.redirect_port or not x.strict_sni_host for x in sites.servers)
        and not any(
            is_everywhere(port) and caddy.process in port.holders
            for port in facts.ports
            if port.kind == "tcp" and caddy.process
        )
    )


def global_options(place: Place) -> Iterator[str]:
    """The lines for the block of global options, and the empty site behind it."""
    yield "{"
    # A file cannot be listened on: it is what there is of a Caddy whose admin API is off.
    if isinstance(place.admin, TcpAddress | UnixAddress):
        yield f"    admin {_admin(place.admin)}"
    yield f"    http_port {place.http}"
    yield f"    https_port {place.https}"
    yield "    default_bind 127.0.0.1"
    process = place.caddy.process
    has_wrapper = process.has_proxy_protocol if process else None
    if has_wrapper is None:
        yield "    # listener_wrappers, for the clients' addresses, are for Caddy 2.7 and later"
    yield "    servers {"
    lines = (*QUIET, *STRICT, *(PROXY if has_wrapper is not False else ()))
    yield from (f"        {line}" for line in lines)
    yield "    }"
    yield "}"
    # Without it Caddy makes a server for redirects by itself, which none of `servers` reaches.
    yield "http:// {"
    yield "}"


def _admin(address: TcpAddress | UnixAddress) -> str:
    text = str(address)
    return text if text.isascii() and " " not in text else f'"{text}"'


def letter(facts: Facts, places: Sequence[Place], file: str) -> Iterator[str]:
    """Write what is to be done, in order: each Caddyfile's lines, then snimux."""
    for place in places:
        if needs_nothing(place, facts):
            yield f"# {_printable(str(place.caddy))} needs nothing"
            continue
        process = place.caddy.process
        config = process.config if process else None
        yield f"# {_printable(config or f'the Caddyfile of {place.caddy}')}:"
        yield "# these lines into the block at its top, the global options, in place of those of"
        yield "# the same names; and the empty site"
        yield from global_options(place)
        yield ""
    yield "# Then restart each Caddy (a reload may reach another one), and:"
    yield f"snimux --config {shlex.quote(file)}"
    yield f"snimux doctor --config {shlex.quote(file)}"


def toml(
    listen: Sequence[ListenAddress] | None,
    http: Sequence[ListenAddress] | None,
    places: Iterable[Place],
    *,
    text: str | None = None,
    named: Sequence[AdminAddress] = (),
) -> str:
    """Write a configuration file for snimux with these Caddys behind it.

    Args:
        listen: where it is to listen for TLS; None where nothing is said of it.
        http: where for plain HTTP; empty is off, None is what snimux does by itself.
        places: the Caddys.
        text: a file that there is; all of it is kept, and what is new goes before and behind it.
        named: the Caddys that this has.
    """
    lines = [] if text else ["# `snimux doctor --config` this file says what is not right yet.", ""]
    if listen is not None:
        lines.append(f"listen = {_list(listen)}")
    if http is not None:
        lines.append(f"http = {_list(http) if http else _quoted('off')}")
    if text:
        lines.append(text.removesuffix("\n"))
    for place in places:
        its = [x for x in (place.admin, place.caddy.admin) if x is not None]
        if any(is_same(x, y) for x in named for y in its):
            continue
        lines += [
            "",
            f"# {_printable(str(place.caddy))}",
            "[[caddy]]",
            f"admin = {_quoted(place.admin)}",
        ]
    return "\n".join([*lines, ""])


def _printable(text: str) -> str:
    """Text that ends no comment."""
    return text if text.isprintable() else ascii(text)


def _list(addresses: Sequence[ListenAddress]) -> str:
    return f"[{', '.join(map(_quoted, addresses))}]"


def _quoted(value: object) -> str:
    return json.dumps(str(value), ensure_ascii=False)
