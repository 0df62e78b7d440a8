"""``routing.decide``: held against a small model, which looks through all routes."""

import ipaddress
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snimux.proto.client_hello import TLS
from snimux.proto.http_head import HTTP
from snimux.proto.reason import Reason
from snimux.proto.verdict import Hello, Protocol, Request
from snimux.routing.access import Access, Admission
from snimux.routing.decide import EntryPoint, Redirection, Refusal, Relaying, decide
from snimux.routing.networks import Networks, parse_network
from snimux.routing.routes import Pattern, Route, RouteTable, targets
from tests.support.drawn import (
    ACCESS,
    ACME,
    LISTENERS,
    NAMES,
    NOBODY,
    PATHS,
    PROTOCOLS,
    SOURCES,
    routes,
)

CHALLENGE = re.compile(r"/\.well-known/acme-challenge/[\w-]+")


def rank(
    route: Route, hello: Hello, protocol: Protocol, listener: str | None
) -> tuple[float, ...] | None:
    """Sort what matches: the best comes first; None of what does not."""
    host, alpn = route.pattern.host, route.pattern.alpn
    labels = host.split(".")
    stars = labels[0].count("*")
    one = ["", r"[^.]+\.", r"(?:[^.]+\.)+"][stars] + re.escape(host.lstrip("*."))
    if host != "*" and not re.fullmatch(one, hello.name or "-"):
        return None
    if not (protocol.name in route.targets or protocol is HTTP or route.refuses):
        return None
    if alpn is not None and alpn not in hello.alpn:
        return None
    if route.pattern.listener not in (None, listener):
        return None
    choice = 99 if alpn is None else hello.alpn.index(alpn)
    return (host == "*", -len(labels), stars, choice, route.pattern.listener is None)


def admits(access: Access | None, source: str | None, hello: Hello, behind: int) -> bool:
    if access is None or source is None:
        return True
    is_in = [
        networks is not None
        and (
            networks.unix
            if source == "unix"
            else any(ipaddress.ip_address(source) in x for x in networks.listed)
        )
        for networks in (access.allow, access.deny)
    ]
    if not is_in[1] and (access.allow is None or is_in[0]):
        return True
    if hello.request is None:
        is_acme = hello.alpn == tuple(ACME) and hello.name is not None and not hello.ech
    else:
        is_acme = hello.request.closes and not behind and hello.request.method == "GET"
        is_acme = is_acme and CHALLENGE.fullmatch(hello.request.target) is not None
    return access.acme_exempt and is_acme


NO_TLS = st.builds(Request, st.sampled_from(["GET", "POST"]), NAMES, PATHS, st.booleans())
HELLOS = st.builds(
    Hello, st.none() | NAMES, (PROTOCOLS | st.just(ACME)).map(tuple), st.booleans(), st.just(9)
)
REQUESTS = st.builds(lambda request: Hello(request.host, (), False, 9, request), NO_TLS)


@settings(max_examples=500)
@given(
    routes(), ACCESS | st.none(), SOURCES | st.none(), HELLOS | REQUESTS,
    st.sampled_from([0, 0, 1]), st.sampled_from([443, 8443]), LISTENERS,
)  # fmt: skip
def test_it_is_what_a_look_through_all_routes_says(
    written: list[Route],
    access: Access | None,
    source: str | None,
    hello: Hello,
    behind: int,
    https_port: int,
    listener: str | None,
) -> None:
    protocol = HTTP if hello.request else TLS
    admission = None if access is None else Admission(access)
    entry = EntryPoint(protocol, None, admission, listener)
    decision = decide(
        hello, None if source == "unix" else source, entry, RouteTable(written),
        behind=behind, https_port=https_port, checks_host=source is not None,
    )  # fmt: skip
    ranked = [(rank(x, hello, protocol, listener), x) for x in written]
    route = min(((n, x) for n, x in ranked if n is not None), key=lambda x: x[0], default=None)
    match decision:
        case Refusal(Reason.ACCESS_DENIED, "", farewell, None):
            assert not admits(access, source, hello, behind)
            assert farewell == protocol.farewell(Reason.ACCESS_DENIED, hello)
            return
        case Refusal(Reason.NO_ROUTE, "", farewell, None):
            assert route is None
            assert farewell == protocol.farewell(Reason.NO_ROUTE, hello)
    assert admits(access, source, hello, behind)
    assert decision.route is (route and route[1])
    if route is None or decision.route is None:
        return
    is_let_in = admits(route[1].access, source, hello, behind)
    to = route[1].targets.get(protocol.name)
    match decision:
        case Refusal(Reason.ACCESS_DENIED, "", _):
            assert not is_let_in
            return
        case Relaying(_, backend):
            assert backend is to
            assert not backend.transparent or source is None
        case Refusal(Reason.NO_SOURCE, detail, _):
            assert to is not None
            assert to.transparent
            assert source is not None
            assert detail
        case Refusal(Reason.ROUTE_REFUSES, "", farewell):
            assert route[1].refuses
            assert farewell == protocol.farewell(Reason.ROUTE_REFUSES, hello)
            return
        case Refusal(reason, "", farewell):
            assert (reason, to) == (Reason.NO_HTTP, None)
            assert HTTP.redirect
            assert HTTP.redirect(hello, https_port) is None
            assert farewell == protocol.farewell(reason, hello)
        case Redirection(location):
            assert to is None
            assert location.startswith("https://")
            assert (":8443/" in location) == (https_port == 8443)
    assert is_let_in
    assert not route[1].refuses


@pytest.mark.parametrize("behind", [0, 1])
@pytest.mark.parametrize("is_route", [False, True])
def test_what_is_behind_a_validation_is_not_exempt_with_it(behind: int, is_route: bool) -> None:
    exempt = Access(deny=Networks((parse_network("192.0.2.0/24"),)), acme_exempt=True)
    route = Route(Pattern("a"), targets(tls=NOBODY, http=NOBODY), exempt if is_route else None)
    request = Request("GET", "a", "/.well-known/acme-challenge/x", closes=True)
    decision = decide(
        Hello("a", (), False, 9, request), "192.0.2.7",
        EntryPoint(HTTP, None, None if is_route else Admission(exempt)),
        RouteTable([route]), behind=behind,
    )  # fmt: skip
    assert isinstance(decision, Refusal if behind else Relaying)
