"""Make a hello of what is to be explained: a name as a person has it, or bytes that came.

Both are read by what reads them in a server. Knows no routes.

Source: RFC 3986 section 3.2 (what there is in a URL before the path).
"""

import ipaddress
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import assert_never

from snimux.proto import hostname
from snimux.proto.client_hello import TLS
from snimux.proto.http_head import HTTP
from snimux.proto.reason import Reason
from snimux.proto.verdict import (
    START,
    Foreign,
    Hello,
    Malformed,
    NeedMore,
    Protocol,
    Request,
    Verdict,
)
from snimux.routing.networks import UNIX
from snimux.routing.routes import PatternError, parse_pattern

_SCHEMES = {"https": TLS, "wss": TLS, "http": HTTP, "ws": HTTP}
_URL = re.compile(r"(?:([A-Za-z][A-Za-z0-9+.-]*)://)?([^/?#]*)([^#]*).*", re.DOTALL)
_AUTHORITY = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::([0-9]{0,5}))?")

_RECORD_HEADER = 5  # RFC 8446 section 5.1


class CaseError(ValueError):
    """Nobody connects to that; the message says why."""


@dataclass(frozen=True, slots=True)
class Case:
    """All that a client says.

    ``verdict`` is what a peek at it concludes; a NeedMore is of a client that then says no more.
    """

    title: str
    """The name or the bytes, in the words of whoever wants to know."""
    protocol: Protocol
    verdict: Verdict
    notes: tuple[str, ...] = ()
    """How it was read."""
    port: int | None = None
    """Where the client asks, if that was said."""
    listener: str | None = None
    """The name of the listener where the client comes in, if that was said."""
    size: int | None = None
    """How many bytes came; None where none were looked at."""


def of_name(text: str, alpn: Sequence[bytes] = ()) -> Case:
    """Return what a client says that connects to a name.

    Args:
        text: a host name in any spelling or an IP address, either with or without a port; or a URL,
            which is of plain HTTP where it begins with http://.
        alpn: the protocols that the client offers, in its order.

    Raises:
        CaseError: no client connects to that.
    """
    url = _URL.fullmatch(text.strip())
    assert url is not None  # every part of it may be empty
    scheme, authority, target = url.groups()
    protocol = _SCHEMES.get((scheme or "https").lower())
    if protocol is None:
        raise CaseError(f"{scheme}:// is neither https:// nor http://")
    if alpn and protocol is HTTP:
        raise CaseError("plain HTTP has no ALPN protocol: ask for https://, or without --alpn")
    host, port = _host_and_port(authority.rpartition("@")[2])
    if not host:
        raise CaseError("there is no name in it")
    verdict, notes = _said(host, protocol, tuple(alpn), target)
    return Case(text, protocol, verdict, tuple(notes), port)


def of_both(name: Case, received: Case) -> Case:
    """Return what the bytes say, with a note where that is not what the name would have been."""
    named, sent = name.verdict, received.verdict
    if not (isinstance(named, Hello) and isinstance(sent, Hello)) or named.name == sent.name:
        return received
    note = f"the bytes are for {sent.name or 'no name'}, not for {named.name or 'no name'}"
    return replace(received, notes=(*received.notes, note))


def protocols(texts: Iterable[str]) -> tuple[bytes, ...]:
    """Read ALPN protocols as typed: one, or some with commas between them, or several times.

    Raises:
        CaseError: it is none.
    """
    names = [protocol.strip() for text in texts for protocol in text.split(",")]
    try:
        return tuple(parse_pattern(f"*/{x}").alpn or b"" for x in names)
    except PatternError:
        raise CaseError(
            f"{', '.join(names)!r} is no ALPN protocol, such as h2 or acme-tls/1"
        ) from None


def source(text: str) -> str:
    """Read a client's address as typed: an IP address, or "unix" for who comes by a UNIX socket.

    Raises:
        CaseError: it is none.
    """
    if text == UNIX:
        return text
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        raise CaseError(f"{text!r} is no IP address, such as 192.0.2.7") from None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _host_and_port(authority: str) -> tuple[str, int | None]:
    parts = None if _ip(authority) else _AUTHORITY.fullmatch(authority)
    if parts is None:
        return authority, None
    return parts[1], int(parts[2]) if parts[2] else None


def _ip(text: str) -> str | None:
    """Return an IP address as a URL has it; None where it is none."""
    try:
        address = ipaddress.ip_address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None
    return f"[{address}]" if address.version == 6 else str(address)


def _said(
    host: str, protocol: Protocol, alpn: tuple[bytes, ...], target: str
) -> tuple[Hello | Malformed, list[str]]:
    """Return what a client says that connects to a host, and how it comes to that."""
    address = _ip(host)
    if address is not None:
        no_name = "a hello for it has no server name" if protocol is TLS else "no name to route by"
        notes = [f"{address} is an IP address: {no_name}"]
        return _hello(None, address, protocol, alpn, target), notes
    try:
        name = hostname.from_user(host)
    except hostname.HostnameError as error:
        reason = Reason.BAD_SERVER_NAME
        return Malformed(reason, str(error), protocol.farewell(reason, None)), []
    return _hello(name, name, protocol, alpn, target), list(_changes(host, name))


def _hello(
    name: str | None, host: str, protocol: Protocol, alpn: tuple[bytes, ...], target: str
) -> Hello:
    path = target if target.startswith("/") else f"/{target}"
    return Hello(name, alpn, False, 0, Request("GET", host, path) if protocol is HTTP else None)


def _changes(host: str, name: str) -> Iterator[str]:
    """Yield how the canonical spelling differs from what was typed."""
    changes = {
        "in punycode, as on the wire": not host.isascii(),
        "in lower case": host.lower() != host,
        "without the dot at its end": host.endswith("."),
    }
    if host != name:
        how = ", ".join(change for change, is_made in changes.items() if is_made)
        yield f"{host} is looked up as {name}: {how or 'its canonical spelling'}"


def of_bytes(
    received: bytes, max_hello: int, title: str, *, protocol: Protocol | None = None
) -> Case:
    """Return what a client says that sent these bytes, and no more.

    Args:
        received: all that it sent.
        max_hello: the bound on a hello or a request's head, in bytes.
        title: what to call it.
        protocol: the one of the listener where they came; None: plain HTTP for what is that, and
            else TLS.
    """
    if protocol is None:
        of_http = HTTP.peek(received, START, max_hello)
        of_tls = TLS.peek(received, START, max_hello)
        is_http = isinstance(of_tls, Foreign) and not isinstance(of_http, Foreign)
        protocol = HTTP if is_http else TLS
    verdict = protocol.peek(received, START, max_hello)
    remarks = _remarks(received, verdict, protocol, max_hello)
    return Case(title, protocol, verdict, tuple(remarks), size=len(received))


def _remarks(
    received: bytes, verdict: Verdict, protocol: Protocol, max_hello: int
) -> Iterator[str]:
    """Yield what there is to say of the bytes, beside the verdict."""
    match verdict:
        case Hello(size=size):
            if protocol is TLS:
                count = len(_fragments(received[:size]))
                yield f"a ClientHello of {size} bytes in {count} record{'s' * (count != 1)}"
            else:
                yield f"the head of a request, {size} bytes"
            if len(received) > size:
                yield f"{len(received) - size} bytes behind it, which are passed on with it"
            if verdict.ech:
                yield "ECH is offered: the name may be a public one (or ECH a decoy)"
        case NeedMore(expected=expected) if received:
            yield f"not whole: {_missing(received, expected, protocol)}"
        case NeedMore():
            yield "no bytes at all"
        case Malformed() | Foreign():
            at = _deciding(received, protocol, max_hello)
            yield f"decided by byte {at} of {len(received)}, {received[at - 1]:#04x}"
        case _:
            assert_never(verdict)


def _missing(received: bytes, expected: int | None, protocol: Protocol) -> str:
    if protocol is HTTP:
        return f"{len(received)} bytes of a head, and no empty line that ends it"
    size = sum(_fragments(received))
    if expected is None:
        return f"{size} bytes of the hello, and its length is not among them"
    return f"{expected - size} of the {expected} bytes of the hello are missing"


def _fragments(received: bytes) -> list[int]:
    """Return how many bytes of content have come of each record of a hello."""
    lengths, at = [], 0
    while len(received) - at >= _RECORD_HEADER:
        length = int.from_bytes(received[at + 3 : at + _RECORD_HEADER], "big")
        at += _RECORD_HEADER
        lengths.append(min(length, len(received) - at))
        at += length
    return lengths


def _deciding(received: bytes, protocol: Protocol, max_hello: int) -> int:
    """Return how many bytes it took to be sure: with fewer a peek would wait for more."""

    def is_sure(count: int) -> bool:
        return not isinstance(protocol.peek(received[:count], START, max_hello), NeedMore)

    return bisect_left(range(len(received) + 1), True, key=is_sure)
