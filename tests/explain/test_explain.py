"""``explain.explain``: each step is told, and what it says is what ``connection`` does."""

import socket
from dataclasses import replace

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from snimux.backend.pool import Backends
from snimux.config.load import load
from snimux.config.model import Config, Limits, https_port
from snimux.explain.explain import Explanation, Result, explain
from snimux.explain.foresee import End
from snimux.explain.input import Case, of_bytes, of_name
from snimux.frontend.connection import Service, serve
from snimux.frontend.limits import LocalLimits
from snimux.frontend.outcome import Outcome
from snimux.frontend.source_limits import SourceLimits
from snimux.proto.client_hello import DEFAULT_MAX_HELLO, TLS
from snimux.proto.http_head import HTTP
from snimux.proto.reason import Reason
from snimux.providers.base import Site, Unrouted
from snimux.providers.caddy.sites import Sites
from snimux.providers.merge import Plan, planned
from snimux.relay import portable
from snimux.routing.access import Access, Admission
from snimux.routing.address import ProviderAddress, TcpAddress
from snimux.routing.decide import EntryPoint
from snimux.routing.routes import Route
from snimux.routing.served import Served
from snimux.service.generation import Current
from tests.hellos import load as load_hellos
from tests.support.drawn import ACCESS, DATA, SOURCES, routes
from tests.support.generations import in_effect
from tests.support.observers import keeping

FIRST, SECOND = TcpAddress("localhost", 2019), TcpAddress("localhost", 2020)


def explained(
    case: str | Case,
    *routes: str,
    alpn: tuple[bytes, ...] = (),
    sites: dict[ProviderAddress, Sites] | None = None,
    toml: str | None = None,
    **flags: object,
) -> Explanation:
    """What is said of a case, with some routes by flag."""
    sites = sites or {}
    told = {"route": routes, "caddy": tuple(map(str, sites)), **flags}
    config = load(told, "snimux.toml", toml, needs_routes=False)
    case = of_name(case, alpn) if isinstance(case, str) else case
    return explain(case, config, planned(config, sites), sites)


def results(found: Explanation) -> dict[str, Result]:
    return {str(step.pattern): step.result for step in found.steps}


def why(found: Explanation, pattern: str) -> str:
    return next(step.why for step in found.steps if str(step.pattern) == pattern)


def test_the_patterns_are_told_in_their_order_and_which_won() -> None:
    found = explained("a.b.example", "**.example=127.0.0.1:1", "*=127.0.0.1:2", "x.y=127.0.0.1:3")
    assert list(results(found).items()) == [
        ("a.b.example", Result.NO_ROUTE),
        ("*.b.example", Result.NO_ROUTE),
        ("**.b.example", Result.NO_ROUTE),
        ("**.example", Result.TAKEN),
        ("*", Result.BEATEN),
    ]
    assert why(found, "*") == "**.example is more specific"
    assert found.is_served
    assert found.ending.end is End.RELAYED
    assert str(found.ending.to) == "127.0.0.1:1"
    assert found.origin == "--route"
    assert found.hints == ()


def test_alpn_is_tried_in_the_clients_order() -> None:
    routes = ("a.example/h2=127.0.0.1:1", "a.example/h3=127.0.0.1:2", "a.example=127.0.0.1:3")
    found = explained("a.example", *routes, alpn=(b"x", b"h3", b"h2"))
    assert list(results(found).items())[:4] == [
        ("a.example/x", Result.NO_ROUTE),
        ("a.example/h3", Result.TAKEN),
        ("a.example/h2", Result.BEATEN),
        ("a.example", Result.BEATEN),
    ]
    assert why(found, "a.example/h2") == "the client prefers h3"
    assert why(found, "a.example") == "a.example/h3 has a protocol that the client offers"
    none = explained("a.example", *routes)
    assert str(none.ending.to) == "127.0.0.1:3"
    assert results(none)["a.example/h2"] is Result.NOT_OFFERED
    assert why(none, "a.example/h2") == "the client does not offer h2"


HTTP_TOML = """
    [[route]]
    hosts = ["a.example", "a.example/h2"]
    to = "127.0.0.1:1"
    [[route]]
    hosts = "*.example"
    http = "127.0.0.1:2"
    """


def test_what_is_for_the_other_protocol_is_told() -> None:
    by_tls = explained("b.example", toml=HTTP_TOML)
    assert results(by_tls)["*.example"] is Result.OTHER_PROTOCOL
    assert why(by_tls, "*.example") == "for plain HTTP alone"
    assert by_tls.ending.reason is Reason.NO_ROUTE
    plain = explained("http://b.example/", toml=HTTP_TOML)
    assert str(plain.ending.to) == "127.0.0.1:2"
    redirected = explained("http://a.example/x?y", toml=HTTP_TOML)
    assert results(redirected)["a.example/h2"] is Result.OTHER_PROTOCOL
    assert redirected.ending.end is End.REDIRECTED
    assert redirected.ending.location == "https://a.example/x?y"
    assert redirected.is_served
    assert redirected.ending.farewell is not None
    assert redirected.ending.farewell.number == 308


def test_what_is_no_browsers_is_not_redirected() -> None:
    found = explained("http://a.example/.well-known/acme-challenge/x", toml=HTTP_TOML)
    assert found.ending.reason is Reason.NO_HTTP
    assert found.ending.route is not None
    assert str(found.ending.farewell) == "the response 404 Not Found"
    assert not found.is_served


def test_a_redirect_has_the_port_at_which_snimux_listens() -> None:
    url = "http://a.example:8080/"
    found = explained(url, toml=HTTP_TOML, listen=(":8443",), http=(":8080",))
    assert found.ending.location == "https://a.example:8443/"


def test_plain_http_that_nobody_listens_for() -> None:
    found = explained("http://a.example/", "a.example=127.0.0.1:1")
    assert found.ending.end is End.NOT_LISTENED
    assert not found.is_served
    assert found.steps == ()
    assert "--http" in found.ending.detail


def test_where_a_route_is_from() -> None:
    file = '[[route]]\nhosts = ["a.example", "b.example"]\nto = "127.0.0.1:1"\n'
    assert explained("b.example", toml=file).origin == "route 1 of snimux.toml"
    by_flag = explained("b.example", "b.example=127.0.0.1:2", toml=file)
    assert by_flag.origin == "--route, which wins over route 1 of snimux.toml"
    assert explained("x.example", default="127.0.0.1:3").origin == "--default"


def site(host: str, port: int) -> Site:
    return Site(host, (Served(TcpAddress("127.0.0.1", port)),), ())


def test_which_caddy_has_a_name_and_which_serves_it_too() -> None:
    sites: dict[ProviderAddress, Sites] = {
        FIRST: Sites((site("a.example", 1), site("b.example", 1))),
        SECOND: Sites((site("a.example", 2),)),
    }
    found = explained("a.example", sites=sites)
    assert (found.origin, found.also) == ("the Caddy at localhost:2019", (SECOND,))
    assert str(found.ending.to) == "127.0.0.1:1"
    assert explained("b.example", sites=sites).also == ()
    written = explained("a.example", "a.example=127.0.0.1:3", sites=sites)
    assert (written.origin, written.also) == ("--route", (FIRST, SECOND))


def test_what_a_caddy_serves_below_a_route_is_closed_to_whom_that_is_closed() -> None:
    sites: dict[ProviderAddress, Sites] = {FIRST: Sites((site("a.corp.example", 8443),))}
    toml = '[[route]]\nhosts = "*.corp.example"\nto = "127.0.0.1:1"\nallow = "10.0.0.0/8"'
    case, config = of_name("a.corp.example"), load({"caddy": (str(FIRST),)}, "snimux.toml", toml)
    found = planned(config, sites)
    denied = explain(case, config, found, sites, source="192.0.2.7")
    assert denied.ending.reason is Reason.ACCESS_DENIED
    assert str(denied.ending.route and denied.ending.route.pattern) == "a.corp.example"
    assert denied.hints == (
        "allow and deny, those of the route *.corp.example above a.corp.example, "
        "do not let 192.0.2.7 in",
    )
    assert str(explain(case, config, found, sites, source="10.1.1.1").ending.to) == (
        "127.0.0.1:8443"
    )


def test_what_looks_as_if_it_should_have_matched() -> None:
    routes = ("*.ciso.com=127.0.0.1:1", "dao.example=127.0.0.1:2")
    assert explained("a.b.ciso.com", *routes).hints == (
        "*.ciso.com is for one more label; **.ciso.com would take a.b.ciso.com",
    )
    assert explained("ciso.com", *routes).hints == (
        "*.ciso.com is for names below ciso.com, not for ciso.com itself",
    )
    assert explained("doa.example", *routes).hints == ("there is a route for dao.example",)
    assert explained("127.0.0.1", *routes).hints == (
        "without a name only * matches: --default ADDR",
    )
    assert explained("a.example").hints[0].startswith("there are no routes at all")


def test_what_a_caddy_serves_without_a_route_is_a_hint() -> None:
    own = Sites((site("a.example", 443),), (Unrouted("b.example (fd/3)", "why", "b.example"),))
    a = explained("a.example", "x.y=127.0.0.1:1", sites={FIRST: own})
    assert a.hints == ("a.example is left out: 127.0.0.1:443 is where snimux itself listens",)
    b = explained("b.example", "x.y=127.0.0.1:1", sites={FIRST: own})
    assert b.hints == ("the Caddy at localhost:2019 serves b.example (fd/3), left out: why",)


def test_a_port_at_which_snimux_does_not_listen_is_a_hint() -> None:
    route = "a.example=127.0.0.1:1"
    assert explained("a.example:8443", route).hints == (
        "port 8443 is none at which snimux listens for that (:443)",
    )
    assert explained("https://a.example:443/", route).hints == ()
    for listen in ((":0",), ("unix//run/snimux",), (":443", "unix//run/snimux")):
        assert explained("a.example:8443", route, listen=listen).hints == ()


@pytest.mark.parametrize("reason", ["no bytes", "malformed", "foreign", "cut"])
def test_bytes_that_are_refused(reason: str) -> None:
    data, expected = {
        "no bytes": (b"", Reason.NO_BYTES),
        "malformed": (b"\x16\3\1\0\0", Reason.MALFORMED_HELLO),
        "foreign": (b"SSH-2.0-x\r\n", Reason.SSH),
        "cut": (load_hellos()[0].data[:-1], Reason.HELLO_CUT_SHORT),
    }[reason]
    found = explained(of_bytes(data, DEFAULT_MAX_HELLO, "it"), "*=127.0.0.1:1")
    assert found.ending.reason is expected
    assert found.steps == ()
    assert not found.is_served


ACCESS_TOML = """
    listen = [{ address = ":443", allow = "10.0.0.0/8" }, { address = ":8443" }]
    [[route]]
    hosts = "a.example"
    to = ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]
    deny = "192.0.2.0/24"
    balance = "ip_hash"
    [[route]]
    hosts = "b.example"
    to = ["127.0.0.1:1", "127.0.0.1:2"]
    transparent = true
    """


LISTEN_TOML = """
    listen = [{ address = ":443", name = "public" }, { address = ":8443", name = "internal" }]
    [[route]]
    hosts = ["a.example", "a.example/h2"]
    to = "127.0.0.1:1"
    [[route]]
    hosts = "a.example"
    listen = "internal"
    to = "127.0.0.1:2"
    """


def test_the_listener_is_said_or_that_of_the_port_or_the_first() -> None:
    first = explained("a.example", toml=LISTEN_TOML)
    assert str(first.ending.to) == "127.0.0.1:1"
    assert results(first)["a.example@internal"] is Result.OTHER_LISTENER
    assert why(first, "a.example@internal") == "for clients that come to internal"
    assert first.hints == (
        "at another listener it is 127.0.0.1:2, by a.example@internal "
        "(internal: --listener internal)",
    )
    said = explained(replace(of_name("a.example"), listener="internal"), toml=LISTEN_TOML)
    for found in (said, explained("a.example:8443", toml=LISTEN_TOML)):
        assert str(found.ending.to) == "127.0.0.1:2"
        assert results(found)["a.example@internal"] is Result.TAKEN
        assert why(found, "a.example") == "a.example@internal is for this listener"
        assert found.hints == ()
    by_alpn = explained("a.example:8443", alpn=(b"h2",), toml=LISTEN_TOML)
    assert [x for x, result in results(by_alpn).items() if result is not Result.NO_ROUTE] == [
        "a.example/h2", "a.example@internal", "a.example"
    ]  # fmt: skip


def test_a_route_that_refuses_is_told_from_none() -> None:
    found = explained("a.example", "a.example=refuse", "*.example=127.0.0.1:1", http=(":80",))
    assert (found.ending.end, found.ending.reason) == (End.REFUSED, Reason.ROUTE_REFUSES)
    assert results(found) == {"a.example": Result.TAKEN, "*.example": Result.BEATEN}
    assert str(found.ending.farewell) == "the TLS alert unrecognized_name (112)"
    by_alpn = explained("a.example", "a.example/h2=refuse", "a.example=127.0.0.1:1")
    assert why(by_alpn, "a.example/h2") == "the client does not offer h2"
    plain = explained("http://a.example/", "a.example=refuse", http=(":80",))
    assert str(plain.ending.farewell) == "the response 403 Forbidden"


def from_source(name: str, source: str | None) -> Explanation:
    config = load({}, "snimux.toml", ACCESS_TOML)
    return explain(of_name(name), config, planned(config, {}), {}, source=source)


def test_who_is_let_in_depends_on_the_listener_and_the_route() -> None:
    at_door = from_source("https://b.example:443", "192.0.2.7")
    assert at_door.ending.reason is Reason.ACCESS_DENIED
    assert at_door.steps == ()  # nothing is looked up for it
    assert at_door.hints == ("allow and deny, those of :443, do not let 192.0.2.7 in",)
    assert from_source("https://b.example:8443", "192.0.2.7").is_served
    assert from_source("https://b.example:443", "10.1.2.3").is_served
    # one of both lets it in
    assert from_source("b.example", "192.0.2.7").is_served
    denied = from_source("https://a.example:8443", "192.0.2.7")
    assert denied.ending.reason is Reason.ACCESS_DENIED
    assert denied.ending.route is not None
    assert denied.hints == (
        "allow and deny, those of the route a.example, do not let 192.0.2.7 in",
    )
    assert str(denied.ending.farewell) == "the TLS alert access_denied (49)"


def test_without_a_source_what_depends_on_it_is_a_hint() -> None:
    found = from_source("a.example", None)
    assert found.is_served
    assert found.hints == (
        "allow and deny, those of :443, look at the client's address: give --from IP",
        "allow and deny, those of the route a.example, look at the client's address: "
        "give --from IP",
    )


def test_the_order_is_that_of_the_source() -> None:
    config = load({}, "snimux.toml", ACCESS_TOML)
    backends = Backends(defaults=config.backends)
    for number in range(1, 9):
        found = from_source("https://a.example:8443", f"10.0.0.{number}")
        assert found.ending.to is not None
        assert found.balance == "ip_hash"
        in_order = backends._in_order(found.ending.to, (f"10.0.0.{number}", 1))
        assert found.addresses == tuple(in_order)
    assert from_source("a.example", "unix").addresses == from_source("a.example", None).addresses


def test_a_transparent_backend_needs_an_address_of_the_clients_family() -> None:
    for source in ("2001:db8::7", "unix"):
        found = from_source("https://b.example:8443", source)
        assert found.ending.reason is Reason.NO_SOURCE
    assert from_source("https://b.example:8443", "198.51.100.1").is_served


def test_a_balancer_that_is_believed_is_a_hint() -> None:
    toml = 'default = "127.0.0.1:1"\nproxy_from = "10.0.0.0/8"\n'
    config = load({}, "snimux.toml", toml)
    found = explain(of_name("a"), config, planned(config, {}), {}, source="10.1.2.3")
    assert "begin with a PROXY protocol header" in found.hints[0]


# --- it is so


def config_of(written: list[Route], access: Access) -> Config:
    admission = Admission(access)
    entries = tuple(
        EntryPoint(protocol, TcpAddress("", port), admission)
        for protocol, port in ((TLS, 8443), (HTTP, 8080))
    )
    where = {route.pattern: "--route" for route in written}
    return Config(
        entries, tuple(written), Limits(), "portable", "json", "info",
        admission=admission, written=where,
    )  # fmt: skip


async def served(data: bytes, case: Case, config: Config, source: str) -> tuple[Outcome, bytes]:
    """What becomes of a client that sends some bytes and says no more; and what it is sent."""
    outcomes: list[Outcome] = []
    current = Current(in_effect(config, https_port=https_port(config, [8443])))
    service = Service(
        EntryPoint(case.protocol, None, config.admission),
        current,
        portable.relay,
        Backends(),
        SourceLimits(LocalLimits(9), current),
        keeping(outcomes),
    )
    near, client = socket.socketpair()
    near.setblocking(False)
    with client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        await serve(near, None if source == "unix" else (source, 1), service)
        client.settimeout(5)
        return outcomes[0], client.recv(65536)


@given(routes(), ACCESS | st.just(Access()), SOURCES, DATA, st.sampled_from([None, TLS, HTTP]))
def test_what_is_explained_is_what_happens(
    written: list[Route], access: Access, source: str, data: bytes, protocol: object
) -> None:
    config = config_of(written, access)
    case = of_bytes(data, config.limits.max_hello, "it", protocol=protocol)  # type: ignore[arg-type]
    found = explain(case, config, Plan(config.routes, (), ()), {}, source=source)
    outcome, told = trio.run(served, data, case, config, source)
    decision = found.ending
    is_denied = decision.reason is Reason.ACCESS_DENIED  # perhaps before anything is read
    assert is_denied or outcome.hello == found.hello
    assert outcome.route == decision.route
    assert outcome.to == decision.to or decision.reason is Reason.NO_SOURCE
    if decision.end is End.RELAYED:
        assert outcome.reason is Reason.BACKEND_DOWN  # nobody listens there
        return
    assert decision.farewell is not None
    assert decision.farewell.content == told
    assert (outcome.reason, outcome.ended) == (decision.reason, decision.end)
    if decision.end is End.REDIRECTED:
        assert outcome.detail == decision.location.partition("?")[0]
    else:
        assert outcome.detail == decision.detail
    if is_denied and decision.route is None:
        return
    taken = [step.pattern for step in found.steps if step.result is Result.TAKEN]
    assert taken == ([outcome.route.pattern] if outcome.route else [])
