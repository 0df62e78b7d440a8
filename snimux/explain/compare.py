"""Compare with what a running snimux does with the same hello, or has refused.

What it shows of itself is ``status.client``'s to read; here it is compared with what is explained.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from snimux.config.model import Config
from snimux.explain.explain import Explanation
from snimux.explain.foresee import Ending, foresee
from snimux.explain.input import Case, of_bytes
from snimux.proto.client_hello import TLS
from snimux.proto.http_head import HTTP
from snimux.proto.protocols import PROTOCOLS
from snimux.providers.merge import Plan
from snimux.routing.address import TcpAddress
from snimux.routing.decide import EntryPoint
from snimux.routing.routes import RouteTable
from snimux.status.client import RefusedHello, ServedRoutes
from snimux.status.refused import LONGEST


def as_config(running: ServedRoutes, config: Config) -> tuple[Config, Plan]:
    """Return a configuration that says nothing, as if it said what a running snimux serves."""
    written = {
        route.pattern: f"the snimux at {running.where}, "
        f"its {running.facts[str(route.pattern)].get('source', 'configuration')}"
        for route in running.routes
    }
    # Whether it listens for plain HTTP it does not say; what has come was listened for.
    entries = config.entrypoints
    names = {route.pattern.listener: None for route in running.routes if route.pattern.listener}
    for protocol in PROTOCOLS.values():
        entries += tuple(EntryPoint(protocol, None, config.admission, name) for name in names)
    if not config.addresses(HTTP):
        entries += (EntryPoint(HTTP, TcpAddress("", HTTP.default_port), config.admission),)
    return replace(config, written=written, entrypoints=entries), Plan(running.routes, (), ())


@dataclass(frozen=True, slots=True)
class Comparison:
    """The ending at a running snimux, and how that differs."""

    where: str
    ending: Ending
    difference: str
    """Empty where it does the same."""
    facts: Mapping[str, object]
    """What it says of the route, if it has one."""


def beside(explained: Explanation, config: Config, running: ServedRoutes) -> Comparison:
    """Return what a running snimux does with what was explained, and how that differs."""
    ending = foresee(explained.case, config, RouteTable(running.routes), source=explained.source)
    difference = _difference(explained.ending, ending)
    if running.total > len(running.routes) and difference:
        difference += f" (as far as is known: it shows {len(running.routes)} of {running.total})"
    if ending.route and ending.route.pattern in running.unlisted and explained.source:
        difference = difference or "perhaps"
        difference += " (as far as is known: its lists are longer than it shows)"
    facts = running.facts[str(ending.route.pattern)] if ending.route else {}
    return Comparison(running.where, ending, difference, facts)


def _difference(own: Ending, other: Ending) -> str:
    if _gist(own) == _gist(other):
        return ""
    by = f" by {other.route.pattern}" if other.route else ""
    to = f" to {other.to or other.location}" if other.to or other.location else ""
    proxy = other.to.proxy if other.to else None
    header = f", PROXY protocol {proxy}" if proxy else ""
    return f"{other.end}{by}{to}{header}{f', {other.reason}' if other.reason else ''}"


def _gist(ending: Ending) -> tuple[object, ...]:
    route, to = ending.route, ending.to
    addresses = to.addresses if to else ()
    return (ending.end, ending.reason, route and route.pattern, addresses, to and to.proxy)


def of_refused(where: str, hello: RefusedHello, max_hello: int) -> tuple[Case, str | None]:
    """Return what a client sent whom a running snimux refused, and its IP address, if it has one.

    Args:
        where: the address of the snimux that has refused it.
        hello: what it shows of the client.
        max_hello: the bound on a hello or a request's head, in bytes.
    """
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(hello.time))
    notes = [f"refused {at} from {hello.client}: {hello.why}"]
    if len(hello.received) == LONGEST:
        notes.append(f"only the first {LONGEST} bytes of it are kept")
    protocol = HTTP if hello.protocol == HTTP.name else TLS
    title = f"--refused {hello.number} of the snimux at {where}"
    case = of_bytes(hello.received, max_hello, title, protocol=protocol)
    host = hello.client.rpartition(":")[0].removeprefix("[").removesuffix("]")
    return replace(case, notes=(*notes, *case.notes)), host or None
