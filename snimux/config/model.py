"""The configuration as one frozen value, and what follows from it alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from snimux.proto.client_hello import DEFAULT_MAX_HELLO, TLS
from snimux.routing.access import Admission
from snimux.routing.address import AdminAddress, FdAddress, ListenAddress, TcpAddress
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

    listen: tuple[ListenAddress, ...]
    routes: tuple[Route, ...]
    limits: Limits
    relay: str
    log_format: str
    log_level: str
    http: tuple[ListenAddress, ...] = ()
    """Where to listen for plain HTTP."""
    caddys: tuple[AdminAddress, ...] = ()
    """Where to ask for further routes; the first has a name that several have."""
    workers: int | None = 1
    """None: as many as there are processors for this process."""
    watch: str = "on"
    """Whether the file is read again when it has changed, "on" or "off"."""
    without_proxy: frozenset[AdminAddress] = frozenset()
    """The Caddys of those whose sites are sent no PROXY protocol header in any case."""
    status: ListenAddress | None = None
    """Where to show how it is."""
    keep_refused: int = 100
    """Of how many that are refused, what they sent is kept."""
    handed_over: tuple[ListenAddress, ...] = ()
    """Where what was handed over listens; ``listen`` and ``http`` have the descriptors."""
    backends: BackendDefaults = BackendDefaults()
    admission: Admission | None = None
    """Whom listeners let in that are not in ``admissions``; None: everybody."""
    admissions: Mapping[ListenAddress, Admission | None] = field(default_factory=dict)
    """The same by listener, for those that have rules of their own."""
    is_http_said: bool = field(default=False, compare=False)
    """Whether ``http`` is what was written, off included, and not what follows from the rest."""
    written: Mapping[Pattern, str] = field(default_factory=dict, compare=False)
    """Where each of the routes is written."""

    def admission_of(self, listener: ListenAddress | None) -> Admission | None:
        """Return whom a listener lets in, by its address as configured; None: everybody."""
        if listener is None:
            return self.admission
        return self.admissions.get(listener, self.admission)


def https_port(config: Config, ports: Sequence[int]) -> int:
    """Return the port at which clients find TLS, as far as it can be known here.

    It is 443 where that is listened on, or where what is listened on was handed over or is no TCP
    port: then something stands before it. Else it is the first of the ports that are listened on.

    Args:
        config: the whole.
        ports: those of ``config.listen`` in order, with what port 0 became.
    """
    handed_over = any(isinstance(address, FdAddress) for address in config.listen)
    own = [address.port for address in config.listen if isinstance(address, TcpAddress)]
    if handed_over or TLS.default_port in own:
        return TLS.default_port
    return next(iter(ports), TLS.default_port)
