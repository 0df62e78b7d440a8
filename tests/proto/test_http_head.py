"""``proto.http_head``: every byte sequence gets its verdict, however it is cut.

Good heads and bad ones are read whole, byte by byte and with bytes behind them; Hypothesis looks
for what nobody thought of; and where there is a Hello, a server's own reading of the Host agrees.
"""

import re

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from snimux.proto.client_hello import DEFAULT_MAX_HELLO
from snimux.proto.http_head import HTTP, farewell, peek, redirect
from snimux.proto.reason import Reason
from snimux.proto.verdict import (
    START,
    Foreign,
    Hello,
    Malformed,
    NeedMore,
    Redirect,
    Request,
    Verdict,
)
from tests.hellos import load
from tests.support.drip import drip

FIREFOX = (
    b"GET /a?b=c HTTP/1.1\r\nHost: dao.ciso.com\r\n"
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n"
    b"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n"
    b"Accept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate\r\n"
    b"Connection: keep-alive\r\nUpgrade-Insecure-Requests: 1\r\n\r\n"
)
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def get(host: bytes, target: bytes = b"/", *fields: bytes) -> bytes:
    """A request as HTTP/1.1 wants it, with some more fields."""
    lines = [b"GET " + target + b" HTTP/1.1", b"Host: " + host, *fields]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def every_way(data: bytes) -> Verdict:
    """The verdict of bytes that come whole, which must be the same byte by byte."""
    verdict = peek(data)
    assert drip(peek, data, range(1, len(data))) == verdict
    if not isinstance(verdict, NeedMore):
        for behind in (b"the body", b"\0\n \r", data):
            assert peek(data + behind) == verdict
    return verdict


def hello_of(data: bytes) -> Hello:
    verdict = every_way(data)
    assert isinstance(verdict, Hello), verdict
    assert verdict.size == len(data)
    assert (verdict.alpn, verdict.ech) == ((), False)
    return verdict


def request_of(data: bytes) -> Request:
    request = hello_of(data).request
    assert request is not None
    return request


def answer(data: bytes, method: bytes = b"GET") -> tuple[int, dict[str, str], str]:
    """Status, fields and body of a response, which a real client reads to its end."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    client.receive_data(b"")
    head = client.next_event()
    assert isinstance(head, h11.Response)
    body = b""
    while isinstance(event := client.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert client.trailing_data == (b"", True)
    fields = {name.decode(): value.decode() for name, value in head.headers}
    assert fields["connection"] == "close"
    assert fields["content-type"] == "text/plain; charset=utf-8"
    return head.status_code, fields, body.decode()


# What is a good head.


def test_a_browsers_request() -> None:
    expected = Hello("dao.ciso.com", (), False, len(FIREFOX),
                     Request("GET", "dao.ciso.com", "/a?b=c"))  # fmt: skip
    assert every_way(FIREFOX) == expected


def test_a_head_needs_its_last_byte_wherever_it_is_cut() -> None:
    whole = peek(FIREFOX)
    for cut in range(1, len(FIREFOX)):
        part = peek(FIREFOX[:cut])
        assert isinstance(part, NeedMore), cut
        assert answer(part.farewell)[0] == 408
        assert peek(FIREFOX, part) == whole, cut


@pytest.mark.parametrize(
    ("host", "name"),
    [
        (b"a.example", "a.example"),
        (b"A.Example.", "a.example"),
        (b"a.example:80", "a.example"),
        (b"a.example:8080", "a.example"),
        (b"a.example:", "a.example"),
        (b" \t a.example \t", "a.example"),
        (b"xn--bcher-kva.example", "xn--bcher-kva.example"),
        (b"_x.a.example", "_x.a.example"),
        (b"localhost", "localhost"),
        (b"a" * 63 + b".example", "a" * 63 + ".example"),
    ],
)
def test_the_host_is_the_name(host: bytes, name: str) -> None:
    hello = hello_of(get(host))
    assert hello.name == name
    assert hello.request == Request("GET", name, "/")


@pytest.mark.parametrize(
    ("host", "shown"),
    [(b"192.0.2.7", "192.0.2.7"), (b"192.0.2.7:80", "192.0.2.7"), (b"[::1]", "[::1]"),
     (b"[2001:DB8::1]:8080", "[2001:db8::1]")],
)  # fmt: skip
def test_an_address_is_no_name(host: bytes, shown: str) -> None:
    hello = hello_of(get(host))
    assert hello.name is None
    assert hello.request == Request("GET", shown, "/")


def test_http_1_0_may_have_no_host() -> None:
    hello = hello_of(b"GET / HTTP/1.0\r\n\r\n")
    assert (hello.name, hello.request) == (None, Request("GET", None, "/"))
    assert hello_of(b"GET / HTTP/1.0\r\nhOsT:a.example\r\n\r\n").name == "a.example"


@pytest.mark.parametrize(
    ("target", "name", "read"),
    [
        (b"http://a.example/x?y", "a.example", "/x?y"),
        (b"HTTP://A.Example:80", "a.example", "/"),
        (b"http://a.example?y", "a.example", "/?y"),
        (b"https://a.example//x", "a.example", "//x"),
        (b"http://192.0.2.1/", None, "/"),
        (b"//evil.example/x", "other.example", "//evil.example/x"),
        (b"/http://a.example/", "other.example", "/http://a.example/"),
        (b"/a\\b|c^\"<>`{}'%zz#d", "other.example", "/a\\b|c^\"<>`{}'%zz#d"),
        (b"/b\xc3\xbccher?\xff", "other.example", "/b%C3%BCcher?%FF"),
    ],
)
def test_the_authority_of_a_url_beats_the_host(target: bytes, name: str | None, read: str) -> None:
    hello = hello_of(get(b"other.example", target))
    assert hello.name == name
    assert hello.request is not None
    assert hello.request.target == read


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PROPFIND", "M-SEARCH", "get", "X", "P",
                                    "SSHX", "PROXYX", "!#$%&'*+-.^_`|~0"])  # fmt: skip
def test_methods_are_the_backends_business(method: str) -> None:
    data = get(b"a.example").replace(b"GET", method.encode())
    assert request_of(data) == Request(method, "a.example", "/")


def test_fields_are_the_backends_business() -> None:
    odd = [b"X:", b"Y: \xc3\xbc\xff", b"Content-Length: 5", b"Upgrade: websocket",
           b"Z:" + b"z" * 9000, b"Expect: 100-continue", b"Connection: Upgrade, HTTP2-Settings",
           b"X: again", b"X-Forwarded-Host: b.example"]  # fmt: skip
    assert hello_of(get(b"a.example", b"/", *odd)).name == "a.example"
    assert request_of(b"OPTIONS * HTTP/1.1\r\nHost: a.example\r\n\r\n").target == "*"


def test_http_2_with_prior_knowledge_has_no_name_that_could_be_read() -> None:
    head = b"PRI * HTTP/2.0\r\n\r\n"
    expected = Hello(None, (), False, len(head), Request("PRI", None, ""))
    assert every_way(head) == expected
    assert every_way(HTTP2) == expected


# What is refused, and with which status.


def bad(data: bytes) -> tuple[int, Malformed]:
    verdict = every_way(data)
    assert isinstance(verdict, Malformed), verdict
    assert verdict.detail
    status, _, body = answer(verdict.farewell)
    assert body.endswith(".\n")
    return status, verdict


@pytest.mark.parametrize(
    "data",
    [
        # lines that servers end at different places
        b"GET / HTTP/1.1\nHost: a.example\n\n",
        b"GET / HTTP/1.1\r\nHost: a.example\n\r\n",
        b"GET / HTTP/1.1\r\nX: y\nHost: a.example\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: y\rHost: a.example\r\n\r\n",
        b"GET / HTTP/1.1\rHost: a.example\r\r",
        b"GET / HTTP/1.1\r\r\nHost: a.example\r\n\r\n",
        # folded lines
        get(b"a.example\r\n b"),
        get(b"a.example", b"/", b"X: y\r\n\tHost: b.example"),
        get(b"\r\n a.example"),
        b"GET / HTTP/1.1\r\n Host: a.example\r\n\r\n",
        # control characters
        get(b"a.example\0.b"),
        get(b"a.example", b"/", b"X: \x01"),
        get(b"a.example", b"/", b"X: \x0b"),
        get(b"a.example", b"/", b"X: \x7f"),
        get(b"a.example", b"/\0"),
        # fields
        get(b"a.example", b"/", b"Host : b.example"),
        get(b"a.example", b"/", b"no colon"),
        get(b"a.example", b"/", b": no name"),
        get(b"a.example", b"/", b"n\xc3\xa4me: x"),
        get(b"a.example", b"/", b"Content-Length: 1, 2"),
        # Hosts
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: y\r\n\r\n",
        b"GET http://a.example/ HTTP/1.1\r\n\r\n",
        get(b"a.example", b"/", b"Host: a.example"),
        get(b"a.example", b"/", b"host: b.example"),
        b"GET / HTTP/1.0\r\nHost: a.example\r\nHost: b.example\r\n\r\n",
        # request lines
        b"GET  / HTTP/1.1\r\nHost: a.example\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nHost: a.example\r\n\r\n",
        b"GET / HTTP/1.1 \r\nHost: a.example\r\n\r\n",
        b"GET / http/1.1\r\nHost: a.example\r\n\r\n",
        b"GET / HTTP/1.10\r\nHost: a.example\r\n\r\n",
        b"GET / HTTP/1.\xc3\xbc\r\nHost: a.example\r\n\r\n",
        b"G\xc3\xa4T / HTTP/1.1\r\nHost: a.example\r\n\r\n",
        b"GET /\r\nHost: a.example\r\n\r\n",
        b"GET /\r\n\r\n",
        b"EHLO a.example\r\n\r\n",
        # targets
        get(b"a.example", b"*"),
        get(b"a.example", b"a.example"),
        get(b"a.example", b"http:a.example/"),
        get(b"a.example", b"http:/a.example/"),
        get(b"a.example", b"ftp://a.example/"),
        get(b"a.example", b"http://u:p@a.example/"),
        get(b"a.example", b"http://a.example#x"),
        b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n",
        b"CONNECT / HTTP/1.1\r\nHost: a.example\r\n\r\n",
    ],
)  # fmt: skip
def test_what_is_not_as_http_wants_it_is_400(data: bytes) -> None:
    status, verdict = bad(data)
    assert (status, verdict.reason) == (400, Reason.MALFORMED_HELLO)


@pytest.mark.parametrize(
    "host",
    [b"", b" ", b".", b"a..b", b":80", b"a.example:http", b"a.example:80:80", b"a.example:-1",
     b"a.example:123456", b"a b", b"a,b", b"a/b", b"a@b", b"a.example/..", b"b\xc3\xbccher.example",
     b"1.2.3.256", b"::1", b"[::1", b"[::1]x", b"[]", b"[fe80::1%25eth0]", b"[1.2.3.4]", b"a%2eb",
     b"a" * 64, b"a." * 127 + b"a", b'"a"', b"<a>"],
)  # fmt: skip
def test_a_host_that_is_none_is_400(host: bytes) -> None:
    status, verdict = bad(get(host))
    assert (status, verdict.reason) == (400, Reason.BAD_SERVER_NAME)
    if b"/" not in host and b"@" not in host and b" " not in host:
        status, verdict = bad(get(b"a.example", b"http://" + host + b"/"))
        assert (status, verdict.reason) == (400, Reason.BAD_SERVER_NAME)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/2.0\r\nHost: a.example\r\n\r\n", 505),
        (b"GET / HTTP/0.9\r\nHost: a.example\r\n\r\n", 505),
        (b"PRI * HTTP/3.0\r\n\r\n", 505),
        (b"PRI / HTTP/2.0\r\n\r\n", 505),
        (get(b"a.example", b"/", b"Transfer-Encoding: gzip"), 501),
    ],
)
def test_what_is_not_implemented_is_said(data: bytes, status: int) -> None:
    assert bad(data)[0] == status


def test_the_refusal_of_a_head_request_has_no_body() -> None:
    verdict = peek(get(b"a..b").replace(b"GET", b"HEAD"))
    assert isinstance(verdict, Malformed)
    status, fields, body = answer(verdict.farewell, b"HEAD")
    assert (status, body) == (400, "")
    assert int(fields["content-length"]) > 0


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        *((hello.data, Reason.TLS) for hello in load()[:3]),
        (b"\x16\x03", Reason.TLS),
        (b"\x15\x03\x01\x00\x02\x02\x28", Reason.TLS),
        (b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10", Reason.SSLV2),
        (b"SSH-2.0-OpenSSH_9.2\r\n", Reason.SSH),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", Reason.PROXY_PROTOCOL),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c", Reason.PROXY_PROTOCOL),
        (b"\r\nGET / HTTP/1.1\r\nHost: a.example\r\n\r\n", Reason.NOISE),
        (b" GET / HTTP/1.1\r\nHost: a.example\r\n\r\n", Reason.NOISE),
        (b"\n", Reason.NOISE),
        (b"\0", Reason.NOISE),
        (b"\x16\x02", Reason.NOISE),
        (b"\xff" * 64, Reason.NOISE),
        (b'{"id": 1, "method": "mining.subscribe"}\n', Reason.NOISE),
        (b"\x03\x00\x00\x13\x0e\xe0", Reason.NOISE),  # RDP
    ],
)
def test_other_protocols_are_foreign_and_told_nothing(data: bytes, reason: Reason) -> None:
    assert every_way(data) == Foreign(reason)
    assert farewell(reason) == b""


@pytest.mark.parametrize("data", [b"", b"\x16", b"\x80", b"\r\n\r\n"])
def test_too_little_to_tell_is_told_nothing(data: bytes) -> None:
    assert every_way(data) == START


@pytest.mark.parametrize("data", [b"G", b"S", b"PR", b"GET", b"GET / HTTP/1.1\r\n\r", b"GET /\r"])
def test_what_begins_as_a_request_is_told_that_it_is_late(data: bytes) -> None:
    verdict = every_way(data)
    assert isinstance(verdict, NeedMore)
    assert answer(verdict.farewell)[0] == 408


# The bound.


@pytest.mark.parametrize("max_hello", [512, DEFAULT_MAX_HELLO, 65536])
def test_the_bound_is_on_the_head_up_to_the_empty_line(max_hello: int) -> None:
    bare = len(get(b"a.example", b"/", b"X: "))
    fits = get(b"a.example", b"/", b"X: " + b"x" * (max_hello - bare))
    assert len(fits) == max_hello
    whole = peek(fits + b"behind it", START, max_hello)
    assert isinstance(whole, Hello)
    assert drip(peek, fits, range(1, len(fits), 61), max_hello) == whole
    for data in (fits.replace(b"\r\n\r\n", b"x\r\n\r\n"), fits[:-2] + b"x" * 9):
        verdict = peek(data, START, max_hello)
        assert isinstance(verdict, Malformed)
        assert verdict.reason is Reason.HELLO_TOO_LARGE
        assert str(max_hello) in verdict.detail
        assert answer(verdict.farewell)[0] == 431
        assert drip(peek, data, range(1, len(data), 61), max_hello) == verdict


def test_a_target_that_is_too_long_has_a_status_of_its_own() -> None:
    verdict = peek(b"GET /" + b"x" * 16384)
    assert isinstance(verdict, Malformed)
    assert answer(verdict.farewell)[0] == 414


# Farewells and redirects.


def test_every_reason_has_its_farewell() -> None:
    statuses = {reason: answer(farewell(reason))[0] for reason in Reason if farewell(reason)}
    assert statuses == {
        Reason.MALFORMED_HELLO: 400,
        Reason.BAD_SERVER_NAME: 400,
        Reason.UNEXPECTED_MESSAGE: 400,
        Reason.HELLO_TOO_LARGE: 431,
        Reason.HELLO_TIMEOUT: 408,
        Reason.ACCESS_DENIED: 403,
        Reason.NO_ROUTE: 404,
        Reason.ROUTE_REFUSES: 403,
        Reason.NO_HTTP: 404,
        Reason.BACKEND_DOWN: 502,
        Reason.NO_SOURCE: 502,
        Reason.OUT_OF_RESOURCES: 503,
        Reason.TOO_MANY_FROM_SOURCE: 429,
        Reason.RATE_LIMITED: 429,
    }
    assert (HTTP.name, HTTP.default_port, HTTP.peek) == ("http", 80, peek)
    assert (HTTP.farewell, HTTP.redirect) == (farewell, redirect)


def test_a_farewell_fits_the_request() -> None:
    head = hello_of(get(b"a.example").replace(b"GET", b"HEAD"))
    status, fields, body = answer(farewell(Reason.NO_ROUTE, head), b"HEAD")
    assert (status, body) == (404, "")
    assert fields["content-length"] == str(len(answer(farewell(Reason.NO_ROUTE))[2]))
    nameless = hello_of(b"GET / HTTP/1.0\r\n\r\n")
    for reason in (Reason.NO_ROUTE, Reason.NO_HTTP):
        assert answer(farewell(reason, nameless))[0] == 400
    assert answer(farewell(Reason.BACKEND_DOWN, nameless))[0] == 502
    by_address = hello_of(get(b"192.0.2.1"))
    assert answer(farewell(Reason.NO_ROUTE, by_address))[0] == 404


@pytest.mark.parametrize(
    ("reason", "code"),
    [(Reason.NO_ROUTE, 13), (Reason.NO_HTTP, 13), (Reason.BACKEND_DOWN, 2),
     (Reason.OUT_OF_RESOURCES, 2)],
)  # fmt: skip
def test_http_2_is_told_by_its_own_frames(reason: Reason, code: int) -> None:
    hello = peek(HTTP2)
    assert isinstance(hello, Hello)
    told = farewell(reason, hello)
    settings, goaway = told[:9], told[9:]
    assert settings == b"\0\0\0\4\0\0\0\0\0"
    assert goaway[:9] == (len(goaway) - 9).to_bytes(3, "big") + b"\7\0\0\0\0\0"
    assert goaway[9:17] == bytes(7) + bytes([code])
    assert goaway[17:].decode().endswith(".")


def redirected(data: bytes, https_port: int = 443) -> str | None:
    hello = peek(data)
    assert isinstance(hello, Hello)
    found = redirect(hello, https_port)
    if found is None:
        return None
    status, fields, body = answer(found.farewell)
    assert (status, fields["location"]) == (308, found.location)
    assert body
    return found.location


@pytest.mark.parametrize(
    ("data", "location"),
    [
        (get(b"A.example:80"), "https://a.example/"),
        (get(b"a.example", b"/x/%2e%2E/?q=%0d%0a&&r#s"), "https://a.example/x/%2e%2E/?q=%0d%0a&&r#s"),
        (get(b"a.example", b"//evil.example/"), "https://a.example//evil.example/"),
        (get(b"a.example", b"/\\evil.example"), "https://a.example/\\evil.example"),
        (get(b"b.example", b"http://a.example?q"), "https://a.example/?q"),
        (get(b"192.0.2.1", b"/x"), "https://192.0.2.1/x"),
        (get(b"[::1]:80", b"/x"), "https://[::1]/x"),
        (get(b"a.example", b"/\xc3\xbc"), "https://a.example/%C3%BC"),
        (b"POST /x HTTP/1.0\r\nHost: a.example\r\n\r\n", "https://a.example/x"),
        (b"OPTIONS /x HTTP/1.1\r\nHost: a.example\r\n\r\n", "https://a.example/x"),
        (get(b"a.example", b"/.well-known/"), "https://a.example/.well-known/"),
        (get(b"a.example", b"/x?/.well-known/acme-challenge/"),
         "https://a.example/x?/.well-known/acme-challenge/"),
    ],
)  # fmt: skip
def test_a_redirect_keeps_name_path_and_query(data: bytes, location: str) -> None:
    assert redirected(data) == location
    with_port = redirected(data, 8443)
    assert with_port is not None
    assert with_port.replace(":8443", "", 1) == location
    assert re.match(r"https://[^/]+:8443/", with_port)


@pytest.mark.parametrize(
    "data",
    [
        get(b"a.example", b"/.well-known/acme-challenge/token"),
        get(b"a.example", b"/.well-known/acme-challenge/"),
        get(b"a.example", b"/.well-known/pki-validation/fileauth.txt?x"),
        get(b"a.example", b"http://a.example/.well-known/acme-challenge/token"),
        b"OPTIONS * HTTP/1.1\r\nHost: a.example\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        HTTP2,
    ],
)
def test_validation_and_what_has_no_place_by_https_is_never_redirected(data: bytes) -> None:
    assert redirected(data) is None


def test_a_redirect_of_a_head_request_has_no_body() -> None:
    found = redirect(hello_of(get(b"a.example").replace(b"GET", b"HEAD")))
    assert isinstance(found, Redirect)
    assert answer(found.farewell, b"HEAD")[::2] == (308, "")


# Properties.

LABEL = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789-_", min_size=1, max_size=20)
NAMES = st.lists(LABEL, min_size=1, max_size=4).map(lambda x: ".".join([*x, "example"]).encode())
FIELD_NAMES = st.text("abcXYZ0-_!", min_size=1, max_size=9).map(lambda x: b"X-" + x.encode())
FIELD_VALUES = st.binary(max_size=30).map(lambda x: bytes(octet for octet in x if octet > 32))
FIELDS = st.lists(st.tuples(FIELD_NAMES, FIELD_VALUES).map(b": ".join), max_size=5).map(
    lambda fields: [field.replace(b"\x7f", b"") for field in fields]
)


@given(NAMES, FIELDS, st.integers(0, 5), st.binary(max_size=30), st.data())
def test_any_cut_of_a_good_head_gives_the_same(
    name: bytes, fields: list[bytes], at: int, behind: bytes, data: st.DataObject
) -> None:
    fields.insert(at, b"Host: " + name)
    head = b"\r\n".join([b"PUT /x HTTP/1.1", *fields, b"", b""])
    canonical = name.decode().lower()
    expected = Hello(canonical, (), False, len(head), Request("PUT", canonical, "/x"))
    assert peek(head + behind) == expected
    cuts = data.draw(st.lists(st.integers(0, len(head)), max_size=12))
    assert drip(peek, head + behind, sorted(cuts)) == expected
    assert isinstance(peek(head[: data.draw(st.integers(0, len(head) - 1))]), NeedMore)


PIECES = st.sampled_from(
    [b"GET", b" ", b"/", b"*", b"HTTP/1.1", b"HTTP/1.0", b"\r\n", b"\r", b"\n", b"\t", b":", b",",
     b"Host", b"host: a.example", b"Host: b.example", b"http://c.example", b"\0", b"\x0b", b"x",
     b"\xc3\xbc", b"GET / HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n", b"\r\n\r\n", b"@", b"#", b"CONNECT",
     b"Content-Length: 3", b"Transfer-Encoding: chunked", b"[::1]"]
)  # fmt: skip
SOUP = st.lists(PIECES | st.binary(max_size=5), max_size=16).map(b"".join)


@settings(max_examples=400)
@given(SOUP, SOUP, st.lists(st.integers(0, 120), max_size=8))
@example(b"GET / HTTP/1.1\r\nHost: a.example\r", b"\n\r\n", [])
def test_any_bytes_get_the_same_verdict_however_they_come(
    first: bytes, second: bytes, cuts: list[int]
) -> None:
    for data in (first, b"GET / HTTP/1.1\r\n" + first, get(b"a.example", b"/", first) + second):
        verdict = peek(data)
        assert drip(peek, data, sorted(cuts)) == verdict
        assert drip(peek, data, range(1, len(data))) == verdict
        match verdict:
            case Malformed():
                assert 400 <= answer(verdict.farewell)[0] <= 505
            case Hello(request=Request() as request):
                agrees(data, verdict)
                found = redirect(verdict, 8443)
                if found is not None:
                    assert found.location.startswith(f"https://{request.host}:8443/")
                    assert answer(found.farewell)[1]["location"] == found.location


def agrees(data: bytes, verdict: Hello) -> None:
    """A server that is given all the bytes reads the same name, and as much for the head."""
    server = h11.Connection(h11.SERVER)
    server.receive_data(data)
    try:
        request = server.next_event()
    except h11.RemoteProtocolError:
        assert not data[: verdict.size].isascii()  # h11 takes no target with such bytes
        return
    assert isinstance(request, h11.Request)
    assert data[: verdict.size].endswith(b"\r\n\r\n")
    assert data[: verdict.size].count(b"\r\n\r\n") == 1
    hosts = [value.decode("latin-1") for name, value in request.headers if name == b"host"]
    url = re.match(rb"(?i)https?://([^/?]*)", request.target)
    host = url[1].decode() if url else hosts[0] if hosts else ""
    if verdict.name is not None:
        assert host.lower().partition(":")[0].removesuffix(".") == verdict.name


# Cost.


class Counting(bytearray):
    """Bytes that count how many of them are copied."""

    copied = 0

    def __getitem__(self, key):  # type: ignore[no-untyped-def]
        found = super().__getitem__(key)
        type(self).copied += len(found) if isinstance(key, slice) else 1
        return found


def test_bytes_that_come_one_by_one_are_copied_once() -> None:
    for size in (2_000, 16_000):
        data = get(b"a.example", b"/", b"X: " + b"x" * size)
        received = Counting()
        Counting.copied = 0
        verdict: Verdict = START
        scanned = 0
        for octet in data:
            received.append(octet)
            assert isinstance(verdict, NeedMore)
            verdict = peek(received, verdict, 65536)
            if isinstance(verdict, NeedMore) and len(received) > 20:
                assert verdict.scanned == len(received)
                assert verdict.scanned > scanned
                scanned = verdict.scanned
        assert isinstance(verdict, Hello)
        assert Counting.copied < len(data) + 1000


def test_what_would_cost_h11_the_square_never_comes_to_it() -> None:
    """A run of spaces before what no field may hold: half a second for so many."""
    for octet in (b"\x0b", b"\0", b"\x7f"):
        status, verdict = bad(get(b"a.example", b"/", b"X:" + b" " * 12_000 + octet))
        assert (status, verdict.detail) == (400, f"a control character, {octet[0]:#04x}")
