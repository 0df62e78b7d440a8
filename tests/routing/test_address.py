"""``routing.address``: where to listen or dial, as Caddy spells it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snimux.routing.address import (
    AddressError,
    AdminAddress,
    FdAddress,
    FileAddress,
    TcpAddress,
    UnixAddress,
    is_covered,
    is_own,
    is_same,
    overlaps,
    parse_admin,
    parse_dial,
    parse_listen,
    reserved_for,
)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8443", TcpAddress("127.0.0.1", 8443)),
        ("localhost:8443", TcpAddress("localhost", 8443)),
        ("Backend.Example:1", TcpAddress("backend.example", 1)),
        ("bücher.example:1", TcpAddress("xn--bcher-kva.example", 1)),
        ("[::1]:65535", TcpAddress("::1", 65535)),
        ("[2001:DB8:0::1]:443", TcpAddress("2001:db8::1", 443)),
        ("[fe80::1%eth0]:443", TcpAddress("fe80::1%eth0", 443)),
        ("unix//run/caddy.sock", UnixAddress("/run/caddy.sock")),
    ],
)
def test_dial_and_listen_addresses(text: str, address: TcpAddress | UnixAddress) -> None:
    assert parse_dial(text) == parse_listen(text) == address


@pytest.mark.parametrize(
    ("text", "address"),
    [(":443", TcpAddress("", 443)), ("127.0.0.1:0", TcpAddress("127.0.0.1", 0)),
     ("fd/3", FdAddress(3))],
)  # fmt: skip
def test_listen_only_addresses(text: str, address: TcpAddress | FdAddress) -> None:
    assert parse_listen(text) == address
    with pytest.raises(AddressError):
        parse_dial(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no port"),
        ("localhost", "localhost:8443"),
        ("localhost:", "no port"),
        ("127.1:80", "'127.1' is no IPv4 address"),
        ("256.0.0.1:80", "no IPv4 address"),
        ("localhost:http", "'http' is no port"),
        ("localhost:65536", "65535"),
        ("localhost:-1", "no port"),
        ("localhost:8080-8085", "no port"),
        ("localhost:８", "no port"),
        ("::1:443", "brackets"),
        ("::1", "brackets"),
        ("[::1]", r"no port; perhaps \[::1\]:8443$"),
        ("*:443", "no host; all interfaces are the port alone"),
        ("off", "no address; where there is none, leave this out"),
        ("unix:/run/x", "written unix//run/x$"),
        ("unix:///run/x", "written unix//run/x$"),
        ("https://a.example:1/path", "perhaps a.example:1$"),
        ("[127.0.0.1]:443", "no IPv6"),
        ("a b:1", "' '"),
        ("https://127.0.0.1:8443/", "a URL, not an address; perhaps 127.0.0.1:8443$"),
        ("/run/caddy.sock", "unix//path"),
        ("unix/", "path"),
        ("unix/@abstract", "path"),
        ("unix/run/caddy.sock", "path from the root"),
        ("unix//run/caddy.sock|0222", "permissions"),
        ("unix//" + "x" * 103, "103"),
        ("unix//run/\0", "cannot be printed"),
        ("\x1b[31m", "cannot be printed"),
    ],
)
def test_what_no_address_is(text: str, why: str) -> None:
    for parse in (parse_dial, parse_listen):
        with pytest.raises(AddressError, match=why):
            parse(text)


def test_one_address_is_kept_once_however_many_routes_have_it() -> None:
    assert parse_dial("a.example:1") is parse_dial("a.example:1")


@pytest.mark.parametrize(
    "text", ["[fe80::1%{}]:1", "{}.example:1", "unix//{}", "a\ufe0f{}.example:1", "{}", "a:{}"]
)
def test_a_long_text_is_no_address_and_not_kept(text: str) -> None:
    """A Caddy may say anything; and a variation selector is nothing in a name."""
    for filling in ("a", "\ufe0f", "1"):
        for parse in (parse_dial, parse_listen):
            with pytest.raises(AddressError) as caught:
                parse(text.format(filling * 100_000))
            assert len(str(caught.value)) < 1000


def test_a_port_alone_is_answered_with_how_to_write_it() -> None:
    with pytest.raises(AddressError, match=r"perhaps :444$"):
        parse_listen("444")
    with pytest.raises(AddressError, match=r"perhaps 127\.0\.0\.1:444$"):
        parse_dial("444")


@pytest.mark.parametrize("text", ["fd/", "fd/x", "fd/-1", "fd/3/4"])
def test_what_no_descriptor_is(text: str) -> None:
    with pytest.raises(AddressError, match="descriptor number"):
        parse_listen(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("localhost:2019", TcpAddress("localhost", 2019)),
        ("[::1]:2019", TcpAddress("::1", 2019)),
        ("unix//run/caddy-a/admin.sock", UnixAddress("/run/caddy-a/admin.sock")),
        ("file/autosave.json", FileAddress("autosave.json")),
        ("file//var/lib/caddy/autosave.json", FileAddress("/var/lib/caddy/autosave.json")),
    ],
)
def test_where_a_caddy_is_asked(text: str, address: AdminAddress) -> None:
    assert parse_admin(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no port; perhaps localhost:2019$"),
        ("2020", "no port; perhaps localhost:2020$"),
        ("localhost", "no port; perhaps localhost:2019$"),
        (":2019", r"no host to dial; perhaps 127\.0\.0\.1:2019$"),
        ("http://localhost:2019/", "a URL, not an address; perhaps localhost:2019$"),
        ("http://localhost:2019/config/", "a URL, not an address; perhaps localhost:2019$"),
        ("unix:///run/x.sock", "a URL, not an address; perhaps localhost:2019$"),
        ("/run/x.sock", r"a path; a UNIX socket is written unix//run/x\.sock, a file file//run"),
        ("unix/run/x.sock", "path from the root"),
        ("file/", "a file needs a path"),
        ("file/\0", "cannot be printed"),
        ("\x1b[31m", "cannot be printed"),
        ("fd/3", "not dialled"),
    ],
)
def test_where_no_caddy_is_asked(text: str, why: str) -> None:
    with pytest.raises(AddressError, match=why):
        parse_admin(text)


@given(st.text(max_size=40))
def test_an_address_prints_as_it_is_read(text: str) -> None:
    try:
        address = parse_listen(text)
    except AddressError:
        return
    assert parse_listen(str(address)) == address


def test_an_ip_address_needs_no_look_up() -> None:
    assert TcpAddress("::1", 1).is_numeric
    assert TcpAddress("127.0.0.1", 1).is_numeric
    assert not TcpAddress("localhost", 1).is_numeric


@pytest.mark.parametrize(
    ("listen", "to", "expected"),
    [
        (":443", "127.0.0.1:443", True),
        (":443", "localhost:443", True),
        ("0.0.0.0:443", "127.9.9.9:443", True),
        ("[::]:443", "0.0.0.0:443", True),
        ("127.0.0.1:443", "127.0.0.1:443", True),
        ("127.0.0.1:443", "localhost:443", True),
        ("localhost:443", "127.0.0.1:443", True),
        ("unix//run/x.sock", "unix//run/x.sock", True),
        (":443", "127.0.0.1:8443", False),
        (":443", "10.0.0.1:443", False),
        (":443", "a.example:443", False),
        ("127.0.0.1:443", "127.0.0.2:443", False),
        ("127.0.0.1:0", "127.0.0.1:1", False),
        ("unix//run/x.sock", "unix//run/y.sock", False),
        ("unix//run/x.sock", "127.0.0.1:443", False),
        ("fd/3", "127.0.0.1:443", False),
    ],
)
def test_what_is_dialled_may_be_what_is_listened_on(listen: str, to: str, expected: bool) -> None:
    own, dialled = parse_listen(listen), parse_dial(to)
    assert is_same(own, dialled) is expected
    assert is_own([parse_listen("unix//run/other"), own], dialled) is expected
    assert not is_own([], dialled)


@pytest.mark.parametrize(
    ("reserved", "to", "expected"),
    [
        ("localhost:2019", "localhost:2019", True),
        ("localhost:2019", "127.0.0.1:2019", True),
        ("localhost:2019", "[::1]:2019", True),
        ("127.0.0.1:2019", "0.0.0.0:2019", True),
        ("127.0.0.1:2019", "[::]:2019", True),
        ("127.0.0.1:2019", "127.9.9.9:2019", True),
        ("[::1]:2019", "[::ffff:127.0.0.1]:2019", True),
        ("[::ffff:127.0.0.1]:2019", "127.0.0.1:2019", True),
        ("10.0.0.5:2019", "[::ffff:10.0.0.5]:2019", True),
        ("a.example:2019", "a.example:2019", True),
        ("unix//run/a", "unix//run/a", True),
        ("unix//run/a", "unix////run//a", True),
        ("unix//run/a", "unix//run/./b/../a", True),
        ("localhost:2019", "127.0.0.1:2020", False),
        ("10.0.0.5:2019", "10.0.0.6:2019", False),
        ("a.example:2019", "b.example:2019", False),
        ("unix//run/a", "unix//run/b", False),
        ("unix//run/a", "127.0.0.1:2019", False),
    ],
)
def test_a_reserved_address_is_known_in_every_spelling(
    reserved: str, to: str, expected: bool
) -> None:
    known = {parse_dial("127.0.0.1:1"): "another", parse_dial(reserved): "it"}
    assert reserved_for(known, parse_dial(to)) == ("it" if expected else None)
    assert reserved_for({}, parse_dial(to)) is None


def test_a_file_is_only_itself() -> None:
    assert is_same(parse_admin("file/a.json"), parse_admin("file/a.json"))
    assert not is_same(parse_admin("file/a.json"), parse_admin("file/b.json"))
    assert not is_same(parse_admin("file/a.json"), parse_admin("localhost:2019"))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (":1", ":1", True),
        (":1", "127.0.0.1:1", True),
        (":1", "[::]:1", True),
        ("[::]:1", "localhost:1", True),  # which may be either
        ("0.0.0.0:1", "a.example:1", True),
        ("127.0.0.1:1", "127.0.0.1:1", True),
        ("fd/3", "fd/3", True),
        ("unix//run/x", "unix//run/x", True),
        (":1", ":2", False),
        ("0.0.0.0:1", "[::]:1", False),
        ("[::1]:1", "0.0.0.0:1", False),
        ("127.0.0.1:1", "127.0.0.2:1", False),
        ("127.0.0.1:0", "127.0.0.1:0", False),  # each gets a port of its own
        ("fd/3", "fd/4", False),
        ("fd/3", ":1", False),
    ],
)
def test_two_listeners_may_be_in_each_others_way(one: str, other: str, expected: bool) -> None:
    assert overlaps(parse_listen(one), parse_listen(other)) is expected
    assert overlaps(parse_listen(other), parse_listen(one)) is expected


@pytest.mark.parametrize(
    ("address", "there", "expected"),
    [
        (":443", ":443", True),
        ("127.0.0.1:443", ":443", True),
        ("[::1]:443", ":443", True),
        ("localhost:443", ":443", True),
        ("127.0.0.1:443", "0.0.0.0:443", True),
        (":443", "0.0.0.0:443 [::]:443", True),
        ("127.0.0.1:443", "127.0.0.1:443", True),
        ("unix//run/x", ":443 unix//run/x", True),
        ("127.0.0.1:443", "", False),
        (":9443", ":443", False),
        (":443", "0.0.0.0:443", False),  # half of it
        ("[::1]:443", "0.0.0.0:443", False),
        ("127.0.0.2:443", "127.0.0.1:443", False),
        ("127.0.0.1:443", "unix//run/x", False),
        ("unix//run/x", ":443", False),
    ],
)
def test_all_that_comes_to_an_address_may_come_to_others(
    address: str, there: str, expected: bool
) -> None:
    assert is_covered(parse_listen(address), [parse_listen(x) for x in there.split()]) is expected
