"""A configuration in words, as snimux understands it: what ``snimux check`` prints.

Values -> text. Asks nobody: what the Caddys serve, and what was learnt of the backends, is given.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import zip_longest

from snimux.backend.proxy_auto import Remark
from snimux.config.model import BackendDefaults, Config
from snimux.proto import hostname
from snimux.providers.base import Snapshot
from snimux.providers.merge import Plan
from snimux.routing.access import Access, Admission
from snimux.routing.address import AdminAddress
from snimux.routing.networks import Networks
from snimux.routing.routes import Backend
from snimux.text import listed

_MOST_SHOWN = 5  # networks of a list


def describe(
    config: Config,
    found: Plan,
    snapshots: Mapping[AdminAddress, Snapshot],
    proxies: Sequence[Remark],
) -> str:
    """Say where snimux listens, where it sends what, what it refuses, and its limits.

    Args:
        config: what flags and file say.
        found: its routes with those of the Caddys.
        snapshots: what each provider that answered serves.
        proxies: what was learnt of the backends that are asked for the PROXY protocol.
    """
    defaults = config.backends
    lines = ["listen"]
    for address in config.listen:
        lines += [f"  {address}", *_shown_admission(config.admission_of(address))]
    width = max([28, *(len(str(route.pattern)) for route in found.routes)])
    if config.http or any(route.http for route in found.routes):
        for http in config.http:
            lines.append(f"  {http!s:{width}}      plain HTTP")
            lines += _shown_admission(config.admission_of(http))
        if not config.http:
            lines.append(f"  {'off':{width}}      plain HTTP")
    if config.status is not None:
        lines.append(f"  {config.status!s:{width}}      status")
    lines.append("routes")
    for route in found.routes:
        unicode = hostname.for_people(route.pattern.host)
        note = unicode if unicode != route.pattern.host else ""
        to = (
            _shown_backend(route.backend, defaults, note)
            if route.backend
            else "no TLS, plain HTTP only"
        )
        lines.append(f"  {route.pattern!s:{width}}  ->  {to}")
        if route.http:
            lines.append(
                f"    {'plain HTTP':{width - 2}}  ->  {_shown_backend(route.http, defaults)}"
            )
        elif config.http and route.pattern.alpn is None:
            lines.append(f"    {'plain HTTP':{width - 2}}  ->  redirected to https")
        lines += _shown_access(route.access)
        if route.access_from is not None:
            lines.append(f"    as {route.access_from}, which is above it")
    if all(str(route.pattern) != hostname.ANY for route in found.routes):
        status = ", or with 404" if config.http else ""
        refused = f"refused with the alert unrecognized_name{status}"
        lines.append(f"  {'all else':{width}}  ->  {refused}")
    lines += _described_providers(found, snapshots)
    if proxies:
        lines.append("PROXY protocol auto")
        lines += [f"  {x.backend:{width}}  {x.header}: {x.detail}" for x in proxies]
    others = [x for x in fields(defaults) if getattr(defaults, x.name) != x.default]
    if others:
        lines.append("backends")
        lines += [
            f"  {x.name:{width}}  {_limit(x.name, getattr(defaults, x.name))}" for x in others
        ]
    lines.append("limits")
    for limit in fields(config.limits):
        value = getattr(config.limits, limit.name)
        lines.append(f"  {limit.name:{width}}  {_limit(limit.name, value)}")
    return "\n".join(lines)


def _described_providers(found: Plan, snapshots: Mapping[AdminAddress, Snapshot]) -> list[str]:
    """What of the Caddys' sites has no route, and why."""
    claims = [f"  {x.host}: {x.has} has it, and {x.wants} serves it too" for x in found.claims]
    needs = [f"  {x.what}: {x.why}" for x in (*found.loops, *found.refused)]
    needs += [f"  {x.what}: {x.why}" for each in snapshots.values() for x in each.unrouted]
    lines = ["claimed twice", *claims] if claims else []
    return lines + (["needs a route or --default", *needs] if needs else [])


def _shown_backend(backend: Backend, defaults: BackendDefaults, note: str = "") -> str:
    notes = [f"PROXY protocol {backend.proxy}"] if backend.proxy else []
    balance = backend.balance or defaults.balance
    notes += [f"balance {balance}"] if balance != "first" and len(backend.addresses) > 1 else []
    notes += [f"wait {_limit('wait', backend.wait)}"] if backend.wait is not None else []
    notes += [f"check {backend.check}"] if backend.check is not None else []
    notes += ["transparent"] * backend.transparent
    notes += [note] if note else []
    weights = [f" (weight {weight})" if weight != 1 else "" for weight in backend.weights]
    to = (", else " if balance == "first" else ", ").join(
        f"{address}{weight}"
        for address, weight in zip_longest(backend.addresses, weights, fillvalue="")
    )
    return f"{to}  ({', '.join(notes)})" if notes else to


def _shown_admission(admission: Admission | None) -> list[str]:
    if admission is None:
        return []
    lines = _shown_access(admission.access)
    if admission.proxy_from:
        lines.append(f"    PROXY protocol from {_networks(admission.proxy_from)}")
    return lines


def _shown_access(access: Access | None) -> list[str]:
    if access is None:
        return []
    lists = {"allow": access.allow, "deny": access.deny}
    lines = [f"    {key} {_networks(x)}" for key, x in lists.items() if x is not None]
    return lines + ["    ACME's validations are exempt"] * access.acme_exempt


def _networks(networks: Networks) -> str:
    return listed((str(networks) or "nobody").split(", "), _MOST_SHOWN)


def _limit(name: str, value: float | str | None) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return "auto" if name == "max_connections" else "off"
    is_off = value == math.inf or (name == "wait" and value == 0)
    return "off" if is_off else f"{value:g}"
