"""``snimux.proxy_header``: the headers as "The PROXY protocol" spells them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snimux.proxy_header import HEADER_V2, LOCAL, PROXY, TCP4, TCP6, UNSPEC, Endpoint, build

V4 = ("192.0.2.1", 56324), ("192.0.2.2", 443)
V6 = ("2001:db8::1", 56324), ("2001:db8::2", 443)


def test_v1_is_one_line_of_text() -> None:
    assert build("v1", *V4) == b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n"
    assert build("v1", *V6) == b"PROXY TCP6 2001:db8::1 2001:db8::2 56324 443\r\n"


def test_v2_is_binary() -> None:
    signature = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a"
    assert build("v2", *V4) == signature + bytes.fromhex("2111000cc0000201c0000202dc0401bb")
    assert build("v2", *V6) == signature + bytes.fromhex(
        "21210024 20010db8000000000000000000000001 20010db8000000000000000000000002 dc0401bb"
    )


@pytest.mark.parametrize(
    ("source", "destination"), [(None, None), (None, V4[1]), (V4[0], None), (V4[0], V6[1])]
)
def test_where_there_is_no_address_the_header_says_so(
    source: Endpoint | None, destination: Endpoint | None
) -> None:
    assert build("v1", source, destination) == b"PROXY UNKNOWN\r\n"
    header = build("v2", source, destination)
    assert header[12:] == bytes.fromhex("20000000")
    parsed = HEADER_V2.parse(header)
    assert (parsed.version_command, parsed.family, parsed.address) == (LOCAL, UNSPEC, b"")


ENDPOINTS4 = st.tuples(st.ip_addresses(v=4).map(str), st.integers(0, 65535))
ENDPOINTS6 = st.tuples(st.ip_addresses(v=6).map(str), st.integers(0, 65535))


@given(st.one_of(st.tuples(ENDPOINTS4, ENDPOINTS4), st.tuples(ENDPOINTS6, ENDPOINTS6)))
def test_the_schema_reads_back_what_it_built(ends: tuple[Endpoint, Endpoint]) -> None:
    header = build("v2", *ends)
    parsed = HEADER_V2.parse(header)
    assert HEADER_V2.build(parsed) == header
    assert parsed.version_command == PROXY
    assert parsed.family == (TCP6 if ":" in ends[0][0] else TCP4)
    assert (parsed.address.source_port, parsed.address.destination_port) == (ends[0][1], ends[1][1])


@given(st.tuples(ENDPOINTS6, ENDPOINTS6))
def test_v1_fits_the_longest_line_allowed(ends: tuple[Endpoint, Endpoint]) -> None:
    assert len(build("v1", *ends)) <= 107  # section 2.1, the worst case
