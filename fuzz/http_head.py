"""The target ``http_head``: what comes to port 80.

Where there is a Hello, a server of h11's reads the same Host in it; what is refused is refused by a
response that a client of h11's reads; and a redirect leads nowhere but to that Host.
"""

from collections.abc import Iterable
from random import Random

from fuzz import mutation, peeks
from fuzz.target import Target
from snimux.proto.http_head import peek, redirect
from snimux.proto.verdict import Foreign, Hello, Malformed, NeedMore, Request
from tests.proto.test_http_head import FIREFOX, HTTP2, agrees, answer, get

_WORDS = (
    b"GET / HTTP/1.1", b"POST * HTTP/1.0", b"CONNECT a.example:1 HTTP/1.1", b"Host: a.example",
    b"host:b.example:80", b"Host: [::1]:80", b"Host: 192.0.2.1", b"Host:", b"a..b", b"a" * 64,
    b"http://c.example", b"https://u@c.example#x", b"//", b"/", b"?", b"*", b" ", b"\t", b"\r",
    b"\n", b"\0", b"\x7f", b"\xc3\xbc", b":", b",", b"Transfer-Encoding: chunked",
    b"Content-Length: 3", b"PRI * HTTP/2.0", b"HTTP/1.1", b"HTTP/9.9", b"\x16\x03", b"PROXY ",
    b"/.well-known/acme-challenge/x", b" folded",
)  # fmt: skip


def check(data: bytes) -> int:
    """What ``peek`` says is true; how far it got."""
    match peeks.check(peek, data, most=512, filler=b"x" * 8):
        case Hello(request=Request() as request) as hello:
            _leads_to_its_host(hello, request)
            agrees(data, hello)
            return 1000 + len(request.target)
        case Malformed(_, detail, farewell):
            method = b"GET" if farewell.endswith(b".\n") else b"HEAD"
            assert data.startswith(method) or method == b"GET"
            assert 400 <= answer(farewell, method)[0] <= 505
            return len(detail)
        case NeedMore(scanned, _, _, farewell):
            assert not farewell or answer(farewell)[0] == 408
            return scanned
        case Foreign():
            return 0
        case Hello():
            raise AssertionError("a Hello without its request")


def _leads_to_its_host(hello: Hello, request: Request) -> None:
    assert hello.name is None or request.host == hello.name
    found = redirect(hello, 8443)
    if found is None:
        return
    assert found.location == f"https://{request.host}:8443{request.target}"
    assert found.location.isascii()
    assert found.location.isprintable()
    assert answer(found.farewell, request.method.encode())[1]["location"] == found.location


def mutate(data: bytes, random: Random) -> bytes:
    """Lines and what is in them, changed."""
    return mutation.lines(data, random, _WORDS, end=b"\r\n")


def given() -> Iterable[bytes]:
    """Some of those of the tests."""
    return (
        FIREFOX, HTTP2, get(b"a.example"), get(b"[::1]:80", b"http://b.example:80/x?y"),
        b"GET / HTTP/1.0\r\n\r\n", b"OPTIONS * HTTP/1.1\r\nHost: a.example\r\n\r\n",
        b"HEAD /\xc3\xbc HTTP/1.1\r\nHost: A.Example.:80\r\nX: y\r\n\r\n", b"SSH-2.0-x\r\n",
    )  # fmt: skip


TARGET = Target("http_head", ("proto/http_head",), check, given, mutate, max_size=1024)
