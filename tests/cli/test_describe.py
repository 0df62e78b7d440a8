"""``cli.describe``: what people read of a configuration that is understood."""

from snimux.backend.proxy_auto import Remark
from snimux.cli.describe import describe
from snimux.config.load import load
from snimux.config.model import Config
from snimux.providers.base import Claim, Unrouted
from snimux.providers.caddy.sites import Sites
from snimux.providers.merge import Plan
from snimux.routing.access import Access
from snimux.routing.address import ProviderAddress, TcpAddress
from snimux.routing.networks import Networks, parse_network
from snimux.routing.routes import Backend, Route, parse_pattern, targets

STORY = ("secure.ciso.com=127.0.0.1:8443", "dao.ciso.com,traefik.ciso.com=127.0.0.1:8444")


def described(config: Config) -> list[str]:
    return describe(config, Plan(config.routes, (), ()), {}, []).splitlines()


def test_routes_are_shown_as_they_are_understood() -> None:
    routes = (*STORY, "*.Bücher.example/h2=unix//run/x,[::1]:1")
    config = load({"route": routes, "proxy_protocol": "v2", "idle_timeout": "off"})
    assert described(config) == [
        "listen",
        "  :443",
        "routes",
        "  secure.ciso.com               ->  127.0.0.1:8443  (PROXY protocol v2)",
        "  dao.ciso.com                  ->  127.0.0.1:8444  (PROXY protocol v2)",
        "  traefik.ciso.com              ->  127.0.0.1:8444  (PROXY protocol v2)",
        "  *.xn--bcher-kva.example/h2    ->  unix//run/x, else [::1]:1  "
        "(PROXY protocol v2, *.bücher.example)",
        "  all else                      ->  refused with the alert unrecognized_name",
        "limits",
        "  hello_timeout                 5",
        "  max_hello                     16384",
        "  dial_timeout                  5",
        "  idle_timeout                  off",
        "  max_connections               auto",
        "  max_connections_per_source    off",
        "  drain                         30",
        "  max_rate_per_source           off",
        "  max_burst_per_source          50",
    ]


def test_listeners_and_the_routes_for_them_are_shown_by_name() -> None:
    toml = """
        listen = [":443", { address = ":8443", name = "internal" }]
        http = { address = ":80", name = "internal" }
        [[route]]
        hosts = "a.example"
        listen = "internal"
        to = "127.0.0.1:1"
        """
    lines = described(load({}, "snimux.toml", toml))
    assert lines[:6] == [
        "listen",
        "  :443",
        "  :8443  (internal)",
        "  :80  (internal)                   plain HTTP",
        "routes",
        "  a.example@internal            ->  127.0.0.1:1",
    ]


def test_a_route_that_refuses_is_shown() -> None:
    routes = ("a.example,b.example/h2=refuse",)
    assert described(load({"route": routes, "http": (":80",)}))[4:7] == [
        "  a.example                     ->  refused with the alert unrecognized_name",
        "    plain HTTP                  ->  refused with 403",
        "  b.example/h2                  ->  refused with the alert unrecognized_name",
    ]


def test_what_is_transparent_is_said() -> None:
    file = '[[route]]\nhosts = "*"\nto = "127.0.0.1:1"\nproxy = "v2"\ntransparent = true'
    assert "  *                             ->  127.0.0.1:1  (PROXY protocol v2, transparent)" in (
        described(load({}, "snimux.toml", file))
    )


def test_where_the_status_is_shown_is_shown() -> None:
    config = load({"route": STORY[:1], "status": "127.0.0.1:9443"})
    assert described(config)[:4] == [
        "listen", "  :443", "  127.0.0.1:9443                    status", "routes",
    ]  # fmt: skip


def test_where_plain_http_goes_is_shown() -> None:
    file = """
        listen = "127.0.0.1:8443"
        [[route]]
        hosts = ["dao.ciso.com", "*.bücher.example"]
        to = "127.0.0.1:1"
        http = ["127.0.0.1:2", "unix//run/80"]
        http_proxy = "v1"
        [[route]]
        hosts = ["secure.ciso.com", "secure.ciso.com/h2"]
        to = "127.0.0.1:3"
        """
    lines = described(load({"http": ("127.0.0.1:8080",)}, "snimux.toml", file))
    assert lines[: lines.index("limits")] == [
        "listen",
        "  127.0.0.1:8443",
        "  127.0.0.1:8080                    plain HTTP",
        "routes",
        "  dao.ciso.com                  ->  127.0.0.1:1",
        "    plain HTTP                  ->  127.0.0.1:2, else unix//run/80  (PROXY protocol v1)",
        "  *.xn--bcher-kva.example       ->  127.0.0.1:1  (*.bücher.example)",
        "    plain HTTP                  ->  127.0.0.1:2, else unix//run/80  (PROXY protocol v1)",
        "  secure.ciso.com               ->  127.0.0.1:3",
        "    plain HTTP                  ->  redirected to https",
        "  secure.ciso.com/h2            ->  127.0.0.1:3",
        "  all else                      ->  refused with the alert unrecognized_name, or with 404",
    ]
    by_default = described(load({}, "snimux.toml", file))
    assert "  off                               plain HTTP" in by_default
    assert "redirected" not in "".join(by_default)
    both = described(load({"http": (":81", ":82")}, "snimux.toml", file))
    assert [line.split()[0] for line in both[2:4]] == [":81", ":82"]


def test_how_backends_are_served_is_shown_where_it_is_not_the_default() -> None:
    file = """
        listen = "127.0.0.1:8443"
        check = "tcp"
        fall = 1
        [[route]]
        hosts = "pool.test"
        to = ["127.0.0.1:1", { address = "127.0.0.1:2", weight = 2 }]
        balance = "round_robin"
        wait = "off"
        check = "tls"
        [[route]]
        hosts = "pair.test"
        to = ["127.0.0.1:3", "127.0.0.1:4"]
        wait = 0.5
        check = "off"
        """
    lines = described(load({"wait": "off"}, "snimux.toml", file))
    assert lines[lines.index("routes") + 1 : lines.index("limits")] == [
        "  pool.test                     ->  127.0.0.1:1, 127.0.0.1:2 (weight 2)  "
        "(balance round_robin, wait off, check tls)",
        "  pair.test                     ->  127.0.0.1:3, else 127.0.0.1:4  (wait 0.5, check off)",
        "  all else                      ->  refused with the alert unrecognized_name",
        "backends",
        "  wait                          off",
        "  check                         tcp",
        "  fall                          1",
    ]
    by_flag = "".join(described(load({"balance": "ip_hash"}, "snimux.toml", file)))
    assert "127.0.0.1:3, 127.0.0.1:4  (balance ip_hash, " in by_flag


def test_with_a_default_nothing_is_refused() -> None:
    assert "refused" not in "".join(described(load({"default": "127.0.0.1:1"})))


def test_what_of_the_caddys_has_no_route_is_told_and_what_was_learnt_of_backends() -> None:
    config = load({"route": STORY})
    first, second = TcpAddress("localhost", 2019), TcpAddress("localhost", 2020)
    loop = Unrouted("a.example", "it is served where snimux listens")
    found = Plan(config.routes, (Claim("dao.ciso.com", first, second),), (loop,))
    caddys: dict[ProviderAddress, Sites] = {first: Sites((), (Unrouted("b.example", "why"),))}
    learnt = Remark("127.0.0.1:8443", "v2", "understood", "info")
    lines = describe(config, found, caddys, [learnt]).splitlines()
    assert lines[lines.index("claimed twice") : lines.index("limits")] == [
        "claimed twice",
        "  dao.ciso.com: localhost:2019 has it, and localhost:2020 serves it too",
        "needs a route or --default",
        "  a.example: it is served where snimux listens",
        "  b.example: why",
        "PROXY protocol auto",
        "  127.0.0.1:8443                v2: understood",
    ]


def test_who_is_let_in_is_shown() -> None:
    file = """
        deny = ["10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/24", "10.0.3.1", "::1",
                "10.0.5.0/24", "unix"]
        [[listen]]
        address = "127.0.0.1:8443"
        allow = "10.0.0.0/8"
        acme_exempt = true
        [[http]]
        address = "127.0.0.1:8080"
        deny = "10.0.0.1"
        proxy_from = ["10.0.0.0/30", "unix"]
        [[route]]
        hosts = "dao.ciso.com"
        to = "127.0.0.1:1"
        allow = ["192.0.2.0/24", "unix"]
        """
    lines = described(load({}, "snimux.toml", file))
    assert lines[: lines.index("limits")] == [
        "listen",
        "  127.0.0.1:8443",
        "    allow 10.0.0.0/8",
        "    deny 10.0.0.0/24, 10.0.1.0/24, 10.0.2.0/24, 10.0.3.1, ::1, and 2 more",
        "    ACME's validations are exempt",
        "  127.0.0.1:8080                    plain HTTP",
        "    deny 10.0.0.1",
        "    PROXY protocol from 10.0.0.0/30, unix",
        "routes",
        "  dao.ciso.com                  ->  127.0.0.1:1",
        "    plain HTTP                  ->  redirected to https",
        "    allow 192.0.2.0/24, unix",
        "  all else                      ->  refused with the alert unrecognized_name, or with 404",
    ]


def test_whose_lists_a_found_route_has_is_shown() -> None:
    access = Access(allow=Networks((parse_network("10.0.0.0/8"),)))
    to, above = Backend((TcpAddress("127.0.0.1", 1),)), parse_pattern("*.example")
    routes = (
        Route(above, targets(tls=to), access=access),
        Route(parse_pattern("a.example"), targets(tls=to), access, above),
    )
    lines = describe(load({}, needs_routes=False), Plan(routes, (), ()), {}, []).splitlines()
    assert lines[2:9] == [
        "routes",
        "  *.example                     ->  127.0.0.1:1",
        "    allow 10.0.0.0/8",
        "  a.example                     ->  127.0.0.1:1",
        "    allow 10.0.0.0/8",
        "    as *.example, which is above it",
        "  all else                      ->  refused with the alert unrecognized_name",
    ]
