"""``providers.merge``: who has a name, what is left out, and whose lists a route has."""

from dataclasses import replace

import pytest

from snimux.config.load import load
from snimux.providers.base import Claim, Site, Snapshot, Unrouted
from snimux.providers.caddy.sites import Sites
from snimux.providers.merge import plan, planned
from snimux.routing.access import Access
from snimux.routing.address import (
    DialAddress,
    DirectoryAddress,
    ProviderAddress,
    TcpAddress,
    UnixAddress,
)
from snimux.routing.networks import Networks, parse_network
from snimux.routing.routes import Backend, Pattern, Route, parse_pattern, targets
from snimux.routing.served import Served

FIRST, SECOND = UnixAddress("/run/caddy-a/admin.sock"), TcpAddress("localhost", 2020)


def never(_: DialAddress) -> bool:
    return False


def sites(*hosts: str, port: int = 8443, http: int | None = 8080) -> Sites:
    https = (Served(TcpAddress("127.0.0.1", port)),)
    plain = (Served(TcpAddress("127.0.0.1", http)),) if http else ()
    return Sites(tuple(Site(host, https, plain) for host in hosts))


def to(port: int) -> Backend:
    return Backend((TcpAddress("127.0.0.1", port),))


def test_a_name_of_two_caddys_goes_to_the_first_listed_and_is_told() -> None:
    one, two = sites("a.example", "b.example"), sites("b.example", "c.example", port=8444)
    found = plan([(FIRST, one), (SECOND, two)], [], never)
    assert found.routes == (
        Route(Pattern("a.example"), targets(tls=to(8443), http=to(8080))),
        Route(Pattern("b.example"), targets(tls=to(8443), http=to(8080))),
        Route(Pattern("c.example"), targets(tls=to(8444), http=to(8080))),
    )
    assert found.claims == (Claim("b.example", FIRST, SECOND),)
    assert found.has == {"a.example": FIRST, "b.example": FIRST, "c.example": SECOND}
    assert plan([(SECOND, two), (FIRST, one)], [], never).claims == (
        Claim("b.example", SECOND, FIRST),
    )


def test_explicit_routes_win() -> None:
    explicit = Route(parse_pattern("a.example"), targets(tls=to(1)))
    other = Route(parse_pattern("a.example/h2"), targets(tls=to(2)))
    found = plan([(FIRST, sites("a.example")), (SECOND, sites("a.example"))], [explicit], never)
    assert found.routes == (explicit,)
    assert not found.has
    assert not found.claims
    assert len(plan([(FIRST, sites("a.example"))], [other], never).routes) == 2


def test_a_site_where_snimux_itself_listens_is_left_out() -> None:
    here = TcpAddress("127.0.0.1", 443)
    one, two = sites("a.example", port=443), sites("a.example", port=8444)
    found = plan([(FIRST, one), (SECOND, two)], [], lambda address: address == here)
    assert found.routes == (Route(Pattern("a.example"), targets(tls=to(8444), http=to(8080))),)
    assert found.loops == (Unrouted("a.example", "127.0.0.1:443 is where snimux itself listens"),)
    assert not found.claims


def test_of_several_addresses_only_snimuxs_own_are_left_out() -> None:
    own = TcpAddress("127.0.0.1", 443), TcpAddress("127.0.0.1", 80)
    https = (Served(own[0]), Served(UnixAddress("/run/x.sock")))
    found = plan(
        [(FIRST, Sites((Site("a.example", https, (Served(own[1]),)),)))], [], own.__contains__
    )
    assert found.routes == (
        Route(Pattern("a.example"), targets(tls=Backend((UnixAddress("/run/x.sock"),)))),
    )
    assert not found.loops


def test_a_site_at_a_reserved_address_is_refused_and_said() -> None:
    admin = TcpAddress("127.0.0.1", 2019)

    def reserved(address: DialAddress) -> str | None:
        return "an admin API" if address == admin else None

    one, two = sites("a.example", port=2019), sites("a.example", "b.example", port=8444)
    found = plan([(FIRST, one), (SECOND, two)], [], never, reserved_for=reserved)
    assert [str(x.pattern) for x in found.routes] == ["a.example", "b.example"]
    assert {*found.routes[0].backends} == {to(8444), to(8080)}
    why = f"the Caddy at {FIRST} says 127.0.0.1:2019, which is an admin API"
    assert found.refused == (Unrouted("a.example", why),)
    assert not found.loops
    assert not found.claims
    assert found.discovered == {TcpAddress("127.0.0.1", port) for port in (8444, 8080)}


def test_of_several_addresses_only_reserved_ones_are_left_out() -> None:
    admin, good = TcpAddress("127.0.0.1", 2019), UnixAddress("/run/x.sock")
    both = (Served(admin), Served(good))
    for https, http in ((both, both), ((), both), (both, ())):
        site = Site("a.example", https, http)
        found = plan(
            [(FIRST, Sites((site,)))],
            [],
            never,
            reserved_for=lambda x: "an admin API" if x == admin else None,
        )
        (route,) = found.routes
        assert [x.addresses for x in route.backends] == [(good,)] * len(
            [x for x in (https, http) if x]
        )
        assert len(found.refused) == 1


PLAIN = Sites((Site("a.example", (), (Served(TcpAddress("127.0.0.1", 8081)),)),))


def test_a_site_in_plain_only_has_a_route_for_that() -> None:
    found = plan([(FIRST, PLAIN)], [], never)
    assert found.routes == (Route(Pattern("a.example"), targets(http=to(8081))),)


def test_who_serves_a_name_by_tls_has_it_in_plain_too() -> None:
    found = plan([(FIRST, PLAIN), (SECOND, sites("a.example"))], [], never)
    assert found.routes == (Route(Pattern("a.example"), targets(tls=to(8443), http=to(8080))),)
    assert found.claims == (Claim("a.example", has=SECOND, wants=FIRST),)


def test_a_site_in_plain_only_that_is_where_snimux_listens_is_nowhere() -> None:
    assert plan([(FIRST, PLAIN)], [], lambda _: True).routes == ()


def test_what_is_automatic_and_what_is_known_of_its_addresses() -> None:
    explicit = Route(parse_pattern("x.example"), targets(tls=to(1)))
    two = sites("b.example", port=8444, http=None)
    found = plan([(FIRST, sites("a.example")), (SECOND, two)], [explicit], never, auto={FIRST})
    assert found.routes == (
        explicit,
        Route(
            Pattern("a.example"),
            targets(tls=replace(to(8443), proxy="auto"), http=replace(to(8080), proxy="auto")),
        ),
        Route(Pattern("b.example"), targets(tls=to(8444))),
    )
    ports = (8443, 8080, 8444)
    addresses = [TcpAddress("127.0.0.1", port) for port in ports]
    assert found.listeners == {address: Served(address) for address in addresses}


OFFICE, HOME, NOBODY = (
    Access(allow=Networks((parse_network(x),))) for x in ("10.0.0.0/8", "192.0.2.7", "127.0.0.9")
)


def written(pattern: str, access: Access | None = None, *, only_http: bool = False) -> Route:
    return Route(
        parse_pattern(pattern), targets(tls=None if only_http else to(1), http=to(2)), access
    )


@pytest.mark.parametrize(
    ("host", "explicit", "access", "whose"),
    [
        ("a.corp.example", [written("*.corp.example", OFFICE)], OFFICE, "*.corp.example"),
        ("*.corp.example", [written("**.corp.example", OFFICE)], OFFICE, "**.corp.example"),
        ("a.corp.example", [written("*", OFFICE)], OFFICE, "*"),
        ("a.corp.example", [written("**.example", HOME), written("**.corp.example", OFFICE)],
         OFFICE, "**.corp.example"),
        # what would have the name in its place is open
        ("a.corp.example", [written("*.corp.example"), written("*", OFFICE)], None, ""),
        # not above it
        ("corp.example", [written("*.corp.example", OFFICE)], None, ""),
        ("a.b.corp.example", [written("*.corp.example", OFFICE)], None, ""),
        ("a.corp.example", [written("b.corp.example", OFFICE)], None, ""),
        ("*.corp.example", [written("a.corp.example", OFFICE)], None, ""),
        # for some hellos only, beside it: the others are the found one's own
        ("a.corp.example", [written("a.corp.example/h2", OFFICE)], None, ""),
        ("*.corp.example", [written("*.corp.example/h2", OFFICE)], None, ""),
        # for some only, above it
        ("a.corp.example", [written("*.corp.example/acme-tls/1", HOME),
                            written("*.corp.example", OFFICE)], OFFICE, "*.corp.example"),
        ("a.corp.example", [written("*.corp.example/h2", HOME), written("*", OFFICE)],
         HOME, "*.corp.example/h2"),
        ("a.corp.example", [written("*.corp.example/acme-tls/1"), written("*", OFFICE)],
         OFFICE, "*"),
        ("a.corp.example", [written("*.corp.example", HOME, only_http=True), written("*")],
         HOME, "*.corp.example"),
        ("a.corp.example", [written("*.corp.example", only_http=True), written("*", OFFICE)],
         OFFICE, "*"),
    ],
)  # fmt: skip
def test_a_found_route_has_the_lists_of_what_would_have_its_name(
    host: str, explicit: list[Route], access: Access | None, whose: str
) -> None:
    (route,) = plan([(FIRST, sites(host))], explicit, never).routes[len(explicit) :]
    assert (route.targets.get("tls"), route.targets.get("http")) == (to(8443), to(8080))
    assert route.access == access
    assert str(route.access_of or "") == str(route.access_from or "") == whose


def at(route: Route, listener: str) -> Route:
    return replace(route, pattern=replace(route.pattern, listener=listener))


@pytest.mark.parametrize(
    ("explicit", "found"),
    [
        ([at(written("*.corp.example", OFFICE), "out")],
         {"a.corp.example": None, "a.corp.example@out": OFFICE}),
        ([written("*.corp.example", OFFICE), at(written("*.corp.example"), "in")],
         {"a.corp.example": OFFICE, "a.corp.example@in": None}),
        ([written("*.corp.example", HOME), at(written("*", OFFICE), "out")],
         {"a.corp.example": HOME}),
        ([at(written("*.corp.example", OFFICE), "out"), at(written("a.corp.example"), "out")],
         {"a.corp.example": None}),
    ],
)  # fmt: skip
def test_lists_for_one_listener_close_what_is_found_there_alone(
    explicit: list[Route], found: dict[str, Access | None]
) -> None:
    merged = plan([(FIRST, sites("a.corp.example"))], explicit, never)
    routes = merged.routes[len(explicit) :]
    assert {str(route.pattern): route.access for route in routes} == found
    assert all(route.targets == {"tls": to(8443), "http": to(8080)} for route in routes)
    assert merged.has == dict.fromkeys(found, FIRST)


Providers = list[tuple[ProviderAddress, Snapshot]]
ROUTES = DirectoryAddress("/etc/snimux/routes")


@pytest.mark.parametrize(
    ("route", "explicit", "access", "whose"),
    [
        (written("a.corp.example"), [written("*.corp.example", OFFICE)], OFFICE, "*.corp.example"),
        (written("a.corp.example", HOME), [written("*.corp.example", OFFICE)], HOME, ""),
        (written("a.corp.example"), [written("b.corp.example", OFFICE)], None, ""),
        # what is for a protocol is an exception from what is for all
        (written("a.example/h2"), [written("a.example", OFFICE)], OFFICE, "a.example"),
        (written("a.example/h2"), [written("a.example/acme-tls/1", OFFICE)], None, ""),
        (written("a.example/h2"), [written("a.example"), written("*", OFFICE)], None, ""),
        (written("a.example"), [written("a.example/h2", OFFICE)], None, ""),
    ],
)  # fmt: skip
def test_a_route_of_a_provider_has_the_lists_of_what_it_is_an_exception_from(
    route: Route, explicit: list[Route], access: Access | None, whose: str
) -> None:
    found = plan([(ROUTES, Snapshot(routes=(route,)))], explicit, never)
    assert found.routes[-1].access == access
    assert str(found.routes[-1].access_from or "") == whose
    assert found.has == {str(route.pattern): ROUTES}


def test_what_a_provider_has_written_closes_what_others_find_below_it() -> None:
    routes = (written("*.corp.example", OFFICE), written("open.corp.example"))
    providers: Providers = [
        (FIRST, sites("a.corp.example")),
        (ROUTES, Snapshot(routes=routes)),
    ]
    found = {str(x.pattern): x for x in plan(providers, [], never).routes}
    assert found["a.corp.example"].access == OFFICE
    assert found["a.corp.example"].access_of == routes[0].pattern
    # as in the configuration, one that somebody has written is open where nothing else is written
    assert found["open.corp.example"] == routes[1]


def test_a_route_of_a_provider_keeps_all_that_it_says_but_what_is_snimuxs_own() -> None:
    own, good = TcpAddress("127.0.0.1", 443), TcpAddress("127.0.0.1", 8444)
    admin = TcpAddress("localhost", 2019)
    backend = Backend((own, good, admin), "v2", (1, 2, 3), "round_robin", 1.0, "tls")
    route = Route(parse_pattern("a.example/h2"), targets(tls=backend))
    snapshot = Snapshot(
        routes=(route, Route(parse_pattern("b.example"), targets(tls=Backend((own,)))))
    )
    found = plan(
        [(ROUTES, snapshot)],
        [],
        own.__eq__,
        auto={ROUTES},
        reserved_for=lambda x: "an admin API" if x == admin else None,
    )
    assert found.routes == (
        replace(route, targets=targets(tls=replace(backend, addresses=(good,), weights=(2,)))),
    )
    assert found.discovered == {good}
    assert [x.what for x in found.loops] == ["b.example"]
    assert [x.why for x in found.refused] == [
        "the directory at /etc/snimux/routes says localhost:2019, which is an admin API"
    ]
    assert not found.listeners


def test_a_claim_to_a_route_of_a_provider_is_told_and_what_is_written_wins() -> None:
    snapshot = Snapshot(
        routes=(written("a.example"), written("b.example")),
        claims=(Claim("c.example", "a.toml", "b.toml"),),
    )
    providers: Providers = [(ROUTES, snapshot), (FIRST, sites("a.example", "b.example"))]
    found = plan(providers, [written("b.example", OFFICE)], never)
    assert found.claims == (
        Claim("c.example", "a.toml", "b.toml"),
        Claim("a.example", ROUTES, FIRST),
    )
    assert found.has == {"a.example": ROUTES}
    assert [x.access for x in found.routes] == [OFFICE, None]


def test_what_refuses_closes_what_is_found_below_it() -> None:
    refusing = Route(parse_pattern("*.corp.example"), targets(), refuses=True)
    (route,) = plan([(FIRST, sites("a.corp.example"))], [refusing], never).routes[1:]
    assert (route.refuses, route.targets, route.access_from) == (True, {}, refusing.pattern)
    merged = plan([(FIRST, sites("a.corp.example"))], [at(refusing, "out")], never)
    found = {str(x.pattern): x.refuses for x in merged.routes[1:]}
    assert found == {"a.corp.example": False, "a.corp.example@out": True}
    above = [refusing, written("**.corp.example")]
    assert plan([(FIRST, sites("a.b.corp.example"))], above, never).routes[2].targets


def test_a_written_route_opens_what_is_closed_above_it() -> None:
    explicit = [written("*.corp.example", NOBODY), written("a.corp.example")]
    found = plan([(FIRST, sites("a.corp.example"))], explicit, never)
    assert found.routes == tuple(explicit)
    assert explicit[0].access_of == explicit[0].pattern


def test_a_route_of_a_provider_is_for_a_listener_that_there_is_or_said_to_be_for_none() -> None:
    toml = """
        listen = [{ address = ":443", name = "public" }]
        [[route]]
        hosts = "a.example"
        to = "127.0.0.1:1"
        [[routes_dir]]
        path = "/etc/routes"
        """
    address = DirectoryAddress("/etc/routes")
    routes = tuple(
        Route(Pattern("a.example", listener=name), targets(tls=to(2))) for name in ("public", "in")
    )
    merged = planned(load({}, "f", toml), {address: Snapshot(routes=routes)})
    assert {str(x.pattern) for x in merged.routes} == {
        "a.example", "a.example@public", "a.example@in"
    }  # fmt: skip
    assert [x.what for x in merged.refused] == ["a.example@in"]
    assert merged.refused[0].why.endswith("is for a listener, and none is so called")
