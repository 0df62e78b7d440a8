"""``config.load``: flags, file and what was handed over, all together or all their mistakes."""

import math
import tomllib
from importlib import resources
from typing import Any

import pytest

from snimux.config.load import load, with_caddys
from snimux.config.model import BackendDefaults, Config, ConfigError, Limits, https_port
from snimux.config.settings import SETTINGS
from snimux.proto.client_hello import TLS
from snimux.proto.http_head import HTTP
from snimux.routing.access import Access, Admission
from snimux.routing.address import Activated, FdAddress, TcpAddress, UnixAddress, parse_listen
from snimux.routing.decide import EntryPoint
from snimux.routing.networks import Networks, parse_network
from snimux.routing.routes import Backend, Route, parse_pattern, targets

SECURE = TcpAddress("127.0.0.1", 8443)
DAO = TcpAddress("127.0.0.1", 8444)
EXAMPLE = resources.files("snimux").joinpath("example.toml").read_text("utf-8")


def flags(**given_flags: Any) -> dict[str, Any]:
    return {"route": ("secure.ciso.com=127.0.0.1:8443",), **given_flags}


def from_file(toml: str, **given_flags: Any) -> Config:
    return load(given_flags, "snimux.toml", toml)


def problems(toml: str | None = None, **given_flags: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(given_flags, "snimux.toml", toml)
    for line in caught.value.problems:
        assert line.isprintable()
        assert len(line) < 300
    return caught.value.problems


def test_the_storys_command_line() -> None:
    config = load(
        {
            "route": (
                "secure.ciso.com=127.0.0.1:8443",
                "dao.ciso.com,traefik.ciso.com=127.0.0.1:8444",
            )
        }
    )
    assert config == Config(
        (EntryPoint(TLS, TcpAddress("", 443)),),
        (
            Route(parse_pattern("secure.ciso.com"), targets(tls=Backend((SECURE,)))),
            Route(parse_pattern("dao.ciso.com"), targets(tls=Backend((DAO,)))),
            Route(parse_pattern("traefik.ciso.com"), targets(tls=Backend((DAO,)))),
        ),
        Limits(),
        "auto",
        "logfmt",
        "info",
    )


def test_every_flag() -> None:
    config = load(
        {
            "listen": ("127.0.0.1:8443", "[::1]:0", "fd/3"),
            "route": ("Bücher.example, *.x.example/h2 = unix//run/a.sock, localhost:1",),
            "default": "127.0.0.1:2,[::1]:2",
            "proxy_protocol": "v1",
            "hello_timeout": "0.5",
            "max_hello": "65536",
            "dial_timeout": "3",
            "idle_timeout": "off",
            "max_connections": "7",
            "max_connections_per_source": "2",
            "drain": "0",
            "log_format": "json",
            "log_level": "debug",
        }
    )
    first = Backend((UnixAddress("/run/a.sock"), TcpAddress("localhost", 1)), "v1")
    last = Backend((TcpAddress("127.0.0.1", 2), TcpAddress("::1", 2)), "v1")
    assert config.routes == (
        Route(parse_pattern("bücher.example"), targets(tls=first)),
        Route(parse_pattern("*.x.example/h2"), targets(tls=first)),
        Route(parse_pattern("*"), targets(tls=last)),
    )
    assert config.addresses(TLS) == (
        TcpAddress("127.0.0.1", 8443),
        TcpAddress("::1", 0),
        FdAddress(3),
    )
    assert config.limits == Limits(0.5, 65536, 3.0, math.inf, 7, 2, 0.0)
    assert (config.log_format, config.log_level) == ("json", "debug")


def test_the_example_file_says_every_key_and_every_default() -> None:
    document = tomllib.loads(EXAMPLE)
    for setting in SETTINGS:
        assert document[setting.key] == setting.default, setting.key
    assert {"listen", "http", "default", "route", *(s.key for s in SETTINGS)} == set(document)
    assert {key for route in document["route"] for key in route} == {
        "hosts", "to", "proxy", "http", "http_proxy", "balance", "wait", "check",
    }  # fmt: skip
    config = from_file(EXAMPLE)
    assert config.addresses(HTTP) == (TcpAddress("", 80),)
    assert config == from_file(EXAMPLE.replace('http = [":80"]', ""))
    assert config.limits == Limits()
    assert config.backends == BackendDefaults()
    assert config.addresses(TLS) == load(flags()).addresses(TLS)
    assert [str(route.pattern) for route in config.routes] == [
        "secure.ciso.com", "dao.ciso.com", "traefik.ciso.com", "pool.ciso.com", "*",
    ]  # fmt: skip
    assert config.routes[1].targets.get("tls") is not None
    assert config.routes[1].targets["tls"].proxy == "v2"
    assert config.routes[0].targets.get("http") == Backend((TcpAddress("127.0.0.1", 8080),))
    assert config.routes[1].targets.get("http") is not None
    assert config.routes[1].targets["http"].proxy == "v2"
    assert config.routes[3].targets.get("tls") == Backend(
        (TcpAddress("127.0.0.1", 8446), TcpAddress("127.0.0.1", 8447)),
        weights=(1, 2),
        balance="round_robin",
        wait=0,
        check="tls",
    )
    assert config.routes[4].targets.get("http") is None


def test_what_is_said_of_backends() -> None:
    said = {"balance": "ip_hash", "wait": "off", "check": "tcp", "check_every": "2", "fall": "1"}
    config = load(flags(**said, rise="4"))
    assert config.backends == BackendDefaults("ip_hash", 0, "tcp", 2, 4, 1)
    assert from_file("wait = 3\n[[route]]\nhosts='a'\nto='x:1'").backends.wait == 3


def test_weights_that_nothing_heeds_are_a_mistake() -> None:
    weighted = "[[route]]\nhosts='a'\nhttp=['x:1', {address='x:2', weight=2}]\n"
    (line,) = problems(weighted)
    assert line.startswith("the route of a has weights, which balance = first does not heed; ")
    for balance in ("round_robin", "least_conn", "ip_hash"):
        assert (
            from_file(f"balance = '{balance}'\n{weighted}").routes[0].targets.get("http")
            is not None
        )
        assert (
            from_file(f"{weighted}balance = '{balance}'").routes[0].targets.get("http") is not None
        )
        assert load({"balance": balance}, "snimux.toml", weighted).backends.balance == balance
    (line,) = problems(f"balance = 'ip_hash'\n{weighted}balance = 'first'")
    assert "does not heed" in line


def test_beside_port_443_a_caddy_has_port_80_too() -> None:
    assert load({"caddy": ("localhost:2019",)}).addresses(HTTP) == (TcpAddress("", 80),)
    assert load({"caddy": ("localhost:2019",), "listen": (":8443",)}).addresses(HTTP) == ()
    assert load({"caddy": ("localhost:2019",), "http": ("off",)}).addresses(HTTP) == ()


def test_with_a_caddy_no_route_is_needed() -> None:
    config = load({"caddy": ("localhost:2019", "unix//run/a.sock")})
    assert config.routes == ()
    assert config.caddys == (TcpAddress("localhost", 2019), UnixAddress("/run/a.sock"))


def test_the_caddys_of_flags_come_before_those_of_the_file() -> None:
    toml = "[[caddy]]\nadmin = 'file/x.json'\n[[caddy]]\nadmin = 'x:1'"
    config = from_file(toml, caddy=("x:2", "x:1"))
    assert [str(address) for address in config.caddys] == ["x:2", "x:1", "file/x.json"]


def test_a_directory_of_routes_is_a_flag_and_a_table() -> None:
    toml = "[[caddy]]\nadmin = 'x:1'\n[[routes_dir]]\npath = '/etc/snimux/routes/'"
    config = from_file(toml, routes_dir=("routes.d", "./more"), caddy=("x:2",))
    # what somebody has written has a claim before what is found
    names = ["routes.d", "more", "/etc/snimux/routes", "x:2", "x:1"]
    assert [str(address) for address in config.providers] == names
    assert [str(address) for address in config.caddys] == ["x:2", "x:1"]
    assert load({"routes_dir": ("routes.d",)}).addresses(HTTP) == (TcpAddress("", 80),)


@pytest.mark.parametrize(
    ("toml", "line"),
    [
        ("[[routes_dir]]\n", "routes_dir 1: path is missing"),
        ("[[routes_dir]]\npath = ''", "routes_dir 1: path: '': a directory needs a path, as in"),
        ("[[routes_dir]]\npath = 1", 'routes_dir 1: path: 1 is not a string, such as "/etc/'),
        ("[[routes_dir]]\npath = 'a'\nproxy = 'off'", "routes_dir 1: unknown key 'proxy'; it goes"),
        ("[[routes_dir]]\npaht = 'a'", "routes_dir 1: unknown key 'paht'; did you mean path?"),
        ('[[routes_dir]]\npath = "a\\u001b"', "routes_dir 1: path: 'a\\x1b': a character that can"),
        (
            "routes_dir = 'a'",
            "routes_dir: routes_dirs are tables, each headed [[routes_dir]]",
        ),
        ("path = 'a'\ndefault = 'a:1'", "unknown key 'path'; it goes into a [[routes_dir]]"),
        ("[[routes_dir]]\npath = 'a'\n[[routes_dir]]\npath = './a/'", "path: a is given twice"),
    ],
)
def test_what_is_wrong_with_a_directory_of_routes_is_said(toml: str, line: str) -> None:
    (problem, *_) = problems(toml)
    assert line in problem


def test_flags_win_over_the_file() -> None:
    toml = """
    listen = "127.0.0.1:1"
    drain = 5
    idle_timeout = 9
    [[route]]
    hosts = ["a.example", "b.example"]
    to = "127.0.0.1:10"
    """
    config = from_file(toml, listen=("127.0.0.1:2",), drain="6", route=("A.example=127.0.0.1:20",))
    assert config.addresses(TLS) == (TcpAddress("127.0.0.1", 2),)
    assert (config.limits.drain, config.limits.idle_timeout) == (6, 9)
    assert {str(r.pattern): str(r.targets.get("tls")) for r in config.routes} == {
        "a.example": "127.0.0.1:20",
        "b.example": "127.0.0.1:10",
    }


def test_where_each_route_is_written_is_known() -> None:
    file = '[[route]]\nhosts = ["a.example", "b.example"]\nto = "127.0.0.1:1"\n'
    flags = {"route": ["b.example=127.0.0.1:2"], "default": "127.0.0.1:3"}
    written = load(flags, "snimux.toml", file).written
    assert {str(pattern): where for pattern, where in written.items()} == {
        "a.example": "route 1 of snimux.toml",
        "b.example": "--route, which wins over route 1 of snimux.toml",
        "*": "--default",
    }


@pytest.mark.parametrize(
    ("listen", "ports", "expected"),
    [
        ([":443"], [443], 443),
        ([":8443", ":443"], [8443, 443], 443),
        ([":8443", ":9443"], [8443, 9443], 8443),
        ([":0"], [40000], 40000),
        (["unix//run/snimux"], [], 443),
        (["fd/3", ":8443"], [8443], 443),
    ],
)
def test_the_port_at_which_clients_find_tls(
    listen: list[str], ports: list[int], expected: int
) -> None:
    config = load({"listen": listen, "default": "127.0.0.1:1"})
    assert https_port(config, ports) == expected


def test_a_default_by_flag_replaces_the_files() -> None:
    config = from_file('default = "127.0.0.1:1"', default="127.0.0.1:2")
    assert [str(route.targets.get("tls")) for route in config.routes] == ["127.0.0.1:2"]


SIDE = """
[[route]]
hosts = ["a.example", "*.b.example"]
to = "127.0.0.1:8443"
http = ["unix//run/http.sock", "127.0.0.1:8080"]
http_proxy = "v1"
"""


def test_a_route_may_have_an_http_side() -> None:
    config = from_file(SIDE)
    side = Backend((UnixAddress("/run/http.sock"), TcpAddress("127.0.0.1", 8080)), "v1")
    assert [route.targets.get("http") for route in config.routes] == [side, side]
    assert [route.targets.get("tls") for route in config.routes] == [Backend((SECURE,))] * 2
    replaced = from_file(SIDE, route=("a.example=127.0.0.1:1",))
    assert {str(route.pattern): route.targets.get("http") for route in replaced.routes} == {
        "a.example": None,
        "*.b.example": side,
    }


@pytest.mark.parametrize(
    ("listen", "toml", "given_http", "http"),
    [
        # the default: port 80 beside port 443, where a route has something to say there
        ((), SIDE, (), ":80"),
        (("127.0.0.1:443",), SIDE, (), ":80"),
        (("[::1]:1", "[::1]:443"), SIDE, (), ":80"),
        ((":443", ":80"), SIDE, (), ""),
        ((":9443",), SIDE, (), ""),
        (("fd/3",), SIDE, (), ""),
        ((), "default = '127.0.0.1:1'", (), ""),
        # what is said
        ((), SIDE, ("off",), ""),
        ((":9443",), SIDE, (":81", "fd/4", "unix//run/80.sock"), ":81 fd/4 unix//run/80.sock"),
        ((":9443",), "default = '127.0.0.1:1'", (":80",), ":80"),
        ((), f"http = 'off'\n{SIDE}", (), ""),
        ((), f"http = ['off']\n{SIDE}", (), ""),
        ((), f"http = 'off'\n{SIDE}", (":81",), ":81"),
        ((), f"http = [':1', ':2']\n{SIDE}", (), ":1 :2"),
        ((), f"http = [':1', ':2']\n{SIDE}", ("off",), ""),
    ],
)
def test_where_plain_http_is_listened_for(
    listen: tuple[str, ...], toml: str, given_http: tuple[str, ...], http: str
) -> None:
    config = from_file(toml, listen=listen, http=given_http)
    assert " ".join(map(str, config.addresses(HTTP))) == http


@pytest.mark.parametrize(
    ("given_flags", "line"),
    [
        ({"http": (":443",)}, "http: :443 is covered by :443 already, where TLS is listened for"),
        ({"listen": ("127.0.0.1:1",), "http": (":1",)}, "http: :1 is covered by 127.0.0.1:1"),
        ({"listen": ("fd/3",), "http": ("fd/3",)}, "http: fd/3 is covered by fd/3 already"),
    ],
)  # fmt: skip
def test_tls_and_plain_http_need_an_address_each(given_flags: dict[str, Any], line: str) -> None:
    (found,) = problems(**flags(**given_flags))
    assert found.startswith(line)


def test_all_mistakes_come_at_once() -> None:
    toml = "drain = 'x'\nlistn = 1\n[[route]]\nhosts = 'a..b'\nto = 'x'\n"
    found = problems(toml, route=("foo",), drain="y")
    assert [line.startswith("snimux.toml: ") for line in found] == [False] * 2 + [True] * 4


def test_what_a_caddy_serves_is_automatic_unless_it_is_off() -> None:
    one, two = TcpAddress("localhost", 1), TcpAddress("localhost", 2)
    toml = """
    [[caddy]]
    admin = "localhost:1"
    proxy = "off"
    [[caddy]]
    admin = "localhost:2"
    """
    assert from_file(toml).without_proxy == {one}
    caddys = ("localhost:1", "localhost:2")
    assert from_file(toml, caddy=caddys).without_proxy == {one}
    assert from_file(toml, caddy=caddys, proxy_protocol="auto").without_proxy == set()
    assert from_file(toml, caddy=caddys, proxy_protocol="off").without_proxy == {one, two}
    # a version is for the routes beside it
    beside = from_file(toml, caddy=caddys, proxy_protocol="v1", route=("a=x:1",))
    assert beside.without_proxy == {one}
    assert beside.routes == (
        Route(parse_pattern("a"), targets(tls=Backend((TcpAddress("x", 1),), "v1"))),
    )
    (line,) = problems("", caddy=caddys, proxy_protocol="v2")
    assert "for --caddy it is auto or off" in line


def test_listeners_that_do_not_overlap_are_fine() -> None:
    assert len(load(flags(listen=("0.0.0.0:1", "[::]:1"))).addresses(TLS)) == 2


def test_without_a_route_there_is_nothing_to_do() -> None:
    line = (
        "no routes: give --route HOST=ADDR, --default ADDR, --caddy ADDR, --routes-dir DIR or a "
        "--config FILE that has some; see --help"
    )
    assert problems() == (line,)
    assert problems("drain = 3") == (line,)


def test_where_no_route_is_needed_the_rest_counts() -> None:
    assert load({}, needs_routes=False).addresses(TLS) == (TcpAddress("", 443),)
    with pytest.raises(ConfigError, match="no port"):
        load({"listen": ["443"]}, needs_routes=False)


@pytest.mark.parametrize(
    ("listen", "to"),
    [
        (":443", "127.0.0.1:443"),
        ("unix//run/x.sock", "unix//run/x.sock"),
    ],
)
def test_a_route_back_to_snimux_itself_is_an_error(listen: str, to: str) -> None:
    (found,) = problems(listen=(listen,), route=(f"a.example={to}",))
    assert found.startswith(f"the route of a.example goes to {to}, where snimux itself listens")


@pytest.mark.parametrize(
    ("to", "http"),
    [("127.0.0.1:80", "127.0.0.1:8080"), ("127.0.0.1:8443", "127.0.0.1:443"),
     ("127.0.0.1:8443", "localhost:80")],
)  # fmt: skip
def test_neither_side_of_a_route_leads_back_to_snimux(to: str, http: str) -> None:
    toml = f"[[route]]\nhosts = 'a.example'\nto = '{to}'\nhttp = '{http}'"
    (found,) = problems(toml)
    back = to if to.endswith(":80") else http
    assert found.startswith(f"the route of a.example goes to {back}, where snimux itself listens")


@pytest.mark.parametrize(
    ("listen", "to"),
    [(":443", "127.0.0.1:8443"), (":443", "10.0.0.1:443")],
)
def test_a_route_elsewhere_is_none(listen: str, to: str) -> None:
    assert load({"listen": (listen,), "route": (f"a.example={to}",)})


def test_caddys_that_were_found_are_as_if_they_were_given() -> None:
    found = [TcpAddress("localhost", 2019), TcpAddress("localhost", 2019)]
    assert with_caddys(load({}, needs_routes=False), found) == load({"caddy": ("localhost:2019",)})
    off = load({"http": ("off",)}, needs_routes=False)
    assert with_caddys(off, found).addresses(HTTP) == ()


# --- sockets that were handed over

TLS_443 = Activated(FdAddress(3), "tls", TcpAddress("", 443))
HTTP_80 = Activated(FdAddress(4), "http", TcpAddress("", 80))
CADDY = {"caddy": ("localhost:2019",)}


def test_what_was_handed_over_is_instead_of_the_defaults() -> None:
    config = load(CADDY, activated=[TLS_443, HTTP_80])
    assert config.addresses(TLS) == (FdAddress(3),)
    assert config.addresses(HTTP) == (FdAddress(4),)
    assert config.handed_over == (TcpAddress("", 443), TcpAddress("", 80))
    # nothing is opened beside: it would need the privilege that this is there to do without
    assert load(CADDY, activated=[TLS_443]).addresses(HTTP) == ()
    assert load(CADDY, activated=[HTTP_80]).addresses(TLS) == ()


@pytest.mark.parametrize(
    ("there", "given", "besides"),
    [
        ([""], [":443"], []),
        ([""], [":9443", "127.0.0.1:9444"], [":9443", "127.0.0.1:9444"]),
        (["0.0.0.0", "::"], [":443"], []),
        (["127.0.0.1"], ["127.0.0.1:443", "127.0.0.2:443"], ["127.0.0.2:443"]),
    ],
)
def test_a_given_address_is_listened_on_besides_unless_it_is_covered(
    there: list[str], given: list[str], besides: list[str]
) -> None:
    sockets = [
        Activated(FdAddress(number), "tls", TcpAddress(host, 443))
        for number, host in enumerate(there, 3)
    ]
    config = load(flags(listen=given), activated=sockets)
    listed = [str(address) for address in config.addresses(TLS)]
    assert listed == [f"fd/{number + 3}" for number in range(len(there))] + besides


def test_a_socket_for_one_protocol_does_not_cover_the_others_address() -> None:
    config = load(flags(listen=[":443"], http=[":80"]), activated=[HTTP_80])
    assert config.addresses(TLS) == (TcpAddress("", 443),)
    assert config.addresses(HTTP) == (FdAddress(4),)
    unix = Activated(FdAddress(3), "tls", UnixAddress("/run/x"))
    assert load(flags(listen=["unix//run/x"]), activated=[unix]).addresses(TLS) == (FdAddress(3),)


def test_what_is_listed_by_number_is_what_it_is_listed_as() -> None:
    config = load(flags(listen=["fd/4"], http=["fd/3"]), activated=[TLS_443, HTTP_80])
    assert config.addresses(TLS) == (FdAddress(4),)
    assert config.addresses(HTTP) == (FdAddress(3),)
    one = load(flags(listen=["fd/3"]), activated=[TLS_443, HTTP_80])
    assert (one.addresses(TLS), one.addresses(HTTP)) == ((FdAddress(3),), (FdAddress(4),))


def test_off_and_a_socket_for_plain_http_contradict_each_other() -> None:
    with pytest.raises(ConfigError) as caught:
        load(flags(http=["off"]), activated=[TLS_443, HTTP_80])
    words = "http: off, but a socket for plain HTTP was handed over: leave out one"
    assert caught.value.problems == (words,)
    assert load(flags(http=["off"]), activated=[TLS_443]).addresses(HTTP) == ()


@pytest.mark.parametrize("listed", [[], ["fd/3"]])
def test_a_route_back_to_what_was_handed_over_is_an_error(listed: list[str]) -> None:
    with pytest.raises(ConfigError, match="where snimux itself listens"):
        load({"route": ["a.b=127.0.0.1:443"], "listen": listed}, activated=[TLS_443])


# Who is let in.


def admission(allow: str = "", deny: str = "", *, acme_exempt: bool = False) -> Admission:
    allowed, denied = (Networks((parse_network(x),)) if x else None for x in (allow, deny))
    return Admission(Access(allowed, denied, acme_exempt))


ROUTED = '\n[[route]]\nhosts = "*"\nto = "localhost:1"\n'
OWN = '[[listen]]\naddress = "{}"\nallow = "10.0.0.0/8"\n'


def test_what_a_listener_says_itself_wins_and_flags_win_over_the_file() -> None:
    toml = """
        listen = [":443", {address = ":8443", deny = "10.0.0.1", acme_exempt = true}]
        deny = "10.0.0.2"
        allow = "10.0.0.0/8"
        """
    config = load({}, "f", toml + ROUTED)
    everybody = admission("10.0.0.0/8", "10.0.0.2")
    assert config.entry_at(parse_listen(":443")).admission == everybody
    assert config.entry_at(None).admission == everybody
    own = admission("10.0.0.0/8", "10.0.0.1", acme_exempt=True)
    assert config.entry_at(parse_listen(":8443")).admission == own
    config = load({"deny": ("10.0.0.3",)}, "f", toml + ROUTED)
    assert config.entry_at(parse_listen(":443")).admission == admission("10.0.0.0/8", "10.0.0.3")
    assert config.entry_at(parse_listen(":8443")).admission == own
    assert load({}, "f", ROUTED).entry_at(parse_listen(":443")).admission is None


def test_a_balancer_is_believed_at_all_listeners_or_at_one() -> None:
    trusted = Networks((parse_network("10.0.0.1"),), unix=True)
    config = load({"proxy_from": ("10.0.0.1", "unix")}, "f", ROUTED)
    assert config.admission == Admission(proxy_from=trusted)
    toml = 'listen = [":81", {address = ":82", proxy_from = ["10.0.0.1", "unix"], deny = "::1"}]'
    config = load({}, "f", toml + ROUTED)
    assert config.entry_at(parse_listen(":81")).admission is None
    denied = Networks((parse_network("::1"),))
    own = Admission(Access(deny=denied), trusted)
    assert config.entry_at(parse_listen(":82")).admission == own


def test_the_rules_of_an_address_are_those_of_the_socket_that_was_handed_over_for_it() -> None:
    handed = Activated(FdAddress(3), "tls", parse_listen(":443"))
    config = load({}, "f", OWN.format(":443") + ROUTED, activated=[handed])
    assert config.addresses(TLS) == (FdAddress(3),)
    assert config.entry_at(FdAddress(3)).admission == admission("10.0.0.0/8")
    both = [Activated(FdAddress(3 + x), "tls", parse_listen(("0.0.0.0:443", "[::]:443")[x]))
            for x in (0, 1)]  # fmt: skip
    config = load({}, "f", OWN.format(":443") + ROUTED, activated=both)
    assert config.entry_at(FdAddress(4)).admission == admission("10.0.0.0/8")
    config = load({}, "f", OWN.format("fd/3") + ROUTED, activated=[handed])
    assert config.entry_at(FdAddress(3)).admission == admission("10.0.0.0/8")


def test_workers_do_not_know_rules_by_a_descriptor_s_number() -> None:
    handed = Activated(FdAddress(3), "tls", parse_listen(":443"))
    for workers in ("2", "auto"):
        with pytest.raises(ConfigError) as caught:
            load({"workers": workers}, "f", OWN.format("fd/3") + ROUTED, activated=[handed])
        assert caught.value.problems == (
            "listen: fd/3 has a name or rules of its own, which workers do not know by its "
            "number: give them to the address that it listens on, or the rules to all listeners",
        )
    # a worker has another number for what was handed to its supervisor
    handed = Activated(FdAddress(7), "tls", parse_listen(":443"))
    config = load({"workers": "2"}, "f", OWN.format(":443") + ROUTED, activated=[handed])
    assert config.entry_at(FdAddress(7)).admission == admission("10.0.0.0/8")


@pytest.mark.parametrize(
    ("toml", "line"),
    [
        (OWN.format("10.0.0.1:443"), "listen: 10.0.0.1:443 has a name or rules of its own, "
         "but all that comes to :443 comes to one socket, which was handed over: give them to that "
         "address"),
        ("acme_exempt = true", "acme_exempt: is for allow and deny, and there is neither"),
    ],
)  # fmt: skip
def test_rules_that_could_not_hold_are_told(toml: str, line: str) -> None:
    handed = Activated(FdAddress(3), "tls", parse_listen(":443"))
    with pytest.raises(ConfigError) as caught:
        load({}, "f", toml + ROUTED, activated=[handed])
    assert caught.value.problems == (line,)
