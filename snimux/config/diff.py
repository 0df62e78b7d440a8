"""Compare the configuration in effect with the one that is to be: a reload's decisions.

Knows nothing of how a configuration is put into effect, nor of what is running.
"""

from dataclasses import dataclass, fields, replace

from snimux.config.model import Config
from snimux.config.settings import PROVIDERS
from snimux.config.source import LISTEN_KEYS
from snimux.proto.protocols import PROTOCOLS
from snimux.proto.verdict import Protocol
from snimux.routing.address import ListenAddress

# What a running process cannot change: how many of it there are, what moves its bytes, and where it
# is looked at.
_FIXED = ("workers", "relay", "status", "keep_refused")

_COMPARED = ("without_proxy", "admission", "log_format", "log_level", "watch")
# What the keys are called together.
_AS_ONE = {"without_proxy": "caddy"}


@dataclass(frozen=True, slots=True)
class Difference:
    """The number of routes that are added, removed and changed, and what else is different."""

    added: int = 0
    removed: int = 0
    changed: int = 0
    settings: tuple[str, ...] = ()
    """The keys of all but the routes."""
    needs_restart: tuple[str, ...] = ()
    """The keys of what stays as it is all the same."""


def difference(before: Config, after: Config) -> Difference:
    """Return what is different in a configuration from the one before it."""
    old = {route.pattern: route for route in before.routes}
    new = {route.pattern: route for route in after.routes}
    protocols = [(PROTOCOLS[name], key) for name, key in LISTEN_KEYS.items()]
    keys = [key for x, key in protocols if _names(before, x) != _names(after, x)]
    different = [x for x in _COMPARED if getattr(before, x) != getattr(after, x)]
    keys += [_AS_ONE.get(key, key) for key in different]
    if any(
        before.entry_at(x.address, x.protocol).admission != x.admission for x in after.entrypoints
    ):
        keys.append("admission")
    keys += [x.name for x in PROVIDERS if x.of(before.providers) != x.of(after.providers)]
    for one, other in ((before.limits, after.limits), (before.backends, after.backends)):
        names = [field.name for field in fields(one)]
        keys += [name for name in names if getattr(one, name) != getattr(other, name)]
    return Difference(
        added=len(new.keys() - old.keys()),
        removed=len(old.keys() - new.keys()),
        changed=sum(old[pattern] != new[pattern] for pattern in old.keys() & new.keys()),
        settings=tuple(dict.fromkeys(keys)),
        needs_restart=tuple(x for x in _FIXED if getattr(before, x) != getattr(after, x)),
    )


def _names(config: Config, protocol: Protocol) -> list[tuple[ListenAddress | None, str | None]]:
    return [(x.address, x.name) for x in config.entrypoints if x.protocol is protocol]


def in_effect(before: Config, after: Config) -> Config:
    """Return what a configuration becomes in a process that has run with the one before it."""
    return replace(after, **{key: getattr(before, key) for key in _FIXED})
