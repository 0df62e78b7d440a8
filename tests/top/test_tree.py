"""``top.tree``: pages in, a tree of rows out; whatever clients said."""

import contextlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snimux.status.client import ApiError, read, read_route_rows
from snimux.status.sample import Key, Sample, Traffic
from snimux.text import plain
from snimux.top.tree import (
    SORTS,
    Node,
    Overview,
    PerSecond,
    Row,
    arranged,
    comparable,
    lines,
    overview,
)

ONE, TWO = "10.0.0.1:443", "unix//run/two"

Pages = dict[str, Any]

NAMES = st.text(max_size=12) | st.sampled_from(["a.test", "b.test", "\x1b[31m", "[red]", "\u202e"])
COUNTS = st.integers(0, 2**40)
PATTERNS = st.sampled_from(["a.test", "b.test", "**.c.test", "*"]) | NAMES
ADDRESSES = st.sampled_from([ONE, TWO, "127.0.0.1:1"]) | NAMES
AGES = st.floats(0, 1e9)


def share(route: str, backend: str, connections: int, active: int, up: int, down: int) -> Any:
    return {"route": route, "backend": backend, "connections": connections,
            "active": active, "up": up, "down": down}  # fmt: skip


def connection(number: int, **fields: object) -> Any:
    known = {
        "worker": 0, "id": number, "client": f"192.0.2.1:{number}", "via": None, "protocol": None,
        "name": "a.test", "alpn": "h2", "ech": None, "route": "a.test", "backend": ONE, "up": 10,
        "down": 20, "age": 3.0,
    }  # fmt: skip
    return {**known, **fields}


def refusal(number: int, **fields: object) -> Any:
    known = {"worker": 0, "number": number, "name": "x.test", "client": "192.0.2.1:9",
             "reason": "no-route", "detail": None, "time": 900.0}  # fmt: skip
    return {**known, **fields}


def route(pattern: str, *backend: str, **fields: object) -> Any:
    known = {"pattern": pattern, "backend": list(backend), "http": None, "source": "configuration",
             "not_answering": []}  # fmt: skip
    return {**known, **fields}


def pages(**fields: Any) -> Pages:
    """What a snimux shows that does nothing, but for some of it."""
    known = {
        "version": "1", "routes": 1, "limit": 100, "draining": False, "workers": {}, "active": 0,
        "listeners": [{"protocol": "tls", "address": "127.0.0.1:443"}], "accepted": 0,
        "refusals": {}, "shares": [], "connections": [], "refused": [], "total": None,
        "uptime": None,
        "shown": [route("a.test", ONE)],
    }  # fmt: skip
    assert fields.keys() <= known.keys()
    return {**known, **fields}


def bodies(shown: Pages) -> dict[str, bytes]:
    """The same, as it is served, by path."""
    counts = {"connections": {"tls": shown["accepted"]}, "refused": shown["refusals"]}
    words = ("version", "routes", "limit", "draining", "workers", "active", "listeners", "shares")
    connections, uptime = shown["connections"], shown["uptime"]
    said = {} if uptime is None else {"uptime": uptime}
    total = len(connections or ()) if shown["total"] is None else shown["total"]
    found = {
        "/figures": {**{word: shown[word] for word in words}, "counts": counts, **said},
        "/connections": {"total": total, "connections": connections},
        "/refused": {"refused": shown["refused"]},
        "/routes": {"total": shown["routes"], "routes": shown["shown"]},
    }
    return {path: json.dumps(page).encode() for path, page in found.items()}


def state(shown: Pages, *, at: float = 100.0) -> Sample:
    """The same, read."""
    page = bodies(shown)
    return read(
        page["/figures"],
        page["/connections"],
        page["/refused"],
        read_route_rows(page["/routes"]),
        at=at,
        time=at + 900,
    )


@st.composite
def any_pages(draw: st.DrawFn) -> Pages:
    """Pages of a snimux in any state, with clients that said anything."""
    shown = draw(
        st.lists(
            st.builds(
                lambda pattern, backend, http, down: route(
                    pattern, *(backend or ()), http=http, not_answering=down
                ),
                PATTERNS,
                st.lists(ADDRESSES, max_size=2),
                st.none() | st.lists(ADDRESSES, max_size=2),
                st.lists(ADDRESSES, max_size=2),
            ),
            max_size=4,
            unique_by=lambda x: plain(x["pattern"], ascii_only=True),
        )
    )
    shares = st.lists(
        st.builds(share, PATTERNS, ADDRESSES, COUNTS, COUNTS, COUNTS, COUNTS), max_size=6
    )
    connections = st.lists(
        st.builds(
            connection,
            st.integers(0, 2**50),
            protocol=st.sampled_from([None, "tls", "http"]),
            route=st.none() | PATTERNS,
            name=st.none() | NAMES,
            client=NAMES,
            alpn=st.none() | NAMES,
            backend=st.none() | ADDRESSES,
            up=COUNTS,
            down=COUNTS,
            age=AGES,
        ),
        max_size=6,
        unique_by=lambda x: x["id"],
    )
    refused = st.lists(
        st.builds(
            refusal,
            st.integers(0, 2**50),
            name=st.none() | NAMES,
            client=NAMES,
            detail=st.none() | NAMES,
            time=AGES,
        ),
        max_size=4,
        unique_by=lambda x: x["number"],
    )
    return pages(
        shown=shown,
        shares=draw(shares),
        connections=draw(connections),
        refused=draw(refused),
        active=draw(COUNTS),
        accepted=draw(COUNTS),
        refusals=draw(st.dictionaries(st.sampled_from(["no-route", "http"]), COUNTS)),
        workers=draw(st.dictionaries(st.sampled_from(["1", "2"]), st.booleans())),
        draining=draw(st.booleans()),
        listeners=[
            {"protocol": protocol, "address": address}
            for protocol, address in draw(
                st.lists(st.tuples(st.sampled_from(["tls", "http"]), ADDRESSES), max_size=3)
            )
        ],
    )


OVERVIEWS = st.builds(
    lambda now, before: overview(
        state(now, at=102.0), None if before is None else state(before, at=100.0)
    ),
    any_pages(),
    st.none() | any_pages(),
)


def nodes(tree: Iterable[Node]) -> Iterator[Node]:
    for node in tree:
        yield node
        yield from nodes(node.below)


def keys(tree: Iterable[Node]) -> Counter[Key]:
    return Counter(node.row.key for node in nodes(tree))


def row(seen: Overview, name: str, kind: str = "route") -> Row:
    (found,) = (x.row for x in nodes(seen.tree) if (x.row.name, x.row.kind) == (name, kind))
    return found


@settings(max_examples=40)
@given(OVERVIEWS)
def test_what_is_below_a_listener_adds_up_to_it_and_listeners_to_all(seen: Overview) -> None:
    listeners = [x for x in seen.tree if x.row.kind == "listener"]
    for node in listeners:
        assert node.row.traffic == sum((x.row.traffic for x in node.below), Traffic())
        for word in ("new", "up", "down"):
            rates = [getattr(x.row.rates, word) for x in node.below]
            known = [x for x in rates if x is not None]
            assert (getattr(node.row.rates, word) or 0) == pytest.approx(sum(known))
    whole = sum((x.row.traffic for x in listeners), Traffic())
    assert (whole.up, whole.down) == (seen.total.up, seen.total.down)
    below = [x for x in nodes(listeners) if x.row.kind == "connection"]
    assert Counter(x.row.key for x in below) == Counter(x.key for x in seen.sample.connections)
    assert max(keys(seen.tree).values(), default=1) == 1


@settings(max_examples=40)
@given(OVERVIEWS)
def test_no_rate_is_below_zero_and_all_text_is_printable_ascii(seen: Overview) -> None:
    for node in nodes(seen.tree):
        rates = node.row.rates
        assert all(x is None or x >= 0 for x in (rates.new, rates.up, rates.down))
        text = "".join((node.row.name, node.row.backend, node.row.client, node.row.note))
        assert text.isascii()
        assert text.isprintable()


@settings(max_examples=40)
@given(OVERVIEWS, st.sampled_from(SORTS), st.booleans())
def test_an_order_is_a_permutation_of_each_level(
    seen: Overview, sort: str, backwards: bool
) -> None:
    tree = arranged(seen.tree, sort=sort, backwards=backwards)
    assert keys(tree) == keys(seen.tree)
    assert [x.row for x in tree] == [x.row for x in seen.tree]
    for now, before in zip(tree, seen.tree, strict=True):
        assert Counter(x.row for x in now.below) == Counter(x.row for x in before.below)
        again = arranged([now], sort=sort, backwards=not backwards)[0]
        if now.row.kind == "listener":
            loose = ("route", now.row.key[1])  # which is always the last
            there = [[x.row for x in y.below if x.row.key != loose] for y in (now, again)]
            assert there[1] == there[0][::-1]
            assert all(x.row.key != loose for y in (now, again) for x in y.below[:-1])
        else:
            assert again == now == before


@settings(max_examples=40)
@given(OVERVIEWS, NAMES)
def test_a_filter_leaves_whom_it_is_for_and_what_is_above_and_below(
    seen: Overview, wanted: str
) -> None:
    tree = arranged(seen.tree, sort="name", text=wanted)
    assert keys(tree) <= keys(seen.tree)

    def has(one: Row) -> bool:
        text = "\n".join((one.name, one.backend, one.client, one.note))
        return wanted.casefold() in text.casefold()

    def check(node: Node, *, is_below: bool) -> bool:
        """Whether it, or something below it, has the text."""
        found = [check(x, is_below=is_below or has(node.row)) for x in node.below]
        return has(node.row) or any(found)

    kept = {x.row.key for x in nodes(tree)}
    for top in seen.tree:
        for below in top.below:
            assert (below.row.key in kept) == check(below, is_below=False)
    assert arranged(seen.tree, sort="name") == arranged(seen.tree, sort="name", text="")


@pytest.mark.parametrize(
    ("sort", "names"),
    [
        ("name", ["a.test", "b.test", "c.test"]),
        ("bytes", ["c.test", "b.test", "a.test"]),
        ("connections", ["b.test", "a.test", "c.test"]),
        ("rate", ["b.test", "c.test", "a.test"]),
        ("age", ["c.test", "b.test", "a.test"]),
    ],
)
def test_orders(sort: str, names: list[str]) -> None:
    shown = [route(f"{x}.test", ONE) for x in "bca"]
    live = [connection(1, route="b.test", age=5), connection(2, route="c.test", age=9)]
    before = [share("b.test", ONE, 0, 0, 0, 0), share("c.test", ONE, 1, 0, 900, 900)]
    now = [share("a.test", ONE, 1, 1, 0, 0), share("b.test", ONE, 9, 3, 50, 50),
           share("c.test", ONE, 1, 0, 950, 900)]  # fmt: skip
    seen = overview(
        state(pages(shown=shown, shares=now, connections=live), at=101),
        state(pages(shown=shown, shares=before), at=100),
    )
    for backwards in (False, True):
        (listener,) = arranged(seen.tree, sort=sort, backwards=backwards)
        found = [x.row.name for x in listener.below]
        assert found == (names[::-1] if backwards else names)


def test_rates_are_of_the_time_between() -> None:
    before = pages(
        accepted=10,
        shares=[share("a.test", ONE, 4, 1, 1000, 0)],
        connections=[connection(1, up=100, down=0)],
        refusals={"no-route": 2},
    )
    now = pages(
        accepted=16,
        shares=[share("a.test", ONE, 6, 2, 1800, 4000), share("a.test", TWO, 2, 0, 1, 1)],
        connections=[connection(1, up=500, down=2000), connection(2, up=8, down=0, age=1.0)],
        refusals={"no-route": 6, "http": 0},
    )
    seen = overview(state(now, at=104.0), state(before, at=100.0))
    assert row(seen, "a.test").rates == PerSecond(1.0, 200.25, 1000.25)
    rates = [x.row.rates for x in nodes(seen.tree) if x.row.kind == "connection"]
    assert rates == [PerSecond(0.0, 100.0, 500.0), PerSecond(0.25, 2.0, 0.0)]
    assert seen.rates.new == 1.5
    assert seen.refused == {"no-route": (6, 1.0)}


def test_of_a_snimux_that_was_restarted_no_rate_is_known() -> None:
    shares = [share("a.test", ONE, 4, 1, 1000, 0)]
    before = state(pages(accepted=10, shares=shares), at=100.0)
    seen = overview(state(pages(accepted=4, shares=shares), at=101.0), before)
    assert seen.rates == PerSecond()
    assert row(seen, "a.test").rates == PerSecond()


def test_one_that_was_restarted_may_have_accepted_more_than_before() -> None:
    before = state(pages(accepted=10, uptime=50.0), at=100)
    same = state(pages(accepted=20, uptime=51.2), at=102)  # which was slow to answer
    assert overview(same, before).rates.new == 5
    another = state(pages(accepted=20, uptime=1.9), at=102)
    assert overview(another, before).rates == PerSecond()


def test_rates_are_of_some_seconds_and_of_one_snimux() -> None:
    past: list[Sample] = []
    for at, accepted in ((0, 9), (10, 10), (11, 20), (13, 30), (15, 40)):
        now = state(pages(accepted=accepted), at=at)
        past = [*comparable(past, now), now]
    assert [x.at for x in past] == [10, 11, 13, 15]
    restarted = state(pages(accepted=1), at=16)
    assert comparable(past, restarted) == []
    late = state(pages(accepted=41), at=99)
    assert [x.at for x in comparable(past, late)] == [15]


def test_a_route_says_where_it_is_from_and_which_addresses_do_not_answer() -> None:
    shown = [
        route("a.test", ONE, TWO, not_answering=[TWO], source="caddy localhost:2019"),
        route("b.test", ONE, http=[TWO], not_answering=[TWO]),
    ]
    live = [connection(1, route="b.test", protocol="http", backend=TWO)]
    seen = overview(state(pages(shown=shown, connections=live)))
    one = row(seen, "a.test")
    assert (one.backend, one.is_down) == (f"{ONE},{TWO}", True)
    assert one.note == f"from caddy localhost:2019; not answering: {TWO}"
    tls, http = (x.row for x in nodes(seen.tree) if x.row.name == "b.test")
    assert (tls.backend, tls.is_down, http.backend, http.is_down) == (ONE, False, TWO, True)


def test_connections_without_a_route_yet_and_those_of_a_route_that_is_gone_are_there() -> None:
    live = [connection(1, route=None, backend=None, name=None), connection(2, route="gone.test")]
    seen = overview(state(pages(connections=live)))
    (listener,) = seen.tree
    below = {x.row.name: [y.row.name for y in x.below] for x in listener.below}
    assert below == {"a.test": [], "gone.test": ["a.test"], "(no route yet)": ["(no name)"]}


def test_the_last_refused_is_first_with_the_reason() -> None:
    rows = [refusal(1), refusal(2, reason="backend-down", detail="refused", time=998.0)]
    seen = overview(state(pages(refused=rows)))
    *_, refused = seen.tree
    assert [(x.row.note, x.row.age) for x in refused.below] == [
        ("backend-down: refused", 2.0),
        ("no-route", 100.0),
    ]


def test_lines_are_of_what_is_open() -> None:
    seen = overview(state(pages(connections=[connection(1)])))
    opened = [(x.row.kind, x.depth, x.is_open) for x in lines(seen.tree, lambda row: True)]
    assert opened == [("listener", 0, True), ("route", 1, True), ("connection", 2, None)]
    closed = [(x.row.kind, x.is_open) for x in lines(seen.tree, lambda row: False)]
    assert closed == [("listener", False)]


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=9), x, max_size=3),
    max_leaves=8,
)


@given(JSON, st.sampled_from(["figures", "connections", "refused", "routes"]), st.data())
def test_what_no_snimux_says_is_said_to_be_strange(
    value: Any, page: str, data: st.DataObject
) -> None:
    good = pages(shares=[share("a.test", ONE, 1, 1, 1, 1)], connections=[connection(1)],
                 refused=[refusal(1)])  # fmt: skip
    known = data.draw(st.sampled_from(sorted(good)))
    with contextlib.suppress(ApiError):  # and nothing else
        state({**good, known: value})
    raw = json.dumps({page: value}).encode()
    with pytest.raises(ApiError):
        read(raw, raw, raw, read_route_rows(b'{"total": 0, "routes": []}'), at=0, time=0)


@pytest.mark.parametrize(
    "page", [b"", b"<html>", b"[]", b"{}", b"null", b"\xff", b"[" * 100_000, b'{"routes": [{}]}']
)
def test_a_page_that_is_none(page: bytes) -> None:
    with pytest.raises(ApiError, match="no snimux"):
        read_route_rows(page)
