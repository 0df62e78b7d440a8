"""``routing.routes``: exact beats longest suffix beats default, ALPN beats none."""

import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snimux.proto.client_hello import TLS
from snimux.proto.hostname import patterns_matching
from snimux.proto.http_head import HTTP
from snimux.proto.verdict import Hello
from snimux.routing.address import TcpAddress, UnixAddress, parse_dial
from snimux.routing.routes import (
    Backend,
    Pattern,
    PatternError,
    Route,
    RouteTable,
    parse_pattern,
    read_pattern,
    targets,
)


def table_of(*patterns: str) -> RouteTable:
    """A table in which each pattern's backend is told by its port: the pattern's place."""
    return RouteTable(
        Route(parse_pattern(text), targets(tls=Backend((TcpAddress("127.0.0.1", port),))))
        for port, text in enumerate(patterns, 1)
    )


def hello(name: str | None, *alpn: bytes) -> Hello:
    return Hello(name, alpn, ech=False, size=0)


def winner(table: RouteTable, name: str | None, *alpn: bytes) -> str | None:
    route = table.find(TLS, hello(name, *alpn))
    return None if route is None else str(route.pattern)


def test_the_most_specific_pattern_wins_wherever_it_stands() -> None:
    patterns = ["*", "**.com", "**.ciso.com", "*.ciso.com", "secure.ciso.com"]
    for order in (patterns, patterns[::-1]):
        table = table_of(*order)
        assert winner(table, "secure.ciso.com") == "secure.ciso.com"
        assert winner(table, "dao.ciso.com") == "*.ciso.com"
        assert winner(table, "a.b.ciso.com") == "**.ciso.com"
        assert winner(table, "ciso.com") == "**.com"
        assert winner(table, "com") == "*"
        assert winner(table, "ciso.com.attacker.net") == "*"
        assert winner(table, "evil-secure.ciso.com") == "*.ciso.com"
        assert winner(table, None) == "*"


def test_a_table_lists_each_route_once() -> None:
    backend = Backend((TcpAddress("127.0.0.1", 1),))
    routes = [
        Route(parse_pattern("a.example"), targets(tls=backend, http=backend)),
        Route(parse_pattern("a.example/h2"), targets(tls=backend)),
        Route(parse_pattern("*"), targets(tls=backend)),
        # one pattern, TLS here and plain HTTP there
        Route(parse_pattern("b.example"), targets(http=backend)),
        Route(parse_pattern("b.example"), targets(tls=backend)),
    ]
    assert sorted(map(repr, RouteTable(routes))) == sorted(map(repr, routes))
    assert list(RouteTable(())) == []


def test_a_pattern_matches_whole_labels_only() -> None:
    table = table_of("*.ciso.com", "**.x.example", "a.example")
    for name in ("ciso.com", "evilciso.com", "a.b.ciso.com", "x.example", "yx.example",
                 "evil-a.example", "a.example.attacker.net", "b.a.example"):  # fmt: skip
        assert winner(table, name) is None, name
    assert winner(table, "a.b.c.x.example") == "**.x.example"
    assert winner(table, None) is None


def test_alpn_beats_the_same_pattern_without_and_nothing_else() -> None:
    table = table_of("a.example", "a.example/acme-tls/1", "*.example/h2", "*/h2", "**.b.example")
    assert winner(table, "a.example", b"acme-tls/1") == "a.example/acme-tls/1"
    assert winner(table, "a.example", b"h2") == "a.example"
    assert winner(table, "a.example") == "a.example"
    assert winner(table, "c.example", b"http/1.1", b"h2") == "*.example/h2"
    assert winner(table, "c.example", b"http/1.1") is None
    assert winner(table, "c.b.example", b"h2") == "**.b.example"
    assert winner(table, None, b"h2") == "*/h2"
    assert winner(table, None) is None


def test_of_several_protocols_the_clients_first_choice_wins() -> None:
    table = table_of("a.example/http/1.1", "a.example/h2")
    assert winner(table, "a.example", b"h2", b"http/1.1") == "a.example/h2"
    assert winner(table, "a.example", b"http/1.1", b"h2") == "a.example/http/1.1"


def test_of_the_same_pattern_the_route_for_the_listener_wins_and_of_others_the_pattern() -> None:
    table = RouteTable(
        Route(parse_pattern(host, listener), targets(tls=BACKEND))
        for host, listener in [
            ("a.example", None), ("a.example", "in"), ("*.example", "in"), ("a.example/h2", None),
            ("b.example/h2", "in"), ("b.example/h2", None), ("*", "out"), ("b.example", "in"),
        ]
    )  # fmt: skip

    def at(listener: str | None, name: str, *alpn: bytes) -> str | None:
        route = table.find(TLS, hello(name, *alpn), listener)
        return None if route is None else str(route.pattern)

    assert (at(None, "a.example"), at("out", "a.example")) == ("a.example", "a.example")
    assert at("in", "a.example") == "a.example@in"
    assert at("in", "a.example", b"h2") == "a.example/h2"
    assert at("in", "b.example", b"h2") == "b.example@in/h2"
    assert at("out", "b.example", b"h2") == "b.example/h2"
    assert (at("in", "c.example"), at("out", "c.example")) == ("*.example@in", "*@out")
    assert at(None, "c.example") is None
    for route in table:
        assert read_pattern(str(route.pattern)) == route.pattern


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("Secure.CISO.com/acme-tls/1", Pattern("secure.ciso.com", b"acme-tls/1")),
        ("*/h2", Pattern("*", b"h2")),
        ("**", Pattern("*")),
        ("*.bücher.example", Pattern("*.xn--bcher-kva.example")),
    ],
)
def test_patterns_as_typed(text: str, pattern: Pattern) -> None:
    assert parse_pattern(text) == pattern
    assert parse_pattern(str(pattern)) == pattern


@pytest.mark.parametrize(
    ("text", "why"),
    [("a.example/", "ALPN"), ("a.example/\n", "ALPN"), ("a.example/ü", "ALPN"), ("/h2", "empty"),
     ("a.example/" + "x" * 256, "ALPN"), ("10.0.0.1", "IP address"), ("a b", "' '"),
     ("a.example/h2,b.example", "ALPN"), ("a.example:443", "has a port; a name has none"),
     (".example", r"all names below one are \*\*\.name"), ("~^www", "no regular expressions")],
)  # fmt: skip
def test_what_no_pattern_is(text: str, why: str) -> None:
    with pytest.raises(PatternError, match=why):
        parse_pattern(text)


def test_a_backend_prints_as_it_is_typed() -> None:
    backend = Backend((TcpAddress("::1", 8443), UnixAddress("/run/caddy.sock")))
    assert str(backend) == "[::1]:8443,unix//run/caddy.sock"


LABELS = st.sampled_from(["a", "b", "c"])
NAMES = st.lists(LABELS, min_size=1, max_size=4).map(".".join)
PATTERNS = st.one_of(NAMES, NAMES.map("*.{}".format), NAMES.map("**.{}".format), st.just("*"))


def matches(pattern: str, name: str) -> bool:
    """What a pattern means, said without a table."""
    if pattern == "*":
        return True
    if pattern.startswith("**."):
        return name.endswith(pattern[2:])
    if pattern.startswith("*."):
        first, _, parent = name.partition(".")
        return bool(first) and parent == pattern[2:]
    return name == pattern


@given(st.sets(PATTERNS, max_size=8), NAMES)
def test_the_table_agrees_with_what_patterns_mean(patterns: set[str], name: str) -> None:
    found = winner(table_of(*patterns), name)
    meant = [pattern for pattern in patterns_matching(name) if pattern in patterns]
    assert set(meant) == {pattern for pattern in patterns if matches(pattern, name)}
    assert found == (meant[0] if meant else None)


def test_a_route_for_plain_http_alone_is_none_for_hellos() -> None:
    backend = Backend((TcpAddress("127.0.0.1", 8080),))
    plain = Route(parse_pattern("a.example"), targets(http=backend))
    default = Route(parse_pattern("*"), targets(tls=backend))
    table = RouteTable([plain, default])
    assert table.find(TLS, hello("a.example")) == default
    assert table.find(HTTP, hello("a.example")) == plain
    assert table.find(HTTP, hello("b.example")) == table.find(HTTP, hello(None)) == default
    table = RouteTable([plain])
    assert table.find(TLS, hello("a.example")) is None
    assert table.find(HTTP, hello("b.example")) is None


def test_plain_http_knows_no_alpn() -> None:
    backend = Backend((TcpAddress("127.0.0.1", 8080),))
    table = RouteTable([Route(parse_pattern("a.example/h2"), targets(tls=backend))])
    assert table.find(HTTP, hello("a.example")) is None


def test_a_table_knows_how_many_patterns_it_has() -> None:
    assert len(RouteTable()) == 0
    assert len(table_of("a.b", "a.b/h2", "*.b", "a.b")) == 3


@pytest.mark.parametrize(
    ("host", "addresses"),
    [("192.0.2.7", ["127.0.0.1:1", "10.0.0.1:1"]), ("2001:db8::7", ["[::1]:1"]), (None, [])],
)
def test_a_transparent_backend_has_addresses_for_clients_of_their_family(
    host: str | None, addresses: list[str]
) -> None:
    of_all = tuple(map(parse_dial, ["127.0.0.1:1", "[::1]:1", "10.0.0.1:1"]))
    assert list(map(str, Backend(of_all, transparent=True).addresses_for(host))) == addresses
    assert Backend(of_all).addresses_for(host) == of_all


BACKEND = Backend((TcpAddress("127.0.0.1", 8443),))
ROUTES = st.builds(
    Route,
    st.builds(Pattern, PATTERNS, st.sampled_from([None, None, b"h2", b"h3"])),
    st.sampled_from([{}, {"tls": BACKEND}]),
)


@given(
    st.lists(ROUTES, max_size=8, unique_by=lambda route: route.pattern),
    st.none() | NAMES,
    st.lists(st.sampled_from([b"h2", b"h3", b"x"]), max_size=3),
)
def test_the_candidates_are_all_that_match_and_the_first_is_found(
    routes: list[Route], name: str | None, alpn: list[bytes]
) -> None:
    table = RouteTable(routes)
    candidates = list(table.candidates(TLS, hello(name, *alpn)))
    by_pattern = {route.pattern: route for route in routes if route.targets.get("tls")}
    order = [
        Pattern(host, x) for host in patterns_matching(name) for x in dict.fromkeys((*alpn, None))
    ]
    assert candidates == [by_pattern[x] for x in order if x in by_pattern]
    assert table.find(TLS, hello(name, *alpn)) == (candidates[0] if candidates else None)
    plain = list(table.candidates(HTTP, hello(name)))
    by_host = {route.pattern.host: route for route in routes if route.pattern.alpn is None}
    assert plain == [by_host[host] for host in patterns_matching(name) if host in by_host]
    assert table.find(HTTP, hello(name)) == (plain[0] if plain else None)


def test_a_table_has_few_objects_for_the_collector_to_look_through() -> None:
    routes = [
        Route(parse_pattern(f"h{number}.example"), targets(tls=Backend(())))
        for number in range(1000)
    ]
    before = len(gc.get_objects())
    table = RouteTable(routes)
    assert len(gc.get_objects()) - before < 100
    assert len(table) == 1000
