"""What a running snimux does with the same hello, and whom it refused.

Text of ``--status``' pages comes in, values go out. What else they have of a route (counts, health)
is handed on as it is.
"""

import base64
import json
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from snimux.config.model import Config
from snimux.explain.explain import Ending, Explanation, foresee
from snimux.explain.input import Case, of_bytes
from snimux.proto.client_hello import TLS
from snimux.proto.http_head import HTTP
from snimux.providers.merge import Plan
from snimux.routing.access import Access
from snimux.routing.address import AddressError, TcpAddress, parse_dial
from snimux.routing.networks import Networks, parse_networks
from snimux.routing.routes import Backend, Pattern, PatternError, Route, RouteTable, parse_pattern
from snimux.status.metrics import LONGEST

_ROUTE_KEYS = ("pattern", "backend", "proxy", "http", "http_proxy", "list")


class RunningError(ValueError):
    """What answers is no snimux, or has not what is asked for; the message says what."""


@dataclass(frozen=True, slots=True)
class Running:
    """The routes of a running snimux."""

    where: str
    routes: tuple[Route, ...]
    facts: Mapping[str, Mapping[str, object]]
    """By pattern: what else it says of a route."""
    total: int
    """How many routes it has; there may be more than it shows."""
    unlisted: Set[Pattern]
    """The routes that have lists of networks which it does not show."""

    def as_config(self, config: Config) -> tuple[Config, Plan]:
        """A configuration that says nothing, as if it said what this snimux serves."""
        written = {
            route.pattern: f"the snimux at {self.where}, "
            f"its {self.facts[str(route.pattern)].get('source', 'configuration')}"
            for route in self.routes
        }
        # Whether it listens for plain HTTP it does not say; what has come was listened for.
        http = config.http or (TcpAddress("", HTTP.default_port),)
        return replace(config, written=written, http=http), Plan(self.routes, (), ())


@dataclass(frozen=True, slots=True)
class Beside:
    """What a running snimux does with the same."""

    where: str
    decision: Ending
    difference: str
    """Empty where it does the same."""
    facts: Mapping[str, object]
    """What it says of the route, if it has one."""


def read_routes(where: str, page: bytes) -> Running:
    """The routes that are on a page.

    Args:
        where: what to call who runs.
        page: of /routes.

    Raises:
        RunningError: it is none.
    """
    shown = _json(page)
    try:
        rows = {row["pattern"]: row for row in shown["routes"]}
        lists = list(map(_access, shown.get("lists", ())))
        routes = tuple(_route(row, lists) for row in rows.values())
        unlisted = {
            route.pattern
            for row, route in zip(rows.values(), routes, strict=True)
            if row.get("access_of") is not None and route.access is None
        }
        facts = {
            name: {key: value for key, value in row.items() if key not in _ROUTE_KEYS}
            for name, row in rows.items()
        }
        return Running(where, routes, facts, int(shown.get("total", len(routes))), unlisted)
    except (LookupError, TypeError, ValueError, AttributeError, PatternError, AddressError):
        raise RunningError("what it shows of its routes cannot be understood") from None


def _json(page: bytes) -> dict[str, Any]:
    try:
        shown = json.loads(page)
    except (ValueError, RecursionError):
        shown = None
    if not isinstance(shown, dict):
        raise RunningError("not a snimux: the answer is no JSON object")
    return shown


def _route(row: Mapping[str, Any], lists: Sequence[Access]) -> Route:
    pattern, number = parse_pattern(row["pattern"]), row.get("list")
    backend, http = _backend(row["backend"], row["proxy"]), _backend(row["http"], row["http_proxy"])
    if number is None:
        return Route(pattern, backend, http)
    whose = parse_pattern(row["access_of"])
    return Route(pattern, backend, http, lists[number], None if whose == pattern else whose)


def _access(row: Mapping[str, Any]) -> Access:
    return Access(_networks(row["allow"]), _networks(row["deny"]), bool(row["acme_exempt"]))


def _networks(words: list[str] | None) -> Networks | None:
    return None if words is None else parse_networks(words)


def _backend(addresses: list[str] | None, proxy: Any) -> Backend | None:
    return None if addresses is None else Backend(tuple(map(parse_dial, addresses)), proxy)


def beside(explained: Explanation, config: Config, running: Running) -> Beside:
    """What a running snimux does with what was explained, and how that differs."""
    decision = foresee(explained.case, config, RouteTable(running.routes), source=explained.source)
    difference = _difference(explained.decision, decision)
    if running.total > len(running.routes) and difference:
        difference += f" (as far as is known: it shows {len(running.routes)} of {running.total})"
    if decision.route and decision.route.pattern in running.unlisted and explained.source:
        difference = difference or "perhaps"
        difference += " (as far as is known: its lists are longer than it shows)"
    facts = running.facts[str(decision.route.pattern)] if decision.route else {}
    return Beside(running.where, decision, difference, facts)


def _difference(here: Ending, there: Ending) -> str:
    if _gist(here) == _gist(there):
        return ""
    by = f" by {there.route.pattern}" if there.route else ""
    to = f" to {there.to or there.location}" if there.to or there.location else ""
    proxy = there.to.proxy if there.to else None
    header = f", PROXY protocol {proxy}" if proxy else ""
    return f"{there.end}{by}{to}{header}{f', {there.reason}' if there.reason else ''}"


def _gist(decision: Ending) -> tuple[object, ...]:
    route, to = decision.route, decision.to
    addresses = to.addresses if to else ()
    return (decision.end, decision.reason, route and route.pattern, addresses, to and to.proxy)


# --- whom it refused


@dataclass(frozen=True, slots=True)
class Refused:
    """A client that was refused."""

    case: Case
    """What it sent."""
    source: str | None
    """Its IP address; None for a UNIX socket."""


def read_refused(where: str, page: bytes, number: str, max_hello: int) -> Refused:
    """One of the refused clients that are on a page.

    Args:
        where: what to call who runs.
        page: of /refused/hellos.
        number: which, with its worker's before it and a dot between where there are several.
        max_hello: the bound on a hello or a request's head, in bytes.

    Raises:
        RunningError: it is none, or has not that one.
    """
    shown = _json(page)
    try:
        rows = [row for row in shown["refused"] if number in _numbers(row)]
        known = [_name(row) for row in shown["refused"]]
        if len(rows) > 1:
            names = ", ".join(map(_name, rows))
            raise RunningError(f"several workers have a number {number}: {names}")
        if not rows:
            kept = f"{known[0]} to {known[-1]} are" if known else "none is"
            raise RunningError(f"no number {number} is kept there any more, or yet; {kept}")
        return _refused(where, rows[0], max_hello)
    except RunningError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError, OSError):
        raise RunningError("what it shows of the refused cannot be understood") from None


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['worker']}.{row['number']}"


def _numbers(row: Mapping[str, Any]) -> tuple[str, str]:
    return _name(row), str(row["number"])


def _refused(where: str, row: Mapping[str, Any], max_hello: int) -> Refused:
    if row["hello"] is None:
        raise RunningError(
            f"of number {row['number']} nothing is kept but that it was refused: {row['reason']}"
        )
    received = base64.b64decode(row["hello"], validate=True)
    protocol = HTTP if row["protocol"] == HTTP.name else TLS
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(row["time"]))
    detail = f", {row['detail']}" if row["detail"] else ""
    notes = [f"refused {at} from {row['client']}: {row['reason']}{detail}"]
    if len(received) == LONGEST:
        notes.append(f"only the first {LONGEST} bytes of it are kept")
    asked = f"--refused {_name(row)} of the snimux at {where}"
    case = of_bytes(received, max_hello, asked, protocol=protocol)
    host = str(row["client"]).rpartition(":")[0].removeprefix("[").removesuffix("]")
    return Refused(replace(case, notes=(*notes, *case.notes)), host or None)
