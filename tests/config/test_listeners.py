"""``config``: listeners have names, and routes may be for some of them."""

import pytest

from snimux.config.diff import difference
from snimux.config.load import load
from snimux.config.model import Config, ConfigError
from snimux.proto.client_hello import TLS
from snimux.proto.http_head import HTTP
from snimux.proto.reason import Reason
from snimux.proto.verdict import Hello, Protocol, Request
from snimux.routing.address import Activated, FdAddress, ListenAddress, TcpAddress, parse_listen
from snimux.routing.decide import EntryPoint, Redirection, Refusal, Relaying, decide
from snimux.routing.routes import RouteTable

LISTENERS = """
    [[listen]]
    address = ":443"
    name = "public"
    [[listen]]
    address = "127.0.0.1:8443"
    name = "internal"
    [[http]]
    address = ":80"
    name = "public"
    """
ROUTES = """
    [[route]]
    hosts = "a.example"
    to = "127.0.0.1:1"
    [[route]]
    hosts = "a.example"
    listen = "internal"
    to = "127.0.0.1:2"
    [[route]]
    hosts = "*.example"
    listen = ["public", "internal"]
    to = "127.0.0.1:3"
    """


def problems(toml: str, *activated: Activated, **flags: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(flags, "f", toml, activated=activated)
    return list(caught.value.problems)


def way(config: Config, name: str, address: ListenAddress, protocol: Protocol = TLS) -> str | None:
    """Where a client goes that comes in at an address."""
    request = Request("GET", name, "/") if protocol is HTTP else None
    hello = Hello(name, (), ech=False, size=9, request=request)
    entry = config.entry_at(address, protocol)
    decision = decide(hello, "192.0.2.1", entry, RouteTable(config.routes))
    if isinstance(decision, Redirection):
        return decision.location
    return str(decision.to) if isinstance(decision, Relaying) else None


def test_a_name_goes_to_the_backend_of_the_listener_where_it_comes_in() -> None:
    config = load({}, "f", LISTENERS + ROUTES)
    public, internal = TcpAddress("", 443), TcpAddress("127.0.0.1", 8443)
    assert [config.entry_at(x).name for x in (public, internal)] == ["public", "internal"]
    assert way(config, "a.example", public) == "127.0.0.1:1"
    assert way(config, "a.example", internal) == "127.0.0.1:2"
    assert way(config, "b.example", public) == way(config, "b.example", internal) == "127.0.0.1:3"
    assert [str(route.pattern) for route in config.routes] == [
        "a.example", "a.example@internal", "*.example@public", "*.example@internal",
    ]  # fmt: skip


def test_the_pattern_decides_before_the_listener() -> None:
    config = load({}, "f", LISTENERS + ROUTES.replace('hosts = "a.example"', 'hosts = "*"', 1))
    internal = TcpAddress("127.0.0.1", 8443)
    assert way(config, "b.example", internal) == "127.0.0.1:3"  # not the *, though for all
    more = '[[route]]\nhosts = "b.example"\nto = "127.0.0.1:4"'
    config = load({}, "f", LISTENERS + ROUTES + more)
    assert way(config, "b.example", internal) == "127.0.0.1:4"


def test_requests_by_plain_http_are_for_the_listener_of_that_name() -> None:
    config = load({}, "f", LISTENERS + ROUTES)
    port_80 = TcpAddress("", 80)
    assert way(config, "b.example", port_80, HTTP) == "https://b.example/"
    assert way(config, "a.example", port_80, HTTP) == "https://a.example/"
    nobody = LISTENERS + '[[route]]\nhosts = "a"\nlisten = "internal"\nto = "127.0.0.1:1"'
    assert way(load({}, "f", nobody), "a", port_80, HTTP) is None


@pytest.mark.parametrize(
    ("toml", "problem"),
    [
        (
            '[[route]]\nhosts = ["a", "b"]\nlisten = "intern"\nto = "x:1"',
            "f: route 1: listen: no listener has the name 'intern'; there are internal, public",
        ),
        (
            '[[route]]\nhosts = "a"\nlisten = "internal"\nto = "x:1"\nhttp = "x:2"',
            "f: route 1: http: is for plain HTTP, and none of the listeners of this route is "
            "(internal); give one of [[http]] the name, or leave it out",
        ),
        (
            '[[listen]]\naddress = ":1"\nname = "internal"',
            "f: listen 3: name: internal is given twice, first in listen 2",
        ),
        (
            '[[listen]]\naddress = ":1"\nname = "a b"',
            "f: listen 3: name: 'a b' is no name: up to 63 letters, digits, dots, - and _, "
            "such as internal",
        ),
        ('[[listen]]\naddress = ":1"\nname = 5', "f: listen 3: name: 5 is no name"),
        (
            '[[route]]\nhosts = "a"\nlisten = "internal"\nto = "x:1"\n'
            '[[route]]\nhosts = "a"\nlisten = "internal"\nto = "x:1"',
            "f: route 2: the pattern a@internal is given twice, first in route 1; "
            "several addresses go into one route",
        ),
        (
            '[[route]]\nhosts = "a"\nlisten = []\nto = "x:1"',
            "f: route 1: listen: [] is not a string or a list of strings; it is empty",
        ),
        (
            '[[route]]\nhosts = "a@internal"\nto = "x:1"', "f: route 1: 'a@internal': ",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_names_of_listeners_is_said(toml: str, problem: str) -> None:
    http, listen = LISTENERS.partition("[[http]]")[::2][::-1]
    (line,) = problems(f"{listen}{toml}\n[[http]]{http}")
    assert line.startswith(problem)


def test_where_no_listener_has_a_name_none_can_be_meant() -> None:
    (line,) = problems('[[route]]\nhosts = "a"\nlisten = "x"\nto = "y:1"')
    assert line == "f: route 1: listen: no listener has the name 'x'; none has a name"


def test_a_listener_that_is_wrong_is_not_missed_by_its_routes() -> None:
    toml = '[[listen]]\naddress = "nowhere"\nname = "x"\n[[route]]\nhosts = "a"\nlisten = "x"\n'
    (line,) = problems(toml + 'to = "127.0.0.1:1"')
    assert line.startswith("f: listen: 'nowhere'")


def test_flags_are_instead_of_the_listeners_of_the_file_which_keep_their_names() -> None:
    config = load({"listen": (":443", "127.0.0.1:9")}, "f", LISTENERS + ROUTES)
    names = [config.entry_at(parse_listen(x)).name for x in (":443", "127.0.0.1:9")]
    assert names == ["public", None]
    assert way(config, "a.example", TcpAddress("127.0.0.1", 9)) == "127.0.0.1:1"


TLS_443 = Activated(FdAddress(3), "tls", TcpAddress("", 443))


def test_what_was_handed_over_has_the_name_of_its_address() -> None:
    config = load({}, "f", LISTENERS + ROUTES, activated=[TLS_443])
    assert config.entry_at(FdAddress(3)).name == "public"
    numbered = '[[listen]]\naddress = "fd/3"\nname = "public"\n[[route]]\nhosts = "a"\nto = "x:1"'
    assert load({}, "f", numbered, activated=[TLS_443]).entry_at(FdAddress(3)).name == "public"
    (line,) = problems(f"workers = 2\n{numbered}", TLS_443)
    assert "fd/3 has a name or rules of its own, which workers do not know by its number" in line
    (line,) = problems('[[listen]]\naddress = "127.0.0.1:443"\nname = "x"\n' + ROUTES[:66], TLS_443)
    assert "127.0.0.1:443 has a name or rules of its own, but all that comes to :443" in line


def test_a_listener_that_gets_another_name_is_a_difference() -> None:
    before = load({}, "f", LISTENERS + ROUTES)
    after = load({}, "f", (LISTENERS + ROUTES).replace("internal", "inside"))
    found = difference(before, after)
    assert (found.settings, found.added, found.removed) == (("listen",), 2, 2)


REFUSING = """
    [[route]]
    hosts = "*.example"
    to = "127.0.0.1:1"
    [[route]]
    hosts = ["closed.example", "alpn.example/h2"]
    to = "refuse"
    """


def test_a_route_that_refuses_closes_a_name_under_an_open_wildcard() -> None:
    file, flags = load({"http": (":80",)}, "f", REFUSING), {"route": ["*.example=127.0.0.1:1"]}
    flags["route"].append("closed.example,alpn.example/h2=refuse")
    for config in (file, load({**flags, "http": (":80",)})):
        table, closed = RouteTable(config.routes), []
        for protocol in (TLS, HTTP):
            for name, alpn in (
                ("closed", ()),
                ("closed", (b"h2",)),
                ("alpn", (b"h2",)),
                ("alpn", ()),
            ):
                request = Request("GET", f"{name}.example", "/") if protocol is HTTP else None
                offered = alpn if protocol is TLS else ()
                hello = Hello(f"{name}.example", offered, ech=False, size=9, request=request)
                decision = decide(hello, "192.0.2.1", EntryPoint(protocol), table)
                if isinstance(decision, Refusal):
                    assert decision.reason is Reason.ROUTE_REFUSES
                    assert decision.farewell == protocol.farewell(Reason.ROUTE_REFUSES, hello)
                    closed.append((protocol.name, name, len(offered)))
        assert closed == [
            ("tls", "closed", 0), ("tls", "closed", 1), ("tls", "alpn", 1),
            ("http", "closed", 0), ("http", "closed", 0),
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("toml", "problem"),
    [
        (
            'to = "refuse"\nhttp = "127.0.0.1:1"',
            'f: route 1: http: is for who is served, and to = "refuse" serves nobody',
        ),
        (
            'to = ["refuse"]\nallow = "10.0.0.0/8"',
            'f: route 1: allow: is for who is served, and to = "refuse" serves nobody',
        ),
        ('to = ["refuse", "127.0.0.1:1"]', "f: route 1: refuse goes alone, for a route: "),
        ('to = "127.0.0.1:1"\nhttp = "refuse"', "f: route 1: http: refuse goes alone, for a route"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_route_that_refuses_is_said(toml: str, problem: str) -> None:
    (line,) = problems(f'[[route]]\nhosts = "a"\n{toml}')
    assert line.startswith(problem)


def test_what_has_no_route_needs_none_that_refuses() -> None:
    for flags in ({"default": "refuse"}, {"route": ("a=refuse,127.0.0.1:1",)}):
        with pytest.raises(ConfigError) as caught:
            load(flags)
        assert "refuse goes alone, for a route" in caught.value.problems[0]
