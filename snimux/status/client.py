"""Decode the API of a running snimux: the text of its pages -> values.

For people (``read``, ``read_route_rows``): what clients said is in it, so all but printable ASCII
is spelt out: nothing acts on a terminal, and each character is one column wide, whatever the
terminal can show. For programs (``read_routes``, ``find_refused``): as it is. Knows not how the
pages are had; ``api`` writes them.
"""

import base64
import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, TypeVar

from snimux.routing.access import Access
from snimux.routing.address import parse_dial
from snimux.routing.networks import Networks, parse_networks
from snimux.routing.routes import Backend, Pattern, Route, read_pattern, targets
from snimux.status.sample import (
    REFUSED_NAME,
    TLS_NAME,
    ConnectionRow,
    RefusedRow,
    RouteRow,
    RouteRows,
    Sample,
    Traffic,
)
from snimux.text import plain

T = TypeVar("T")

_YEAR_10000 = 253_402_300_800  # UNIX time; no calendar has further ones


class ApiError(ValueError):
    """No snimux answers, or one that has not what is asked for; the message says what."""


# --- for people


def read_route_rows(page: bytes) -> RouteRows:
    """Read ``/routes``.

    Raises:
        ApiError: it is no such page.
    """
    return _decode(lambda: _route_rows(json.loads(page)), _NO_SNIMUX)


def read(
    figures: bytes, connections: bytes, refused: bytes, routes: RouteRows, *, at: float, time: float
) -> Sample:
    """Read the pages of these names.

    Args:
        figures: a page.
        connections: a page.
        refused: a page.
        routes: from ``read_route_rows``, of now or not long ago.
        at: when they were had, in seconds of a clock that never jumps.
        time: the same in UNIX time.

    Raises:
        ApiError: they are no such pages.
    """
    pages = (figures, connections, refused)
    return _decode(lambda: _sample([*map(json.loads, pages)], routes, at, time), _NO_SNIMUX)


_NO_SNIMUX = "no snimux: what it answers cannot be understood"


def _decode(decode: Callable[[], T], words: str) -> T:
    """Return what is decoded; of what has not the shape, say so."""
    try:
        return decode()
    except ApiError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError):
        raise ApiError(words) from None


def _route_rows(shown: Mapping[str, Any]) -> RouteRows:
    rows = [
        RouteRow(
            _plain(x["pattern"]),
            ("refuse",) if x.get("refuses") else _each(x["backend"]),
            _each(x["http"]),
            _plain(x["source"]),
            _each(x.get("not_answering")) or (),
        )
        for x in shown["routes"]
    ]
    return RouteRows(tuple(rows), _number(shown["total"]))


def _each(addresses: list[str] | None) -> tuple[str, ...] | None:
    return None if addresses is None else tuple(map(_plain, addresses))


def _sample(pages: list[Any], routes: RouteRows, at: float, time: float) -> Sample:
    figures, connections, refused = pages
    shares: defaultdict[tuple[str, str], Traffic] = defaultdict(Traffic)
    for x in figures["shares"]:
        row = (x[word] for word in ("active", "connections", "up", "down"))
        shares[_plain(x["route"]), _plain(x["backend"])] += Traffic(*map(_number, row))
    counts = figures["counts"]
    listeners = ((_plain(x["protocol"]), _plain(x["address"])) for x in figures["listeners"])
    return Sample(
        at=at,
        time=time,
        started=at - _seconds(figures["uptime"]) if "uptime" in figures else None,
        version=_plain(figures["version"]),
        draining=bool(figures["draining"]),
        limit=_number(figures["limit"]),
        accepted=sum(map(_number, counts["connections"].values())),
        active=_number(figures["active"]),
        reasons={_plain(x): _number(n) for x, n in counts["refused"].items()},
        workers={_plain(x): bool(answers) for x, answers in figures["workers"].items()},
        listeners=tuple(listeners),
        shares=dict(shares),
        connections=tuple(map(_connection, connections["connections"])),
        connections_total=_number(connections["total"]),
        refused=tuple(map(_refused, refused["refused"])),
        routes=routes,
        routes_total=_number(figures["routes"]),
    )


def _connection(x: Mapping[str, Any]) -> ConnectionRow:
    notes = (("route", x["route"]), ("alpn", x["alpn"]), ("ech", x["ech"]), ("via", x["via"]))
    return ConnectionRow(
        key=("connection", str(x["worker"]), str(x["id"]), _plain(x["client"])),
        protocol=TLS_NAME if x["protocol"] is None else _plain(x["protocol"]),
        route=None if x["route"] is None else _plain(x["route"]),
        name=_or_nothing(x["name"]),
        client=_plain(x["client"]),
        backend=_or_nothing(x["backend"]),
        note=" ".join(f"{word}={_plain(value)}" for word, value in notes if value is not None),
        age=_seconds(x["age"]),
        up=_number(x["up"]),
        down=_number(x["down"]),
    )


def _refused(x: Mapping[str, Any]) -> RefusedRow:
    why = x["reason"] if x["detail"] is None else f"{x['reason']}: {x['detail']}"
    key = (REFUSED_NAME, str(x["worker"]), str(x["number"]))
    return RefusedRow(
        key, _or_nothing(x["name"]), _plain(x["client"]), _plain(why), _seconds(x["time"])
    )


def _or_nothing(text: str | None) -> str:
    return "" if text is None else _plain(text)


def _number(value: Any) -> int:
    number = int(value)
    if not 0 <= number < 2**63:
        raise ValueError(number)
    return number


def _seconds(value: Any) -> float:
    seconds = float(value)
    if not math.isfinite(seconds):
        raise ValueError(seconds)
    return seconds


def _moment(value: Any) -> float:
    seconds = _seconds(value)
    if not 0 <= seconds < _YEAR_10000:
        raise ValueError(seconds)
    return seconds


def _plain(text: Any) -> str:
    if not isinstance(text, str):
        raise TypeError(text)
    return plain(text, ascii_only=True)


# --- for programs


@dataclass(frozen=True, slots=True)
class ServedRoutes:
    """The routes of a running snimux."""

    where: str
    """Its address, as people know it."""
    routes: tuple[Route, ...]
    facts: Mapping[str, Mapping[str, object]]
    """By pattern: what else it says of a route (counts, health, source), as it is."""
    total: int
    """How many routes it has; there may be more than it shows."""
    unlisted: Set[Pattern]
    """The routes that have lists of networks which it does not show."""


_ROUTE_KEYS = ("pattern", "listen", "refuses", "backend", "proxy", "http", "http_proxy", "list")


def read_routes(where: str, page: bytes) -> ServedRoutes:
    """Read ``/routes``.

    Args:
        where: the address of the snimux that has answered.
        page: its text.

    Raises:
        ApiError: it is no such page.
    """
    shown = _object(page)
    words = "what it shows of its routes cannot be understood"
    return _decode(lambda: _served_routes(where, shown), words)


def _object(page: bytes) -> Mapping[str, Any]:
    try:
        shown = json.loads(page)
    except (ValueError, RecursionError):
        shown = None
    if not isinstance(shown, dict):
        raise ApiError("not a snimux: the answer is no JSON object")
    return shown


def _served_routes(where: str, shown: Mapping[str, Any]) -> ServedRoutes:
    rows = {row["pattern"]: row for row in shown["routes"]}
    lists = list(map(_access, shown.get("lists", ())))
    routes = {name: _route(row, lists) for name, row in rows.items()}
    unlisted = {
        routes[name].pattern
        for name, row in rows.items()
        if row.get("access_of") is not None and routes[name].access is None
    }
    facts = {
        name: {key: value for key, value in row.items() if key not in _ROUTE_KEYS}
        for name, row in rows.items()
    }
    total = int(shown.get("total", len(routes)))
    return ServedRoutes(where, tuple(routes.values()), facts, total, unlisted)


def _route(row: Mapping[str, Any], lists: Sequence[Access]) -> Route:
    pattern, number = read_pattern(row["pattern"]), row.get("list")
    to = targets(
        tls=_backend(row["backend"], row["proxy"]), http=_backend(row["http"], row["http_proxy"])
    )
    if number is None:
        return Route(pattern, to, refuses=bool(row.get("refuses")))
    whose = read_pattern(row["access_of"])
    return Route(pattern, to, lists[number], None if whose == pattern else whose)


def _access(row: Mapping[str, Any]) -> Access:
    return Access(_networks(row["allow"]), _networks(row["deny"]), bool(row["acme_exempt"]))


def _networks(words: list[str] | None) -> Networks | None:
    return None if words is None else parse_networks(words)


def _backend(addresses: list[str] | None, proxy: Any) -> Backend | None:
    return None if addresses is None else Backend(tuple(map(parse_dial, addresses)), proxy)


@dataclass(frozen=True, slots=True)
class RefusedHello:
    """A client that was refused, and what it sent."""

    number: str
    """Its worker's number and its own, with a dot between."""
    client: str
    """Its address and port; "unix" for a UNIX socket."""
    protocol: str | None
    """None where it is TLS."""
    why: str
    """The reason, and the detail if there is one."""
    time: float
    """When, in seconds of UNIX time."""
    received: bytes
    """The first bytes that it sent."""


def find_refused(page: bytes, number: str) -> RefusedHello:
    """Find one of the refused clients that are on ``/refused/hellos``.

    Args:
        page: its text.
        number: which, with its worker's before it and a dot between where there are several.

    Raises:
        ApiError: it is no such page, or has not that one.
    """
    shown = _object(page)
    words = "what it shows of the refused cannot be understood"
    return _decode(lambda: _refused_hello(shown["refused"], number), words)


def _refused_hello(shown: Sequence[Mapping[str, Any]], number: str) -> RefusedHello:
    by_name = {f"{row['worker']}.{row['number']}": row for row in shown}
    names = [name for name, row in by_name.items() if number in (name, str(row["number"]))]
    if len(names) > 1:
        raise ApiError(f"several workers have a number {number}: {', '.join(names)}")
    if not names:
        ends = list(by_name)
        kept = f"{ends[0]} to {ends[-1]} are" if ends else "none is"
        raise ApiError(f"no number {number} is kept there any more, or yet; {kept}")
    name, row = names[0], by_name[names[0]]
    if row["hello"] is None:
        kept = f"nothing is kept but that it was refused: {row['reason']}"
        raise ApiError(f"of number {row['number']} {kept}")
    return RefusedHello(
        name,
        str(row["client"]),
        row["protocol"],
        f"{row['reason']}, {row['detail']}" if row["detail"] else row["reason"],
        _moment(row["time"]),
        base64.b64decode(row["hello"], validate=True),
    )
