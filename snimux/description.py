"""A configuration in words, as snimux understands it: what ``snimux check`` prints.

Values -> text. Asks nobody: what the Caddys serve, and what was learnt of the backends, is given.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields

from snimux import hostname
from snimux.address import AdminAddress
from snimux.caddy import Plan, Sites
from snimux.config import Config
from snimux.proxy_auto import Remark
from snimux.routes import Backend


def describe(
    config: Config,
    found: Plan,
    caddys: Mapping[AdminAddress, Sites],
    proxies: Sequence[Remark],
) -> str:
    """Say where snimux listens, where it sends what, what it refuses, and its limits.

    Args:
        config: what flags and file say.
        found: its routes with those of the Caddys.
        caddys: what each Caddy that answered serves.
        proxies: what was learnt of the backends that are asked for the PROXY protocol.
    """
    lines = ["listen"]
    lines += [f"  {address}" for address in config.listen]
    width = max([28, *(len(str(route.pattern)) for route in found.routes)])
    if config.http or any(route.http for route in found.routes):
        lines += [f"  {address!s:{width}}      plain HTTP" for address in config.http or ("off",)]
    lines.append("routes")
    for route in found.routes:
        unicode = hostname.for_people(route.pattern.host)
        note = unicode if unicode != route.pattern.host else ""
        to = _shown_backend(route.backend, note) if route.backend else "no TLS, plain HTTP only"
        lines.append(f"  {route.pattern!s:{width}}  ->  {to}")
        if route.http:
            lines.append(f"    {'plain HTTP':{width - 2}}  ->  {_shown_backend(route.http)}")
        elif config.http and route.pattern.alpn is None:
            lines.append(f"    {'plain HTTP':{width - 2}}  ->  redirected to https")
    if all(str(route.pattern) != hostname.ANY for route in found.routes):
        status = ", or with 404" if config.http else ""
        refused = f"refused with the alert unrecognized_name{status}"
        lines.append(f"  {'all else':{width}}  ->  {refused}")
    lines += _described_caddys(found, caddys)
    if proxies:
        lines.append("PROXY protocol auto")
        lines += [f"  {x.backend:{width}}  {x.header}: {x.detail}" for x in proxies]
    lines.append("limits")
    for limit in fields(config.limits):
        value = getattr(config.limits, limit.name)
        lines.append(f"  {limit.name:{width}}  {_limit(limit.name, value)}")
    return "\n".join(lines)


def _described_caddys(found: Plan, caddys: Mapping[AdminAddress, Sites]) -> list[str]:
    """What of the Caddys' sites has no route, and why."""
    claims = [f"  {x.host}: {x.has} has it, and {x.wants} serves it too" for x in found.claims]
    needs = [f"  {x.what}: {x.why}" for x in found.loops]
    needs += [f"  {x.what}: {x.why}" for sites in caddys.values() for x in sites.unrouted]
    lines = ["claimed twice", *claims] if claims else []
    return lines + (["needs a route or --default", *needs] if needs else [])


def _shown_backend(backend: Backend, note: str = "") -> str:
    notes = [f"PROXY protocol {backend.proxy}"] if backend.proxy else []
    notes += [note] if note else []
    to = ", else ".join(map(str, backend.addresses))
    return f"{to}  ({', '.join(notes)})" if notes else to


def _limit(name: str, value: float | None) -> str:
    if value is None:
        return "auto" if name == "max_connections" else "off"
    return "off" if value == math.inf else f"{value:g}"
