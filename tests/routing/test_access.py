"""``routing.access``: allow and deny, and what may pass in spite of them."""

from dataclasses import replace

import pytest

from snimux.proto.client_hello import TLS
from snimux.proto.http_head import HTTP
from snimux.proto.verdict import START, Hello
from snimux.routing.access import Access, Admission, is_validation
from snimux.routing.networks import Networks, parse_network
from tests.hellos import load

CHALLENGE = "/.well-known/acme-challenge/evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr_oA"


def networks(*texts: str, unix: bool = False) -> Networks:
    return Networks(tuple(map(parse_network, texts)), unix)


def request(head: str) -> Hello:
    hello = HTTP.peek(head.replace("\n", "\r\n").encode(), START, 16384)
    assert isinstance(hello, Hello), hello
    return hello


def tls(*alpn: bytes) -> Hello:
    return Hello("secure.ciso.com", alpn, ech=False, size=9)


@pytest.mark.parametrize(
    ("access", "admitted"),
    [
        (Access(), ["192.0.2.1", "192.0.2.2", "2001:db8::1", None]),
        (Access(allow=networks("192.0.2.0/24")), ["192.0.2.1", "192.0.2.2"]),
        (Access(deny=networks("192.0.2.1")), ["192.0.2.2", "2001:db8::1", None]),
        # deny wins
        (Access(networks("192.0.2.0/24"), networks("192.0.2.1")), ["192.0.2.2"]),
        (Access(networks("192.0.2.1"), networks("192.0.2.0/24")), []),
        (Access(networks("0.0.0.0/0", "::/0")), ["192.0.2.1", "192.0.2.2", "2001:db8::1"]),
        (Access(networks(unix=True)), [None]),
        (Access(deny=networks(unix=True)), ["192.0.2.1", "192.0.2.2", "2001:db8::1"]),
    ],
)
def test_who_is_denied_or_not_allowed_is_refused(
    access: Access, admitted: list[str | None]
) -> None:
    hosts = ["192.0.2.1", "192.0.2.2", "2001:db8::1", None]
    assert [host for host in hosts if access.admits(host)] == admitted
    assert [host for host in hosts if access.admits_for(host, tls(b"acme-tls/1"))] == admitted


def test_a_listener_believes_whom_it_is_told_to() -> None:
    assert not Admission().believes("192.0.2.1")
    assert not Admission().believes(None)
    trusting = Admission(proxy_from=networks("192.0.2.0/24"))
    assert [x for x in ("192.0.2.1", "192.0.3.1", None) if trusting.believes(x)] == ["192.0.2.1"]


def test_validations_are_exempt_if_so_asked() -> None:
    nobody = networks("255.255.255.255")
    access = Access(nobody, deny=networks("0.0.0.0/0"), acme_exempt=True)
    assert access.admits_for("192.0.2.1", tls(b"acme-tls/1"))
    assert not access.admits("192.0.2.1")
    assert not access.admits_for("192.0.2.1", tls(b"h2"))
    assert not Access(nobody).admits_for("192.0.2.1", tls(b"acme-tls/1"))


@pytest.mark.parametrize("alpn", [(), (b"h2",), (b"acme-tls/1", b"h2"), (b"acme-tls/1",) * 2])
def test_a_hello_that_offers_more_than_the_validation_is_none(alpn: tuple[bytes, ...]) -> None:
    assert is_validation(tls(b"acme-tls/1"))
    assert not is_validation(tls(*alpn))


def test_a_hello_without_a_name_is_none() -> None:
    """RFC 8737 section 3: who validates a name says it."""
    assert not is_validation(replace(tls(b"acme-tls/1"), name=None))


@pytest.mark.parametrize("name", [b"acme-tls/1.", b"acme-tls/1 ", b"ACME-TLS/1", b"acme-tls/1\0"])
def test_a_protocol_that_is_like_that_of_the_validation_is_none(name: bytes) -> None:
    assert not is_validation(tls(name))


def test_a_hello_that_hides_another_is_none() -> None:
    """The encrypted one may ask for another name, and offer anything."""
    assert not is_validation(replace(tls(b"acme-tls/1"), ech=True))


def test_of_the_captured_hellos_one_is_a_validation() -> None:
    hellos = {captured.slug: TLS.peek(captured.data, START, 65536) for captured in load()}
    found = [x for x, hello in hellos.items() if isinstance(hello, Hello) and is_validation(hello)]
    assert found == ["openssl-acme-tls-1"]


HEAD = f"GET {CHALLENGE} HTTP/1.1\nHost: dao.ciso.com\nConnection: close\n\n"


# As Boulder sends it, which is Let's Encrypt's.
BOULDER = (
    f"GET {CHALLENGE} HTTP/1.1\nHost: dao.ciso.com\nUser-Agent: Mozilla/5.0 (compatible; "
    "Let's Encrypt validation server; +https://www.letsencrypt.org)\nAccept: */*\n"
    "Accept-Encoding: gzip\nConnection: close\n\n"
)


@pytest.mark.parametrize(
    "head",
    [
        HEAD,
        BOULDER,
        HEAD.replace("Connection: close", "connection:close"),
        HEAD.replace("Connection: close", "Connection:  close "),
        HEAD.replace("dao.ciso.com", "dao.ciso.com:80"),
        HEAD.replace("Connection", "Referer: http://dao.ciso.com/\nConnection"),
    ],
)
def test_a_request_for_a_challenge_that_closes_is_one(head: str) -> None:
    assert is_validation(request(head))
    assert not is_validation(request(head), behind=1)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        # it could be followed by any other
        ("Connection: close\n", ""),
        ("Connection: close", "Connection: keep-alive"),
        ("Connection: close", "Connection: closed"),
        ("Connection: close", "X-Connection: close"),
        ("Connection: close", "Connection: Close"),
        ("Connection: close", "Connection: close, TE"),
        ("Connection: close", "Connection: close, keep-alive"),
        ("Connection: close", "Connection: keep-alive, close"),
        ("Connection: close", "Connection: close,"),
        ("Connection: close", "Connection:\tclose"),
        ("Connection: close", "Connection: close\t"),
        ("Connection: close", "Connection:"),
        ("Connection: close", "Connection: close\nConnection: keep-alive"),
        ("Connection: close", "Connection: keep-alive\nConnection: close"),
        ("Connection: close", "Connection: close\nConnection: close"),
        ("Connection: close", "Connection: close\nconnection:"),
        ("Connection: close", "Connection: close\nKeep-Alive: timeout=9"),
        ("Connection: close", "Connection: close\nProxy-Connection: keep-alive"),
        ("Connection: close", "Connection: keep-alive\nProxy-Connection: close"),
        ("HTTP/1.1", "HTTP/1.0"),
        ("HTTP/1.1", "HTTP/1.2"),
        # a body may end where another server sees no end, and have more in it
        ("Connection: close", "Connection: close\nContent-Length: 0"),
        ("Connection: close", "Connection: close\nContent-Length: 9"),
        ("Connection: close", "Connection: close\nTransfer-Encoding: chunked"),
        ("Connection: close", "Connection: close\nTransfer_Encoding: chunked"),
        ("Connection: close", "Connection: close\nTrailer: x"),
        ("Connection: close", "Connection: close\nExpect: 100-continue"),
        ("Connection: close", "Connection: close\nUpgrade: websocket"),
        # some take another path, method or client from these
        ("Connection: close", "Connection: close\nX-Original-URL: /admin"),
        ("Connection: close", "Connection: close\nX-Rewrite-URL: /admin"),
        ("Connection: close", "Connection: close\nX-HTTP-Method-Override: PUT"),
        ("Connection: close", "Connection: close\nX-Forwarded-For: 127.0.0.1"),
        ("Connection: close", "Connection: close\nCookie: session=1"),
        # nor is it the last where it becomes HTTP/2 (RFC 7540 section 3.2)
        ("Connection: close", "Connection: close, Upgrade, HTTP2-Settings\nUpgrade: h2c"),
        ("GET", "POST"),
        ("GET", "HEAD"),
        ("GET", "get"),
        ("GET", "OPTIONS"),
        # one that knows no URL there has another name, or path
        (CHALLENGE, f"http://dao.ciso.com{CHALLENGE}"),
        (CHALLENGE, f"HTTPS://dao.ciso.com:80{CHALLENGE}"),
        # and this is another path to whoever resolves it
        (CHALLENGE, f"{CHALLENGE}/../../../admin"),
        (CHALLENGE, f"{CHALLENGE}/..%2f..%2fadmin"),
        (CHALLENGE, f"{CHALLENGE}?x"),
        (CHALLENGE, f"{CHALLENGE}?"),
        (CHALLENGE, f"{CHALLENGE}#x"),
        (CHALLENGE, f"{CHALLENGE};x"),
        (CHALLENGE, f"{CHALLENGE}/"),
        (CHALLENGE, f"{CHALLENGE}%41"),
        (CHALLENGE, f"{CHALLENGE}%00"),
        (CHALLENGE, f"{CHALLENGE}."),
        (CHALLENGE, f"{CHALLENGE}\\..\\admin"),
        (CHALLENGE, f"/{CHALLENGE}"),
        (CHALLENGE, f"/.{CHALLENGE}"),
        (CHALLENGE, CHALLENGE.upper()),
        (CHALLENGE, CHALLENGE.replace("acme", "%61cme")),
        (CHALLENGE, f"{CHALLENGE}é"),
        (CHALLENGE, f"/x{CHALLENGE}"),
        (CHALLENGE, "/.well-known/acme-challenge/"),
        (CHALLENGE, "/.well-known/acme-challenge/.."),
        (CHALLENGE, "/"),
    ],
)
def test_any_other_request_is_none(old: str, new: str) -> None:
    assert is_validation(request(HEAD))
    assert not is_validation(request(HEAD.replace(old, new)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        # folded
        ("Connection: close", "Connection: close\n keep-alive"),
        ("Connection: close", "Connection: close\n\tkeep-alive"),
        ("Connection: close", "Connection:\n close"),
        # white space before the colon, and before the name
        ("Connection: close", "Connection : close"),
        ("Connection: close", "Connection\t: close"),
        ("Host", " Host"),
        # two names, or none
        ("Connection", "Host: admin.ciso.com\nConnection"),
        ("Connection", "Host: dao.ciso.com\nConnection"),
        ("Host: dao.ciso.com\n", ""),
        ("close\n", "close\0\n"),
        ("GET ", "GET  "),
        ("GET", "\nGET"),
        (" HTTP/1.1", " x HTTP/1.1"),
        (" HTTP/1.1", ""),
    ],
)
def test_what_is_read_in_two_ways_is_not_read_at_all(old: str, new: str) -> None:
    verdict = HTTP.peek(HEAD.replace(old, new).replace("\n", "\r\n").encode(), START, 16384)
    assert not isinstance(verdict, Hello)


def test_http_2_with_prior_knowledge_is_none() -> None:
    assert not is_validation(request("PRI * HTTP/2.0\n\nSM\n\n"))
