"""``caddyfile``: ports of their own, lines that Caddy takes, and a file that snimux reads."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from snimux.config.load import load
from snimux.doctor.caddyfile import (
    PROXY,
    QUIET,
    STRICT,
    Place,
    global_options,
    letter,
    needs_nothing,
    places,
    toml,
)
from snimux.doctor.facts import Caddy, Facts, Port, Process
from snimux.proto.client_hello import TLS
from snimux.proto.http_head import HTTP
from snimux.providers.base import Site
from snimux.providers.caddy.sites import Sites, TlsServer
from snimux.providers.merge import Plan
from snimux.routing.address import AdminAddress, FileAddress, TcpAddress, UnixAddress
from snimux.routing.served import Served
from tests.support import caddy as caddys

with_caddy = pytest.mark.needs(lambda: caddys.missing() is not None, str(caddys.missing()))

PROCESS = Process(7, "caddy", is_caddy=True, config="/etc/a/Caddyfile")
OTHER = Process(8, "caddy", is_caddy=True, config="/etc/b/Caddyfile")


def facts(*found: Caddy, ports: tuple[Port, ...] = ()) -> Facts:
    public = (TcpAddress("", 443),), (TcpAddress("", 80),)
    return Facts(0.0, *public, Plan((), (), ()), ports, found)


def caddy(
    admin: AdminAddress | None,
    *,
    https: int = 8443,
    http: int = 8080,
    http3: bool = False,
    process: Process | None = PROCESS,
) -> Caddy:
    listener = Served(TcpAddress("127.0.0.1", https))
    site = Site("a.example", (listener,), (Served(TcpAddress("127.0.0.1", http)),))
    server = TlsServer((listener,), None, http3, strict_sni_host=True)
    return Caddy(admin, Sites((site,), servers=(server,)), process=process)


def numbers(facts: Facts) -> list[tuple[str, int, int]]:
    return [(str(place.admin), place.http, place.https) for place in places(facts)]


def test_those_whose_own_they_are_keep_their_ports() -> None:
    first = caddy(TcpAddress("localhost", 2019))
    second = caddy(UnixAddress("/run/b.sock"), https=9443, http=9080, process=OTHER)
    ports = tuple(Port("tcp", TcpAddress("127.0.0.1", x), (PROCESS,)) for x in (2019, 8080, 8443))
    assert numbers(facts(first, second, ports=ports)) == [
        ("localhost:2019", 8080, 8443),
        ("unix//run/b.sock", 9080, 9443),
    ]
    assert all(needs_nothing(x, facts(first, second)) for x in places(facts(first, second)))


def test_of_two_with_the_same_ports_one_gets_others() -> None:
    first = caddy(TcpAddress("localhost", 2019))
    second = caddy(UnixAddress("/run/b.sock"), process=OTHER)
    found = facts(first, second)
    assert numbers(found)[1] == ("unix//run/b.sock", 8081, 8444)
    assert [needs_nothing(place, found) for place in places(found)] == [True, False]


def test_ports_of_snimux_and_of_others_are_nobodys() -> None:
    taken = tuple(Port("tcp", TcpAddress("::", x), (None,)) for x in (2019, 8443))
    assert numbers(facts(Caddy(None, process=PROCESS), ports=taken)) == [
        ("localhost:2020", 8080, 8444)
    ]
    wants = caddy(TcpAddress("localhost", 2019), https=443, http=80)
    assert numbers(facts(wants)) == [("localhost:2019", 8080, 8443)]


def test_a_caddy_that_does_not_tell_keeps_its_ports_too() -> None:
    held = tuple(Port("tcp", TcpAddress("127.0.0.1", x), (PROCESS,)) for x in (8080, 8443))
    silent, other = Caddy(None, process=PROCESS), Caddy(None, process=OTHER)
    assert numbers(facts(silent, other, ports=held)) == [
        ("localhost:2019", 8080, 8443),
        ("localhost:2020", 8081, 8444),
    ]


def test_a_caddy_that_was_named_and_does_not_tell_is_to_be_where_it_was_named() -> None:
    for admin in (TcpAddress("localhost", 3019), TcpAddress("::1", 3019), UnixAddress("/run/a")):
        silent = Caddy(admin, None, "refused", is_listed=True)
        (place,) = places(facts(silent))
        assert place.admin == admin
    # nobody asked for these, or nothing can listen there
    found = Caddy(TcpAddress("localhost", 3019), None, "refused", PROCESS)
    file = Caddy(FileAddress("/a.json"), None, "none", is_listed=True)
    assert [str(x.admin) for x in places(facts(found, file))] == [
        "localhost:2019",
        "localhost:2020",
    ]


def test_a_port_that_two_share_is_not_kept() -> None:
    shared = Port("tcp", TcpAddress("::", 8443), (PROCESS, OTHER))
    assert numbers(facts(caddy(TcpAddress("localhost", 2019)), ports=(shared,)))[0][2] == 8444


def test_a_file_stays_where_it_is_and_is_no_line_of_a_caddyfile() -> None:
    (place,) = places(facts(caddy(FileAddress("/autosave.json"))))
    assert place.admin == FileAddress("/autosave.json")
    assert not [line for line in global_options(place) if "admin" in line]


def test_what_needs_nothing() -> None:
    good = caddy(TcpAddress("localhost", 2019))
    bad = caddy(TcpAddress("localhost", 2019), http3=True)
    wide = (Port("tcp", TcpAddress("::", 8443), (PROCESS,)),)
    for found, expected in (
        (facts(good), True),
        (facts(bad), False),
        (facts(good, ports=wide), False),
    ):
        (place,) = places(found)
        assert needs_nothing(place, found) is expected
        assert ("needs nothing" in "\n".join(letter(found, [place], "f"))) is expected


def test_the_letter_names_files_and_commands() -> None:
    found = facts(Caddy(None, process=PROCESS))
    lines = list(letter(found, places(found), "a file.toml"))
    assert lines[0] == "# /etc/a/Caddyfile:"
    assert "snimux doctor --config 'a file.toml'" in lines


def test_the_file_is_one_that_snimux_reads() -> None:
    admins = (TcpAddress("localhost", 2019), UnixAddress('/ü "x"\\/s'), FileAddress("/a.json"))
    found = [Place(Caddy(admin, process=PROCESS), admin, 1, 2) for admin in admins]
    config = load({}, "f", toml([TcpAddress("", 443)], [TcpAddress("::1", 80)], found))
    assert config.caddys == admins
    assert (config.addresses(TLS), config.addresses(HTTP)) == (
        (TcpAddress("", 443),),
        (TcpAddress("::1", 80),),
    )
    assert "http" not in toml([TcpAddress("", 443)], None, [])
    assert load({}, "f", toml([TcpAddress("", 443)], [], found)).addresses(HTTP) == ()


def test_a_path_that_cannot_be_printed_ends_no_comment() -> None:
    process = Process(7, "caddy", is_caddy=True, config="/a\n[[caddy]]")
    admin = TcpAddress("localhost", 2019)
    text = toml([TcpAddress("", 443)], [], [Place(Caddy(admin, process=process), admin, 1, 2)])
    assert load({}, "f", text).caddys == (admin,)
    found = facts(Caddy(None, process=process))
    assert "# '/a\\n[[caddy]]':" in list(letter(found, places(found), "f"))


def _adapted(path: Path) -> dict[str, dict[str, object]]:
    program = caddys.binary()
    assert program is not None
    done = subprocess.run(
        [program, "adapt", "--config", str(path)], capture_output=True, check=True, timeout=60
    )
    servers: dict[str, dict[str, object]] = json.loads(done.stdout)["apps"]["http"]["servers"]
    return servers


@pytest.mark.parametrize(
    ("known", "lines", "comments"), [(True, 1, 0), (None, 1, 1), (False, 0, 0)]
)
def test_the_wrapper_is_for_caddys_that_have_it(
    known: bool | None, lines: int, comments: int
) -> None:
    process = replace(PROCESS, has_proxy_protocol=known)
    text = "\n".join(global_options(Place(Caddy(None, process=process), FileAddress("/a"), 1, 2)))
    assert (text.count("proxy_protocol {"), text.count("2.7 and later")) == (lines, comments)


@with_caddy
def test_caddy_takes_the_lines_and_they_reach_every_listener(tmp_path: Path) -> None:
    place = Place(Caddy(None), UnixAddress("/run/a.sock"), 8080, 8443)
    file = tmp_path / "Caddyfile"
    file.write_text("\n".join([*global_options(place), "a.example {", "}", ""]), "utf-8")
    servers = _adapted(file).values()
    assert [server["listen"] for server in servers] == [["127.0.0.1:8080"], ["127.0.0.1:8443"]]
    for server in servers:
        assert server["protocols"] == ["h1", "h2"]
        assert server["strict_sni_host"] is True


@with_caddy
def test_caddy_takes_all_remedies_in_one_block(tmp_path: Path) -> None:
    file = tmp_path / "Caddyfile"
    block = ["servers {", *QUIET, *STRICT, *PROXY, "}"]
    file.write_text("\n".join(["{", *block, "}", "a.example {", "}", ""]), "utf-8")
    (server,) = _adapted(file).values()
    assert server.keys() >= {"protocols", "strict_sni_host", "listener_wrappers"}
