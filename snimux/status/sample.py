"""All that a running snimux showed of itself at a moment, as values.

Texts are printable ASCII: what is not is spelt out, see ``client``.
"""

from collections.abc import Mapping
from dataclasses import dataclass

Key = tuple[str, ...]
"""What a row is known again by."""

TLS_NAME, HTTP_NAME = "tls", "http"
REFUSED_NAME = "refused"


@dataclass(frozen=True, slots=True)
class Traffic:
    """The connections and bytes of one route and backend, or of several together."""

    open: int = 0
    """Connections that have not ended."""
    total: int = 0
    """Connections that were passed on so far."""
    up: int = 0
    """Bytes to backends."""
    down: int = 0
    """Bytes to clients."""

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(
            self.open + other.open,
            self.total + other.total,
            self.up + other.up,
            self.down + other.down,
        )


@dataclass(frozen=True, slots=True)
class RouteRow:
    """A route, as it is shown."""

    pattern: str
    backend: tuple[str, ...] | None
    """Where TLS goes; None if it is for plain HTTP alone."""
    http: tuple[str, ...] | None
    source: str
    down: tuple[str, ...] = ()
    """The addresses that do not answer."""


@dataclass(frozen=True, slots=True)
class RouteRows:
    """The routes that are shown, and how many there are."""

    shown: tuple[RouteRow, ...] = ()
    total: int = 0


@dataclass(frozen=True, slots=True)
class ConnectionRow:
    """An open connection."""

    key: Key
    protocol: str
    route: str | None
    """None while its hello is read, or its backend dialled."""
    name: str
    client: str
    backend: str
    note: str
    age: float
    """Seconds."""
    up: int
    down: int


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """A client that was refused."""

    key: Key
    name: str
    client: str
    why: str
    time: float
    """When, in seconds of UNIX time."""


@dataclass(frozen=True, slots=True)
class Sample:
    """All that was shown at a moment."""

    at: float
    """The moment, in seconds of a clock that never jumps."""
    time: float
    """The same in UNIX time."""
    started: float | None
    """When it was started, in seconds as ``at``; None where it does not say."""
    version: str
    draining: bool
    limit: int
    """How many connections there may be at a time."""
    accepted: int
    active: int
    reasons: Mapping[str, int]
    """How many were refused, by reason."""
    workers: Mapping[str, bool]
    """Whether each has answered; empty where there are none."""
    listeners: tuple[tuple[str, str], ...]
    """Protocol and address."""
    shares: Mapping[tuple[str, str], Traffic]
    """By route and backend."""
    connections: tuple[ConnectionRow, ...]
    """The oldest, if there are very many."""
    connections_total: int
    refused: tuple[RefusedRow, ...]
    routes: RouteRows
    routes_total: int
    """How many there are by now."""
