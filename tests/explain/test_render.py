"""``explain.render``: how an explanation looks, to people and to programs, and the exit status."""

import json

from snimux.backend.proxy_auto import Remark
from snimux.config.load import load
from snimux.explain.compare import Comparison
from snimux.explain.explain import Explanation, explain
from snimux.explain.input import Case, of_bytes, of_name
from snimux.explain.render import as_json, status, text
from snimux.proto.client_hello import DEFAULT_MAX_HELLO
from snimux.providers.base import Site
from snimux.providers.caddy.sites import Sites
from snimux.providers.merge import planned
from snimux.routing.address import ProviderAddress, TcpAddress
from snimux.routing.served import Served

FILE = """
    listen = ":8443"
    http = ":8080"
    [[route]]
    hosts = ["dao.ciso.com", "*.ciso.com/h2"]
    to = ["127.0.0.1:8444", "unix//run/dao"]
    proxy = "v2"
    [[route]]
    hosts = "bücher.example"
    to = "127.0.0.1:8445"
    proxy = "auto"
    """
CADDY = TcpAddress("localhost", 2019)


def explained(case: str | Case, source: str | None = None) -> Explanation:
    here = Served(TcpAddress("127.0.0.1", 1))
    sites: dict[ProviderAddress, Sites] = {CADDY: Sites((Site("dao.ciso.com", (here,), ()),))}
    config = load({"caddy": (str(CADDY),)}, "snimux.toml", FILE)
    case = of_name(case) if isinstance(case, str) else case
    return explain(case, config, planned(config, sites), sites, source=source)


def test_how_one_that_is_served_looks() -> None:
    assert text(explained("DAO.ciso.com", "192.0.2.7")).splitlines() == [
        "asked      DAO.ciso.com",
        "           DAO.ciso.com is looked up as dao.ciso.com: in lower case",
        "hello      TLS, name dao.ciso.com, no ALPN",
        "from       192.0.2.7",
        "patterns   dao.ciso.com                  taken: from route 1 of snimux.toml; "
        "the Caddy at localhost:2019 serves it too, and does not get it",
        "           *.ciso.com/h2                 not for this: the client does not offer h2",
        "dial       127.0.0.1:8444                PROXY protocol v2",
        "           else unix//run/dao            PROXY protocol v2",
        "client     gets its bytes relayed untouched, and sees what the backend answers",
        "served",
    ]


def test_how_one_that_is_refused_looks() -> None:
    assert text(explained("doa.example")).splitlines() == [
        "asked      doa.example",
        "hello      TLS, name doa.example, no ALPN",
        "patterns   doa.example                   no route",
        "           *.example                     no route",
        "           **.example                    no route",
        "           *                             no route",
        "client     gets the TLS alert unrecognized_name (112): 15 03 01 00 02 02 70",
        "           Chrome   ERR_SSL_UNRECOGNIZED_NAME_ALERT",
        "           Firefox  SSL_ERROR_UNRECOGNIZED_NAME_ALERT",
        "           curl     (35) ... unrecognized name",
        "refused: no-route, no route has a pattern that matches",
    ]


def test_of_a_host_without_routes_the_protocols_are_left_out() -> None:
    lines = text(explained(of_name("doa.example", (b"h2", b"h3")))).splitlines()
    assert lines[2] == "patterns   doa.example                   no route"
    assert lines[3] == "           *.example                     no route"
    lines = text(explained(of_name("dao.ciso.com", (b"h2", b"h3")))).splitlines()
    assert lines[2] == "patterns   dao.ciso.com/h2               no route"


def test_a_redirect_and_what_an_international_name_is() -> None:
    lines = text(explained("http://bücher.example/x")).splitlines()
    name = "xn--bcher-kva.example"
    assert f"hello      plain HTTP, name {name} (bücher.example), GET /x" in lines
    assert "client     gets the response 308 Permanent Redirect" in lines
    assert lines[-1] == f"redirected to https://{name}:8443/x"


def test_what_was_learnt_of_a_backend_is_told() -> None:
    found = explained("bücher.example")
    unasked = "dial       127.0.0.1:8445                PROXY protocol auto"
    assert unasked in text(found).splitlines()
    learnt = [Remark("127.0.0.1:8445", "v2", "understood", "info")]
    assert f"{unasked}, v2: understood" in text(found, learnt).splitlines()
    dial = [{"address": "127.0.0.1:8445", "proxy": "auto", "header": "v2"}]
    assert json.loads(as_json(found, learnt))["dial"] == dial


def test_a_hello_that_is_none() -> None:
    lines = text(explained(of_bytes(b"SSH-2.0-x", DEFAULT_MAX_HELLO, "it"))).splitlines()
    assert lines == [
        "asked      it",
        "           decided by byte 4 of 9, 0x2d",
        "client     gets no word: the connection is closed",
        "refused: ssh, SSH",
    ]


def test_nothing_that_others_wrote_reaches_the_terminal_as_it_is() -> None:
    evil = explained(of_name("\x1b[2J.example"))
    assert "\x1b" not in text(evil)
    assert "\x1b" not in as_json(evil)


def test_the_json_has_every_key_whatever_happened() -> None:
    served = json.loads(as_json(explained("dao.ciso.com", "192.0.2.7")))
    assert served == {
        "status": 0,
        "asked": "dao.ciso.com",
        "notes": [],
        "protocol": "tls",
        "name": "dao.ciso.com",
        "alpn": [],
        "ech": False,
        "source": "192.0.2.7",
        "listener": None,
        "patterns": [
            {"pattern": "dao.ciso.com", "result": "taken", "why": ""},
            {
                "pattern": "*.ciso.com/h2",
                "result": "not-offered",
                "why": "the client does not offer h2",
            },
        ],
        "route": "dao.ciso.com",
        "origin": "route 1 of snimux.toml",
        "also": ["localhost:2019"],
        "balance": "first",
        "dial": [
            {"address": "127.0.0.1:8444", "proxy": "v2", "header": "v2"},
            {"address": "unix//run/dao", "proxy": "v2", "header": "v2"},
        ],
        "end": "relayed",
        "reason": None,
        "detail": "",
        "location": None,
        "told": None,
        "hints": [],
        "running": None,
    }
    refused = json.loads(as_json(explained("doa.example")))
    assert refused.keys() == served.keys()
    assert refused["status"] == 1
    assert (refused["end"], refused["reason"]) == ("refused", "no-route")
    assert refused["told"]["bytes"] == "15030100020270"
    assert refused["told"]["shown"]["Chrome"] == "ERR_SSL_UNRECOGNIZED_NAME_ALERT"


def test_what_a_running_one_does_comes_last() -> None:
    found = explained("dao.ciso.com")
    facts = {"source": "configuration", "not_answering": ["127.0.0.1:8444"], "active": 3, "x": []}
    same = Comparison("127.0.0.1:9443", found.ending, "", facts)
    assert text(found, (), same).splitlines()[-3:] == [
        "running    the snimux at 127.0.0.1:9443 does the same",
        "           source configuration, not answering 127.0.0.1:8444, active 3",
        "served",
    ]
    other = Comparison("127.0.0.1:9443", found.ending, "refused, no-route", {})
    assert text(found, (), other).splitlines()[-2] == (
        "running    the snimux at 127.0.0.1:9443 DIFFERS: refused, no-route"
    )
    assert json.loads(as_json(found, (), same))["running"] == {
        "at": "127.0.0.1:9443", "same": True, "difference": "", "facts": facts,
    }  # fmt: skip


def test_the_exit_status() -> None:
    assert status(explained("dao.ciso.com")) == 0
    assert status(explained("http://dao.ciso.com")) == 0
    assert status(explained("doa.example")) == 1
