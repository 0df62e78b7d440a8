"""Define a source of routes for the rest of snimux: its interface, and the values that it says.

A provider says all that it serves at once, each time. So it need not know what it said before, what
others say, or what became of it: that is ``discovery``'s and ``merge``'s to know.

Source: Traefik's ``Provider`` (pkg/provider/provider.go).
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from snimux.routing.address import DialAddress
from snimux.routing.routes import Pattern, Route
from snimux.routing.served import Served


@dataclass(frozen=True, slots=True)
class Site:
    """A host pattern, and where it is served by TLS and in plain; either may be nowhere."""

    host: str
    https: tuple[Served, ...]
    http: tuple[Served, ...]


@dataclass(frozen=True, slots=True)
class Unrouted:
    """Something that is served but that no route can be made of: it needs one, or ``--default``."""

    what: str
    why: str
    host: str = field(default="", compare=False)
    """The pattern that a route to it would have, if it is one."""
    at: tuple[DialAddress, ...] = field(default=(), compare=False)
    """Where it is served, if that can be dialled."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A pattern that two serve, each by its name in the log: the first has it."""

    host: str
    has: object
    wants: object


@dataclass(frozen=True, slots=True)
class Fault:
    """A part of what a provider reads that cannot be used; of it the last good state holds."""

    what: str
    why: str

    def __str__(self) -> str:
        return f"{self.what}: {self.why}"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that a provider serves.

    Sites say where a name is, and a route is made of each; routes say all that a written one does.
    """

    sites: tuple[Site, ...] = ()
    unrouted: tuple[Unrouted, ...] = ()
    routes: tuple[Route, ...] = field(default=(), kw_only=True)
    """With distinct patterns."""
    claims: tuple[Claim, ...] = field(default=(), kw_only=True)
    """Patterns that it has twice itself."""
    written: Mapping[Pattern, str] = field(default_factory=dict, kw_only=True, compare=False)
    """Where each of the routes is written."""
    faults: tuple[Fault, ...] = field(default=(), kw_only=True, compare=False)


@dataclass(frozen=True, slots=True)
class Lost:
    """Nothing can be learnt of what is served; what was said last holds."""

    why: str


News = Snapshot | Lost

Publish = Callable[[News], Awaitable[None]]
"""Takes news, and returns when they are in effect. The same news again are none."""


class Provider(Protocol):
    """A source of routes."""

    kind: str
    """What its lines in the log are called, as in ``caddy``."""
    name: str
    """Which of its kind it is, as in the log and in ``--status``."""

    async def provide(self, publish: Publish) -> None:
        """Look what is served, at once and again, until cancelled.

        Args:
            publish: awaited after each look, also where nothing is new: somebody may wait for it.
        """

    def poll_now(self) -> None:
        """Look again at once: on SIGHUP, and for a name that nobody has."""
