"""The facts about a host with Caddys on it: values, for ``judge``.

Knows no way to find anything out; that is for ``host`` (the system), ``admin`` (the Caddys) and
``certificate`` (the backends).
"""

from dataclasses import dataclass

from snimux.providers.base import Fault
from snimux.providers.caddy.sites import Sites
from snimux.providers.merge import Plan
from snimux.routing.address import AdminAddress, DialAddress, ListenAddress, TcpAddress, UnixAddress


@dataclass(frozen=True, slots=True)
class Process:
    """A process, as far as the user may see it."""

    pid: int
    name: str
    is_caddy: bool = False
    is_snimux: bool = False
    config: str | None = None
    """The path of a Caddy's Caddyfile, or of its JSON."""
    has_proxy_protocol: bool | None = None
    """Whether a Caddy has the wrapper of that name (2.7 and later do); None: not known."""

    def __str__(self) -> str:
        """Return it for a line that people read."""
        return f"{self.name} (pid {self.pid}{f', {self.config}' if self.config else ''})"


@dataclass(frozen=True, slots=True)
class Port:
    """An address that is listened on, and by whom; None is a process that could not be seen.

    Several holders share it by SO_REUSEPORT: each gets some of the connections, at random.
    """

    kind: str  # tcp, udp or unix
    address: TcpAddress | UnixAddress
    holders: tuple[Process | None, ...]

    @property
    def number(self) -> int | None:
        """Its port; None of a UNIX socket."""
        return self.address.port if isinstance(self.address, TcpAddress) else None


@dataclass(frozen=True, slots=True)
class Caddy:
    """A Caddy that was named or found.

    Args:
        admin: where it was asked; None where nothing can be asked.
        sites: what it serves; None if that is not known, and then ``fault`` says why.
        is_listed: by snimux's configuration, and not just found running.
        answers_at: where its admin API is, if not where snimux was told.
    """

    admin: AdminAddress | None
    sites: Sites | None = None
    fault: str = ""
    process: Process | None = None
    is_listed: bool = False
    answers_at: AdminAddress | None = None

    def __str__(self) -> str:
        """Return it for a line that people read."""
        if self.process and self.process.config:
            return f"the Caddy of {self.process.config}"
        return f"the Caddy at {self.admin}" if self.admin else f"the {self.process}"


@dataclass(frozen=True, slots=True)
class Certificate:
    """The leaf that a backend shows: its DNS names, and from when to when (UNIX time, seconds)."""

    names: tuple[str, ...]
    not_before: float
    not_after: float


@dataclass(frozen=True, slots=True)
class Down:
    """Nothing connects there; the word of the system."""

    why: str


@dataclass(frozen=True, slots=True)
class NoHandshake:
    """Something listens there, but no TLS handshake for the name comes to an end."""

    why: str


@dataclass(frozen=True, slots=True)
class Unread:
    """A handshake that was well, whose certificate could not be read; a command may mend it."""

    why: str
    remedy: str = ""


Outcome = Certificate | Down | NoHandshake | Unread


@dataclass(frozen=True, slots=True)
class Contact:
    """The outcome of a TLS handshake for a name with one of its backend's addresses.

    Args:
        proxy: whether the PROXY protocol went first, as it does for the route.
        other_way: whether it comes to an end the other way only: without it, or with it.
    """

    name: str
    address: DialAddress
    outcome: Outcome
    proxy: bool = False
    other_way: bool = False


@dataclass(frozen=True, slots=True)
class Probed:
    """The outcome of the first bytes of a request to a backend's address, without more.

    Args:
        pattern: of the first route that goes there.
        is_http: whether it was asked in plain HTTP, and not by TLS.
        down: why nothing connects there; None if something does.
        proxy: whether the PROXY protocol goes first, as it does for the route.
        other_way: whether it serves the other way only: without it, or with it.
    """

    pattern: str
    address: DialAddress
    is_http: bool
    down: str | None = None
    proxy: bool = False
    other_way: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """All facts about a host."""

    now: float
    """UNIX time, in seconds."""
    tls: tuple[ListenAddress, ...]
    """Where snimux is to listen for TLS."""
    http: tuple[ListenAddress, ...]
    """Where it is to listen for plain HTTP."""
    plan: Plan
    """The routes that snimux has, or would have."""
    ports: tuple[Port, ...] = ()
    caddys: tuple[Caddy, ...] = ()
    contacts: tuple[Contact, ...] = ()
    probed: tuple[Probed, ...] = ()
    unseen: tuple[str, ...] = ()
    """What could not be found out, and what to do about it."""
    faults: tuple[Fault, ...] = ()
    """What is wrong with providers that are no Caddys."""

    @property
    def listen(self) -> tuple[ListenAddress, ...]:
        """Return where snimux is to listen."""
        return (*self.tls, *self.http)
