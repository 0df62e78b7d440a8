"""``proto.proxy_header``: the headers as "The PROXY protocol" spells them."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snimux.proto.proxy_header import (
    HEADER_V2,
    LOCAL,
    PROXY,
    TCP4,
    TCP6,
    UNSPEC,
    Endpoint,
    Header,
    Version,
    build,
    peek,
)
from snimux.proto.reason import Reason
from snimux.proto.verdict import Malformed, NeedMore

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


# Reading.

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
HELLO = b"\x16\x03\x01\x02\x00\x01"
Verdict = NeedMore | Malformed | Header


def v2(command: int, family: int, address: bytes, length: int | None = None) -> bytes:
    size = len(address) if length is None else length
    return SIGNATURE + bytes([command, family]) + size.to_bytes(2, "big") + address


def peeked(data: bytes, behind: bytes = HELLO) -> Verdict:
    """The verdict, which is the same whole, with what comes behind, and however it is cut."""
    verdict = peek(data)
    if not isinstance(verdict, NeedMore):
        assert peek(data + behind) == verdict
    early = [peek(bytearray(data[:size])) for size in range(len(data))]
    final = [x for x in early if not isinstance(x, NeedMore)]
    assert all(x == verdict for x in final)
    if isinstance(verdict, Header):
        assert not final
        assert verdict.size == len(data)
    return verdict


ADDRESS4 = bytes([192, 0, 2, 1, 192, 0, 2, 2, 0xDC, 0x04, 0x01, 0xBB])
ADDRESS6 = bytes.fromhex(
    "20010db8000000000000000000000001 20010db8000000000000000000000002 dc0401bb"
)
TLVS = b"\x01\x00\x02h2" + b"\x03\x00\x04abcd" + b"\x04\x00\x00"


@pytest.mark.parametrize(
    ("data", "source", "destination"),
    [
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n", *V4),
        (b"PROXY TCP6 2001:db8::1 2001:DB8:0::2 56324 443\r\n", *V6),
        (b"PROXY TCP4 0.0.0.0 255.255.255.255 0 65535\r\n", ("0.0.0.0", 0),
         ("255.255.255.255", 65535)),
        (b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:c000:202 56324 443\r\n", *V4),
        (b"PROXY TCP6 " + 2 * ((b":ffff" * 8)[1:] + b" ") + b"65535 65535\r\n",
         (":".join(["ffff"] * 8), 65535), (":".join(["ffff"] * 8), 65535)),
        (b"PROXY UNKNOWN\r\n", None, None),
        (b"PROXY UNKNOWN \r\n", None, None),
        (b"PROXY UNKNOWN ffff::1 \0 what ever\xff 65535\r\n", None, None),
        (b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n", None, None),
        (v2(PROXY, TCP4, ADDRESS4), *V4),
        (v2(PROXY, TCP6, ADDRESS6), *V6),
        (v2(PROXY, TCP4, ADDRESS4 + TLVS), *V4),
        (v2(PROXY, TCP4, ADDRESS4 + b"no TLVs at all"), *V4),
        (v2(PROXY, TCP6, bytes(10) + b"\xff\xff\xc0\0\2\1" + ADDRESS6[16:]), V4[0], V6[1]),
        (v2(PROXY, TCP6, ADDRESS6 + bytes(4096 - 16 - 36)), *V6),
        (v2(LOCAL, UNSPEC, b""), None, None),
        (v2(LOCAL, UNSPEC, TLVS), None, None),
        # with LOCAL the rest is to be ignored, whatever it is
        (v2(LOCAL, TCP4, ADDRESS4), None, None),
        (v2(LOCAL, TCP4, b"short"), None, None),
        (v2(LOCAL, 0xFF, b"what"), None, None),
        # what is no TCP has no addresses that are of use here
        (v2(PROXY, UNSPEC, b""), None, None),
        (v2(PROXY, UNSPEC, ADDRESS4), None, None),
        (v2(PROXY, 0x12, ADDRESS4), None, None),
        (v2(PROXY, 0x22, ADDRESS6), None, None),
        (v2(PROXY, 0x10, ADDRESS4), None, None),
        (v2(PROXY, 0x01, b""), None, None),
        (v2(PROXY, 0x31, b"/run/client".ljust(108, b"\0") * 2), None, None),
        (v2(PROXY, 0x32, bytes(216)), None, None),
    ],
)  # fmt: skip
def test_headers_are_read(
    data: bytes, source: Endpoint | None, destination: Endpoint | None
) -> None:
    assert peeked(data) == Header(source, destination, len(data))


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (HELLO, "no PROXY protocol header"),
        (b"GET / HTTP/1.1\r\n\r\n", "no PROXY protocol header"),
        (b"\r\n\r\n\0\r\nQUIX", "no PROXY protocol header"),
        (b"PROXY\tTCP4", "no PROXY protocol header"),
        (b"PROXZ", "no PROXY protocol header"),
        (b"proxy TCP4", "no PROXY protocol header"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n", "a CR or LF that is no line's end"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\r", "a CR or LF that is no line's end"),
        (b"PROXY UNKNOWN \rx", "a CR or LF that is no line's end"),
        (b"PROXY UNKNOWN " + b"x" * 93, "no CRLF in 107 bytes"),
        (b"PROXY UNKNOWN " + b"x" * 92 + b"\r", "no CRLF in 107 bytes"),
        (b"PROXY \r\n", "a line of version 1 that is none"),
        (b"PROXY UNKNOWNS\r\n", "a line of version 1 that is none"),
        (b"PROXY TCP4\r\n", "a line of version 1 that is none"),
        (b"PROXY TCP5 192.0.2.1 192.0.2.2 1 2\r\n", "a line of version 1 that is none"),
        (b"PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n", "a line of version 1 that is none"),
        (b"PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n", "a line of version 1 that is none"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n", "a line of version 1 that is none"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n", "a line of version 1 that is none"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n", "a line of version 1 that is none"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n", "a line of version 1 that is none"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1_0 2\r\n", "a line of version 1 that is none"),
        (b"PROXY TCP6 fe80::1%lo ::1 1 2\r\n", "a line of version 1 that is none"),
        (b"PROXY TCP4 \xb9.0.2.1 192.0.2.2 1 2\r\n", "a line of version 1 that is none"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 2\r\n", "a port that is none"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 99999\r\n", "a port that is none"),
        (b"PROXY TCP4 192.0.2.1 192.0.2 1 2\r\n", "an address that is none of IPv4"),
        (b"PROXY TCP4 192.0.2.256 192.0.2.2 1 2\r\n", "an address that is none of IPv4"),
        (b"PROXY TCP4 192.0.2.01 192.0.2.2 1 2\r\n", "an address that is none of IPv4"),
        (b"PROXY TCP4 ::1 ::1 1 2\r\n", "an address that is none of IPv4"),
        (b"PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n", "an address that is none of IPv6"),
        (b"PROXY TCP6 ::1:: ::1 1 2\r\n", "an address that is none of IPv6"),
        (SIGNATURE + b"\x11", "version and command 0x11"),
        (SIGNATURE + b"\x31", "version and command 0x31"),
        (SIGNATURE + b"\x22", "version and command 0x22"),
        (SIGNATURE + b"\x21\x41", "family and transport 0x41"),
        (SIGNATURE + b"\x21\x13", "family and transport 0x13"),
        (v2(PROXY, TCP4, b"", 11), "11 bytes declared, which are too few for the addresses"),
        (v2(PROXY, TCP6, b"", 35), "35 bytes declared, which are too few for the addresses"),
        (v2(PROXY, TCP4, b"", 4081), "4081 bytes declared, 4080 allowed"),
        (v2(LOCAL, UNSPEC, b"", 65535), "65535 bytes declared, 4080 allowed"),
    ],
)
def test_what_is_wrong_is_a_value_with_its_reason(data: bytes, detail: str) -> None:
    verdict = peeked(data)
    assert verdict == Malformed(Reason.BAD_PROXY_HEADER, detail, b"")


def test_a_hostile_length_is_not_waited_for() -> None:
    head = v2(PROXY, TCP4, b"", 4081)
    assert isinstance(peek(head[:-1]), NeedMore)
    assert isinstance(peek(head), Malformed)


@given(
    st.sampled_from(("v1", "v2")),
    st.one_of(st.tuples(ENDPOINTS4, ENDPOINTS4), st.tuples(ENDPOINTS6, ENDPOINTS6)),
    st.binary(max_size=200),
)
def test_what_is_built_is_read(
    version: Version, ends: tuple[Endpoint, Endpoint], tlvs: bytes
) -> None:
    header = build(version, *ends)
    if version == "v2":  # with something appended
        length = int.from_bytes(header[14:16], "big") + len(tlvs)
        header = header[:14] + length.to_bytes(2, "big") + header[16:] + tlvs
    verdict = peeked(header)
    assert isinstance(verdict, Header)
    for found, end in zip((verdict.source, verdict.destination), ends, strict=True):
        ip = ipaddress.ip_address(end[0])
        mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
        assert found == (str(mapped or ip), end[1])


SEEDS = [build("v1", *V4), build("v1", *V6), v2(PROXY, TCP4, ADDRESS4 + TLVS), build("v2", *V6)]


@given(st.sampled_from(SEEDS), st.data())
def test_a_mutation_is_read_the_same_however_it_is_cut_and_never_raises(
    seed: bytes, data: st.DataObject
) -> None:
    mutated = bytearray(seed)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(mutated)))
        piece = data.draw(st.binary(max_size=3) | st.sampled_from([b"\r", b"\n", b" ", b"\xff"]))
        mutated[place : place + data.draw(st.integers(0, 3))] = piece
    verdict = peek(mutated)
    if isinstance(verdict, Header):
        mutated = mutated[: verdict.size]
    assert peeked(bytes(mutated)) == verdict


@given(st.binary(max_size=60) | st.binary(max_size=60).map(lambda x: SIGNATURE + x))
def test_any_bytes_have_a_verdict(data: bytes) -> None:
    verdict = peek(data)
    assert isinstance(verdict, NeedMore | Malformed | Header)
    assert not isinstance(verdict, Header) or verdict.size <= len(data)
