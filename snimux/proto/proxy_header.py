"""The PROXY protocol header that tells who the client is: v1 text, v2 schema; built, and read.

Knows no socket: addresses are the pairs that sockets give. Whether a header is to be expected is
for others to say: to look whether there is one would be to believe whoever sends it.

Source: "The PROXY protocol", versions 1 and 2, HAProxy Technologies (proxy-protocol.txt),
sections 2.1 and 2.2.
"""

import ipaddress
import re
import struct
from dataclasses import dataclass
from typing import Any, Literal

from construct import (
    Bytes,
    Const,
    ConstructError,
    GreedyBytes,
    Int8ub,
    Int16ub,
    Prefixed,
    Struct,
    Switch,
    this,
)

from snimux.proto.reason import Reason
from snimux.proto.verdict import START, Malformed, NeedMore

Version = Literal["v1", "v2"]
Endpoint = tuple[str, int]
"""An IP address in text, without a zone, and a port."""

# Version 2 in the high half of an octet, the command in the low.
LOCAL, PROXY = 0x20, 0x21
# Address family and transport in one octet.
UNSPEC, TCP4, TCP6 = 0x00, 0x11, 0x21

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED = 16  # bytes before the addresses of version 2
_ADDRESSES = {TCP4: 12, TCP6: 36}  # bytes
# The highest that have a meaning: AF_UNIX, and DGRAM.
_MOST_FAMILY, _MOST_TRANSPORT = 3, 2

# Section 2.1: the longest line of version 1, its end included.
_LONGEST_LINE = 107
# Bytes of a header of version 2 with all that is appended to it: as much as nginx takes. What is
# sent there are names, of 255 bytes at the most, and identifiers, of 128.
_LARGEST = 4096

_LINE_END = re.compile(rb"\r\n|\r[^\n]|\n")
_UNKNOWN = re.compile(rb"PROXY UNKNOWN(?: .*)?")
_PORT = rb"(0|[1-9][0-9]{0,4})"
_LINE = re.compile(rb"PROXY TCP([46]) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) %b %b" % (_PORT, _PORT))
_LINE_START = b"PROXY "


def _inet(size: int) -> Struct:
    return Struct(
        "source_address" / Bytes(size),
        "destination_address" / Bytes(size),
        "source_port" / Int16ub,
        "destination_port" / Int16ub,
        "tlvs" / GreedyBytes,
    )


HEADER_V2 = Struct(
    "signature" / Const(_SIGNATURE),
    "version_command" / Int8ub,
    "family" / Int8ub,
    "address"
    / Prefixed(
        Int16ub, Switch(this.family, {TCP4: _inet(4), TCP6: _inet(16)}, default=GreedyBytes)
    ),
)
"""The binary header of section 2.2; an unknown family keeps its address as bytes."""

_HEADER_V2 = HEADER_V2.compile()


def build(version: Version, source: Endpoint | None, destination: Endpoint | None) -> bytes:
    """Return the header for a connection that is relayed on a client's behalf.

    Args:
        version: which version of the header.
        source: the client's address; None where it has none (a UNIX socket).
        destination: the address that the client connected to.

    Returns:
        The header: TCP4 or TCP6; or where an end has no address, or the two are of different
        families, UNKNOWN (v1) or LOCAL and UNSPEC (v2). LOCAL, because receivers such as Caddy's
        refuse UNSPEC with the command PROXY.
    """
    ends = _ends(source, destination)
    return _build_v1(ends) if version == "v1" else _build_v2(ends)


_Ip = ipaddress.IPv4Address | ipaddress.IPv6Address
_Ends = tuple[_Ip, int, _Ip, int]


def _ends(source: Endpoint | None, destination: Endpoint | None) -> _Ends | None:
    if source is None or destination is None:
        return None
    client, server = ipaddress.ip_address(source[0]), ipaddress.ip_address(destination[0])
    if client.version != server.version:
        return None
    return client, source[1], server, destination[1]


def _build_v1(ends: _Ends | None) -> bytes:
    if ends is None:
        return b"PROXY UNKNOWN\r\n"
    source, source_port, destination, destination_port = ends
    line = f"PROXY TCP{source.version} {source} {destination} {source_port} {destination_port}\r\n"
    return line.encode("ascii")


def _build_v2(ends: _Ends | None) -> bytes:
    command, family = LOCAL, UNSPEC
    address: Any = b""
    if ends is not None:
        source, source_port, destination, destination_port = ends
        command, family = PROXY, TCP4 if source.version == 4 else TCP6
        address = {
            "source_address": source.packed,
            "destination_address": destination.packed,
            "source_port": source_port,
            "destination_port": destination_port,
            "tlvs": b"",
        }
    header: bytes = HEADER_V2.build(
        {"version_command": command, "family": family, "address": address}
    )
    return header


@dataclass(frozen=True, slots=True)
class Header:
    """The content of a header; ``size`` is how many of the bytes peeked at belong to it.

    Both ends are None where it is the sender itself that connects (LOCAL), or where it does not
    know, or cannot tell, for whom it does: then those of the connection hold.
    """

    source: Endpoint | None
    destination: Endpoint | None
    size: int


def peek(received: bytes | bytearray) -> NeedMore | Malformed | Header:
    """Read the header that a connection has to begin with, of either version.

    The verdict depends on the bytes alone, never on how they were cut into segments.

    What version 2 appends to the addresses (TLVs) is stepped over, the checksum (CRC32C) too: TCP
    has one.

    Args:
        received: every byte received so far; what lies behind the header is not looked at.

    Returns:
        The verdict. Never raises.
    """
    if _SIGNATURE.startswith(bytes(received[: len(_SIGNATURE)])):
        return _peek_v2(received) if len(received) > len(_SIGNATURE) else START
    start = bytes(received[: len(_LINE_START)])
    if start == _LINE_START:
        return _peek_v1(received)
    return START if _LINE_START.startswith(start) else _malformed("no PROXY protocol header")


def _malformed(detail: str) -> Malformed:
    # Section 2.1: the connection is aborted. It is a balancer that has erred, not its client.
    return Malformed(Reason.BAD_PROXY_HEADER, detail, b"")


def _peek_v1(received: bytes | bytearray) -> NeedMore | Malformed | Header:
    end = _LINE_END.search(received, 0, _LONGEST_LINE)
    if end is None:
        is_too_long = len(received) >= _LONGEST_LINE
        return _malformed(f"no CRLF in {_LONGEST_LINE} bytes") if is_too_long else START
    if end[0] != b"\r\n":
        return _malformed("a CR or LF that is no line's end")
    line = bytes(received[: end.start()])
    if _UNKNOWN.fullmatch(line):
        return Header(None, None, end.end())
    fields = _LINE.fullmatch(line)
    if fields is None:
        return _malformed("a line of version 1 that is none")
    version, source, destination, *ports = (field.decode("ascii") for field in fields.groups())
    source_port, destination_port = map(int, ports)
    if max(source_port, destination_port) > 0xFFFF:
        return _malformed("a port that is none")
    family = ipaddress.IPv4Address if version == "4" else ipaddress.IPv6Address
    try:
        ends = family(source), family(destination)
    except ValueError:
        return _malformed(f"an address that is none of IPv{version}")
    return Header(_endpoint(ends[0], source_port), _endpoint(ends[1], destination_port), end.end())


def _peek_v2(received: bytes | bytearray) -> NeedMore | Malformed | Header:
    fault = _fault_of_v2(received)
    if fault:
        return _malformed(fault)
    if len(received) < _FIXED:
        return START
    size = _FIXED + int.from_bytes(received[_FIXED - 2 : _FIXED], "big")
    if len(received) < size:
        return START
    if received[12] == LOCAL or received[13] not in _ADDRESSES:
        return Header(None, None, size)
    try:
        address = _HEADER_V2.parse(bytes(received[:size])).address
    except (ConstructError, struct.error) as error:  # not met yet: the lengths are right
        return _malformed(" ".join(str(error).split()))
    source = ipaddress.ip_address(address.source_address)
    destination = ipaddress.ip_address(address.destination_address)
    return Header(
        _endpoint(source, address.source_port),
        _endpoint(destination, address.destination_port),
        size,
    )


def _fault_of_v2(received: bytes | bytearray) -> str:
    """Return what is wrong with the fixed part of version 2 so far; empty if nothing."""
    head = received[len(_SIGNATURE) : _FIXED]
    if head[0] not in (LOCAL, PROXY):
        return f"version and command {head[0]:#04x}"
    is_proxy = head[0] == PROXY  # else the family is to be ignored
    if is_proxy and len(head) > 1:
        family, transport = head[1] >> 4, head[1] & 0xF
        if family > _MOST_FAMILY or transport > _MOST_TRANSPORT:
            return f"family and transport {head[1]:#04x}"
    if len(head) == 4:
        length = int.from_bytes(head[2:], "big")
        if length > _LARGEST - _FIXED:
            return f"{length} bytes declared, {_LARGEST - _FIXED} allowed"
        if is_proxy and length < _ADDRESSES.get(head[1], 0):
            return f"{length} bytes declared, which are too few for the addresses"
    return ""


def _endpoint(ip: _Ip, port: int) -> Endpoint:
    """IPv4 that is mapped into IPv6, as where one end only is IPv4, is IPv4 again."""
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or ip
    return str(ip), port
