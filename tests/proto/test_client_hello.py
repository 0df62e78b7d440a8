"""``proto.client_hello``: every byte sequence gets its verdict, however it is cut.

Real hellos (``tests/hellos``) are read whole, byte by byte, cut at every place and re-cut into
records at every place; built ones are bent in every way that a rule of RFC 8446, 6066 or 7301
forbids; and Hypothesis looks for what nobody thought of.
"""

import dataclasses
import itertools
import struct
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from snimux.proto.client_hello import (
    DEFAULT_MAX_HELLO,
    LARGEST_MAX_HELLO,
    TLS,
    alert,
    farewell,
    peek,
)
from snimux.proto.reason import Reason
from snimux.proto.tls_schema import (
    ALPN,
    CLIENT_HELLO,
    ENCRYPTED_CLIENT_HELLO,
    HANDSHAKE,
    PLAINTEXT,
    PROTOCOL_NAMES,
    SERVER_NAME,
    SERVER_NAME_LIST,
)
from snimux.proto.verdict import START, Foreign, Hello, Malformed, NeedMore, Verdict
from tests.hellos import RealHello, load
from tests.support.drip import drip

REAL = load()
EACH_REAL = pytest.mark.parametrize("real", REAL, ids=[real.slug for real in REAL])

GREASE = 0x1A1A  # RFC 8701


# Builders: from values to bytes, by the schemas themselves.


def sni(name: bytes) -> tuple[int, bytes]:
    return SERVER_NAME, SERVER_NAME_LIST.build({"name_type": 0, "host_name": name})


def alpn(*names: bytes) -> tuple[int, bytes]:
    return ALPN, PROTOCOL_NAMES.build(names)


def body(extensions: list[tuple[int, bytes]], **fields: object) -> bytes:
    built: bytes = CLIENT_HELLO.build(
        {
            "legacy_version": 0x0303,
            "random": bytes(32),
            "legacy_session_id": bytes(32),
            "cipher_suites": b"\x13\x01\x13\x02",
            "legacy_compression_methods": b"\0",
            "extensions": extensions,
            **fields,
        }
    )
    return built


def message(body: bytes, msg_type: int = 1) -> bytes:
    built: bytes = HANDSHAKE.build({"msg_type": msg_type, "body": body})
    return built


def record(fragment: bytes, content_type: int = 22, version: int = 0x0301) -> bytes:
    built: bytes = PLAINTEXT.build(
        {"type": content_type, "legacy_record_version": version, "fragment": fragment}
    )
    return built


def hello(*extensions: tuple[int, bytes]) -> bytes:
    return record(message(body(list(extensions))))


def records_of(data: bytes) -> Iterator[bytes]:
    """The fragments of the records in some bytes."""
    while data:
        (length,) = struct.unpack_from(">H", data, 3)
        yield data[5 : 5 + length]
        data = data[5 + length :]


def recut(data: bytes, cuts: Iterable[int]) -> bytes:
    """The same handshake bytes in other records, cut at the given places of the message."""
    whole = b"".join(records_of(data))
    places = [0, *sorted({cut for cut in cuts if 0 < cut < len(whole)}), len(whole)]
    pieces = [whole[a:b] for a, b in itertools.pairwise(places)]
    return b"".join(record(piece) for piece in pieces)


def every_way(data: bytes) -> Verdict:
    """The verdict of bytes that come whole, which must be the same byte by byte."""
    verdict = peek(data)
    assert drip(peek, data, range(1, len(data))) == verdict
    if isinstance(verdict, Hello):
        assert peek(data + b"\x17\x03\x03 trailing") == verdict
    return verdict


# Real hellos.


@EACH_REAL
def test_a_real_hello_is_read_whole(real: RealHello) -> None:
    verdict = every_way(real.data)
    assert isinstance(verdict, Hello)
    expected = None if real.name is None else real.name.lower().removesuffix(".")
    assert (verdict.name, verdict.alpn, verdict.ech) == (expected, real.alpn, real.ech)
    assert verdict.size == len(real.data)


@EACH_REAL
def test_a_real_hello_needs_its_last_byte_wherever_it_is_cut(real: RealHello) -> None:
    whole = peek(real.data)
    for cut in range(len(real.data)):
        part = peek(real.data[:cut])
        assert isinstance(part, NeedMore), cut
        assert peek(real.data, part) == whole, cut


@EACH_REAL
def test_a_real_hello_may_be_cut_into_records_anywhere(real: RealHello) -> None:
    whole = peek(real.data)
    length = sum(map(len, records_of(real.data)))
    for cut in range(1, length):
        data = recut(real.data, [cut])
        assert same_but_for_size(peek(data), whole), cut
    one_byte_records = recut(real.data, range(length))
    assert len(one_byte_records) == 6 * length
    assert same_but_for_size(every_way(one_byte_records), whole)


def same_but_for_size(one: Verdict, other: Verdict) -> bool:
    assert isinstance(one, Hello)
    assert isinstance(other, Hello)
    return dataclasses.replace(one, size=0) == dataclasses.replace(other, size=0)


# What is a good hello, though an odd one.


def test_a_hello_without_extensions_has_no_name() -> None:
    bare = body([])
    assert bare.endswith(b"\0\0")
    for data in (record(message(bare)), record(message(bare[:-2]))):
        assert every_way(data) == Hello(None, (), False, len(data))


def test_names_are_folded_and_lose_one_trailing_dot() -> None:
    verdict = every_way(hello(sni(b"Secure.CISO.com.")))
    assert isinstance(verdict, Hello)
    assert verdict.name == "secure.ciso.com"


def test_unknown_values_are_ordinary() -> None:
    data = hello(
        (GREASE, b""), sni(b"a.example"), (GREASE + 0x1010, b"\0"), alpn(b"\x0a\x0a", b"h2")
    )
    assert every_way(data) == Hello("a.example", (b"\x0a\x0a", b"h2"), False, len(data))


def test_ech_is_noted_and_the_outer_name_routed() -> None:
    data = hello(sni(b"public.example"), (ENCRYPTED_CLIENT_HELLO, b"\0" * 200))
    assert every_way(data) == Hello("public.example", (), True, len(data))


def test_record_minor_versions_are_ignored() -> None:
    for minor in (0, 1, 3, 4, 255):
        data = record(message(body([sni(b"a.example")])), version=0x0300 | minor)
        assert isinstance(every_way(data), Hello)


def test_what_follows_the_hello_in_its_own_record_is_not_looked_at() -> None:
    handshake = message(body([sni(b"a.example")]))
    data = record(handshake + b"\x0b anything")
    verdict = peek(data)
    assert isinstance(verdict, Hello)
    assert verdict.size == 5 + len(handshake)
    assert peek(data[: verdict.size]) == verdict


def padded_to(size: int) -> bytes:
    """A ClientHello message whose declared length is ``size``."""
    extensions = [sni(b"a.example")]
    room = size - len(body(extensions)) - 4
    built = message(body([*extensions, (21, bytes(room))]))
    assert len(built) == size + 4
    return built


@pytest.mark.parametrize("before", [0, 1, 4, 100])
def test_a_record_may_hold_two_to_the_fourteenth_bytes_and_not_one_more(before: int) -> None:
    """RFC 8446 section 5.1; also a later record, whose header alone is enough to be refused."""
    handshake = padded_to(20_000)
    first = record(handshake[:before]) if before else b""
    for size, is_read in ((2**14, True), (2**14 + 1, False), (2**14 + 256, False)):
        end = before + size
        data = first + record(handshake[before:end]) + record(handshake[end:])
        whole = peek(data, START, 20_000)
        begun = peek(data[: len(first) + 5], START, 20_000)
        if is_read:
            assert isinstance(whole, Hello)
            assert isinstance(begun, NeedMore)
        else:
            overflow = Malformed(Reason.RECORD_OVERFLOW, f"record of {size} bytes", alert(22))
            assert whole == begun == overflow


@pytest.mark.parametrize("max_hello", [DEFAULT_MAX_HELLO, LARGEST_MAX_HELLO, 1000])
def test_the_bound_is_on_the_declared_length(max_hello: int) -> None:
    fits = padded_to(max_hello)
    assert isinstance(peek(record(fits[:10]), START, max_hello), NeedMore)
    data = b"".join(record(fits[at : at + 16384]) for at in range(0, len(fits), 16384))
    assert isinstance(peek(data, START, max_hello), Hello)
    one_byte_records = b"".join(record(fits[at : at + 1]) for at in range(len(fits)))
    assert isinstance(peek(one_byte_records, START, max_hello), Hello)
    declared = b"\x01" + (max_hello + 1).to_bytes(3, "big")
    verdict = peek(record(declared), START, max_hello)
    assert isinstance(verdict, Malformed)
    assert verdict.reason is Reason.HELLO_TOO_LARGE
    assert str(max_hello) in verdict.detail


# What is refused, and with which alert.


def cut_extension() -> bytes:
    bent = bytearray(body([(GREASE, b"abcd")]))
    bent[-5] = 5  # the extension says five bytes, the block has four
    return bytes(bent)


NAME = sni(b"a.example")[1]
GOOD = body([sni(b"a.example"), alpn(b"h2")])
COMPRESSION = GOOD.index(b"\x13\x02") + 2


@pytest.mark.parametrize(
    ("data", "reason", "description"),
    [
        # records
        (record(b"\x02\x28", 21), Reason.UNEXPECTED_MESSAGE, 10),
        (record(b"\x01", 20), Reason.UNEXPECTED_MESSAGE, 10),
        (record(b"GET /", 23), Reason.UNEXPECTED_MESSAGE, 10),
        (record(b"\x01\0\4hi", 24), Reason.UNEXPECTED_MESSAGE, 10),
        (record(b""), Reason.MALFORMED_HELLO, 50),
        (b"\x16\x03\x01\x40\x01", Reason.RECORD_OVERFLOW, 22),
        (b"\x16\x03\x01\x41\x00", Reason.RECORD_OVERFLOW, 22),
        (b"\x16\x03\x01\xff\xff", Reason.RECORD_OVERFLOW, 22),
        (record(message(GOOD)[:50]) + b"\x16\x03\x01\x40\x01", Reason.RECORD_OVERFLOW, 22),
        (record(b"\1") + b"\x16\x03\x03\x41\x00", Reason.RECORD_OVERFLOW, 22),
        (record(message(GOOD)[:50]) + record(b"\1", 20), Reason.UNEXPECTED_MESSAGE, 10),
        (record(message(GOOD)[:50]) + record(b"\1\0", 21), Reason.UNEXPECTED_MESSAGE, 10),
        (record(message(GOOD)[:50]) + record(b""), Reason.MALFORMED_HELLO, 50),
        (record(message(GOOD)[:2]) + record(b""), Reason.MALFORMED_HELLO, 50),
        (record(b"\1") + record(b"\1", version=0x0201), Reason.MALFORMED_HELLO, 50),
        (record(b"\1\0") + record(b"\xff\xff", 23), Reason.UNEXPECTED_MESSAGE, 10),
        # the handshake message
        (record(message(GOOD, 2)), Reason.UNEXPECTED_MESSAGE, 10),
        (record(message(b"", 0)), Reason.UNEXPECTED_MESSAGE, 10),
        (record(b"\x01\xff\xff\xff"), Reason.HELLO_TOO_LARGE, 50),
        (record(b"\x01") + record(b"\x00\x40") + record(b"\x01"), Reason.HELLO_TOO_LARGE, 50),
        (record(message(b"")), Reason.MALFORMED_HELLO, 50),
        # the fixed part
        (record(message(GOOD[:34])), Reason.MALFORMED_HELLO, 50),
        (record(message(GOOD[:20])), Reason.MALFORMED_HELLO, 50),
        (record(message(GOOD[:34] + b"\x21" + GOOD[35:])), Reason.MALFORMED_HELLO, 50),
        (record(message(GOOD[:34] + b"\xff" + GOOD[35:])), Reason.MALFORMED_HELLO, 50),
        (record(message(GOOD[:67] + b"\0\0\1\0")), Reason.MALFORMED_HELLO, 50),
        (record(message(GOOD[:67] + b"\0\3\x13\1\2\1\0")), Reason.MALFORMED_HELLO, 50),
        (record(message(GOOD[:67] + b"\0\4\x13\1")), Reason.MALFORMED_HELLO, 50),
        (record(message(GOOD[:COMPRESSION])), Reason.MALFORMED_HELLO, 50),
        (record(message(GOOD[:COMPRESSION] + b"\0")), Reason.MALFORMED_HELLO, 50),
        (record(message(GOOD[:COMPRESSION] + b"\2\0")), Reason.MALFORMED_HELLO, 50),
        (record(message(GOOD[:COMPRESSION] + b"\xff\0")), Reason.MALFORMED_HELLO, 50),
        # the extension block: cut short anywhere is never "no name"
        *(
            (record(message(GOOD[:cut])), Reason.MALFORMED_HELLO, 50)
            for cut in range(COMPRESSION + 3, len(GOOD))
        ),
        (record(message(GOOD + b"\0")), Reason.MALFORMED_HELLO, 50),
        (record(message(cut_extension())), Reason.MALFORMED_HELLO, 50),
        # server_name
        (hello((SERVER_NAME, b"")), Reason.MALFORMED_HELLO, 50),
        (hello((SERVER_NAME, b"\0\0")), Reason.MALFORMED_HELLO, 50),
        (hello((SERVER_NAME, NAME[:-1])), Reason.MALFORMED_HELLO, 50),
        (hello((SERVER_NAME, NAME + b"\0")), Reason.MALFORMED_HELLO, 50),
        (hello((SERVER_NAME, b"\0\4\0\0\1ab")), Reason.MALFORMED_HELLO, 50),
        (hello((SERVER_NAME, b"\0\5\0\0\1ab")), Reason.MALFORMED_HELLO, 50),
        (hello((SERVER_NAME, b"\0\4\1\0\1a")), Reason.MALFORMED_HELLO, 50),
        (hello((SERVER_NAME, b"\0\x08\0\0\1a\0\0\1b")), Reason.MALFORMED_HELLO, 50),
        (hello(sni(b"")), Reason.BAD_SERVER_NAME, 50),
        (hello(sni(b".")), Reason.BAD_SERVER_NAME, 50),
        (hello(sni(b"a..b")), Reason.BAD_SERVER_NAME, 50),
        (hello(sni(b"a.example\0.b")), Reason.BAD_SERVER_NAME, 50),
        (hello(sni(b"b\xc3\xbccher.example")), Reason.BAD_SERVER_NAME, 50),
        (hello(sni(b"127.0.0.1")), Reason.BAD_SERVER_NAME, 50),
        (hello(sni(b"::1")), Reason.BAD_SERVER_NAME, 50),
        (hello(sni(b"a." * 127 + b"a")), Reason.BAD_SERVER_NAME, 50),
        (hello(sni(b"a" * 10_000)), Reason.BAD_SERVER_NAME, 50),
        (hello(sni(b"a.example"), sni(b"b.example")), Reason.MALFORMED_HELLO, 50),
        (hello(sni(b"a.example"), sni(b"a.example")), Reason.MALFORMED_HELLO, 50),
        # ALPN
        (hello((ALPN, b"")), Reason.MALFORMED_HELLO, 50),
        (hello((ALPN, b"\0\0")), Reason.MALFORMED_HELLO, 50),
        (hello((ALPN, b"\0\1\0")), Reason.MALFORMED_HELLO, 50),
        (hello((ALPN, b"\0\3\0\1a")), Reason.MALFORMED_HELLO, 50),
        (hello((ALPN, b"\0\3\3h2")), Reason.MALFORMED_HELLO, 50),
        (hello((ALPN, b"\0\4\2h2")), Reason.MALFORMED_HELLO, 50),
        (hello((ALPN, b"\0\2\2h2")), Reason.MALFORMED_HELLO, 50),
        (hello(alpn(b"h2"), alpn(b"h2")), Reason.MALFORMED_HELLO, 50),
    ],
)
def test_a_bad_hello_is_refused_with_the_right_alert(
    data: bytes, reason: Reason, description: int
) -> None:
    verdict = every_way(data)
    assert isinstance(verdict, Malformed)
    assert verdict.reason is reason
    assert verdict.detail
    assert verdict.farewell == record(bytes([2, description]), 21)
    trailing = peek(data + b"\x16\x03\x01")
    assert isinstance(trailing, Malformed)
    assert trailing.reason is reason


@pytest.mark.parametrize("content_type", [0, 25, 0x47, 0x80, 0xFF])
def test_other_content_types_within_the_hello_are_refused(content_type: int) -> None:
    verdict = every_way(record(message(GOOD)[:50]) + bytes([content_type]))
    assert isinstance(verdict, Malformed)
    assert verdict.reason is Reason.UNEXPECTED_MESSAGE


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\n", Reason.HTTP),
        (b"OPTIONS * HTTP/1.1\r\n", Reason.HTTP),
        (b"PRI * HTTP/2.0\r\n", Reason.HTTP),
        (b"SSH-2.0-OpenSSH_9.2\r\n", Reason.SSH),
        (b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10", Reason.SSLV2),
        (b"\x80\x4c\x01\x03\x01\x00\x33\x00\x00\x00\x10", Reason.SSLV2),
        (b"\x80\x2e\x04\x00\x02", Reason.NOISE),
        (b"\x80\x2e\x01\x07\x02", Reason.NOISE),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", Reason.PROXY_PROTOCOL),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c", Reason.PROXY_PROTOCOL),
        (b"\x00", Reason.NOISE),
        (b"\x16\x02\x00\x00\x05", Reason.NOISE),
        (b"\x15\x05", Reason.NOISE),
        (b"\x17GET", Reason.NOISE),
        (b"get / http", Reason.NOISE),
        (b"EHLO x", Reason.NOISE),
        (b"\xff" * 64, Reason.NOISE),
        (b"\x03\x00\x00\x13\x0e\xe0", Reason.NOISE),  # RDP
    ],
)
def test_other_protocols_are_foreign(data: bytes, reason: Reason) -> None:
    assert every_way(data) == Foreign(reason)
    assert farewell(reason) == b""


@pytest.mark.parametrize("data", [b"", b"G", b"GET", b"SSH", b"\x80", b"\x80\x2e", b"\x80\x2e\1",
                                  b"\r\n\r\n", b"\x16", b"\x15"])  # fmt: skip
def test_too_little_to_tell_is_not_told(data: bytes) -> None:
    assert every_way(data) == START


def test_a_hello_that_stops_midway_carries_its_farewell() -> None:
    verdict = peek(hello(sni(b"a.example"))[:40])
    assert isinstance(verdict, NeedMore)
    assert verdict.farewell == alert(50)


def test_every_reason_has_its_farewell() -> None:
    numbers = {reason: farewell(reason)[-1] for reason in Reason if farewell(reason)}
    assert numbers == {
        Reason.MALFORMED_HELLO: 50,
        Reason.BAD_SERVER_NAME: 50,
        Reason.HELLO_TOO_LARGE: 50,
        Reason.UNEXPECTED_MESSAGE: 10,
        Reason.RECORD_OVERFLOW: 22,
        Reason.ACCESS_DENIED: 49,
        Reason.NO_ROUTE: 112,
        Reason.ROUTE_REFUSES: 112,
        Reason.BACKEND_DOWN: 80,
        Reason.NO_SOURCE: 80,
        Reason.OUT_OF_RESOURCES: 80,
        Reason.TOO_MANY_FROM_SOURCE: 49,
        Reason.RATE_LIMITED: 49,
    }
    assert (TLS.name, TLS.default_port, TLS.peek, TLS.farewell) == ("tls", 443, peek, farewell)


# The schemas build what they parse.


@EACH_REAL
def test_the_full_schema_gives_every_real_hello_back(real: RealHello) -> None:
    whole = HANDSHAKE.parse(b"".join(records_of(real.data)))
    parsed = CLIENT_HELLO.parse(whole.body)
    assert CLIENT_HELLO.build(parsed) == whole.body
    names = [data for kind, data in parsed.extensions if kind == SERVER_NAME]
    assert [SERVER_NAME_LIST.build(SERVER_NAME_LIST.parse(data)) for data in names] == names


# Properties.

LABEL = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789-_", min_size=1, max_size=20)
NAMES = st.lists(LABEL, min_size=2, max_size=5).map(lambda x: ".".join([*x, "example"]).encode())
OTHER = st.tuples(st.integers(100, 0xFE00), st.binary(max_size=60))


@st.composite
def good_hellos(draw: st.DrawFn) -> tuple[bytes, Hello]:
    """A good hello in one record, and what is to be read in it."""
    extensions = draw(st.lists(OTHER, max_size=5))
    name, ech = None, False
    protocols: tuple[bytes, ...] = ()
    if draw(st.booleans()):
        name = draw(NAMES)
        extensions.insert(draw(st.integers(0, len(extensions))), sni(name))
    if draw(st.booleans()):
        protocols = tuple(
            draw(st.lists(st.binary(min_size=1, max_size=12), min_size=1, max_size=4))
        )
        extensions.insert(draw(st.integers(0, len(extensions))), alpn(*protocols))
    if draw(st.booleans()):
        ech = True
        extensions.append((ENCRYPTED_CLIENT_HELLO, b"ech"))
    data = record(
        message(
            body(
                extensions,
                legacy_session_id=draw(st.binary(max_size=32)),
                cipher_suites=draw(st.binary(min_size=1, max_size=20)) * 2,
                legacy_compression_methods=draw(st.binary(min_size=1, max_size=3)),
            )
        )
    )
    expected = None if name is None else name.decode().lower()
    return data, Hello(expected, protocols, ech, len(data))


@given(good_hellos(), st.data())
def test_any_cut_into_segments_and_records_gives_the_same(
    good: tuple[bytes, Hello], data: st.DataObject
) -> None:
    original, expected = good
    cuts = data.draw(st.lists(st.integers(1, len(original)), max_size=12))
    framed = recut(original, cuts)
    segments = sorted(data.draw(st.lists(st.integers(0, len(framed)), max_size=12)))
    assert same_but_for_size(drip(peek, framed, segments), expected)
    behind = data.draw(st.binary(max_size=40))
    verdict = peek(framed + behind)
    assert same_but_for_size(verdict, expected)
    assert isinstance(verdict, Hello)
    assert verdict.size == len(framed)
    assert isinstance(peek(framed[: data.draw(st.integers(0, len(framed) - 1))]), NeedMore)


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=8))
@example(b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", [])
def test_any_bytes_get_the_same_verdict_however_they_come(data: bytes, cuts: list[int]) -> None:
    for given_bytes in (data, b"\x16\x03\x01" + data, b"\x16\x03\x01\x01\x00\x01\x00\x00" + data):
        assert drip(peek, given_bytes, sorted(cuts)) == peek(given_bytes)


@settings(max_examples=400)
@given(
    st.sampled_from(REAL),
    st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), min_size=1, max_size=6),
    st.sampled_from(["set", "drop", "insert", "truncate"]),
)
def test_a_mutated_hello_gets_a_verdict_and_never_one_that_depends_on_cuts(
    real: RealHello, changes: list[tuple[int, int]], how: str
) -> None:
    data = bytearray(real.data)
    for place, value in changes:
        at = place % len(data)
        if how == "set":
            data[at] = value
        elif how == "drop" and len(data) > 1:
            del data[at]
        elif how == "insert":
            data.insert(at, value)
        elif at:
            del data[at:]
    verdict = peek(data)
    assert isinstance(verdict, NeedMore | Malformed | Foreign | Hello)
    assert drip(peek, bytes(data), range(1, len(data), 7)) == verdict


# Cost.


class CountingBytes(bytearray):
    """Bytes that count how many of them are looked at, slice by slice."""

    looked_at = 0

    def __getitem__(self, key):  # type: ignore[no-untyped-def]
        found = super().__getitem__(key)
        type(self).looked_at += len(found) if isinstance(key, slice) else 1
        return found


@pytest.mark.parametrize("framing", ["one record", "one-byte records"])
def test_cost_is_linear_in_the_bytes_received_one_by_one(framing: str) -> None:
    costs = []
    for size in (2_000, 16_000):
        handshake = padded_to(size)
        data = recut(record(handshake), range(len(handshake)) if "byte" in framing else [])
        received = CountingBytes()
        CountingBytes.looked_at = 0
        verdict: Verdict = START
        for octet in data:
            received.append(octet)
            assert isinstance(verdict, NeedMore)
            verdict = peek(received, verdict)
        assert isinstance(verdict, Hello)
        costs.append(CountingBytes.looked_at / len(data))
    assert costs[1] < 1.2 * costs[0]
    assert costs[1] < 40


def test_of_an_extension_that_occurs_again_and_again_only_some_are_read() -> None:
    few, unreadable = [sni(b"a.test")] * 4, (SERVER_NAME, b"")
    verdict = peek(hello(*few, unreadable))
    assert isinstance(verdict, Malformed)
    assert verdict.detail == "an extension occurs twice"
    # but each until then
    assert peek(hello(few[0], unreadable)) != verdict


def test_an_endless_run_of_tiny_records_ends_within_the_bound() -> None:
    """Every record brings a byte, so the framing costs six bytes for one at the most."""
    declared = b"\x01" + DEFAULT_MAX_HELLO.to_bytes(3, "big")
    handshake = declared + bytes(DEFAULT_MAX_HELLO)
    data = b"".join(record(handshake[at : at + 1]) for at in range(len(handshake)))
    assert isinstance(peek(data[:-1]), NeedMore)
    assert isinstance(peek(data), Malformed)
    assert len(data) == 6 * (DEFAULT_MAX_HELLO + 4)
