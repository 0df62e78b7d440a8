"""``proto.hostname``: one spelling for a name, and the patterns that match it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snimux.proto.hostname import (
    HostnameError,
    for_people,
    from_user,
    from_wire,
    pattern_from_user,
    patterns_matching,
)

LABEL_63 = "a" * 63
LONGEST = ".".join([LABEL_63, LABEL_63, LABEL_63, "a" * 61])  # 253 characters


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b"secure.ciso.com", "secure.ciso.com"),
        (b"Secure.CISO.com", "secure.ciso.com"),
        (b"secure.ciso.com.", "secure.ciso.com"),
        (b"localhost", "localhost"),
        (b"_dmarc.x-y.example", "_dmarc.x-y.example"),
        (b"xn--bcher-kva.example", "xn--bcher-kva.example"),
        (b"1.example", "1.example"),
        (b"1.2.3.4.example", "1.2.3.4.example"),
        (LONGEST.encode(), LONGEST),
        (LONGEST.encode() + b".", LONGEST),
    ],
)
def test_names_on_the_wire_are_spelled_canonically(raw: bytes, name: str) -> None:
    assert from_wire(raw) == name


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "empty"),
        (b".", "empty"),
        (b"secure.ciso.com..", "empty label"),
        (b".secure.ciso.com", "empty label"),
        (b"secure..com", "empty label"),
        (b"a" * 64, "63"),
        (LONGEST.encode() + b"a", "253"),
        (b"secure.ciso.com\0.attacker.example", r"'\\x00'"),
        (b"secure.ciso.com\n", r"'\\n'"),
        (b"b\xc3\xbccher.example", "not ASCII"),
        (b"secure ciso.com", "' '"),
        (b"*.ciso.com", r"'\*'"),
        (b"192.0.2.1", "IP address"),
        (b"192.0.2.1.", "IP address"),
        (b"001.002.003.004", "IP address"),
        (b"::1", "IP address"),
        (b"[::1]", "IP address"),
        (b"secure.ciso.com:443", "port"),
    ],
)
def test_what_no_name_is_on_the_wire(raw: bytes, why: str) -> None:
    with pytest.raises(HostnameError, match=why):
        from_wire(raw)


@given(st.binary(max_size=300))
def test_wire_names_never_raise_anything_else_and_are_canonical_once(raw: bytes) -> None:
    try:
        name = from_wire(raw)
    except HostnameError:
        return
    assert from_wire(name.encode()) == name == from_user(name)


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("Bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example.", "xn--bcher-kva.example"),
        ("straße.example", "xn--strae-oqa.example"),
        ("r3---sn.bücher.example", "r3---sn.xn--bcher-kva.example"),
        ("xn--BCHER-kva.example", "xn--bcher-kva.example"),
        ("Secure.CISO.com", "secure.ciso.com"),
        ("日本語。jp", "xn--wgv71a119e.jp"),
        ("_x.bücher.example", "_x.xn--bcher-kva.example"),
    ],
)
def test_names_may_be_typed_in_unicode(typed: str, name: str) -> None:
    assert from_user(typed) == name
    assert pattern_from_user(typed) == name
    assert pattern_from_user(f"*.{typed}") == f"*.{name}"


@pytest.mark.parametrize("typed", ["", "a b", "bü cher.example", "\N{SNOWMAN}\0", "ü" * 64, "-ü"])
def test_what_no_name_is_when_typed(typed: str) -> None:
    with pytest.raises(HostnameError):
        from_user(typed)


@pytest.mark.parametrize(
    ("typed", "pattern"),
    [("*", "*"), ("**", "*"), ("*.X.example", "*.x.example"), ("**.x.example.", "**.x.example")],
)
def test_patterns_are_spelled_canonically(typed: str, pattern: str) -> None:
    assert pattern_from_user(typed) == pattern


@pytest.mark.parametrize("typed", ["a.*.example", "x*.example", "*x.example", "***.x", "*.", "*.*"])
def test_what_no_pattern_is(typed: str) -> None:
    with pytest.raises(HostnameError):
        pattern_from_user(typed)


def test_patterns_come_most_specific_first() -> None:
    assert list(patterns_matching("a.b.c")) == [
        "a.b.c", "*.b.c", "**.b.c", "**.c", "*",
    ]  # fmt: skip
    assert list(patterns_matching("localhost")) == ["localhost", "*"]
    assert list(patterns_matching(None)) == ["*"]


def test_patterns_are_shown_in_unicode_where_they_are_international() -> None:
    assert for_people("*.xn--bcher-kva.example") == "*.bücher.example"
    assert for_people("**.ciso.com") == "**.ciso.com"
    assert for_people("xn--no-such-punycode-.example") == "xn--no-such-punycode-.example"
