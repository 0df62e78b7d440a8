"""Two samples of a running snimux, of now and of a moment ago -> a tree of rows, with rates.

Listeners, below them routes, below these connections; and who was refused. Listeners of a protocol
share their routes, so they are one row. Knows neither how samples are had nor how rows are shown.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from snimux.status.sample import HTTP_NAME, REFUSED_NAME, TLS_NAME, Key, RouteRow, Sample, Traffic

RATES_OVER = 5.0
"""Seconds of which rates are the mean, if there was a sample as long ago."""
_NO_ROUTE = "(no route yet)"

# Seconds between the starts of two: an answer that was slow makes one look later than it was.
_OTHER = 1.0


@dataclass(frozen=True, slots=True)
class PerSecond:
    """Numbers a second; None where nothing is known of a moment ago."""

    new: float | None = None
    """Connections."""
    up: float | None = None
    """Bytes to backends."""
    down: float | None = None
    """Bytes to clients."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of what is shown; None, or "": it has none."""

    kind: str
    """``listener``, ``route``, ``connection`` or ``refused``."""
    key: Key
    name: str
    traffic: Traffic
    rates: PerSecond = PerSecond()
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
    """The totals, and a tree: all that is to be shown."""

    sample: Sample
    total: Traffic
    rates: PerSecond
    refused: Mapping[str, tuple[int, float | None]]
    """By reason: how many, and how many a second; those of which there was one."""
    tree: tuple[Node, ...]


# --- the tree


def overview(sample: Sample, before: Sample | None = None) -> Overview:
    """Return what is to be shown of a sample, with rates if one from before is known.

    If that is of another snimux, there is nothing to compare with.
    """
    if before is not None and not _is_later(sample, before):
        before = None
    seconds = 0.0 if before is None else sample.at - before.at
    then = None if before is None else _total(before)
    refused = {
        reason: (
            count,
            None if before is None else _rate(count, before.reasons.get(reason, 0), seconds),
        )
        for reason, count in sorted(sample.reasons.items(), key=lambda x: (-x[1], x[0]))
        if count
    }
    total = _total(sample)
    tree = (*_listeners(sample, before), *_refusals(sample))
    return Overview(sample, total, _rates(total, then, seconds), refused, tree)


def comparable(past: Sequence[Sample], sample: Sample) -> list[Sample]:
    """Return the past samples that rates may be had from: of ``RATES_OVER``, or else the last one.

    Over one second alone they would jump, and rows that are ordered by them with them.
    """
    same = [x for x in past if _is_later(sample, x)]
    return [x for x in same if sample.at - x.at <= RATES_OVER] or same[-1:]


def _is_later(sample: Sample, before: Sample) -> bool:
    """Return whether both are of one snimux: where counts fell, it was restarted."""
    if before.accepted > sample.accepted or before.at >= sample.at:
        return False
    if sample.started is None or before.started is None:
        return True
    return abs(sample.started - before.started) <= _OTHER


def _total(sample: Sample) -> Traffic:
    """Sum up all that came, also what was refused."""
    relayed = sum(sample.shares.values(), Traffic())
    return replace(relayed, open=sample.active, total=sample.accepted)


def _rates(now: Traffic, then: Traffic | None, seconds: float) -> PerSecond:
    if then is None:
        return PerSecond()
    return PerSecond(
        _rate(now.total, then.total, seconds),
        _rate(now.up, then.up, seconds),
        _rate(now.down, then.down, seconds),
    )


def _rate(now: int, then: int, seconds: float) -> float:
    # A worker that was killed between the two takes along what it had not told yet.
    return max(now - then, 0) / seconds


def _listeners(sample: Sample, before: Sample | None) -> Iterator[Node]:
    """A node for each protocol that is listened for, or spoken yet on a listener that is gone."""
    addresses: dict[str, list[str]] = {TLS_NAME: []}
    for protocol, address in sample.listeners:
        addresses.setdefault(protocol, []).append(address)
    connections = _by_route(sample, before)
    for protocol, _ in connections:
        addresses.setdefault(protocol, [])
    routes = _by_protocol(sample)
    seconds = 0.0 if before is None else sample.at - before.at
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
    each_rates = [x.row.rates for x in below if x.row.rates != PerSecond()]
    rates = PerSecond(
        *(sum(getattr(x, word) for x in each_rates) for word in ("new", "up", "down"))
    )
    if not each_rates:
        rates = PerSecond()
    ages = [x.row.age for x in below if x.row.age is not None]
    name = f"{protocol}/{','.join(where) or '(closed)'}"
    return Row(
        "listener", ("listener", protocol), name, traffic, rates, age=max(ages, default=None)
    )


def _by_protocol(sample: Sample) -> dict[str, dict[RouteRow, list[tuple[str, Traffic]]]]:
    """The routes of each protocol, each with what went to which backend.

    A share does not say by which protocol it came; but a route has other backends for each.
    """
    by_protocol: defaultdict[str, dict[RouteRow, list[tuple[str, Traffic]]]] = defaultdict(dict)
    by_pattern: dict[str, RouteRow] = {}
    for route in sample.routes.shown:
        by_pattern[route.pattern] = route
        if route.backend is not None:
            by_protocol[TLS_NAME][route] = []
        if route.http is not None:
            by_protocol[HTTP_NAME][route] = []
    # One may be gone already, or be beyond those that are shown.
    for each in sample.connections:
        if each.route is not None:
            route = by_pattern.setdefault(each.route, RouteRow(each.route, (), None, ""))
            by_protocol[each.protocol].setdefault(route, [])
    for (pattern, backend), traffic in sample.shares.items():
        route = by_pattern.setdefault(pattern, RouteRow(pattern, (), None, ""))
        is_http = backend in (route.http or ()) and backend not in (route.backend or ())
        protocol = HTTP_NAME if is_http or route.backend is None else TLS_NAME
        by_protocol[protocol].setdefault(route, []).append((backend, traffic))
    return by_protocol


def _route_node(
    route: RouteRow,
    protocol: str,
    shares: list[tuple[str, Traffic]],
    connections: Mapping[tuple[str, str | None], list[Node]],
    before: Sample | None,
    seconds: float,
) -> Node:
    traffic = sum((x for _, x in shares), Traffic())
    then = None
    if before is not None:
        keys = ((route.pattern, backend) for backend, _ in shares)
        then = sum((before.shares.get(key, Traffic()) for key in keys), Traffic())
    below = tuple(connections.get((protocol, route.pattern), ()))
    addresses = (route.http if protocol == HTTP_NAME else route.backend) or [x for x, _ in shares]
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


def _by_route(sample: Sample, before: Sample | None) -> dict[tuple[str, str | None], list[Node]]:
    """The connections, by protocol and route."""
    then = {} if before is None else {x.key: x for x in before.connections}
    seconds = 0.0 if before is None else sample.at - before.at
    nodes: dict[tuple[str, str | None], list[Node]] = {}
    for each in sample.connections:
        was = then.get(each.key)
        is_new = was is None and each.age <= seconds
        rates = PerSecond()
        if before is not None and (was is not None or is_new):
            up, down = (0, 0) if was is None else (was.up, was.down)
            rates = PerSecond(
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
        nodes.setdefault((each.protocol, each.route), []).append(Node(row))
    return nodes


def _refusals(sample: Sample) -> Iterator[Node]:
    """Make a node for those who were refused, the last first."""
    below = tuple(
        Node(
            Row(
                REFUSED_NAME,
                each.key,
                each.name or "(no name)",
                Traffic(),
                client=each.client,
                age=max(sample.time - each.time, 0.0),
                note=each.why,
            )
        )
        for each in reversed(sample.refused)
    )
    if below:
        name = f"the last {len(below)} refused"
        yield Node(Row(REFUSED_NAME, (REFUSED_NAME,), name, Traffic(), age=below[0].row.age), below)


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
    tree: Iterable[Node], *, sort: str, backwards: bool = False, text: str = ""
) -> tuple[Node, ...]:
    """Return a tree in some order, without the rows that lack a text.

    Args:
        tree: all of it.
        sort: one of ``SORTS``. Listeners stay as they are, and so do the refused, last first.
        backwards: the other way around.
        text: in any case; it is in the name, backend, client or note of a row, or of
            one below or above it; listeners stay.
    """
    order, text = _SORTS[sort], text.casefold()

    def rank(node: Node) -> tuple[tuple[float, ...], str, Key]:
        return tuple(-x for x in order(node.row)), node.row.name, node.row.key

    def in_order(node: Node) -> Node:
        if not node.below or node.row.kind == REFUSED_NAME:
            return node
        below = sorted(map(in_order, node.below), key=rank, reverse=backwards)
        below.sort(key=_is_loose)
        return replace(node, below=tuple(below))

    return tuple(in_order(replace(x, below=tuple(_kept(x.below, text)))) for x in tree)


def _is_loose(node: Node) -> bool:
    """Return whether it has those without a route: it comes and goes, and all else stays."""
    return node.row.kind == "route" and len(node.row.key) == 2


def _kept(nodes: Iterable[Node], text: str) -> Iterator[Node]:
    """Return the nodes that have a text, and those with such nodes below them."""
    for node in nodes:
        row = node.row
        if text in f"{row.name}\n{row.backend}\n{row.client}\n{row.note}".casefold():
            yield node
        elif below := tuple(_kept(node.below, text)):
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
