"""``explain.compare``: what a running snimux does with the same, and what was sent to it."""

import base64
import json
from dataclasses import replace

import pytest

from snimux.config.load import load
from snimux.config.model import Config
from snimux.explain.compare import as_config, beside, of_refused
from snimux.explain.explain import Explanation, explain
from snimux.explain.input import of_name
from snimux.proto.client_hello import DEFAULT_MAX_HELLO, TLS
from snimux.proto.http_head import HTTP
from snimux.proto.verdict import Hello
from snimux.providers.merge import Plan, planned
from snimux.routing.address import TcpAddress
from snimux.routing.routes import parse_pattern
from snimux.service.generation import Current
from snimux.status.api import gathered
from snimux.status.client import ApiError, ServedRoutes, find_refused, read_routes
from snimux.status.local import Local
from snimux.status.refused import LONGEST
from tests.status.test_client import page, row
from tests.support.generations import Process, in_effect

WHERE = "127.0.0.1:9443"
FILE = """
    listen = ":8443"
    http = ":8080"
    [[route]]
    hosts = "a.example"
    to = ["127.0.0.1:1", "unix//run/a"]
    proxy = "v2"
    http = "127.0.0.1:2"
    """


def running(config: Config, **rest: object) -> ServedRoutes:
    """What is read of what a real one would show."""
    has = {"c.example": TcpAddress("localhost", 2019)}
    plan = Plan(config.routes, (), (), has=has)
    view = Local(Process(Current(in_effect(config, plan=plan))))
    answers = [list(view.tell("routes"))]
    rows, lists = gathered(answers, "routes"), gathered(answers, "lists")
    rows = [{**row, "active": 3} for row in rows]
    shown = {"total": len(rows), "routes": rows, "lists": lists, **rest}
    return read_routes(WHERE, json.dumps(shown).encode())


def explained(name: str, config: Config, source: str | None = None) -> Explanation:
    return explain(of_name(name), config, planned(config, {}), {}, source=source)


def test_the_routes_are_those_that_are_shown() -> None:
    config = load({"route": ("*.x/h2=127.0.0.1:4",), "proxy_protocol": "v1"}, "snimux.toml", FILE)
    found = running(config)
    assert sorted(found.routes, key=str) == sorted(config.routes, key=str)
    facts: dict[str, object] = {
        "source": "configuration", "access_of": None, "not_answering": [], "active": 3,
    }  # fmt: skip
    assert found.facts["a.example"] == facts


def test_what_a_running_one_does_is_the_same_or_told() -> None:
    config = load({}, "snimux.toml", FILE)
    here = explained("a.example", config)
    same = beside(here, config, running(config))
    assert (same.difference, same.facts["active"]) == ("", 3)
    elsewhere = load({"route": ("a.example=127.0.0.1:9",)})
    assert beside(here, config, running(elsewhere)).difference == (
        "relayed by a.example to 127.0.0.1:9"
    )
    nowhere = beside(here, config, running(load({"route": ("z=127.0.0.1:9",)})))
    assert (nowhere.difference, nowhere.facts) == ("refused, no-route", {})
    plain = explained("http://a.example/x", config)
    assert beside(plain, config, running(elsewhere)).difference == (
        "redirected by a.example to https://a.example:8443/x"
    )


def test_routes_for_one_listener_and_those_that_refuse_are_compared() -> None:
    toml = """
        listen = [{ address = ":443", name = "public" }, { address = ":8443", name = "internal" }]
        [[route]]
        hosts = "a.example"
        listen = "internal"
        to = "127.0.0.1:1"
        [[route]]
        hosts = "a.example"
        to = "refuse"
        """
    config = load({}, "snimux.toml", toml)
    opened = load({}, "snimux.toml", toml.replace("refuse", "127.0.0.1:2"))
    for name, there in (
        ("a.example", "relayed by a.example to 127.0.0.1:2"),
        ("a.example:8443", ""),
    ):
        here = explained(name, config)
        assert beside(here, config, running(config)).difference == ""
        assert beside(here, config, running(opened)).difference == there
    alone, plan = as_config(running(config), load({}, needs_routes=False))
    at = replace(of_name("a.example"), listener="internal")
    assert str(explain(at, alone, plan, {}).ending.to) == "127.0.0.1:1"


def test_another_header_is_a_difference() -> None:
    config = load({"route": ("a.example=127.0.0.1:1",)})
    with_header = load({"route": ("a.example=127.0.0.1:1",), "proxy_protocol": "v2"})
    assert beside(explained("a.example", config), config, running(with_header)).difference == (
        "relayed by a.example to 127.0.0.1:1, PROXY protocol v2"
    )


LISTED = """
    [[route]]
    hosts = ["*.example"]
    to = "127.0.0.1:1"
    allow = ["192.0.2.0/24", "unix"]
    acme_exempt = true
    [[route]]
    hosts = ["other.example"]
    to = "127.0.0.1:1"
    deny = ["2001:db8::/32"]
    """


def with_inherited(config: Config) -> Config:
    """With a route that has the lists of the one above it, as those of Caddys' sites have."""
    above = next(x for x in config.routes if str(x.pattern) == "*.example")
    below = replace(above, pattern=parse_pattern("below.example"), access_from=above.pattern)
    written = {**config.written, below.pattern: "found"}
    return replace(config, routes=(*config.routes, below), written=written)


@pytest.mark.parametrize("source", ["192.0.2.7", "198.51.100.1", "2001:db8::1", "unix"])
@pytest.mark.parametrize("name", ["a.example", "below.example", "other.example"])
def test_lists_decide_there_as_here(name: str, source: str) -> None:
    config = with_inherited(load({}, "snimux.toml", LISTED))
    found = running(config)
    assert sorted(found.routes, key=str) == sorted(config.routes, key=str)
    assert not found.unlisted
    here = explained(name, config, source)
    assert beside(here, config, found).difference == ""
    alone, plan = as_config(found, load({}, needs_routes=False))
    there = explain(of_name(name), alone, plan, {}, source=source)
    assert there.ending == here.ending
    is_in = source in ("192.0.2.7", "unix") if name != "other.example" else ":" not in source
    assert there.is_served == is_in


@pytest.mark.parametrize(("source", "is_told"), [("192.0.2.7", True), (None, False)])
def test_that_a_list_is_not_known_is_told(source: str | None, is_told: bool) -> None:
    config = load({}, "snimux.toml", LISTED)
    row = {
        "pattern": "*.example", "backend": ["127.0.0.1:1"], "proxy": None, "http": None,
        "http_proxy": None, "access_of": "*.example", "list": None,
    }  # fmt: skip
    found = running(config, routes=[row], total=1)
    difference = beside(explained("a.example", config, source), config, found).difference
    assert difference == (
        "perhaps (as far as is known: its lists are longer than it shows)" if is_told else ""
    )


def test_where_not_all_is_shown_that_is_told() -> None:
    config = load({}, "snimux.toml", FILE)
    found = running(load({"route": ("z=127.0.0.1:9",)}), total=7)
    difference = beside(explained("a.example", config), config, found).difference
    assert difference.endswith("(as far as is known: it shows 1 of 7)")


def test_a_running_one_can_stand_for_a_configuration() -> None:
    told = load({"route": ("a.example=127.0.0.1:9", "c.example=127.0.0.1:8")})
    config, plan = as_config(running(told), load({}, needs_routes=False))
    found = explain(of_name("a.example"), config, plan, {})
    assert found.origin == f"the snimux at {WHERE}, its configuration"
    assert str(found.ending.to) == "127.0.0.1:9"
    of_caddy = explain(of_name("c.example"), config, plan, {})
    assert of_caddy.origin == f"the snimux at {WHERE}, its localhost:2019"
    assert explain(of_name("http://a.example"), config, plan, {}).is_served


def test_one_that_was_refused_is_read_as_a_hello() -> None:
    hello = find_refused(page(row(16), row(17), row(18)), "17")
    case, source = of_refused(WHERE, hello, DEFAULT_MAX_HELLO)
    assert source == "192.0.2.7"
    assert case.protocol is TLS
    assert isinstance(case.verdict, Hello)
    assert case.verdict.name == "secure.ciso.com"
    assert case.title == f"--refused 1.17 of the snimux at {WHERE}"
    assert case.notes[0] == "refused 2025-11-24T16:00:00Z from 192.0.2.7:1: no-route"


def test_of_several_workers_the_number_is_behind_the_workers() -> None:
    both = page(row(17), row(17, worker=2, client="[2001:db8::1]:2"))
    assert of_refused(WHERE, find_refused(both, "2.17"), DEFAULT_MAX_HELLO)[1] == "2001:db8::1"
    with pytest.raises(ApiError, match=r"several workers have a number 17: 1\.17, 2\.17"):
        find_refused(both, "17")


def test_plain_http_is_read_as_that_and_what_was_cut_is_told() -> None:
    hello = base64.b64encode(b"GET / HTTP/1.1\r\n" + b"a" * (LONGEST - 16)).decode()
    long = row(1, protocol="http", hello=hello, client="unix", detail="why")
    case, source = of_refused(WHERE, find_refused(page(long), "1"), LONGEST * 2)
    assert case.protocol is HTTP
    assert source is None
    assert case.notes[0].endswith("from unix: no-route, why")
    assert case.notes[1] == f"only the first {LONGEST} bytes of it are kept"
