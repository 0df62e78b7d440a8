"""What is true of every protocol's ``peek``, whatever the bytes.

The verdict is that of the bytes, not of their cuts; what is behind a verdict does not change it; it
comes within the bound; and a name is canonical.
"""

import zlib
from random import Random

from snimux.proto import hostname
from snimux.proto.client_hello import DEFAULT_MAX_HELLO
from snimux.proto.verdict import START, Foreign, Hello, Malformed, NeedMore, Verdict
from tests.support.drip import Peek, drip

_SMALL = 512  # the smallest bound there is, so that it is reached
_PIECES = 100  # so many at most, so that long bytes are not looked at for ever
_BEHIND = (b"\x16\x03\x01\x00\x01\x01", b"\r\n\r\nGET / HTTP/1.1\r\n", b"\0\xff")


def check(peek: Peek, data: bytes, *, most: int, filler: bytes) -> Verdict:
    """The verdict of some bytes, of which all is true that this file is about.

    Args:
        peek: the protocol's.
        data: the bytes.
        most: with a bound of 512 bytes on the hello, no more than so many are waited for.
        filler: what a client may say for ever.
    """
    verdict = _same_however_cut(peek, data, DEFAULT_MAX_HELLO)
    small = _same_however_cut(peek, data, _SMALL)
    assert not isinstance(small, NeedMore) or len(data) <= most, len(data)
    endless = data + filler * (most // len(filler) + 1)
    assert not isinstance(peek(endless, START, _SMALL), NeedMore)
    return verdict


def _same_however_cut(peek: Peek, data: bytes, max_hello: int) -> Verdict:
    verdict = peek(data, START, max_hello)
    random = Random(zlib.crc32(data))
    few = sorted(random.randint(0, len(data)) for _ in range(random.randint(1, 8)))
    step = 1 + len(data) // _PIECES
    for cuts in (few, range(random.randint(1, step), len(data), step)):
        assert drip(peek, data, cuts, max_hello) == verdict, list(cuts)
    match verdict:
        case Hello():
            _is_in_order(peek, data, verdict, max_hello)
        case Malformed(_, detail, farewell):
            assert detail.isprintable(), detail
            assert detail
            assert farewell
        case Foreign() | NeedMore():
            pass
    if not isinstance(verdict, NeedMore):
        for behind in _BEHIND:
            assert peek(data + behind, START, max_hello) == verdict, behind
    return verdict


def _is_in_order(peek: Peek, data: bytes, hello: Hello, max_hello: int) -> None:
    whole = data[: hello.size]
    assert len(whole) == hello.size > 0
    assert peek(whole, START, max_hello) == hello
    assert isinstance(peek(whole[:-1], START, max_hello), NeedMore)
    if hello.name is not None:
        assert hostname.from_wire(hello.name.encode("ascii")) == hello.name
        assert 0 < len(hello.name) <= hostname.MAX_NAME
    assert all(hello.alpn)
