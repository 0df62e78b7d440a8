"""``providers.merge``: what real Caddys' configurations say, and that nothing whatever raises."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snimux.providers.base import Unrouted
from snimux.providers.caddy.read import read
from snimux.providers.caddy.sites import Sites
from snimux.providers.merge import plan
from snimux.routing.address import (
    UnixAddress,
)
from snimux.routing.routes import Pattern, parse_pattern
from snimux.routing.served import ProxyProtocol, Served
from tests import caddyfiles
from tests.caddyfiles import Adapted

ADAPTED = caddyfiles.load()
FIRST = UnixAddress("/run/caddy-a/admin.sock")


def served(sites: Sites) -> str:
    """What is served where, as in the files `*.sites`."""
    lines = [
        *(f"{x.host}  https {places(x.https)}  http {places(x.http)}" for x in sites.sites),
        *(f"! {x.what}: {x.why}" for x in sites.unrouted),
        *(f"ech {name}" for name in sites.ech_public_names),
    ]
    return "".join(line + "\n" for line in lines)


def places(listeners: tuple[Served, ...]) -> str:
    return ", ".join(map(place, listeners)) or "nowhere"


def place(listener: Served) -> str:
    wrapper = listener.proxy_protocol
    if wrapper is None:
        return str(listener.address)
    words = ["proxy_protocol" if wrapper.before_tls else "proxy_protocol behind tls"]
    words += [f"allow {cidr}" for cidr in wrapper.allow] + [f"deny {cidr}" for cidr in wrapper.deny]
    return f"{listener.address} ({'; '.join([*words, wrapper.fallback_policy])})"


@pytest.mark.parametrize("adapted", ADAPTED, ids=lambda x: x.slug)
def test_what_a_real_configuration_serves(adapted: Adapted) -> None:
    assert served(read(adapted.config)) == adapted.sites


def test_there_are_configurations_of_both_versions() -> None:
    slugs = {adapted.slug for adapted in ADAPTED}
    names = {slug.partition(".")[0] for slug in slugs}
    assert len(names) >= 20
    assert {f"{name}.2.11" for name in names} <= slugs
    assert len([slug for slug in slugs if slug.endswith(".2.6")]) >= 20


# --- by hand: what a Caddyfile cannot say


def server(*hosts: str, listen: Any = ":443", **rest: Any) -> dict[str, Any]:
    routes = [{"match": [{"host": list(hosts)}]}] if hosts else [{}]
    return {"listen": listen if isinstance(listen, list) else [listen], "routes": routes, **rest}


def config(*servers: dict[str, Any], tls: Any = None, **http: Any) -> dict[str, Any]:
    named = {f"srv{number}": server for number, server in enumerate(servers)}
    return {"apps": {"http": {"servers": named, **http}, "tls": tls or {}}}


@pytest.mark.parametrize(
    ("listen", "https"),
    [
        (":8443", "127.0.0.1:8443"),
        ("tcp/:8443", "127.0.0.1:8443"),
        ("0.0.0.0:8443", "127.0.0.1:8443"),
        ("tcp4/0.0.0.0:8443", "127.0.0.1:8443"),
        ("[::]:8443", "[::1]:8443"),
        ("tcp6/:8443", "[::1]:8443"),
        ("TCP6/[::]:8443", "[::1]:8443"),
        ("127.0.0.9:8443", "127.0.0.9:8443"),
        ("[fd00::9]:8443", "[fd00::9]:8443"),
        ("[fe80::9%eth0]:8443", "[fe80::9%eth0]:8443"),
        ("localhost:8443", "localhost:8443"),
        (":8443-8445", "127.0.0.1:8443"),
        ("unix//run/x.sock", "unix//run/x.sock"),
        ("unix//run/x.sock|0200", "unix//run/x.sock"),
        (["unix//run/x.sock", ":8443", "0.0.0.0:8443"], "unix//run/x.sock, 127.0.0.1:8443"),
        (["udp/:443", ":8443"], "127.0.0.1:8443"),
    ],
)
def test_where_a_listener_is_dialled(listen: Any, https: str) -> None:
    found = read(config(server("a.example", listen=listen)))
    assert places(found.sites[0].https) == https
    assert not found.unrouted


@pytest.mark.parametrize(
    ("listen", "why"),
    [
        ("fd/3", "fd/ cannot be dialled"),
        ("fdgram/3", "fdgram/ cannot be dialled"),
        ("udp/:8443", "udp/ cannot be dialled"),
        ("unixgram//run/x", "unixgram/ cannot be dialled"),
        ("unix/@abstract", "a UNIX socket needs a path from the root: unix//path/to/socket"),
        ("unix//run/x\ud800", "has a character that cannot be printed"),
        ("unix//" + "x" * 200, "the path of a UNIX socket has at most 103 bytes"),
        (":0", "has no port that is known"),
        ("localhost", "has no port that is known"),
        (":https", "has no port that is known"),
        (":99999", "'99999' is no port; a port is a number up to 65535"),
        (":{env.PORT}", "has a placeholder, which only Caddy can resolve"),
        ("{$HOST}:8443", "has a placeholder, which only Caddy can resolve"),
        ("a b:8443", "host 'a b': has ' '; a name has letters, digits, hyphens, underscores "
                     "and dots"),
    ],
)  # fmt: skip
def test_a_listener_that_cannot_be_dialled_is_told_for_each_name(listen: str, why: str) -> None:
    found = read(config(server("a.example", "b.example", listen=listen)))
    assert not [site for site in found.sites if site.https]
    assert [unrouted.what for unrouted in found.unrouted] == ["a.example", "b.example"]
    for unrouted in found.unrouted:
        assert unrouted.why.startswith("the listener ")
        assert unrouted.why.endswith(f": {why}")
        assert unrouted.why.isprintable()


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("{env.SUB}.example.com", "has a placeholder, which only Caddy can resolve"),
        ("{http.request.host}", "has a placeholder, which only Caddy can resolve"),
        ("*", "a * that is not one label at the front"),
        ("**.example", "a * that is not one label at the front"),
        ("*.*.example", "a * that is not one label at the front"),
        ("a.*.example", "a * that is not one label at the front"),
        ("10.0.0.1", "an IP address, for which clients send no name"),
        ("::1", "an IP address, for which clients send no name"),
        ("", "its name is empty, and no client asks for that"),
    ],
)
def test_a_host_that_is_no_pattern_is_told(host: str, why: str) -> None:
    found = read(config(server(host, "a.example")))
    assert [site.host for site in found.sites] == ["a.example"]
    assert found.unrouted == (Unrouted(host or "a site without a name", why),)


def test_names_of_connection_policies_and_certificates_are_sites_too() -> None:
    policies = [{"match": {"sni": ["sni.example", "*.sni.example"]}}, {}]
    tls = {"certificates": {"automate": ["automated.example", 3]}}
    catch_all = server(tls_connection_policies=policies)
    found = read(config(catch_all, tls=tls))
    hosts = [site.host for site in found.sites]
    assert hosts == ["sni.example", "*.sni.example", "automated.example"]
    assert [unrouted.what for unrouted in found.unrouted] == ["127.0.0.1:443"]
    # without a catch-all no route would answer to it
    assert "automated.example" not in served(read(config(server("a.example"), tls=tls)))


def test_on_one_server_the_http_port_is_plain_and_the_others_are_not() -> None:
    both = server("a.example", listen=[":80", ":443"])
    assert served(read(config(both))) == "a.example  https 127.0.0.1:443  http 127.0.0.1:80\n"
    plain = server("a.example", listen=[":80", ":443"], automatic_https={"disable": True})
    assert read(config(plain)).sites[0].https == ()
    ports = server("a.example", listen=":80-82", tls_connection_policies=[{}])
    assert served(read(config(ports))) == "a.example  https 127.0.0.1:81  http 127.0.0.1:80\n"
    none = server("a.example", tls_connection_policies=[])
    assert read(config(none)).sites[0].https == ()


def test_the_https_port_has_a_name_before_another_and_the_first_server_before_the_next() -> None:
    three = [server("a.example", listen=listen) for listen in (":9443", ":9444", ":8443")]
    found = read(config(*three, https_port=8443))
    assert served(found) == (
        "a.example  https 127.0.0.1:8443  http 127.0.0.1:80\n"
        "! a.example on 127.0.0.1:9443: another site of the name, on 127.0.0.1:8443, "
        "has the route\n"
        "! a.example on 127.0.0.1:9444: another site of the name, on 127.0.0.1:8443, "
        "has the route\n"
    )


def test_redirects_are_where_somebody_listens_already() -> None:
    tls, plain = server("a.example"), server("b.example", listen="192.0.2.7:80")
    # On Linux Caddy adds them to the server of that address, elsewhere it opens one of its own.
    assert places(read(config(tls, plain)).sites[0].http) == "192.0.2.7:80, 127.0.0.1:80"
    apart = server("a.example", listen="192.0.2.8:443")
    assert places(read(config(apart, plain)).sites[0].http) == "192.0.2.8:80"


def test_plain_http_for_a_wildcard_serves_its_names() -> None:
    tls = server("a.example.com", "*.example.net", listen=":443")
    plain = server("*.example.com", listen=":8080", automatic_https={"disable": True})
    sites = {site.host: places(site.http) for site in read(config(tls, plain)).sites}
    assert sites == {
        "a.example.com": "127.0.0.1:8080",
        "*.example.net": "127.0.0.1:80",
        "*.example.com": "127.0.0.1:8080",
    }


@pytest.mark.parametrize("nothing", [None, {}, [], 3, "x", {"apps": []}, {"apps": {"http": None}}])
def test_of_nothing_nothing_is_read(nothing: object) -> None:
    assert read(nothing) == Sites()


def test_ten_thousand_sites_are_read() -> None:
    one = server(*(f"site-{number}.example" for number in range(10_000)))
    assert len(read(config(one)).sites) == 10_000


# --- nothing raises

LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats()
    | st.text(st.characters(), max_size=8)
    | st.sampled_from(["a.example", "*.x", ":443", ":80-90", "unix//x|0200", "[::]:8443",
                       "{env.X}", "tls", "proxy_protocol", "\ud800", "fd/3", "tcp6/:1"])
)  # fmt: skip
KEYS = st.sampled_from(
    ["apps", "http", "tls", "servers", "http_port", "https_port", "listen", "routes", "match",
     "host", "sni", "automatic_https", "disable", "skip", "disable_redirects", "wrapper",
     "tls_connection_policies", "listener_wrappers", "allow", "certificates", "automate",
     "encrypted_client_hello", "configs", "public_name", "automation", "policies", "on_demand"]
) | st.text(max_size=3)  # fmt: skip
JSON = st.recursive(
    LEAVES,
    lambda x: st.lists(x, max_size=4) | st.dictionaries(KEYS, x, max_size=5),
    max_leaves=30,
)


@given(JSON)
def test_any_json_is_read(value: Any) -> None:
    check(value)


@given(st.sampled_from(ADAPTED), st.data())
def test_any_mutation_of_a_real_configuration_is_read(
    adapted: Adapted, data: st.DataObject
) -> None:
    value = copy.deepcopy(adapted.config)
    for _ in range(data.draw(st.integers(1, 3))):
        mutate(value, data)
    check(value)


def mutate(value: Any, data: st.DataObject) -> None:
    """Put any JSON at some place of the value, or take out what is there."""
    while isinstance(value, dict | list) and value:
        inner = value if isinstance(value, dict) else dict(enumerate(value))
        key = data.draw(st.sampled_from(list(inner)))
        if not isinstance(value[key], dict | list) or data.draw(st.integers(0, 5)) == 0:
            if data.draw(st.booleans()):
                value[key] = data.draw(JSON)
            else:
                del value[key]
            return
        value = value[key]


def check(value: Any) -> None:
    found = read(value)
    for site in found.sites:
        assert parse_pattern(site.host) == Pattern(site.host)
        assert site.https or site.http
        for listener in (*site.https, *site.http):
            assert str(listener.address).isprintable()
    for unrouted in found.unrouted:
        assert unrouted.what.isprintable()
        assert unrouted.why.isprintable()
        assert len(unrouted.what) + len(unrouted.why) < 2000
    assert read(json.loads(json.dumps(value))) == found
    for route in plan([(FIRST, found)], [], lambda _: False).routes:
        backend = route.targets.get("tls") or route.targets.get("http")
        assert backend is not None
        assert backend.addresses


def test_whom_the_wrapper_believes() -> None:
    def believes(source: str, *allow: str, policy: str = "IGNORE") -> bool:
        return ProxyProtocol(allow, (), policy, before_tls=True).believes(source)

    assert believes("127.0.0.1", "::1/128", "127.0.0.0/8")
    assert believes("::1", "127.0.0.1/32", "::1/128")
    assert believes("127.0.0.1", policy="USE")
    assert believes("127.0.0.1", policy="REQUIRE")
    assert not believes("127.0.0.1")
    assert not believes("127.0.0.1", "::1/128", "no network", "10.0.0.0/8", policy="SKIP")


@pytest.mark.parametrize(
    ("extra", "redirect_port", "http3", "strict"),
    [
        ({}, None, True, False),
        ({"protocols": ["h1", "h2"], "strict_sni_host": True}, None, False, True),
        ({"protocols": ["h1"], "listen_protocols": [["h3"]]}, None, True, False),
        ({"listen_protocols": [["h1"]]}, None, False, False),
        ({"listen_protocols": [None]}, None, True, False),
        ({"listen": [":8444"]}, 8444, True, False),
        ({"listen": ["a.example", ":0", ":99999"]}, None, True, False),
        ({"listen": ["unix//run/x"]}, None, False, False),
        ({"listen": [":8444"], "automatic_https": {"disable_redirects": True}}, None, True, False),
        ({"tls_connection_policies": [{"client_authentication": {"mode": "request"}}]},
         None, True, True),
        ({"tls_connection_policies": [{"client_authentication": {"mode": "request"}}],
          "strict_sni_host": False}, None, True, False),
    ],
)  # fmt: skip
def test_what_of_a_server_shows_with_something_in_front_of_it(
    extra: dict[str, Any], redirect_port: int | None, http3: bool, strict: bool
) -> None:
    (found,) = read(config({**server("a.example"), **extra})).servers
    assert (found.redirect_port, found.http3, found.strict_sni_host) == (
        redirect_port,
        http3,
        strict,
    )


def test_a_server_on_the_https_port_shows_no_port_and_one_in_plain_is_left_out() -> None:
    (found,) = read(config(server("a.example", listen=":8444"), https_port=8444)).servers
    assert found.redirect_port is None
    assert read(config(server("a.example", listen=":80"))).servers == ()
