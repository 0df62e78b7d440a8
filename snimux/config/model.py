"""The configuration as one frozen value, and what follows from it alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from snimux.proto.client_hello import DEFAULT_MAX_HELLO, TLS
from snimux.proto.verdict import Protocol
from snimux.routing.access import Admission
from snimux.routing.address import (
    AdminAddress,
    DirectoryAddress,
    FdAddress,
    ListenAddress,
    ProviderAddress,
    TcpAddress,
)
from snimux.routing.decide import EntryPoint
from snimux.routing.routes import Balance, Check, Pattern, Route


class ConfigError(ValueError):
    """A configuration that cannot be used; ``problems`` has one line for each thing wrong."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what a connection may cost; times in seconds, ``math.inf`` where off."""

    hello_timeout: float = 5.0
    max_hello: int = DEFAULT_MAX_HELLO
    dial_timeout: float = 5.0
    idle_timeout: float = 3600.0
    max_connections: int | None = None
    """None: as many as the descriptor limit allows."""
    max_connections_per_source: int | None = None
    """None: no limit."""
    drain: float = 30.0
    max_rate_per_source: float | None = None
    """New connections a second; None: no limit."""
    max_burst_per_source: int = 50
    """So many at once, whatever the rate is."""

    @property
    def by_source(self) -> bool:
        """Return whether anything is counted by source."""
        return not (self.max_connections_per_source is self.max_rate_per_source is None)


@dataclass(frozen=True, slots=True)
class BackendDefaults:
    """The defaults of backends, and how their addresses are checked."""

    balance: Balance = "first"
    wait: float = 5.0
    """Seconds."""
    check: Check = "off"
    check_every: float = 10.0
    """Seconds."""
    rise: int = 2
    fall: int = 3


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration."""

    entrypoints: tuple[EntryPoint, ...]
    """Where to listen, each for one protocol."""
    routes: tuple[Route, ...]
    limits: Limits
    relay: str
    log_format: str
    log_level: str
    providers: tuple[ProviderAddress, ...] = ()
    """Where to ask for further routes; the first has a name that several have."""
    workers: int | None = 1
    """None: as many as there are processors for this process."""
    watch: str = "on"
    """Whether the file is read again when it has changed, "on" or "off"."""
    without_proxy: frozenset[ProviderAddress] = frozenset()
    """The Caddys of those whose sites are sent no PROXY protocol header in any case."""
    status: ListenAddress | None = None
    """Where to show how it is."""
    keep_refused: int = 100
    """Of how many that are refused, what they sent is kept."""
    handed_over: tuple[ListenAddress, ...] = ()
    """Where what was handed over listens; ``entrypoints`` have the descriptors."""
    backends: BackendDefaults = BackendDefaults()
    admission: Admission | None = None
    """Whom listeners let in that are no entry points; None: everybody."""
    is_http_said: bool = field(default=False, compare=False)
    """Whether it says where to listen for plain HTTP, or not to."""
    written: Mapping[Pattern, str] = field(default_factory=dict, compare=False)
    """Where each of the routes is written."""

    @property
    def caddys(self) -> tuple[AdminAddress, ...]:
        """Return the providers that are Caddys."""
        return tuple(x for x in self.providers if not isinstance(x, DirectoryAddress))

    def addresses(self, protocol: Protocol | None = None) -> tuple[ListenAddress, ...]:
        """Return where to listen: for one protocol, or for all."""
        entries = (x for x in self.entrypoints if protocol in (None, x.protocol))
        return tuple(x.address for x in entries if x.address is not None)

    def entry_at(self, address: ListenAddress | None, protocol: Protocol = TLS) -> EntryPoint:
        """Return the entry point at an address, or what holds where there is none.

        Of those at port 0 the protocol tells them apart.
        """
        here = (x for x in self.entrypoints if (x.address, x.protocol) == (address, protocol))
        return next(here, EntryPoint(protocol, address, self.admission))


def https_port(config: Config, ports: Sequence[int]) -> int:
    """Return the port at which clients find TLS, as far as it can be known here.

    It is 443 where that is listened on, or where what is listened on was handed over or is no TCP
    port: then something stands before it. Else it is the first of the ports that are listened on.

    Args:
        config: what was told.
        ports: those of the entry points for TLS in order, with what port 0 became.
    """
    addresses = config.addresses(TLS)
    if any(isinstance(x, FdAddress) for x in addresses) or TLS.default_port in (
        x.port for x in addresses if isinstance(x, TcpAddress)
    ):
        return TLS.default_port
    return next(iter(ports), TLS.default_port)
