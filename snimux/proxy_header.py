"""The PROXY protocol header that tells a backend who the client is: v1 text, v2 schema.

Builds only; knows no socket: addresses come in as the pairs that sockets give.

Source: "The PROXY protocol", versions 1 and 2, HAProxy Technologies (proxy-protocol.txt),
sections 2.1 and 2.2.
"""

import ipaddress
from typing import Any, Literal

from construct import Bytes, Const, GreedyBytes, Int8ub, Int16ub, Prefixed, Struct, Switch, this

Version = Literal["v1", "v2"]
Endpoint = tuple[str, int]
"""An IP address in text, without a zone, and a port."""

# Version 2 in the high half of an octet, the command in the low.
LOCAL, PROXY = 0x20, 0x21
# Address family and transport in one octet.
UNSPEC, TCP4, TCP6 = 0x00, 0x11, 0x21


def _inet(size: int) -> Struct:
    return Struct(
        "source_address" / Bytes(size),
        "destination_address" / Bytes(size),
        "source_port" / Int16ub,
        "destination_port" / Int16ub,
        "tlvs" / GreedyBytes,
    )


HEADER_V2 = Struct(
    "signature" / Const(b"\r\n\r\n\0\r\nQUIT\n"),
    "version_command" / Int8ub,
    "family" / Int8ub,
    "address"
    / Prefixed(
        Int16ub, Switch(this.family, {TCP4: _inet(4), TCP6: _inet(16)}, default=GreedyBytes)
    ),
)
"""The binary header of section 2.2; an unknown family keeps its address as bytes."""


def build(version: Version, source: Endpoint | None, destination: Endpoint | None) -> bytes:
    """The header for a connection that is relayed on a client's behalf.

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
