"""The target ``client_hello``: what comes to port 443 before anybody is trusted.

Where there is a Hello, two others read the same in it: OpenSSL, which asks for a certificate by
that name, and tlslite-ng.
"""

import contextlib
import ssl
import struct
from collections.abc import Iterable
from random import Random

from construct import ConstructError

from fuzz import mutation, peeks
from fuzz.target import Target
from snimux.proto import hostname
from snimux.proto.client_hello import peek
from snimux.proto.tls_schema import (
    ALPN,
    CLIENT_HELLO,
    ENCRYPTED_CLIENT_HELLO,
    HANDSHAKE,
    SERVER_NAME,
)
from snimux.proto.verdict import Foreign, Hello, Malformed, NeedMore
from tests import hellos
from tests.proto.test_client_hello import alpn, body, message, record, records_of, recut, sni
from tests.proto.test_hellos import parse

# With the smallest bound, 512 bytes and a header of four in records of one byte each, and one more.
_MOST = 6 * (512 + 4) + 6
_EXTENSIONS = (
    sni(b"a.example"), sni(b"B.Example."), sni(b"a..b"), sni(b"127.0.0.1"), sni(b"a" * 64),
    sni(b"a." * 127), sni(b"a.example\0"), sni(b"_x-1"), (SERVER_NAME, b""), (SERVER_NAME, b"\0\0"),
    (SERVER_NAME, sni(b"a.example")[1] + sni(b"b.example")[1]), alpn(b"h2", b"http/1.1"),
    alpn(b"acme-tls/1"), (ALPN, b"\0\0"), (ENCRYPTED_CLIENT_HELLO, b""), (0x1A1A, b""), (21, b"\0"),
)  # fmt: skip

# What OpenSSL asked for a certificate for; to make a context for each hello would take most of the
# time.
_ASKED: list[str | None] = []
_CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
_CONTEXT.sni_callback = lambda _, name, __: _ASKED.append(name)


def check(data: bytes) -> int:
    """What ``peek`` says is true; how far it got."""
    verdict = peeks.check(peek, data, most=_MOST, filler=record(b"\0"))
    match verdict:
        case Hello():
            _openssl_agrees(data[: verdict.size], verdict)
            _tlslite_agrees(data[: verdict.size], verdict)
            return 1000 + len(verdict.alpn) + len(verdict.name or "")
        case NeedMore(scanned, gathered):
            return scanned + gathered
        case Malformed(_, detail):
            return len(detail)
        case Foreign():
            return 0


def _openssl_agrees(data: bytes, hello: Hello) -> None:
    incoming = ssl.MemoryBIO()
    incoming.write(data)
    _ASKED.clear()
    server = _CONTEXT.wrap_bio(incoming, ssl.MemoryBIO(), server_side=True)
    with contextlib.suppress(ssl.SSLError):  # it has no certificate, so it never ends well
        server.do_handshake()
    for name in _ASKED:
        assert _canonical(name) == hello.name, (name, hello.name)


def _canonical(name: str | None) -> str | None:
    return None if name is None else hostname.from_wire(name.encode())


def _tlslite_agrees(data: bytes, hello: Hello) -> None:
    try:
        parsed = parse(record(b"".join(records_of(data))))
    except (SyntaxError, ValueError, AssertionError):  # its errors of decoding are SyntaxErrors
        return
    server_name, protocols = parsed.getExtension(SERVER_NAME), parsed.getExtension(ALPN)
    names = [bytes(name).decode() for name in server_name.hostNames] if server_name else []
    assert [_canonical(name) for name in names] == ([hello.name] if hello.name else [])
    offered = tuple(bytes(each) for each in protocols.protocol_names) if protocols else ()
    assert offered == hello.alpn
    assert (parsed.getExtension(ENCRYPTED_CLIENT_HELLO) is not None) == hello.ech


def mutate(data: bytes, random: Random) -> bytes:
    """Extensions added, dropped or bent, all lengths right; or new records; or just bytes."""
    match random.randint(0, 5):
        case 0:
            return mutation.octets(data, random)
        case 1:
            whole = _handshake(data)
            return recut(record(whole), [random.randint(0, len(whole)) for _ in range(3)])
        case 2:
            return record(message(mutation.octets(_handshake(data)[4:], random)))
    return _with_other_extensions(data, random)


def _handshake(data: bytes) -> bytes:
    """What is in the records, which may be any bytes; short enough for one record."""
    try:
        return b"".join(records_of(data))[:16384]
    except struct.error:
        return data[5:16384]


def _with_other_extensions(data: bytes, random: Random) -> bytes:
    try:
        hello = CLIENT_HELLO.parse(HANDSHAKE.parse(_handshake(data)).body)
    except ConstructError:
        return record(message(body([random.choice(_EXTENSIONS)])))
    extensions = list(hello.extensions)
    at = random.randint(0, len(extensions))
    match random.randint(0, 2) if extensions else 0:
        case 0:
            extensions.insert(at, random.choice(_EXTENSIONS))
        case 1:
            del extensions[at - 1]
        case _:
            kind, inner = extensions[at - 1]
            extensions[at - 1] = kind, mutation.octets(inner, random)
    hello.extensions = extensions
    built: bytes = CLIENT_HELLO.build(hello)
    return record(message(built)[:16384])


def given() -> Iterable[bytes]:
    """The real ones, and one built with each thing that an extension may be."""
    yield from (real.data for real in hellos.load())
    yield from (record(message(body([extension]))) for extension in _EXTENSIONS)


TARGET = Target(
    "client_hello",
    ("proto/client_hello", "proto/tls_schema", "proto/hostname"),
    check,
    given,
    mutate,
)
