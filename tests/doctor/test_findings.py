"""``doctor.findings``: facts in, findings out; and nothing that a Caddy says makes it raise."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snimux.doctor.facts import (
    Caddy,
    Certificate,
    Contact,
    Down,
    Facts,
    NoHandshake,
    Outcome,
    Port,
    Probed,
    Process,
    Unread,
)
from snimux.doctor.findings import Colour, Finding
from snimux.doctor.judge import diagnose
from snimux.proto.proxy_header import Version
from snimux.providers.base import Claim, Site, Unrouted
from snimux.providers.caddy.read import read
from snimux.providers.caddy.sites import Sites, TlsServer
from snimux.providers.merge import Plan, plan
from snimux.routing.address import (
    AdminAddress,
    DialAddress,
    FdAddress,
    FileAddress,
    TcpAddress,
    UnixAddress,
)
from snimux.routing.routes import Backend, Pattern, Route, targets
from snimux.routing.served import ProxyProtocol, Served
from tests import caddyfiles

Proxy = Version | Literal["auto"] | None

HTTPS, HTTP = TcpAddress("", 443), TcpAddress("", 80)
FIRST, SECOND = TcpAddress("localhost", 2019), UnixAddress("/run/b/admin.sock")
A, B = TcpAddress("127.0.0.1", 8443), TcpAddress("127.0.0.1", 8444)
CADDY_A = Process(7, "caddy", is_caddy=True, config="/etc/a/Caddyfile")
CADDY_B = Process(8, "caddy", is_caddy=True, config="/etc/b/Caddyfile")
DAY = 86400.0
NOW = 1000 * DAY


def serving(
    *names: str,
    at: DialAddress = A,
    wrapper: ProxyProtocol | None = None,
    redirect_port: int | None = None,
    http3: bool = False,
    strict: bool = True,
) -> Sites:
    listeners = (Served(at, wrapper),)
    sites = tuple(Site(name, listeners, ()) for name in names)
    return Sites(sites, servers=(TlsServer(listeners, redirect_port, http3, strict),))


def caddy(
    sites: Sites | None = None,
    *,
    admin: AdminAddress | None = FIRST,
    process: Process | None = CADDY_A,
    listed: bool = True,
    fault: str = "",
) -> Caddy:
    return Caddy(admin, sites, fault, process, listed)


def route(name: str, *addresses: DialAddress, proxy: Proxy = None) -> Route:
    return Route(Pattern(name), targets(tls=Backend(addresses, proxy)))


def facts(*caddys: Caddy, **rest: Any) -> Facts:
    """Of a host where snimux's ports are free, with the routes that the Caddys make."""
    heard = [(x.admin, x.sites) for x in caddys if x.admin and x.sites and x.is_listed]
    values: dict[str, Any] = {
        "tls": (HTTPS,),
        "http": (HTTP,),
        "plan": plan(heard, [], lambda _: False),
    } | rest
    return Facts(now=NOW, caddys=caddys, **values)


def tcp(host: str, port: int, *holders: Process | None) -> Port:
    return Port("tcp", TcpAddress(host, port), holders)


def shown(*names: str, left: float = 60, of: float = 90) -> Certificate:
    return Certificate(names, NOW - (of - left) * DAY, NOW + left * DAY)


def bad(facts: Facts) -> list[tuple[str, Colour]]:
    return [(x.check, x.colour) for x in diagnose(facts) if x.colour is not Colour.GREEN]


def only(facts: Facts, check: str) -> Finding:
    (found,) = [finding for finding in diagnose(facts) if finding.check == check]
    return found


RED, YELLOW = Colour.RED, Colour.YELLOW
ALLOW = ProxyProtocol(("127.0.0.1/32", "::1/128"), (), "IGNORE", before_tls=True)


def wrapper(*allow: str, deny: str = "", policy: str = "IGNORE", before: bool = True) -> Sites:
    denied = (deny,) if deny else ()
    return serving("a.example", wrapper=ProxyProtocol(allow, denied, policy, before))


def sent(sites: Sites, version: Proxy = "v2", at: DialAddress = A) -> Facts:
    return facts(caddy(sites), plan=Plan((route("a.example", at, proxy=version),), (), ()))


def contact(outcome: Outcome, name: str = "a.example", at: DialAddress = A) -> Contact:
    return Contact(name, at, outcome)


def contacts(*made: Contact, strict: bool = False) -> Facts:
    pair = (
        caddy(serving("a.example", strict=strict)),
        caddy(serving("b.example", at=B, strict=strict), admin=SECOND, process=CADDY_B),
    )
    return facts(*pair, contacts=made)


SOCKET = UnixAddress("/run/a")
ON_SOCKET = serving(
    "a.example", at=SOCKET, wrapper=ProxyProtocol((), (), "IGNORE", before_tls=True)
)
CASES: Sequence[tuple[str, Facts, list[tuple[str, Colour]]]] = [
    ("nothing", facts(), []),
    ("well", facts(caddy(serving("a.example")), ports=(tcp("127.0.0.1", 8443, CADDY_A),)), []),
    # --- ports
    ("two on 443", facts(caddy(), ports=(tcp("::", 443, CADDY_A, CADDY_B),)),
     [("port-shared", RED), ("admin-down", RED)]),
    ("unseen on 443", facts(ports=(tcp("::", 443, None, None),)), [("port-shared", RED)]),
    ("two on a port of nobody's", facts(ports=(tcp("::", 5353, None, None),)), []),
    ("two on the admin port",
     facts(caddy(process=CADDY_A), ports=(tcp("127.0.0.1", 2019, CADDY_A, CADDY_B),)),
     [("admin-shared", RED)]),
    ("nginx on 443", facts(ports=(tcp("0.0.0.0", 443, Process(9, "nginx")),)), [("own-port", RED)]),
    ("who knows on 443", facts(ports=(tcp("0.0.0.0", 443, None),)), [("own-port", YELLOW)]),
    ("snimux on 443", facts(ports=(tcp("::", 443, Process(9, "snimux", is_snimux=True)),)), []),
    ("a Caddy on 443",
     facts(caddy(serving("a.example")), ports=(tcp("::", 443, CADDY_A),)),
     [("caddy-on-public-port", RED)]),
    ("a Caddy on 443, by its word alone",
     facts(caddy(serving("a.example", at=TcpAddress("127.0.0.1", 443)), process=None),
           plan=Plan((), (), (Unrouted("a.example", "loops"),))),
     [("caddy-on-public-port", RED)]),
    ("a Caddy on UDP 443",
     facts(caddy(serving("a.example")), ports=(Port("udp", TcpAddress("::", 443), (CADDY_A,)),)),
     [("udp-port", YELLOW)]),
    ("who knows on UDP 443", facts(ports=(Port("udp", TcpAddress("::", 443), (None,)),)),
     [("udp-port", YELLOW)]),
    ("a private port on every interface",
     facts(caddy(serving("a.example")), ports=(tcp("::", 8443, CADDY_A),)),
     [("port-open", YELLOW)]),
    # --- Caddys
    ("a listed one is silent", facts(caddy(fault="refused", process=None)), [("admin-down", RED)]),
    ("a found one is silent", facts(caddy(fault="refused", listed=False)),
     [("admin-down", YELLOW)]),
    ("one without any admin API", facts(caddy(admin=None, listed=False)),
     [("admin-down", YELLOW)]),
    ("one that snimux was not told of", facts(caddy(serving("a.example"), listed=False)),
     [("no-route", YELLOW)]),
    ("one that has routes by hand",
     facts(caddy(serving("a.example"), listed=False), plan=Plan((route("a.example", A),), (), ())),
     []),
    ("one whose name goes elsewhere",
     facts(caddy(serving("a.example"), listed=False), plan=Plan((route("a.example", B),), (), ())),
     [("no-route", YELLOW)]),
    ("a catch-all",
     facts(caddy(Sites(unrouted=(Unrouted("127.0.0.1:8443", "serves whatever name comes"),)))),
     [("no-route", YELLOW)]),
    ("a name of two",
     facts(plan=Plan((route("a.example", A),), (Claim("a.example", FIRST, SECOND),), ())),
     [("name-claimed", YELLOW)]),
    ("a site at another's admin API",
     facts(plan=Plan((), (), (), refused=(Unrouted("a.example", "an admin API"),))),
     [("reserved-address", RED)]),
    ("a port in redirects", facts(caddy(serving("a.example", redirect_port=8443))),
     [("port-in-redirect", YELLOW)]),
    ("HTTP/3 on a private port", facts(caddy(serving("a.example", http3=True))),
     [("http3", YELLOW)]),
    # --- the PROXY protocol
    ("sent, not parsed", sent(serving("a.example")), [("proxy-not-parsed", RED)]),
    ("sent, looked for behind TLS", sent(wrapper("127.0.0.0/8", before=False)),
     [("proxy-not-parsed", RED)]),
    ("sent, skipped", sent(wrapper(policy="SKIP")), [("proxy-not-parsed", RED)]),
    ("sent, nobody is believed", sent(wrapper()), [("proxy-not-allowed", YELLOW)]),
    ("sent, others are believed", sent(wrapper("10.0.0.0/8")), [("proxy-not-allowed", YELLOW)]),
    ("sent, nonsense is believed", sent(wrapper("127.0.0.1/99")), [("proxy-not-allowed", YELLOW)]),
    ("sent, refused", sent(wrapper("127.0.0.1", deny="127.0.0.0/8")), [("proxy-not-allowed", RED)]),
    ("sent, rejected", sent(wrapper(policy="REJECT")), [("proxy-not-allowed", RED)]),
    ("sent and believed", sent(wrapper("127.0.0.1/8")), []),
    ("sent, anybody is believed", sent(wrapper(policy="USE")), []),
    ("sent and required", sent(wrapper(policy="REQUIRE")), []),
    ("sent to a socket", sent(ON_SOCKET, at=SOCKET), []),
    ("believed, not sent", sent(wrapper("127.0.0.1/32"), None), [("proxy-not-sent", YELLOW)]),
    ("required, not sent", sent(wrapper(policy="REQUIRE"), None), [("proxy-not-sent", RED)]),
    ("automatic, and believed", sent(wrapper("127.0.0.1/32"), "auto"), []),
    ("automatic, not parsed", sent(serving("a.example"), "auto"), []),
    ("automatic, nobody is believed", sent(wrapper(), "auto"), [("proxy-not-allowed", YELLOW)]),
    ("automatic, refused", sent(wrapper(policy="REJECT"), "auto"),
     [("proxy-not-allowed", YELLOW)]),
    ("neither", sent(serving("a.example"), None), []),
    # --- backends and certificates
    ("good", contacts(contact(shown("a.example"))), []),
    ("good for one label", contacts(contact(shown("*.example"))), []),
    ("expired", contacts(contact(shown("a.example", left=-1))), [("certificate-expired", RED)]),
    ("not yet", contacts(contact(shown("a.example", left=91))), [("certificate-expired", RED)]),
    ("soon over", contacts(contact(shown("a.example", left=26))),
     [("certificate-expiring", YELLOW)]),
    ("due for renewal today", contacts(contact(shown("a.example", left=29))), []),
    ("for another", contacts(contact(shown("c.example"))), [("certificate-wrong-name", RED)]),
    ("for two labels more", contacts(contact(shown("**.example", "*"))),
     [("certificate-wrong-name", RED)]),
    ("for nobody", contacts(contact(shown())), [("certificate-wrong-name", RED)]),
    ("ages", contacts(contact(Certificate(("a.example",), 0.0, 1e300))), []),
    ("plain HTTP, down",
     facts(probed=(Probed("a.example", A, True, down="refused"),),
           plan=Plan((Route(Pattern("a.example"), targets(http=Backend((A,)))),), (), ())),
     [("backend-down", RED)]),
    ("plain HTTP, header not sent", facts(probed=(Probed("a.example", A, True, other_way=True),)),
     [("proxy-not-sent", RED)]),
    ("plain HTTP, header refused",
     facts(probed=(Probed("a.example", A, True, proxy=True, other_way=True),)),
     [("proxy-not-parsed", RED)]),
    ("a default that wants the header", facts(probed=(Probed("*", A, False, other_way=True),)),
     [("proxy-not-sent", RED)]),
    ("no handshake", contacts(contact(NoHandshake("alert"))), [("certificate-missing", RED)]),
    ("another server does not read the header",
     facts(contacts=(Contact("a.example", A, NoHandshake("eof"), proxy=True, other_way=True),)),
     [("proxy-not-parsed", RED)]),
    ("another server wants the header",
     facts(contacts=(Contact("a.example", A, NoHandshake("eof"), other_way=True),)),
     [("proxy-not-sent", RED)]),
    ("a Caddy that tells so wants the header",
     facts(caddy(wrapper(policy="REQUIRE")), plan=Plan((route("a.example", A),), (), ()),
           contacts=(Contact("a.example", A, NoHandshake("eof"), other_way=True),)),
     [("proxy-not-sent", RED)]),
    ("down", contacts(contact(Down("refused"))), [("backend-down", RED)]),
    ("one of two is down", contacts(contact(Down("refused")), contact(shown("a.example"), at=B)),
     [("backend-down", YELLOW)]),
    ("not read", contacts(contact(Unread("no cryptography"))), [("certificate-unread", YELLOW)]),
    ("a certificate for both, in one of them",
     contacts(contact(shown("*.example")), contact(shown("b.example"), "b.example", B)),
     [("certificates-overlap", YELLOW)]),
    ("the same, and strict",
     contacts(contact(shown("*.example")), contact(shown("b.example"), "b.example", B),
              strict=True), []),
    ("one server's own names",
     contacts(contact(shown("*.example")), contact(shown("*.example"), "b.example")), []),
]  # fmt: skip


@pytest.mark.parametrize(
    ("found_out", "expected"), [x[1:] for x in CASES], ids=[x[0] for x in CASES]
)
def test_facts_and_what_they_mean(found_out: Facts, expected: list[tuple[str, Colour]]) -> None:
    assert bad(found_out) == expected


def test_whatever_is_not_green_has_a_meaning_and_a_remedy() -> None:
    checks = set()
    for _, found_out, _ in CASES:
        for finding in diagnose(found_out):
            assert "\n" not in finding.title
            if finding.colour is not Colour.GREEN:
                assert finding.meaning.endswith(".")
                checks.add(finding.check)
                assert finding.remedy, finding
    assert len(checks) >= 18


def test_of_a_socket_that_is_handed_over_it_is_not_said_that_it_is_free() -> None:
    for listen, free in (((TcpAddress("", 443),), 1), ((FdAddress(3),), 0)):
        found = diagnose(facts(tls=listen, http=()))
        assert [x.check for x in found].count("own-port") == free


def test_the_worst_comes_first() -> None:
    found_out = facts(
        caddy(serving("a.example", http3=True)), ports=(tcp("0.0.0.0", 443, Process(9, "nginx")),)
    )
    assert [x.colour for x in diagnose(found_out)] == [RED, YELLOW, Colour.GREEN, Colour.GREEN]


def test_two_that_share_a_port_are_named_by_their_caddyfiles_and_get_ports_of_their_own() -> None:
    pair = (
        caddy(process=CADDY_A, fault="shared"),
        caddy(process=CADDY_B, fault="shared"),
    )
    ports = (
        tcp("::", 443, CADDY_A, CADDY_B),
        Port("udp", TcpAddress("::", 443), (CADDY_A, CADDY_B)),
        tcp("::", 80, CADDY_A, CADDY_B),
        tcp("127.0.0.1", 2019, CADDY_A, CADDY_B),
        tcp("127.0.0.1", 8444, Process(9, "nginx")),
    )
    found = [x.remedy for x in diagnose(facts(*pair, ports=ports)) if x.colour is RED]
    assert found == [
        (
            "# /etc/a/Caddyfile, in the global options:",
            line_a,
            "# /etc/b/Caddyfile, in the global options:",
            line_b,
        )
        for line_a, line_b in (
            ("https_port 8443", "https_port 8445"),
            ("http_port 8080", "http_port 8081"),
            ("admin localhost:2020", "admin localhost:2021"),
        )
    ]


def test_of_any_port_there_is_one() -> None:
    found = [x.title for x in diagnose(facts(tls=(TcpAddress("127.0.0.1", 0), HTTPS), http=()))]
    assert found == ["127.0.0.1:0 is any port that is free", ":443 is free for snimux"]


def test_a_shared_port_is_for_what_snimux_has_it_for() -> None:
    found_out = facts(
        caddy(fault="shared"),
        tls=(TcpAddress("127.0.0.1", 1443),),
        http=(TcpAddress("127.0.0.1", 1080),),
        ports=(tcp("::", 1443, CADDY_A, CADDY_B), tcp("::", 1080, CADDY_A, CADDY_B)),
    )
    found = [x.remedy[1] for x in diagnose(found_out) if x.check == "port-shared"]
    assert found == ["https_port 8443", "http_port 8080"]


def test_the_lines_for_one_check_are_those_for_the_file_that_it_is_about() -> None:
    finding = only(facts(caddy(serving("a.example", http3=True))), "http3")
    assert finding.remedy == (
        "# /etc/a/Caddyfile, in the block servers { } of the global options",
        "# (one only; make it if there is none):",
        "protocols h1 h2",
    )
    unnamed = caddy(serving("a.example", http3=True), process=None)
    assert only(facts(unnamed), "http3").remedy[0] == (
        "# the Caddyfile of the Caddy at localhost:2019, in the block servers { } of the "
        "global options"
    )


def test_who_is_believed_is_told_and_what_to_add() -> None:
    finding = only(sent(wrapper("10.0.0.0/8")), "proxy-not-allowed")
    assert finding.title.endswith("believes only 10.0.0.0/8, not snimux at 127.0.0.1")
    assert finding.remedy[-1] == "allow 127.0.0.1/32"
    six = serving("a.example", at=TcpAddress("::1", 1), wrapper=replace(ALLOW, allow=()))
    finding = only(sent(six, at=TcpAddress("::1", 1)), "proxy-not-allowed")
    assert finding.title.endswith("believes nobody: no `allow`")
    assert finding.remedy[-1] == "allow ::1/128"
    name = serving("a.example", at=TcpAddress("b", 1), wrapper=replace(ALLOW, allow=()))
    finding = only(sent(name, at=TcpAddress("b", 1)), "proxy-not-allowed")
    assert "allow b/32" not in finding.remedy


@pytest.mark.parametrize(
    ("unrouted", "line"),
    [
        (Unrouted("b on x:1", "why", "b.example", (A,)),
         "snimux --route b.example=127.0.0.1:8443"),
        (Unrouted("x", "why", "", (A, SOCKET)),
         "snimux --default 127.0.0.1:8443,unix//run/a  "
         "# or --route HOST=127.0.0.1:8443,unix//run/a"),
        (Unrouted("::1", "an IP address"), "snimux --default ADDR  # or --route HOST=ADDR"),
    ],
)  # fmt: skip
def test_the_route_for_what_has_none(unrouted: Unrouted, line: str) -> None:
    assert only(facts(caddy(Sites(unrouted=(unrouted,)))), "no-route").remedy == (line,)


def test_openssl_is_told_the_address_as_it_wants_it() -> None:
    for address, words in (
        (UnixAddress("/run/a b"), "-unix '/run/a b'"),
        (A, "-connect 127.0.0.1:8443"),
    ):
        finding = only(contacts(contact(NoHandshake("alert"), at=address)), "certificate-missing")
        assert finding.remedy == (f"openssl s_client {words} -servername a.example",)


def test_long_lists_of_names_are_cut() -> None:
    names = [f"n{number}.example" for number in range(9)]
    finding = only(facts(caddy(serving(*names), listed=False)), "no-route")
    assert finding.title.endswith("n5.example, and 3 more")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
CONFIGS = [adapted.config for adapted in caddyfiles.load()]


@st.composite
def mutated(draw: st.DrawFn) -> object:
    """A real configuration, with one of its values exchanged for something else."""

    def change(value: Any) -> Any:
        if isinstance(value, dict) and value and draw(st.integers(0, 7)):
            key = draw(st.sampled_from(sorted(value)))
            return {**value, key: change(value[key])}
        if isinstance(value, list) and value and draw(st.integers(0, 7)):
            place = draw(st.integers(0, len(value) - 1))
            return [*value[:place], change(value[place]), *value[place + 1 :]]
        return draw(JSON)

    return change(draw(st.sampled_from(CONFIGS)))


@given(st.lists(mutated(), min_size=1, max_size=3), st.booleans())
def test_whatever_caddys_say_is_judged(configs: list[object], listed: bool) -> None:
    admins: list[AdminAddress] = [FIRST, SECOND, FileAddress("/autosave.json")]
    heard = [(admin, read(config)) for admin, config in zip(admins, configs, strict=False)]
    found_out = facts(
        *(Caddy(admin, sites, is_listed=listed) for admin, sites in heard),
        plan=plan(heard, [], lambda address: address == A),
        ports=(tcp("::", 443, CADDY_A), tcp("::", 80, None)),
    )
    for finding in diagnose(found_out):
        assert finding.title
