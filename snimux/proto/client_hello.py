"""Conclude what a TLS client's first bytes are: ``peek``; and the alerts for who is refused.

Reads just enough to route: the server name, the ALPN protocols, and whether Encrypted Client
Hello was offered. Whether the rest of a hello makes sense is the backend's business; but what is
read is read strictly, because a multiplexer that guesses where a server refuses sends people to
the wrong server.

Knows no socket, no clock and no route.

Source: RFC 8446 sections 4, 5.1 and 6 (TLS 1.3), RFC 6101 appendix E (SSLv2); ``tls_schema`` has
those of the messages.
"""

import struct

from construct import ConstructError

from snimux.proto import hostname
from snimux.proto.reason import Reason
from snimux.proto.tls_schema import (
    ALPN,
    ENCRYPTED_CLIENT_HELLO,
    PLAINTEXT,
    ROUTABLE_HELLO,
    SERVER_NAME,
)
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

_RECORD_HEADER = 5
_HANDSHAKE_HEADER = 4


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
    """Return a record that holds one fatal alert.

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
    """Return what a TLS client is sent on a refusal: one alert record, or nothing."""
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
    """Return the verdict of the first bytes alone; None where a handshake record begins."""
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
    """Tell an SSLv2 CLIENT-HELLO from noise."""
    # RFC 6101 appendix E: a length whose high bit is set, 1, the version
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
    # By arithmetic on the lengths, before any schema: construct fails alike for a message that is
    # cut short and one that is corrupt, but the first needs more bytes and the second an alert. So
    # the schema runs once, on a whole message, and what it raises then is a fault. And the cost
    # stays linear, even where each byte comes in a record and a segment of its own.
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
    """Return what is wrong with the record header at a place, as far as it has come."""
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
    """Return the first ``count`` bytes of the message in the records up to ``end``, or fewer."""
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
        extensions = ROUTABLE_HELLO.parse(message[_HANDSHAKE_HEADER:])["extensions"]
        by_type = dict(extensions)
        if len(by_type) != len(extensions):
            # RFC 8446 section 4.2 forbids it; two readers could heed different ones.
            return _malformed("an extension occurs twice")
    except (ConstructError, struct.error) as error:  # struct: what compiled code raises
        return _malformed(_first_line(error))
    names = by_type.get(SERVER_NAME)
    try:
        canonical = None if names is None else hostname.from_wire(names["host_name"])
    except hostname.HostnameError as error:
        return _refuse(Reason.BAD_SERVER_NAME, str(error))
    return Hello(canonical, by_type.get(ALPN, ()), ENCRYPTED_CLIENT_HELLO in by_type, size)


def _first_line(error: Exception) -> str:
    # construct puts "Error in path ..." first, and the words after it
    return " ".join(str(error).split()) or "a field has a length or value that it may not have"


def _refuse(reason: Reason, detail: str) -> Malformed:
    return Malformed(reason, detail, farewell(reason))


def _malformed(detail: str) -> Malformed:
    return _refuse(Reason.MALFORMED_HELLO, detail)


def _unexpected(detail: str) -> Malformed:
    return _refuse(Reason.UNEXPECTED_MESSAGE, detail)


TLS = Protocol("tls", "TLS", 443, peek, farewell)
