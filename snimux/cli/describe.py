"""A configuration in words, as snimux understands it: what ``snimux check`` prints.

Values -> text. Asks nobody: what the Caddys serve, and what was learnt of the backends, is given.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import zip_longest

from snimux.backend.proxy_auto import Remark
from snimux.config.model import BackendDefaults, Config
from snimux.proto import hostname
from snimux.proto.client_hello import TLS
from snimux.proto.http_head import HTTP
from snimux.providers.base import Snapshot
from snimux.providers.merge import Plan
from snimux.routing.access import Access, Admission
from snimux.routing.address import ProviderAddress
from snimux.routing.networks import Networks
from snimux.routing.routes import Backend
from snimux.text import listed

_MOST_SHOWN = 5  # networks of a list


def describe(
    config: Config,
    plan: Plan,
    snapshots: Mapping[ProviderAddress, Snapshot],
    proxies: Sequence[Remark],
) -> str:
    """Say where snimux listens, where it sends what, what it refuses, and its limits.

    Args:
        config: what flags and file say.
        plan: its routes with those of the Caddys.
        snapshots: what each provider that answered serves.
        proxies: what was learnt of the backends that are asked for the PROXY protocol.
    """
    width = max([28, *(len(str(route.pattern)) for route in plan.routes)])
    lines = [*_listeners(config, plan, width), *_routes(config, plan, width)]
    lines += _unrouted(plan, snapshots)
    if proxies:
        lines.append("PROXY protocol auto")
        lines += [f"  {x.backend:{width}}  {x.header}: {x.detail}" for x in proxies]
    defaults = config.backends
    changed = [x.name for x in fields(defaults) if getattr(defaults, x.name) != x.default]
    for title, value, names in (
        ("backends", defaults, changed),
        ("limits", config.limits, [x.name for x in fields(config.limits)]),
    ):
        lines += [title] if names else []
        lines += [f"  {x:{width}}  {_limit(x, getattr(value, x))}" for x in names]
    return "\n".join(lines)


def _listeners(config: Config, plan: Plan, width: int) -> Iterator[str]:
    yield "listen"
    for entry in config.entrypoints:
        label = "" if entry.protocol is TLS else entry.protocol.label
        name = "" if entry.name is None else f"  ({entry.name})"
        yield f"  {f'{entry.address}{name}':{width}}      {label}".rstrip()
        yield from _admission(entry.admission)
    if not config.addresses(HTTP) and any(HTTP.name in route.targets for route in plan.routes):
        yield f"  {'off':{width}}      plain HTTP"
    if config.status is not None:
        yield f"  {config.status!s:{width}}      status"


def _routes(config: Config, plan: Plan, width: int) -> Iterator[str]:
    has_http = bool(config.addresses(HTTP))
    yield "routes"
    for route in plan.routes:
        unicode = hostname.for_people(route.pattern.host)
        note = unicode if unicode != route.pattern.host else ""
        tls, plain = (route.targets.get(x.name) for x in (TLS, HTTP))
        to = _backend(tls, config.backends, note) if tls else "no TLS, plain HTTP only"
        takes_http = has_http and route.pattern.alpn is None
        http = "redirected to https" if takes_http else ""
        if route.refuses:
            to, http = "refused with the alert unrecognized_name", "refused with 403" * takes_http
        if plain:
            http = _backend(plain, config.backends)
        yield f"  {route.pattern!s:{width}}  ->  {to}"
        if http:
            yield f"    {HTTP.label:{width - 2}}  ->  {http}"
        yield from _access(route.access)
        if route.access_from is not None:
            yield f"    as {route.access_from}, which is above it"
    if all(str(route.pattern) != hostname.ANY for route in plan.routes):
        refused = "refused with the alert unrecognized_name"
        yield f"  {'all else':{width}}  ->  {refused}{', or with 404' if has_http else ''}"


def _unrouted(plan: Plan, snapshots: Mapping[ProviderAddress, Snapshot]) -> list[str]:
    """Say what of the providers' sites has no route, and why."""
    claims = [f"  {x.host}: {x.has} has it, and {x.wants} serves it too" for x in plan.claims]
    needs = [f"  {x.what}: {x.why}" for x in (*plan.loops, *plan.refused)]
    needs += [f"  {x.what}: {x.why}" for each in snapshots.values() for x in each.unrouted]
    lines = ["claimed twice", *claims] if claims else []
    return lines + (["needs a route or --default", *needs] if needs else [])


def _backend(backend: Backend, defaults: BackendDefaults, note: str = "") -> str:
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


def _admission(admission: Admission | None) -> list[str]:
    if admission is None:
        return []
    lines = _access(admission.access)
    if admission.proxy_from:
        lines.append(f"    PROXY protocol from {_networks(admission.proxy_from)}")
    return lines


def _access(access: Access | None) -> list[str]:
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
