"""TLS records and the ClientHello as construct schema; ``peek``; the TLS alerts.

Reads just enough to route: the server name, the ALPN protocols, and whether Encrypted Client
Hello was offered. Whether the rest of a hello makes sense is the backend's business; but what is
read is read strictly, because a multiplexer that guesses where a server refuses sends people to
the wrong server.

Knows no socket, no clock and no route.

Source: RFC 8446 sections 4.1.2, 5.1 and 6 (TLS 1.3), RFC 5246 section 7.4.1.2 (hellos without
extensions), RFC 6066 section 3 (server_name), RFC 7301 section 3.1 (ALPN), RFC 8701 (GREASE:
unknown values are ordinary), RFC 9849 (ECH).
"""

import struct
from collections.abc import Mapping
from io import BytesIO
from typing import Any

from construct import (
    Bytes,
    Check,
    Construct,
    ConstructError,
    GreedyBytes,
    Int8ub,
    Int16ub,
    Int24ub,
    Prefixed,
    Rebuild,
    StreamError,
    Struct,
    Terminated,
    len_,
    this,
)

from snimux.proto import hostname
from snimux.proto.reason import Reason
from snimux.proto.verdict import START, Foreign, Hello, Malformed, NeedMore, Protocol, Verdict

# Bounds on a hello: a Chrome hello has 1.8 KB, one with post-quantum shares and tickets 3 to 6 KB.
# 64 KiB in one-byte records are 384 KiB on the wire: what a connection may hold in memory until its
# hello is whole.
DEFAULT_MAX_HELLO = 16 * 1024
LARGEST_MAX_HELLO = 64 * 1024

# RFC 8446 section 5.1: a plaintext record holds at most 2^14 bytes, and none is empty. The 256 more
# of section 5.2 are for encrypted records, which no hello is in.
MAX_FRAGMENT = 2**14

# Content types (RFC 8446 section 5.1, RFC 6520): 20 change_cipher_spec to 24 heartbeat.
_ALERT = 21
_HANDSHAKE = 22
_CONTENT_TYPES = range(20, 25)
_CLIENT_HELLO = 1  # HandshakeType, RFC 8446 section 4

# Extension types (IANA "TLS ExtensionType Values").
SERVER_NAME = 0
ALPN = 16
ENCRYPTED_CLIENT_HELLO = 0xFE0D

_RECORD_HEADER = 5
_HANDSHAKE_HEADER = 4


class ExtensionBlock(Construct):  # type: ignore[misc]
    """The extensions of a hello as a list of (type, value); absent and empty both give [].

    A ``GreedyRange`` would take a corrupt extension for the end of the list, and costs more than
    all else that is done for a connection. This steps over what nobody asked for, and fails unless
    the extensions fill the block and the block fills the message.

    Args:
        wanted: schemas of the extensions to keep when parsing, by type; None keeps all, as bytes.
    """

    def __init__(self, wanted: Mapping[int, Construct] | None = None) -> None:
        super().__init__()
        self.wanted = wanted

    def _parse(self, stream: BytesIO, context: Any, path: str) -> list[tuple[int, Any]]:
        block = stream.read()
        if not block:  # RFC 5246 section 7.4.1.2: a hello may end before its extensions
            return []
        end = len(block)
        if end < 2 or int.from_bytes(block[:2], "big") != end - 2:
            raise StreamError("the extensions do not fill the message", path=path)
        found: list[tuple[int, Any]] = []
        at = 2
        while at < end:
            data = at + 4
            after = data + (block[at + 2] << 8 | block[at + 3]) if data <= end else data
            if after > end:
                raise StreamError("an extension is cut short", path=path)
            kind = block[at] << 8 | block[at + 1]
            if self.wanted is None:
                found.append((kind, block[data:after]))
            # One more than are wanted shows that one occurs twice; there may be thousands.
            elif kind in self.wanted and len(found) <= len(self.wanted):
                # Here, and not by another parse(): what that does first costs as much as the rest.
                inner = BytesIO(block[data:after])
                found.append((kind, self.wanted[kind]._parsereport(inner, context, path)))
            at = after
        return found

    def _build(
        self, obj: list[tuple[int, bytes]], stream: BytesIO, context: Any, path: str
    ) -> list[tuple[int, bytes]]:
        block = b"".join(_EXTENSION.build({"type": kind, "data": data}) for kind, data in obj)
        stream.write(_VECTOR16.build(block))
        return obj


_VECTOR16 = Prefixed(Int16ub, GreedyBytes)
_EXTENSION = Struct("type" / Int16ub, "data" / _VECTOR16)

PLAINTEXT = Struct(
    "type" / Int8ub,
    "legacy_record_version" / Int16ub,
    "fragment" / _VECTOR16,
)
"""TLSPlaintext, RFC 8446 section 5.1."""

HANDSHAKE = Struct("msg_type" / Int8ub, "body" / Prefixed(Int24ub, GreedyBytes))
"""Handshake, RFC 8446 section 4."""


def _client_hello(extensions: Construct) -> Construct:
    # Flat, with explicit lengths, because that compiles to fast code. Compiled code reads short at
    # the end of the bytes without a word, hence a Check on every length.
    return Struct(
        "legacy_version" / Int16ub,
        "random" / Bytes(32),
        "session_id_length" / Rebuild(Int8ub, len_(this.legacy_session_id)),
        "legacy_session_id" / Bytes(this.session_id_length),
        Check(this.session_id_length <= 32),
        "cipher_suites_length" / Rebuild(Int16ub, len_(this.cipher_suites)),
        "cipher_suites" / Bytes(this.cipher_suites_length),
        Check(len_(this.cipher_suites) == this.cipher_suites_length),
        Check(this.cipher_suites_length >= 2),
        Check(this.cipher_suites_length % 2 == 0),
        "compression_methods_length" / Rebuild(Int8ub, len_(this.legacy_compression_methods)),
        "legacy_compression_methods" / Bytes(this.compression_methods_length),
        Check(len_(this.legacy_compression_methods) == this.compression_methods_length),
        Check(this.compression_methods_length >= 1),
        "extensions" / extensions,
    )


CLIENT_HELLO = _client_hello(ExtensionBlock())
"""ClientHello, RFC 8446 section 4.1.2, with all its extensions: parses, and builds."""

SERVER_NAME_LIST = Struct(
    "list_length" / Rebuild(Int16ub, len_(this.host_name) + 3),
    "name_type" / Int8ub,
    "host_name_length" / Rebuild(Int16ub, len_(this.host_name)),
    "host_name" / Bytes(this.host_name_length),
    Check(this.list_length == this.host_name_length + 3),
    Check(len_(this.host_name) == this.host_name_length),
    Check(this.name_type == 0),
    Terminated,
)
"""ServerNameList of exactly one host_name, RFC 6066 section 3: the only form there is in use."""


class ProtocolNames(Construct):  # type: ignore[misc]
    """A ProtocolNameList as a tuple of bytes, RFC 7301 section 3.1: none empty, at least one."""

    def _parse(self, stream: BytesIO, context: Any, path: str) -> tuple[bytes, ...]:
        block = stream.read()
        end = len(block)
        if end < 4 or int.from_bytes(block[:2], "big") != end - 2:
            raise StreamError("the protocol names do not fill their extension", path=path)
        names = []
        at = 2
        while at < end:
            after = at + 1 + block[at]
            if after > end or not block[at]:
                raise StreamError("a protocol name is empty or cut short", path=path)
            names.append(block[at + 1 : after])
            at = after
        return tuple(names)

    def _build(self, obj: tuple[bytes, ...], stream: BytesIO, context: Any, path: str) -> Any:
        stream.write(_VECTOR16.build(b"".join(bytes([len(name)]) + name for name in obj)))
        return obj


PROTOCOL_NAMES = ProtocolNames()

_ROUTABLE_HELLO = _client_hello(
    ExtensionBlock(
        {
            SERVER_NAME: SERVER_NAME_LIST.compile(),
            ALPN: PROTOCOL_NAMES,
            ENCRYPTED_CLIENT_HELLO: GreedyBytes,
        }
    )
).compile()


def peek(
    received: bytes | bytearray, since: NeedMore = START, max_hello: int = DEFAULT_MAX_HELLO
) -> Verdict:
    """Conclude what the first bytes of a connection are.

    The verdict depends on the bytes alone, never on how they were cut into segments or records.

    Args:
        received: every byte received so far; what lies behind the hello is not looked at.
        since: what the last peek at fewer of these bytes concluded.
        max_hello: the bound on the ClientHello's declared length, in bytes. The framing around it
            is bounded by that too: every record brings at least one byte of the hello.

    Returns:
        The verdict. Never raises.
    """
    if not since.scanned:
        greeting = first_bytes(received)
        if greeting is not None:
            return greeting
    framed = _scan(received, since, max_hello)
    return _read(*framed) if isinstance(framed, tuple) else framed


def alert(description: int) -> bytes:
    """A record that holds one fatal alert.

    Args:
        description: AlertDescription, RFC 8446 section 6.
    """
    # Record version 0x0301, as for the hello itself (RFC 8446 section 5.1): before a version is
    # agreed on it is the one that clients of every age read.
    fatal = bytes([2, description])
    record: bytes = PLAINTEXT.build(
        {"type": _ALERT, "legacy_record_version": 0x0301, "fragment": fatal}
    )
    return record


_FAREWELLS = {reason: alert(reason.alert) for reason in Reason if reason.alert is not None}
_DECODE_ERROR = _FAREWELLS[Reason.MALFORMED_HELLO]


def farewell(reason: Reason, hello: Hello | None = None) -> bytes:
    """What a TLS client is told on a refusal: one alert record, or nothing if it speaks no TLS."""
    return _FAREWELLS.get(reason, b"")


# What else comes to port 443, told by its first bytes.
_GREETINGS = (
    *((f"{method} ".encode(), Reason.HTTP) for method in
      ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "PRI")),
    (b"SSH-", Reason.SSH),
    (b"PROXY ", Reason.PROXY_PROTOCOL),
    (b"\r\n\r\n\0\r\nQUIT\n", Reason.PROXY_PROTOCOL),
)  # fmt: skip


def first_bytes(received: bytes | bytearray) -> NeedMore | Foreign | Malformed | None:
    """The verdict of the first bytes alone; None where a handshake record begins."""
    if len(received) < 2:
        return _first_bytes_of_two(received)
    first, major = received[0], received[1]
    if first in _CONTENT_TYPES:
        if major != 3:
            return Foreign(Reason.NOISE)
        return None if first == _HANDSHAKE else _unexpected(f"first record of type {first}")
    return _foreign(received)


def _first_bytes_of_two(received: bytes | bytearray) -> NeedMore | Foreign:
    if not received or received[0] in _CONTENT_TYPES:
        return START
    return _foreign(received)


def _foreign(received: bytes | bytearray) -> NeedMore | Foreign:
    if received[0] & 0x80:
        return _sslv2(received)
    for greeting, reason in _GREETINGS:
        start = bytes(received[: len(greeting)])
        if start == greeting:
            return Foreign(reason)
        if greeting.startswith(start):
            return START
    return Foreign(Reason.NOISE)


def _sslv2(received: bytes | bytearray) -> NeedMore | Foreign:
    """SSLv2 CLIENT-HELLO (RFC 6101 appendix E): length with the high bit set, 1, version."""
    if len(received) < 4:
        return START if received[2:] in (b"", b"\1") else Foreign(Reason.NOISE)
    is_hello = received[2] == _CLIENT_HELLO and received[3] in (0, 3)
    return Foreign(Reason.SSLV2 if is_hello else Reason.NOISE)


def _scan(
    received: bytes | bytearray, since: NeedMore, max_hello: int
) -> NeedMore | Malformed | tuple[bytes, int]:
    """Step over whole records until the message is complete: (message, bytes it took).

    Every check is made at the first byte that shows the fault, in the order of the bytes; so the
    verdict is the same however they arrive.
    """
    scanned, gathered, expected = since.scanned, since.gathered, since.expected
    size = len(received)
    while scanned < size:
        fault = _record_fault(received, scanned)
        if fault is not None:
            return fault
        fragment = scanned + _RECORD_HEADER
        if size < fragment:
            break
        end = fragment + (received[scanned + 3] << 8 | received[scanned + 4])
        if expected is None:
            # Not further than this record: those behind it have not been looked at.
            head = _message(received, _HANDSHAKE_HEADER, end)
            fault = _handshake_fault(head, max_hello)
            if fault is not None:
                return fault
            if len(head) == _HANDSHAKE_HEADER:
                expected = _HANDSHAKE_HEADER + int.from_bytes(head[1:], "big")
        if expected is not None and gathered + min(end, size) - fragment >= expected:
            return _message(received, expected, end), fragment + expected - gathered
        if size < end:
            break
        gathered += end - fragment
        scanned = end
    return NeedMore(scanned, gathered, expected, _DECODE_ERROR)


def _record_fault(received: bytes | bytearray, at: int) -> Malformed | None:
    """What is wrong with the record header at a place, as far as it is there."""
    header = received[at : at + _RECORD_HEADER]
    if header[0] != _HANDSHAKE:
        return _unexpected(f"record of type {header[0]} within the hello")
    if len(header) > 1 and header[1] != 3:
        return _malformed(f"record of version {header[1]}.x within the hello")
    if len(header) == _RECORD_HEADER:
        length = header[3] << 8 | header[4]
        if length == 0:
            return _malformed("empty record")
        if length > MAX_FRAGMENT:
            return _refuse(Reason.RECORD_OVERFLOW, f"record of {length} bytes")
    return None


def _handshake_fault(head: bytes, max_hello: int) -> Malformed | None:
    if head and head[0] != _CLIENT_HELLO:
        return _unexpected(f"first handshake message of type {head[0]}")
    if len(head) == _HANDSHAKE_HEADER:
        declared = int.from_bytes(head[1:], "big")
        if declared > max_hello:
            detail = f"{declared} bytes declared, {max_hello} allowed"
            return _refuse(Reason.HELLO_TOO_LARGE, detail)
    return None


def _message(received: bytes | bytearray, count: int, end: int) -> bytes:
    """The first ``count`` bytes of the message in the records up to ``end``, or what is there."""
    fragments = []
    at = 0
    while count > 0 and at < end:
        length = received[at + 3] << 8 | received[at + 4]
        at += _RECORD_HEADER
        fragments.append(received[at : at + min(length, count)])
        at += length
        count -= length
    return b"".join(fragments)


def _read(message: bytes, size: int) -> Hello | Malformed:
    """Read a whole ClientHello message."""
    try:
        # By key: an attribute of a Container is looked for in three other places first.
        extensions = _ROUTABLE_HELLO.parse(message[_HANDSHAKE_HEADER:])["extensions"]
        found = dict(extensions)
        if len(found) != len(extensions):
            # RFC 8446 section 4.2 forbids it; two readers could heed different ones.
            return _malformed("an extension occurs twice")
    except (ConstructError, struct.error) as error:  # struct: what compiled code raises
        return _malformed(_first_line(error))
    names = found.get(SERVER_NAME)
    try:
        canonical = None if names is None else hostname.from_wire(names["host_name"])
    except hostname.HostnameError as error:
        return _refuse(Reason.BAD_SERVER_NAME, str(error))
    return Hello(canonical, found.get(ALPN, ()), ENCRYPTED_CLIENT_HELLO in found, size)


def _first_line(error: Exception) -> str:
    # construct puts "Error in path ..." first, and the words after it
    return " ".join(str(error).split()) or "a field has a length or value that it may not have"


def _refuse(reason: Reason, detail: str) -> Malformed:
    return Malformed(reason, detail, farewell(reason))


def _malformed(detail: str) -> Malformed:
    return _refuse(Reason.MALFORMED_HELLO, detail)


def _unexpected(detail: str) -> Malformed:
    return _refuse(Reason.UNEXPECTED_MESSAGE, detail)


TLS = Protocol("tls", 443, peek, farewell)
