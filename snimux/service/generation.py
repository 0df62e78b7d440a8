"""Make one frozen value of what is in effect: all that follows from configuration and providers.

A reload and a provider's news each make another one, in a thread, since that takes seconds where
routes are 100,000. Who only reads has ``Current`` and looks there; who has tasks reconciles them
with each new one.
"""

import time
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from snimux.backend.health_check import CheckSpec, checks_for
from snimux.backend.proxy_auto import ProbeSpec, probes_for
from snimux.config.model import Config, https_port
from snimux.net.listeners import Listener
from snimux.net.loop import NOWHERE, Own, own
from snimux.proto.client_hello import TLS
from snimux.providers.merge import Plan, reserved
from snimux.routing.address import DialAddress
from snimux.routing.routes import Backend, RouteTable


@dataclass(frozen=True, slots=True)
class Generation:
    """All that is in effect from one moment to the next."""

    config: Config
    listeners: Sequence[Listener]
    """Where connections are accepted."""
    max_connections: int
    """As many over all listeners, and all processes."""
    own: Own = NOWHERE
    """Where connections would come back to this snimux, and what only snimux may reach."""
    https_port: int = 443
    """Where clients find TLS."""
    number: int = 0
    """How many were in effect before it."""
    reloads: int = 0
    """How many of these were other configurations than the one before them."""
    plan: Plan = field(default_factory=lambda: Plan((), (), ()))
    """The routes of the configuration and of all providers."""
    table: RouteTable = field(default_factory=RouteTable)
    backends: Set[Backend] = frozenset()
    checks: Mapping[DialAddress, CheckSpec] = field(default_factory=dict)
    """How to check addresses, of those that are to be checked."""
    probes: Mapping[DialAddress, ProbeSpec] = field(default_factory=dict)
    """How to probe addresses whether they understand the PROXY protocol."""

    @property
    def discovered(self) -> Set[DialAddress]:
        """The addresses that only providers have said."""
        return self.plan.discovered


def basis(
    config: Config,
    listeners: Sequence[Listener],
    max_connections: int,
    sockets: Iterable[DialAddress],
) -> Generation:
    """Return a generation without routes: what a configuration is together with open sockets.

    Args:
        config: which.
        listeners: where connections are accepted; they say where they are.
        max_connections: see there.
        sockets: what no provider may have strangers sent to, beside what the configuration has.
    """
    names = [x.socket.getsockname() for x in listeners if x.protocol == TLS.name]
    ports = [name[1] for name in names if isinstance(name, tuple)]  # port 0 is another by now
    kept = {**dict.fromkeys(sockets, "a socket of snimux's own"), **reserved(config)}
    return Generation(
        config,
        listeners,
        max_connections,
        replace(own(listeners), reserved=kept),
        https_port(config, ports),
    )


def following(before: Generation, plan: Plan, new_basis: Generation | None = None) -> Generation:
    """Return the generation that follows another one. Pure; takes seconds for 100,000 routes.

    Args:
        before: which.
        plan: the routes that there are now.
        new_basis: of a reload; None where only the routes are others.
    """
    ground = new_basis or before
    return replace(
        ground,
        number=before.number + 1,
        reloads=before.reloads + (ground is not before),
        plan=plan,
        table=RouteTable(plan.routes),
        backends={backend for route in plan.routes for backend in route.backends},
        checks=checks_for(plan.routes, ground.config.backends),
        probes=probes_for(plan.routes, plan.listeners),
    )


class Current:
    """Holds the generation that is in effect."""

    __slots__ = ("since", "value")

    def __init__(self, value: Generation) -> None:
        self.put(value)

    def put(self, value: Generation) -> None:
        """Have another one in effect from now on."""
        self.value = value
        self.since = time.monotonic()
