"""What a running snimux shows of itself now: the text of its pages -> values.

What clients said is in it, so all but printable ASCII leaves here spelt out: nothing acts on a
terminal, and each character is one column wide, whatever the terminal can show. Knows not how the
pages are had.
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from snimux.text import plain

T = TypeVar("T")

Key = tuple[str, ...]
"""What a row is known again by."""

TLS_NAME, HTTP_NAME = "tls", "http"
REFUSED_NAME = "refused"


class StrangeError(ValueError):
    """What answers is no snimux, or one that tells otherwise; the message says so."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What goes one way, or comes by one listener."""

    open: int = 0
    """Connections that have not ended."""
    total: int = 0
    """Connections that were passed on so far."""
    up: int = 0
    """Bytes to backends."""
    down: int = 0
    """Bytes to clients."""

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(
            self.open + other.open,
            self.total + other.total,
            self.up + other.up,
            self.down + other.down,
        )


@dataclass(frozen=True, slots=True)
class Route:
    """A route, as it is shown."""

    pattern: str
    backend: tuple[str, ...] | None
    """Where TLS goes; None if it is for plain HTTP alone."""
    http: tuple[str, ...] | None
    source: str
    down: tuple[str, ...] = ()
    """The addresses that do not answer."""


@dataclass(frozen=True, slots=True)
class Routes:
    """Those that are shown, and how many there are."""

    shown: tuple[Route, ...] = ()
    total: int = 0


@dataclass(frozen=True, slots=True)
class Connection:
    """An open connection."""

    key: Key
    protocol: str
    route: str | None
    """None while its hello is read, or its backend dialled."""
    name: str
    client: str
    backend: str
    note: str
    age: float
    """Seconds."""
    up: int
    down: int


@dataclass(frozen=True, slots=True)
class Refused:
    """A client that was refused."""

    key: Key
    name: str
    client: str
    why: str
    time: float
    """When, in seconds of UNIX time."""


@dataclass(frozen=True, slots=True)
class State:
    """All that was shown at a moment."""

    at: float
    """The moment, in seconds of a clock that never jumps."""
    time: float
    """The same in UNIX time."""
    started: float | None
    """When it was started, in seconds as ``at``; None where it does not say."""
    version: str
    draining: bool
    limit: int
    """How many connections there may be at a time."""
    accepted: int
    active: int
    reasons: Mapping[str, int]
    """How many were refused, by reason."""
    workers: Mapping[str, bool]
    """Whether each has answered; empty where there are none."""
    listeners: tuple[tuple[str, str], ...]
    """Protocol and address."""
    shares: Mapping[tuple[str, str], Traffic]
    """By route and backend."""
    connections: tuple[Connection, ...]
    """The oldest, if there are very many."""
    connections_total: int
    refused: tuple[Refused, ...]
    routes: Routes
    routes_total: int
    """How many there are by now."""


# --- the pages


def read_routes(page: bytes) -> Routes:
    """The routes that are on the page of that name.

    Raises:
        StrangeError: it is none.
    """
    return _understood(partial(_routes, page))


def read(
    figures: bytes, connections: bytes, refused: bytes, routes: Routes, *, at: float, time: float
) -> State:
    """What is on the pages of these names.

    Args:
        figures: a page.
        connections: a page.
        refused: a page.
        routes: from ``read_routes``, of now or not long ago.
        at: when they were had, in seconds of a clock that never jumps.
        time: the same in UNIX time.

    Raises:
        StrangeError: they are none.
    """
    return _understood(partial(_state, figures, connections, refused, routes, at, time))


def _understood(read: Callable[[], T]) -> T:
    try:
        return read()
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        raise StrangeError("no snimux: what it answers cannot be understood") from None


def _routes(page: bytes) -> Routes:
    shown = json.loads(page)
    rows = [
        Route(
            _plain(x["pattern"]),
            _each(x["backend"]),
            _each(x["http"]),
            _plain(x["source"]),
            _each(x.get("not_answering")) or (),
        )
        for x in shown["routes"]
    ]
    return Routes(tuple(rows), _number(shown["total"]))


def _each(addresses: list[str] | None) -> tuple[str, ...] | None:
    return None if addresses is None else tuple(map(_plain, addresses))


def _state(
    figures: bytes, connections: bytes, refused: bytes, routes: Routes, at: float, time: float
) -> State:
    told: dict[str, Any] = json.loads(figures)
    there = json.loads(connections)
    shares: defaultdict[tuple[str, str], Traffic] = defaultdict(Traffic)
    for x in told["shares"]:
        row = (x[word] for word in ("active", "connections", "up", "down"))
        shares[_plain(x["route"]), _plain(x["backend"])] += Traffic(*map(_number, row))
    return State(
        at=at,
        time=time,
        started=at - _seconds(told["uptime"]) if "uptime" in told else None,
        version=_plain(told["version"]),
        draining=bool(told["draining"]),
        limit=_number(told["limit"]),
        accepted=sum(map(_number, told["counts"]["connections"].values())),
        active=_number(told["active"]),
        reasons={_plain(x): _number(n) for x, n in told["counts"]["refused"].items()},
        workers={_plain(x): bool(answers) for x, answers in told["workers"].items()},
        listeners=tuple((_plain(x["protocol"]), _plain(x["address"])) for x in told["listeners"]),
        shares=dict(shares),
        connections=tuple(map(_connection, there["connections"])),
        connections_total=_number(there["total"]),
        refused=tuple(map(_refused, json.loads(refused)["refused"])),
        routes=routes,
        routes_total=_number(told["routes"]),
    )


def _connection(x: Mapping[str, Any]) -> Connection:
    notes = (("route", x["route"]), ("alpn", x["alpn"]), ("ech", x["ech"]), ("via", x["via"]))
    return Connection(
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


def _refused(x: Mapping[str, Any]) -> Refused:
    why = x["reason"] if x["detail"] is None else f"{x['reason']}: {x['detail']}"
    key = (REFUSED_NAME, str(x["worker"]), str(x["number"]))
    return Refused(
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


def _plain(text: Any) -> str:
    if not isinstance(text, str):
        raise TypeError(text)
    return plain(text, ascii_only=True)
