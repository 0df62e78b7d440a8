"""The findings about a host: each thing green, yellow or red, and what mends it.

Red: some requests fail, or go to the wrong server. Yellow: it works, but not as it should, or not
for long. Every finding says what it means, and has the very lines that mend it.

Facts come in, findings go out; nothing here looks at anything. This file has what a finding is, and
the words that several have; ``ports``, ``caddys`` and ``backends`` find, ``judge`` asks all three.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from snimux.doctor.caddyfile import is_everywhere
from snimux.doctor.facts import Caddy, Facts, Port
from snimux.providers.caddy.sites import TlsServer
from snimux.routing.address import DialAddress, ListenAddress, TcpAddress, is_own
from snimux.routing.served import Served

SEE = ("sudo snimux doctor  # to see whose",)
"""The remedy for not seeing a process."""


class Colour(StrEnum):
    """The colour of a finding, by how bad it is."""

    GREEN = "green"
    YELLOW = "yellow"
    RED = "red"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at, and how it is.

    Args:
        check: which kind of thing; a word that stays the same.
        colour: how it is.
        about: the address, name or Caddyfile that it is about.
        title: one line: what is so.
        meaning: what comes of it.
        remedy: lines for a Caddyfile, or commands; comments say where they go.
    """

    check: str
    colour: Colour
    about: str
    title: str
    meaning: str = ""
    remedy: tuple[str, ...] = ()


def tls_servers(caddy: Caddy) -> tuple[TlsServer, ...]:
    """Return the servers by which a Caddy speaks TLS; none if it does not tell."""
    return caddy.sites.servers if caddy.sites else ()


def tls_listeners(facts: Facts) -> dict[DialAddress, tuple[Caddy, Served]]:
    """Return where Caddys speak TLS, as far as they tell."""
    return {
        listener.address: (caddy, listener)
        for caddy in facts.caddys
        for server in tls_servers(caddy)
        for listener in server.listeners
    }


def meets(own: ListenAddress, port: Port) -> bool:
    """Return whether a port is, or covers, or is covered by, where snimux is to listen."""
    held = port.address
    if not (isinstance(own, TcpAddress) and isinstance(held, TcpAddress)):
        return own == held
    is_wide = is_everywhere(port) or own.host in ("", "0.0.0.0", "::")
    return own.port == held.port != 0 and (is_wide or is_own([own], held))


def holders(port: Port) -> str:
    """Say who listens on a port."""
    return " and ".join(str(x) if x else "a process that cannot be seen" for x in port.holders)


def in_options(caddy: Caddy, lines: Iterable[str]) -> tuple[str, ...]:
    """Lines for the block of global options of a Caddy, with a comment that says so."""
    return (f"# {_caddyfile(caddy)}, in the global options:", *lines)


def in_servers(caddy: Caddy, lines: Iterable[str]) -> tuple[str, ...]:
    """Lines for the block ``servers`` in there, of which Caddy takes only one."""
    return (
        f"# {_caddyfile(caddy)}, in the block servers {{ }} of the global options",
        "# (one only; make it if there is none):",
        *lines,
    )


def _caddyfile(caddy: Caddy) -> str:
    config = caddy.process.config if caddy.process else None
    return config or f"the Caddyfile of {caddy}"
