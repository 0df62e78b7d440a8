"""The target ``proxy_header``: what a balancer in front says of the client, or who plays one.

Where there are addresses they are in canonical spelling, and the same again when they are built;
and a header is waited for no longer than it may be.
"""

import ipaddress
from collections.abc import Iterable
from random import Random

from fuzz import mutation
from fuzz.target import Target
from snimux.proto.proxy_header import Endpoint, Header, build, peek
from snimux.proto.verdict import Malformed, NeedMore

_MOST = 4096
_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_WORDS = (
    b"PROXY", b"TCP4", b"TCP6", b"UNKNOWN", b"192.0.2.1", b"0.0.0.0", b"127.1", b"01.2.3.4",
    b"::1", b"::FFFF:192.0.2.1", b"fe80::1%eth0", b"2001:db8::", b"0", b"443", b"0443", b"65536",
    b"99999", b"\r\n", b"\n", b"\r", b"x" * 90, b"\0", b"\xc3\xbc", b"",
)  # fmt: skip


def check(data: bytes) -> int:
    """What ``peek`` says is true; how far it got."""
    verdict = peek(data)
    for cut in range(len(data) + 1):
        early = peek(data[:cut])
        if not isinstance(early, NeedMore):
            assert early == verdict, cut
            break
    match verdict:
        case NeedMore():
            assert len(data) < _MOST
            return len(data)
        case Malformed(_, detail):
            assert detail
            assert detail.isprintable()
            return len(detail)
        case Header(source, destination, size):
            assert 0 < size <= min(len(data), _MOST)
            assert peek(data[:size] + b"\x16\x03\x01") == verdict
            assert isinstance(peek(data[: size - 1]), NeedMore)
            return 1000 + _is_built_again(source, destination)


def _is_built_again(source: Endpoint | None, destination: Endpoint | None) -> int:
    if source is None or destination is None:
        assert source is destination
        return 0
    for host, port in (source, destination):
        assert str(ipaddress.ip_address(host)) == host
        assert 0 <= port <= 0xFFFF
    is_one_family = (":" in source[0]) == (":" in destination[0])
    for header in (build("v1", source, destination), build("v2", source, destination)):
        again = peek(header)
        if is_one_family:
            assert again == Header(source, destination, len(header))
        else:  # IPv4 that was mapped, and IPv6
            assert again == Header(None, None, len(header))
    return len(source[0])


def mutate(data: bytes, random: Random) -> bytes:
    """Words of a line, or what is behind a signature, with its length right."""
    if not data.startswith(_SIGNATURE) or random.randint(0, 3) == 0:
        return mutation.lines(data, random, _WORDS, end=b" ")
    body = mutation.octets(data[16:], random)[: _MOST - 16]
    kind = random.choice((data[12:14], b"\x20\x00", b"\x21\x11", b"\x21\x21", b"\x21\x31"))
    return _SIGNATURE + kind.ljust(2, b"\0") + len(body).to_bytes(2, "big") + body


def given() -> Iterable[bytes]:
    """One of each."""
    four, six = ("192.0.2.1", 1), ("2001:db8::1", 65535)
    for ends in ((four, four), (six, six), (None, None)):
        yield build("v1", *ends)
        yield build("v2", *ends)
    yield b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\nGET /"
    yield b"PROXY TCP6 ::ffff:192.0.2.1 ::1 0 443\r\n"


TARGET = Target("proxy_header", ("proto/proxy_header",), check, given, mutate)
