"""What a running snimux showed of itself, now and a moment ago -> a tree of rows, with rates.

Listeners, below them routes, below these connections; and who was refused. Listeners of a protocol
share their routes, so they are one row. Text of ``--status``' pages comes in, values go out; what
clients said is in it, so all but printable ASCII leaves here spelt out: nothing acts on a terminal,
and each character is one column wide, whatever the terminal can show. Knows neither how the pages
are had nor how rows are shown.
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")

Key = tuple[str, ...]
"""What a row is known again by."""

RATES_OVER = 5.0
"""Seconds of which rates are the mean, if there was a look as long ago."""

_TLS, _HTTP = "tls", "http"
_NO_ROUTE = "(no route yet)"
_REFUSED = "refused"


# Seconds between the starts of two: an answer that was slow makes one look later than it was.
_OTHER = 1.0


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
class Rates:
    """How many a second; None where nothing is known of a moment ago."""

    new: float | None = None
    """Connections."""
    up: float | None = None
    """Bytes to backends."""
    down: float | None = None
    """Bytes to clients."""


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


@dataclass(frozen=True, slots=True)
class Row:
    """One line of what is shown; None, or "": it has none."""

    kind: str
    """``listener``, ``route``, ``connection`` or ``refused``."""
    key: Key
    name: str
    traffic: Traffic
    rates: Rates = Rates()
    backend: str = ""
    is_down: bool = False
    """Whether an address of ``backend`` does not answer."""
    client: str = ""
    age: float | None = None
    """Seconds: of a connection, of the oldest one of a route, or since it was refused."""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Node:
    """A row, and those below it."""

    row: Row
    below: tuple["Node", ...] = ()


@dataclass(frozen=True, slots=True)
class Overview:
    """What is to be shown: the totals, and a tree."""

    state: State
    total: Traffic
    rates: Rates
    refused: Mapping[str, tuple[int, float | None]]
    """By reason: how many, and how many a second; those of which there was one."""
    tree: tuple[Node, ...]


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
            plain(x["pattern"]),
            _each(x["backend"]),
            _each(x["http"]),
            plain(x["source"]),
            _each(x.get("not_answering")) or (),
        )
        for x in shown["routes"]
    ]
    return Routes(tuple(rows), _number(shown["total"]))


def _each(addresses: list[str] | None) -> tuple[str, ...] | None:
    return None if addresses is None else tuple(map(plain, addresses))


def _state(
    figures: bytes, connections: bytes, refused: bytes, routes: Routes, at: float, time: float
) -> State:
    told: dict[str, Any] = json.loads(figures)
    there = json.loads(connections)
    shares: defaultdict[tuple[str, str], Traffic] = defaultdict(Traffic)
    for x in told["shares"]:
        row = (x[word] for word in ("active", "connections", "up", "down"))
        shares[plain(x["route"]), plain(x["backend"])] += Traffic(*map(_number, row))
    return State(
        at=at,
        time=time,
        started=at - _seconds(told["uptime"]) if "uptime" in told else None,
        version=plain(told["version"]),
        draining=bool(told["draining"]),
        limit=_number(told["limit"]),
        accepted=sum(map(_number, told["counts"]["connections"].values())),
        active=_number(told["active"]),
        reasons={plain(x): _number(n) for x, n in told["counts"]["refused"].items()},
        workers={plain(x): bool(answers) for x, answers in told["workers"].items()},
        listeners=tuple((plain(x["protocol"]), plain(x["address"])) for x in told["listeners"]),
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
        key=("connection", str(x["worker"]), str(x["id"]), plain(x["client"])),
        protocol=_TLS if x["protocol"] is None else plain(x["protocol"]),
        route=None if x["route"] is None else plain(x["route"]),
        name=_or_nothing(x["name"]),
        client=plain(x["client"]),
        backend=_or_nothing(x["backend"]),
        note=" ".join(f"{word}={plain(value)}" for word, value in notes if value is not None),
        age=_seconds(x["age"]),
        up=_number(x["up"]),
        down=_number(x["down"]),
    )


def _refused(x: Mapping[str, Any]) -> Refused:
    why = x["reason"] if x["detail"] is None else f"{x['reason']}: {x['detail']}"
    key = (_REFUSED, str(x["worker"]), str(x["number"]))
    return Refused(key, _or_nothing(x["name"]), plain(x["client"]), plain(why), _seconds(x["time"]))


def _or_nothing(text: str | None) -> str:
    return "" if text is None else plain(text)


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


def plain(text: str) -> str:
    """A text of printable ASCII, in which all else is spelt out."""
    if not isinstance(text, str):
        raise TypeError(text)
    if text.isascii() and text.isprintable():
        return text
    return "".join(x if x.isascii() and x.isprintable() else ascii(x)[1:-1] for x in text)


# --- the tree


def overview(state: State, before: State | None = None) -> Overview:
    """What is to be shown of a state, with rates if one from before is known.

    If that is of another snimux, there is nothing to compare with.
    """
    if before is not None and not _is_later(state, before):
        before = None
    seconds = 0.0 if before is None else state.at - before.at
    then = None if before is None else _total(before)
    refused = {
        reason: (
            count,
            None if before is None else _rate(count, before.reasons.get(reason, 0), seconds),
        )
        for reason, count in sorted(state.reasons.items(), key=lambda x: (-x[1], x[0]))
        if count
    }
    total = _total(state)
    tree = (*_listeners(state, before), *_refusals(state))
    return Overview(state, total, _rates(total, then, seconds), refused, tree)


def comparable(past: Sequence[State], state: State) -> list[State]:
    """Those of the past that rates may be had from: of ``RATES_OVER``, or else the last one.

    Over one second alone they would jump, and rows that are ordered by them with them.
    """
    same = [x for x in past if _is_later(state, x)]
    return [x for x in same if state.at - x.at <= RATES_OVER] or same[-1:]


def _is_later(state: State, before: State) -> bool:
    """Whether both are of the same snimux: where counts fell, it was restarted."""
    if before.accepted > state.accepted or before.at >= state.at:
        return False
    if state.started is None or before.started is None:
        return True
    return abs(state.started - before.started) <= _OTHER


def _total(state: State) -> Traffic:
    """What came in all, also what was refused."""
    relayed = sum(state.shares.values(), Traffic())
    return replace(relayed, open=state.active, total=state.accepted)


def _rates(now: Traffic, then: Traffic | None, seconds: float) -> Rates:
    if then is None:
        return Rates()
    return Rates(
        _rate(now.total, then.total, seconds),
        _rate(now.up, then.up, seconds),
        _rate(now.down, then.down, seconds),
    )


def _rate(now: int, then: int, seconds: float) -> float:
    # A worker that was killed between the two takes along what it had not told yet.
    return max(now - then, 0) / seconds


def _listeners(state: State, before: State | None) -> Iterator[Node]:
    """A node for each protocol that is listened for, or spoken yet on a listener that is gone."""
    addresses: dict[str, list[str]] = {_TLS: []}
    for protocol, address in state.listeners:
        addresses.setdefault(protocol, []).append(address)
    connections = _by_route(state, before)
    for protocol, _ in connections:
        addresses.setdefault(protocol, [])
    routes = _by_protocol(state)
    seconds = 0.0 if before is None else state.at - before.at
    for protocol, where in addresses.items():
        below = tuple(
            _route_node(route, protocol, shares, connections, before, seconds)
            for route, shares in routes.get(protocol, {}).items()
        )
        loose = connections.get((protocol, None))
        if loose:
            traffic = Traffic(open=len(loose))
            age = max(x.row.age or 0 for x in loose)
            row = Row("route", ("route", protocol), _NO_ROUTE, traffic, age=age)
            below = (*below, Node(row, tuple(loose)))
        if where or any(x.below or x.row.traffic != Traffic() for x in below):
            yield Node(_listener_row(protocol, where, below), below)


def _listener_row(protocol: str, where: Iterable[str], below: Collection[Node]) -> Row:
    traffic = sum((x.row.traffic for x in below), Traffic())
    known = [x.row.rates for x in below if x.row.rates != Rates()]
    rates = Rates(*(sum(getattr(x, word) for x in known) for word in ("new", "up", "down")))
    if not known:
        rates = Rates()
    ages = [x.row.age for x in below if x.row.age is not None]
    name = f"{protocol}/{','.join(where) or '(closed)'}"
    return Row(
        "listener", ("listener", protocol), name, traffic, rates, age=max(ages, default=None)
    )


def _by_protocol(state: State) -> dict[str, dict[Route, list[tuple[str, Traffic]]]]:
    """The routes of each protocol, each with what went to which backend.

    A share does not say by which protocol it came; but a route has other backends for each.
    """
    found: defaultdict[str, dict[Route, list[tuple[str, Traffic]]]] = defaultdict(dict)
    known: dict[str, Route] = {}
    for route in state.routes.shown:
        known[route.pattern] = route
        if route.backend is not None:
            found[_TLS][route] = []
        if route.http is not None:
            found[_HTTP][route] = []
    # One may be gone already, or be beyond those that are shown.
    for each in state.connections:
        if each.route is not None:
            route = known.setdefault(each.route, Route(each.route, (), None, ""))
            found[each.protocol].setdefault(route, [])
    for (pattern, backend), traffic in state.shares.items():
        route = known.setdefault(pattern, Route(pattern, (), None, ""))
        is_http = backend in (route.http or ()) and backend not in (route.backend or ())
        protocol = _HTTP if is_http or route.backend is None else _TLS
        found[protocol].setdefault(route, []).append((backend, traffic))
    return found


def _route_node(
    route: Route,
    protocol: str,
    shares: list[tuple[str, Traffic]],
    connections: Mapping[tuple[str, str | None], list[Node]],
    before: State | None,
    seconds: float,
) -> Node:
    traffic = sum((x for _, x in shares), Traffic())
    then = None
    if before is not None:
        keys = ((route.pattern, backend) for backend, _ in shares)
        then = sum((before.shares.get(key, Traffic()) for key in keys), Traffic())
    below = tuple(connections.get((protocol, route.pattern), ()))
    addresses = (route.http if protocol == _HTTP else route.backend) or [x for x, _ in shares]
    down = set(route.down)
    notes = [f"from {route.source}"] if route.source else []
    notes += [f"not answering: {x}" for x in addresses if x in down]
    row = Row(
        "route",
        ("route", protocol, route.pattern),
        route.pattern,
        traffic,
        _rates(traffic, then, seconds),
        backend=",".join(addresses),
        is_down=not down.isdisjoint(addresses),
        age=max((x.row.age or 0 for x in below), default=None),
        note="; ".join(notes),
    )
    return Node(row, below)


def _by_route(state: State, before: State | None) -> dict[tuple[str, str | None], list[Node]]:
    """The connections, by protocol and route."""
    then = {} if before is None else {x.key: x for x in before.connections}
    seconds = 0.0 if before is None else state.at - before.at
    found: dict[tuple[str, str | None], list[Node]] = {}
    for each in state.connections:
        was = then.get(each.key)
        is_new = was is None and each.age <= seconds
        rates = Rates()
        if before is not None and (was is not None or is_new):
            up, down = (0, 0) if was is None else (was.up, was.down)
            rates = Rates(
                is_new / seconds, _rate(each.up, up, seconds), _rate(each.down, down, seconds)
            )
        row = Row(
            "connection",
            each.key,
            each.name or "(no name)",
            Traffic(1, 1, each.up, each.down),
            rates,
            each.backend,
            client=each.client,
            age=each.age,
            note=each.note,
        )
        found.setdefault((each.protocol, each.route), []).append(Node(row))
    return found


def _refusals(state: State) -> Iterator[Node]:
    """Who was refused, the last first."""
    below = tuple(
        Node(
            Row(
                _REFUSED,
                each.key,
                each.name or "(no name)",
                Traffic(),
                client=each.client,
                age=max(state.time - each.time, 0.0),
                note=each.why,
            )
        )
        for each in reversed(state.refused)
    )
    if below:
        name = f"the last {len(below)} refused"
        yield Node(Row(_REFUSED, (_REFUSED,), name, Traffic(), age=below[0].row.age), below)


# --- in which order, and which of them

_LAST = -1.0

_SORTS: Mapping[str, Callable[[Row], tuple[float, ...]]] = {
    "rate": lambda row: ((row.rates.up or 0) + (row.rates.down or 0), row.traffic.open),
    "bytes": lambda row: (row.traffic.up + row.traffic.down,),
    "age": lambda row: (_LAST if row.age is None else row.age,),
    "connections": lambda row: (row.traffic.open, row.traffic.total),
    "name": lambda row: (),
}
SORTS = tuple(_SORTS)
"""The words for orders; the most is first, and names are from a to z."""


def arranged(
    tree: Iterable[Node], *, sort: str, backwards: bool = False, wanted: str = ""
) -> tuple[Node, ...]:
    """A tree in some order, without what is not wanted.

    Args:
        tree: all of it.
        sort: one of ``SORTS``. Listeners stay as they are, and so do the refused, last first.
        backwards: the other way around.
        wanted: a text, in any case, that is in the name, backend, client or note of a row, or of
            one below or above it; listeners stay.
    """
    order, wanted = _SORTS[sort], wanted.casefold()

    def rank(node: Node) -> tuple[tuple[float, ...], str, Key]:
        return tuple(-x for x in order(node.row)), node.row.name, node.row.key

    def in_order(node: Node) -> Node:
        if not node.below or node.row.kind == _REFUSED:
            return node
        below = sorted(map(in_order, node.below), key=rank, reverse=backwards)
        below.sort(key=_is_loose)
        return replace(node, below=tuple(below))

    return tuple(in_order(replace(x, below=tuple(_kept(x.below, wanted)))) for x in tree)


def _is_loose(node: Node) -> bool:
    """Whether it has those without a route: it comes and goes, and others are to stay for that."""
    return node.row.kind == "route" and len(node.row.key) == 2


def _kept(nodes: Iterable[Node], wanted: str) -> Iterator[Node]:
    """Those that have a text, or some below them that have."""
    for node in nodes:
        row = node.row
        if wanted in f"{row.name}\n{row.backend}\n{row.client}\n{row.note}".casefold():
            yield node
        elif below := tuple(_kept(node.below, wanted)):
            yield replace(node, below=below)


@dataclass(frozen=True, slots=True)
class Line:
    """A row that is seen, and how deep it is in the tree."""

    row: Row
    depth: int
    is_open: bool | None
    """Whether what is below it is seen; None if there is nothing."""


def lines(tree: Iterable[Node], is_open: Callable[[Row], bool]) -> list[Line]:
    """The rows that are seen, in order."""
    return list(_lines(tree, is_open, 0))


def _lines(tree: Iterable[Node], is_open: Callable[[Row], bool], depth: int) -> Iterator[Line]:
    for node in tree:
        opened = is_open(node.row) if node.below else None
        yield Line(node.row, depth, opened)
        if opened:
            yield from _lines(node.below, is_open, depth + 1)
