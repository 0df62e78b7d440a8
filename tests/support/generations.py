"""What is in effect in a test, and what a process shows of it."""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from snimux.backend.health_check import CheckSpec
from snimux.backend.pool import Backends
from snimux.backend.proxy_auto import ProbeSpec
from snimux.config.model import Config, Limits
from snimux.frontend.limits import LocalLimits
from snimux.net.listeners import Listener
from snimux.net.loop import NOWHERE, Own
from snimux.providers.base import Fault
from snimux.providers.merge import Plan
from snimux.routing.address import DialAddress
from snimux.routing.routes import Backend, Route
from snimux.service.generation import Current, Generation, following
from snimux.status.metrics import Metrics
from snimux.status.refused import Refusals


def configured(routes: Iterable[Route] = (), **settings: Any) -> Config:
    """A configuration that says little else."""
    limits = settings.pop("limits", Limits())
    return Config((), tuple(routes), limits, "auto", "json", "info", **settings)


def in_effect(
    config: Config,
    listeners: Sequence[Listener] = (),
    *,
    max_connections: int = 100,
    plan: Plan | None = None,
    **ground: Any,
) -> Generation:
    """What is in effect by a configuration, and perhaps by what providers have said."""
    first = Generation(config, listeners, max_connections, **ground)
    return following(first, plan or Plan(config.routes, (), ()))


@dataclass(frozen=True)
class Effects:
    """What backends read of what is in effect."""

    backends: Set[Backend] = frozenset()
    discovered: Set[DialAddress] = frozenset()
    config: Config = field(default_factory=configured)
    own: Own = NOWHERE
    checks: Mapping[DialAddress, CheckSpec] = field(default_factory=dict)
    probes: Mapping[DialAddress, ProbeSpec] = field(default_factory=dict)


@dataclass
class Process:
    """What serves in a process, as far as it is shown."""

    current: Current
    metrics: Metrics = field(default_factory=Metrics)
    refusals: Refusals = field(default_factory=Refusals)
    limits: LocalLimits = field(default_factory=lambda: LocalLimits(77))
    pool: Backends = field(default_factory=Backends)
    listeners: Sequence[Listener] = ()
    faults: Sequence[Fault] = ()
    draining: bool = False
