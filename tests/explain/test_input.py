"""``explain.input``: what people type and what clients send, as a server reads it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snimux.explain.input import Case, CaseError, of_both, of_bytes, of_name, protocols, source
from snimux.proto.client_hello import DEFAULT_MAX_HELLO, TLS
from snimux.proto.http_head import HTTP
from snimux.proto.reason import Reason
from snimux.proto.verdict import START, Foreign, Hello, Malformed, NeedMore, Protocol
from tests.hellos import HERE, load

REQUEST = b"GET /a?b HTTP/1.1\r\nHost: dao.ciso.com:81\r\n\r\n"


def captured(received: bytes, *, protocol: Protocol | None = None) -> Case:
    return of_bytes(received, DEFAULT_MAX_HELLO, "it", protocol=protocol)


@pytest.mark.parametrize(
    ("typed", "name", "port"),
    [
        ("dao.ciso.com", "dao.ciso.com", None),
        (" DAO.ciso.com. ", "dao.ciso.com", None),
        ("dao.ciso.com:8443", "dao.ciso.com", 8443),
        ("dao.ciso.com:", "dao.ciso.com", None),
        ("https://dao.ciso.com/x?y#z", "dao.ciso.com", None),
        ("HTTPS://me:word@Dao.Ciso.com:444?y", "dao.ciso.com", 444),
        ("wss://dao.ciso.com/live", "dao.ciso.com", None),
        ("dao.ciso.com/path", "dao.ciso.com", None),
        ("bücher.example", "xn--bcher-kva.example", None),
        ("192.0.2.1", None, None),
        ("192.0.2.1:443", None, 443),
        ("::1", None, None),
        ("[2001:DB8::1]:443", None, 443),
    ],
)
def test_names_as_people_have_them(typed: str, name: str | None, port: int | None) -> None:
    case = of_name(typed, (b"h2",))
    assert case.protocol is TLS
    assert case.verdict == Hello(name, (b"h2",), False, 0)
    assert case.port == port


@pytest.mark.parametrize(
    ("typed", "name", "host", "target"),
    [
        ("http://Dao.ciso.com/a?b#c", "dao.ciso.com", "dao.ciso.com", "/a?b"),
        ("http://dao.ciso.com", "dao.ciso.com", "dao.ciso.com", "/"),
        ("ws://dao.ciso.com?b", "dao.ciso.com", "dao.ciso.com", "/?b"),
        ("http://[2001:DB8::1]:81/", None, "[2001:db8::1]", "/"),
        ("http://192.0.2.1/", None, "192.0.2.1", "/"),
    ],
)
def test_plain_http_is_a_request(typed: str, name: str | None, host: str, target: str) -> None:
    case = of_name(typed)
    assert case.protocol is HTTP
    assert isinstance(case.verdict, Hello)
    request = f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    assert case.verdict.request == captured(request).verdict.request  # type: ignore[union-attr]
    assert case.verdict.name == name


def test_what_was_changed_is_told() -> None:
    assert of_name("dao.ciso.com").notes == ()
    assert of_name("DAO.ciso.com.").notes == (
        "DAO.ciso.com. is looked up as dao.ciso.com: in lower case, without the dot at its end",
    )
    assert of_name("bücher.example").notes == (
        "bücher.example is looked up as xn--bcher-kva.example: in punycode, as on the wire",
    )
    assert of_name("[::1]").notes == ("[::1] is an IP address: a hello for it has no server name",)
    assert of_name("http://::1/").notes == ("[::1] is an IP address: no name to route by",)


@pytest.mark.parametrize("scheme", ["", "http://"])
@pytest.mark.parametrize(
    ("typed", "detail"),
    [
        ("a b.example", "has ' '"),
        ("a..example", "has an empty label"),
        ("x" * 64, "longer than 63"),
        ("1.2.3.4.5:x", "an IP address or a port"),
        ("*.ciso.com", "has '*'"),
    ],
)
def test_what_is_no_name_would_be_refused(scheme: str, typed: str, detail: str) -> None:
    case = of_name(scheme + typed)
    assert isinstance(case.verdict, Malformed)
    assert case.verdict.reason is Reason.BAD_SERVER_NAME
    assert detail in case.verdict.detail
    assert case.verdict.farewell == case.protocol.farewell(Reason.BAD_SERVER_NAME, None)


@pytest.mark.parametrize(
    ("typed", "alpn", "words"),
    [
        ("ftp://dao.ciso.com", (), "neither https"),
        ("", (), "no name"),
        ("https:///path", (), "no name"),
        (":443", (), "no name"),
        ("http://dao.ciso.com", (b"h2",), "no ALPN"),
    ],
)
def test_what_cannot_be_asked(typed: str, alpn: tuple[bytes, ...], words: str) -> None:
    with pytest.raises(CaseError, match=words):
        of_name(typed, alpn)


@given(st.text(max_size=40), st.lists(st.binary(min_size=1, max_size=3), max_size=2))
def test_whatever_is_typed_is_read_or_cannot_be_asked(text: str, alpn: list[bytes]) -> None:
    try:
        case = of_name(text, alpn)
    except CaseError:
        return
    assert isinstance(case.verdict, Hello | Malformed)


@pytest.mark.parametrize("real", load(), ids=lambda real: real.slug)
def test_real_hellos_are_what_they_are_to_a_server(real: object) -> None:
    data = real.data  # type: ignore[attr-defined]
    case = captured(data)
    assert case.protocol is TLS
    assert case.verdict == TLS.peek(data, START, DEFAULT_MAX_HELLO)
    assert case.notes[0].startswith(f"a ClientHello of {len(data)} bytes in ")
    more = captured(data + b"more")
    assert "4 bytes behind it, which are passed on with it" in more.notes
    less = captured(data[:-7])
    assert isinstance(less.verdict, NeedMore)
    assert less.notes[0].startswith("not whole: 7 of the ")


def test_records_are_counted_and_ech_is_told() -> None:
    fragments = captured((HERE / "openssl-fragments.bin").read_bytes())
    assert not fragments.notes[0].endswith("in 1 record")
    assert fragments.notes[0].endswith("records")
    ech = captured((HERE / "go-ech.bin").read_bytes())
    assert ech.notes[-1].startswith("ECH is offered")


def test_a_request_is_plain_http_where_nothing_else_is_said() -> None:
    case = captured(REQUEST + b"body")
    assert case.protocol is HTTP
    assert case.verdict == HTTP.peek(REQUEST, START, DEFAULT_MAX_HELLO)
    assert case.notes == (
        f"the head of a request, {len(REQUEST)} bytes",
        "4 bytes behind it, which are passed on with it",
    )
    assert captured(REQUEST, protocol=TLS).verdict == Foreign(Reason.HTTP)
    late = captured(REQUEST[:-2])
    assert late.protocol is HTTP
    assert late.notes[0].startswith("not whole: ")


def test_a_hello_without_its_length_and_nothing_at_all() -> None:
    assert captured(b"\x16\3\1\0\x10\1\0").notes == (
        "not whole: 2 bytes of the hello, and its length is not among them",
    )
    assert captured(b"").notes == ("no bytes at all",)


@given(
    st.one_of(
        st.binary(max_size=60),
        st.binary(max_size=60).map(lambda x: b"\x16\3\1" + x),
        st.builds(
            lambda data, at, octet: data[:at] + bytes([octet]) + data[at + 1 :],
            st.sampled_from([real.data for real in load()]),
            st.integers(0, 600),
            st.integers(0, 255),
        ),
        st.builds(
            lambda at, octet: REQUEST[:at] + bytes([octet]) + REQUEST[at + 1 :],
            st.integers(0, len(REQUEST)),
            st.integers(0, 255),
        ),
    )
)
def test_the_byte_that_decides_does_and_the_one_before_does_not(data: bytes) -> None:
    case = captured(data)
    if isinstance(case.verdict, Malformed | Foreign):
        at = int(case.notes[0].split()[3])
        peek = case.protocol.peek
        assert peek(data[:at], START, DEFAULT_MAX_HELLO) == case.verdict
        assert isinstance(peek(data[: at - 1], START, DEFAULT_MAX_HELLO), NeedMore)


def test_bytes_that_are_not_for_the_name_are_noted() -> None:
    data = (HERE / "curl.bin").read_bytes()
    received = captured(data)
    assert of_both(of_name("Secure.ciso.com"), received) == received
    assert of_both(of_name("dao.ciso.com"), received).notes[-1] == (
        "the bytes are for secure.ciso.com, not for dao.ciso.com"
    )
    assert of_both(of_name("::1"), received).notes[-1].endswith("not for no name")
    assert of_both(of_name("dao.ciso.com"), captured(b"")) == captured(b"")


def test_protocols_as_typed() -> None:
    assert protocols([]) == ()
    assert protocols(["h2, http/1.1", "acme-tls/1"]) == (b"h2", b"http/1.1", b"acme-tls/1")
    for wrong in ("", "h2,,h3", "ü", "a b"):
        with pytest.raises(CaseError, match="is no ALPN protocol"):
            protocols([wrong])


def test_a_clients_address_as_typed() -> None:
    assert source("192.0.2.7") == "192.0.2.7"
    assert source("unix") == "unix"
    assert source("::FFFF:192.0.2.7") == "192.0.2.7"
    assert source("FE80::1%eth0") == "fe80::1"
    for wrong in ("", "localhost", "192.0.2.7:80"):
        with pytest.raises(CaseError, match="is no IP address"):
            source(wrong)
