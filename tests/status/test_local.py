"""``status.local``: what a process tells of itself."""

import base64
import json
import socket
from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from snimux import __version__
from snimux.backend.pool import Backends
from snimux.backend.state import State
from snimux.frontend.outcome import Outcome
from snimux.net.listeners import Listener
from snimux.proto.reason import Reason
from snimux.providers.base import Fault
from snimux.providers.merge import Plan
from snimux.routing.access import Access
from snimux.routing.address import TcpAddress, UnixAddress
from snimux.routing.networks import parse_networks
from snimux.routing.routes import Backend, Route, parse_pattern, targets
from snimux.service.generation import Current
from snimux.status import local as module
from snimux.status.local import Local
from snimux.status.metrics import snapshot
from snimux.status.refused import Refusals
from tests.support.generations import Process, configured, in_effect

ONE, TWO, ADMIN = (TcpAddress("127.0.0.1", port) for port in (1, 2, 2019))


def route(pattern: str, http: Backend | None = None) -> Route:
    return Route(parse_pattern(pattern), targets(tls=Backend((ONE, TWO), "v2"), http=http))


def viewing(*routes: Route, **process: Any) -> Local:
    plan = Plan(routes, (), (), has={"found.example": ADMIN})
    return Local(serving(plan, **process))


def serving(plan: Plan, **process: Any) -> Process:
    current = Current(in_effect(configured(), plan=plan))
    current.since = 0
    return Process(current, **process)


def test_routes_say_where_they_lead_and_where_they_are_from() -> None:
    plain = Route(parse_pattern("plain.example"), targets(http=Backend((ONE,))))
    view = viewing(route("a.example", Backend((TWO,), "auto")), route("found.example/h2"), plain)
    total, pieces = json.loads(json.dumps(list(view.tell("routes"))))
    assert total == {"generation": [0, 0, 0], "total": 3}
    addresses = [str(ONE), str(TWO)]
    assert pieces["routes"] == [
        {"pattern": "a.example", "listen": None, "refuses": False,
         "backend": addresses, "proxy": "v2",
         "http": [str(TWO)], "http_proxy": "auto", "source": "configuration", "access_of": None,
         "not_answering": [], "list": None},
        # that with a protocol cannot be from a Caddy
        {"pattern": "found.example/h2", "listen": None, "refuses": False,
         "backend": addresses, "proxy": "v2",
         "http": None, "http_proxy": None, "source": "configuration", "access_of": None,
         "not_answering": [], "list": None},
        {"pattern": "plain.example", "listen": None, "refuses": False,
         "backend": None, "proxy": None,
         "http": [str(ONE)], "http_proxy": None, "source": "configuration", "access_of": None,
         "not_answering": [], "list": None},
    ]  # fmt: skip
    _, pieces = viewing(route("found.example")).tell("routes")
    assert pieces["routes"][0]["source"] == "127.0.0.1:2019"


def test_routes_say_whose_lists_they_have() -> None:
    own = replace(route("*.example"), access=Access())
    inherited = replace(own, pattern=parse_pattern("a.example"), access_from=own.pattern)
    _, pieces = viewing(own, inherited).tell("routes")
    assert [x["access_of"] for x in pieces["routes"]] == ["*.example", "*.example"]


def test_lists_are_told_once_and_as_far_as_there_is_room() -> None:
    office = Access(allow=parse_networks(["192.0.2.0/24", "unix"]), acme_exempt=True)
    one, two = (replace(route(x), access=office) for x in ("one.example", "two.example"))
    others = parse_networks([f"10.0.{x // 256}.{x % 256}" for x in range(999)])
    fits = replace(route("fits.example"), access=Access(deny=others))
    full = replace(route("full.example"), access=Access(deny=parse_networks(["::1"])))
    none = (route(f"n{x}.example") for x in range(100))
    _, some, rest = viewing(one, route("no.example"), two, *none, fits, full).tell("routes")
    allow = ["192.0.2.0/24", "unix"]
    assert some["lists"] == [{"allow": allow, "deny": None, "acme_exempt": True}]
    assert [x["list"] for x in some["routes"][:4]] == [0, None, 0, None]
    assert [len(x["deny"]) for x in rest["lists"]] == [999]
    assert [x["list"] for x in rest["routes"]] == [*[None] * 3, 1, None]
    assert rest["routes"][-1]["access_of"] == "full.example"


def test_of_very_many_routes_some_are_told_and_the_rest_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MOST_ROUTES", 250)
    total, *pieces = viewing(*(route(f"n{x}.example") for x in range(300))).tell("routes")
    assert total == {"generation": [0, 0, 0], "total": 300}
    assert [len(piece["routes"]) for piece in pieces] == [100, 100, 50]


def test_figures_have_what_is_no_count_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as open_one, socket.socket() as closed:
        closed.close()
        both = [Listener(closed), Listener(open_one, protocol="http")]
        first, *rest = viewing(route("a.example"), draining=True, listeners=both).tell("figures")
        address = f"127.0.0.1:{open_one.getsockname()[1]}"
    assert first == {
        "generation": [0, 0, 0], "version": __version__, "routes": 1, "limit": 77, "draining": True,
        "listeners": [{"protocol": "http", "address": address}],
    }  # fmt: skip
    assert snapshot(rest).active == 0


async def test_connections_and_who_was_refused(mock_clock: MockClock) -> None:
    process = serving(Plan((route("a.example"),), (), ()))
    view = Local(process)
    process.metrics.accepted(Outcome(("192.0.2.1", 5), started=trio.current_time()))
    mock_clock.jump(3)
    total, piece = view.tell("connections")
    assert total == {"total": 1}
    assert [(x["client"], x["age"]) for x in piece["connections"]] == [("192.0.2.1:5", 3)]
    _, again = view.tell("connections")
    assert piece["connections"][0]["id"] == again["connections"][0]["id"]
    process.refusals.ended(Outcome(None, reason=Reason.NO_ROUTE))
    (refused,) = view.tell("refused")
    assert [each["reason"] for each in refused["refused"]] == ["no-route"]


def test_nothing_is_told_to_who_asks_for_what_there_is_not() -> None:
    assert list(viewing().tell("secrets")) == []


def test_what_refused_clients_sent_is_told_where_it_is_kept() -> None:
    refusals = Refusals(2)
    view = viewing(refusals=refusals)
    for sent in (b"first", b"second", b"", b"fourth"):
        outcome = Outcome(None, reason=Reason.NO_ROUTE, ended="refused", received=sent)
        refusals.ended(outcome)
    pieces = json.loads(json.dumps(list(view.tell("hellos"))))
    rows = [row for piece in pieces for row in piece["refused"]]
    told = [row["hello"] and base64.b64decode(row["hello"]) for row in rows]
    assert told == [None, b"second", None, b"fourth"]
    (plain,) = view.tell("refused")
    assert [{k: v for k, v in row.items() if k != "hello"} for row in rows] == plain["refused"]


def test_routes_say_which_of_their_addresses_do_not_answer() -> None:
    pool = Backends()
    view = viewing(route("a.example", Backend((TWO,))), pool=pool)
    pool.down |= {TWO, TcpAddress("10.0.0.1", 1)}
    _, piece = view.tell("routes")
    assert piece["routes"][0]["not_answering"] == [str(TWO)]


async def test_what_is_told_every_second_is_of_each_a_little(mock_clock: MockClock) -> None:
    refusals, pool = Refusals(), Backends()
    faults = [Fault(f"/routes: {x}.toml", "?" * 999) for x in range(99)]
    parts = {"refusals": refusals, "pool": pool, "faults": faults}
    view = viewing(*(route(f"n{x}.example") for x in range(300)), **parts)
    addresses = [TcpAddress("10.0.0.1", port) for port in range(1, 301)]
    pool.states.update({address: State() for address in addresses})
    pool.down.add(addresses[299])
    pool.states[addresses[299]].silent_since = trio.current_time()
    mock_clock.jump(3)
    for _ in range(20):
        refusals.ended(Outcome(None, reason=Reason.NO_ROUTE))
    routes, backends, last = json.loads(json.dumps(list(view.tell("live"))))
    assert [x.partition("?")[0] for x in last["faults"]] == [
        f"/routes: {x}.toml: " for x in range(10)
    ]
    assert {len(x) for x in last["faults"]} == {300}
    assert (routes["total"], len(routes["routes"]), len(routes["refused"])) == (300, 100, 10)
    assert routes["refused"][-1]["number"] == 20
    assert (backends["down"], len(backends["backends"])) == (1, 100)
    first, second, *_ = backends["backends"]
    assert first == {"backend": "10.0.0.1:300", "is_up": False, "silent_for": 3}
    assert second == {"backend": "10.0.0.1:1", "is_up": True, "silent_for": None}


def test_capitals_do_not_matter_where_routes_are_looked_for() -> None:
    to = Backend((UnixAddress("/run/Caddy.sock"),))
    view = viewing(
        Route(parse_pattern("a.example"), targets(tls=to)),
        Route(parse_pattern("b.example/Foo"), targets(tls=to)),
    )
    for wanted, total in (("caddy.sock", 2), ("/foo", 1)):
        *_, piece = view.tell(f"find {wanted}")
        assert piece["total"] == total


@pytest.mark.parametrize(
    ("wanted", "total"), [("n29", 11), ("127.0.0.1:2", 300), ("nothing", 0), ("a b", 0), ("", 300)]
)
def test_routes_are_found_by_what_is_in_them(wanted: str, total: int) -> None:
    *turns, piece = viewing(*(route(f"n{x}.example") for x in range(300))).tell(f"find {wanted}")
    assert turns == [{"generation": [0, 0, 0]}, *[{}] * 3]
    assert (piece["total"], len(piece["routes"])) == (total, min(total, 100))
    assert not total or piece["routes"][0]["pattern"] == {"n29": "n29.example"}.get(
        wanted, "n0.example"
    )
