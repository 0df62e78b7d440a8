"""Hold what one Caddy serves, and where: the values that are read of its configuration."""

from dataclasses import dataclass, field

from snimux.providers.base import Snapshot
from snimux.routing.served import Served


@dataclass(frozen=True, slots=True)
class TlsServer:
    """One of Caddy's servers: what it does, beside serving, that shows through what is in front."""

    listeners: tuple[Served, ...]
    """Where it speaks TLS."""
    redirect_port: int | None
    """What its redirects have in their address; None: no port."""
    http3: bool
    """Advertised (Alt-Svc), with the port that it listens on."""
    strict_sni_host: bool
    """Answers 421 where the Host of a request is not the server name of its connection."""


@dataclass(frozen=True, slots=True)
class Sites(Snapshot):
    """All that a Caddy serves."""

    ech_public_names: tuple[str, ...] = ()
    """What hellos show that have their real name encrypted; each is a site, too."""
    servers: tuple[TlsServer, ...] = field(default=(), compare=False)
    """No route depends on it, so a change of it is none."""
    on_demand: bool = field(default=False, compare=False)
    """Whether a handshake may make it ask for a certificate."""
