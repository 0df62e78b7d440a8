"""``snimux.overlap``: what comes to an address, and what else it would come to."""

import pytest

from snimux.address import parse_admin, parse_dial, parse_listen
from snimux.overlap import is_covered, is_own, is_same, overlaps, reserved_for


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
