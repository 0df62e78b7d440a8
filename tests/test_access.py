"""``snimux.access``: allow and deny, and what may pass in spite of them."""

from dataclasses import replace

import pytest

from snimux.access import Access, Admission, is_validation
from snimux.client_hello import TLS
from snimux.http_head import HTTP
from snimux.networks import Networks, parse_network
from snimux.verdict import START, Hello
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


def test_a_hello_that_hides_another_is_none() -> None:
    """The encrypted one may ask for another name, and offer anything."""
    assert not is_validation(replace(tls(b"acme-tls/1"), ech=True))


def test_of_the_captured_hellos_one_is_a_validation() -> None:
    hellos = {captured.slug: TLS.peek(captured.data, START, 65536) for captured in load()}
    found = [x for x, hello in hellos.items() if isinstance(hello, Hello) and is_validation(hello)]
    assert found == ["openssl-acme-tls-1"]


HEAD = f"GET {CHALLENGE} HTTP/1.1\nHost: dao.ciso.com\nConnection: close\n\n"


@pytest.mark.parametrize(
    "close", ["close", "Close", "TE , close", "close,x", "x\nconnection:close"]
)
def test_a_request_for_a_challenge_that_closes_is_one(close: str) -> None:
    assert is_validation(request(HEAD.replace("close", close)))
    assert is_validation(request(HEAD.replace(CHALLENGE, f"http://dao.ciso.com{CHALLENGE}")))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        # it could be followed by any other
        ("Connection: close\n", ""),
        ("Connection: close", "Connection: keep-alive"),
        ("Connection: close", "Connection: closed"),
        ("Connection: close", "X-Connection: close"),
        # nor is it the last where it becomes HTTP/2 (RFC 7540 section 3.2)
        ("Connection: close", "Connection: close, Upgrade, HTTP2-Settings\nUpgrade: h2c"),
        ("GET", "POST"),
        ("GET", "HEAD"),
        # and this is another path to whoever resolves it
        (CHALLENGE, f"{CHALLENGE}/../../../admin"),
        (CHALLENGE, f"{CHALLENGE}/..%2f..%2fadmin"),
        (CHALLENGE, f"{CHALLENGE}?x"),
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


def test_http_2_with_prior_knowledge_is_none() -> None:
    assert not is_validation(request("PRI * HTTP/2.0\n\nSM\n\n"))
