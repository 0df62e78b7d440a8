"""The head of a plain HTTP/1 request; ``peek``; the responses that refuse or redirect it.

Reads one head, just to learn the Host. The rest of the connection, the request's body and further
requests, is the backend's business. What is read is read strictly: whatever two servers could read
differently is refused, so that the Host routed by is the one that any backend sees.

Knows no socket, no clock and no route.

Source: RFC 9112 sections 2.2 (line ends), 3.2 (request target, Host) and 5.2 (folded lines); RFC
9110 section 15 (status codes); RFC 9113 sections 3.3, 6.8 and 7 (HTTP/2 with prior knowledge).
"""

import ipaddress
import re
from dataclasses import replace
from http import HTTPStatus

import h11

from snimux.proto import hostname
from snimux.proto.client_hello import DEFAULT_MAX_HELLO, first_bytes
from snimux.proto.reason import Reason
from snimux.proto.verdict import (
    START,
    Foreign,
    Hello,
    Malformed,
    NeedMore,
    Protocol,
    Redirect,
    Request,
    Verdict,
)

# RFC 9110 section 5.6.2: what a method is made of.
_TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")

# The end of the head; or, before it, what is refused wherever it stands: a folded line, which RFC
# 9112 section 5.2 lets a server refuse; CR or LF alone, which section 2.2 lets some take for a line
# end; control characters, NUL the first. h11 takes some of that, and its expressions cost the
# square of a run of spaces before a control character: a second for 16 KiB.
_EVENT = re.compile(rb"(\r\n\r\n)|\r\n[ \t]|\r[^\n]|(?<!\r)\n|[\0-\x08\x0b\x0c\x0e-\x1f\x7f]")
_LONGEST_EVENT = 4

# Fields that change nothing of where a request ends, what it asks for, or what follows it.
_HARMLESS = frozenset(
    (b"accept", b"accept-charset", b"accept-encoding", b"accept-language", b"cache-control",
     b"connection", b"from", b"host", b"pragma", b"referer", b"user-agent")
)  # fmt: skip

_NOT_ASCII = re.compile(rb"[\x80-\xff]")

# RFC 9112 section 3.2.2: what proxies are asked for. Userinfo is refused (RFC 9110 section 4.2.4).
_ABSOLUTE_FORM = re.compile(r"(?i:https?)://([^/?#@]*)([/?].*)?")

# RFC 3986 section 3.2: uri-host, and a port that may be empty.
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[]*)(?::[0-9]{0,5})?")

# What is asked for at these is asked over plain HTTP on purpose, to prove who has the name (RFC
# 8555 section 8.3; the CA/Browser Forum's baseline requirements, section 3.2.2.4.18).
_VALIDATION = ("/.well-known/acme-challenge/", "/.well-known/pki-validation/")

_HTTPS_PORT = 443

# RFC 9113 section 3.4: what HTTP/2 with prior knowledge begins with, as a request line.
_HTTP2 = (b"PRI", b"*", b"2.0")


def peek(
    received: bytes | bytearray, since: NeedMore = START, max_hello: int = DEFAULT_MAX_HELLO
) -> Verdict:
    """Conclude what the first bytes of a connection are.

    The verdict depends on the bytes alone, never on how they were cut into segments.

    Args:
        received: every byte received so far; what lies behind the head is not looked at.
        since: what the last peek at fewer of these bytes concluded.
        max_hello: the bound on the head, up to the empty line that ends it, in bytes.

    Returns:
        The verdict; a Hello has the request. Never raises.
    """
    if not since.scanned:
        other = _other_protocol(received)
        if other is not None:
            return other
    start = max(0, since.scanned - _LONGEST_EVENT + 1)
    event = _EVENT.search(received, start, max_hello)
    if event is None:
        if len(received) >= max_hello:
            return _too_large(received, max_hello)
        return NeedMore(len(received), farewell=_LATE)
    if not event[1]:
        return _refuse(Reason.MALFORMED_HELLO, _fault(event[0]))
    return _read(bytes(received[: event.end()]))


def _other_protocol(received: bytes | bytearray) -> NeedMore | Foreign | None:
    """Return the verdict of the first bytes alone; None where a method may begin."""
    if not received:
        return START
    is_token = received[0] in _TOKEN
    match first_bytes(received):
        case Foreign(Reason.HTTP):
            return None
        case Foreign(Reason.NOISE) if is_token:  # a method that no list has
            return None
        case NeedMore():
            return NeedMore(farewell=_LATE) if is_token else START
        case Foreign() as foreign:
            return foreign
        case None | Malformed():
            return Foreign(Reason.TLS)


def _fault(event: bytes) -> str:
    if event[:2] == b"\r\n":
        return "a folded line"
    if b"\r" in event or b"\n" in event:
        return "a CR or LF that is no line's end"
    return f"a control character, {event[0]:#04x}"


def _too_large(received: bytes | bytearray, max_hello: int) -> Malformed:
    # RFC 9112 section 3 wants a word of its own for a target that is too long.
    has_line = b"\r\n" in received[:max_hello]
    status = _LARGE if has_line else HTTPStatus.REQUEST_URI_TOO_LONG
    return _refuse(Reason.HELLO_TOO_LARGE, f"a head of more than {max_hello} bytes", status)


def _read(head: bytes) -> Hello | Malformed:
    """Read a whole head."""
    try:
        parsed = _parse(head)
    except h11.RemoteProtocolError as error:
        status = HTTPStatus(error.error_status_hint)
        return _refuse(Reason.MALFORMED_HELLO, str(error), status)
    method, target = parsed.method.decode("ascii"), parsed.target.decode("ascii")
    if (parsed.method, parsed.target, parsed.http_version) == _HTTP2:
        return Hello(None, (), False, len(head), Request(method, None, ""))
    if not parsed.http_version.startswith(b"1."):
        detail = f"HTTP/{parsed.http_version.decode('ascii')}"
        return _refuse(Reason.UNEXPECTED_MESSAGE, detail, HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
    hosts = [value for name, value in parsed.headers if name == b"host"]
    try:
        hello = _routable(method, target, hosts[0] if hosts else None, len(head))
    except hostname.HostnameError as error:
        return _refuse(Reason.BAD_SERVER_NAME, str(error), method=method)
    except _TargetError as error:
        return _refuse(Reason.MALFORMED_HELLO, str(error), method=method)
    if hello.request is not None and _is_last(parsed, head):
        return replace(hello, request=replace(hello.request, closes=True))
    return hello


def _is_last(parsed: h11.Request, head: bytes) -> bool:
    """Return whether whoever serves this request takes it for the last of its connection.

    RFC 9112 section 9.6 says which is, but servers differ: of two Connection fields nginx heeds the
    last, with HTTP/1.0 Caddy heeds keep-alive beside close, nginx takes no tab for a space. A body
    may end elsewhere for another server, an upgrade has requests by HTTP/2 follow, and some
    frameworks take another path or method from a field. So this is what none of that can be: fields
    of a list, among them one Connection that is "close", and a path as the target.
    """
    options = [value for name, value in parsed.headers if name == b"connection"]
    return (
        options == [b"close"]
        and parsed.http_version == b"1.1"
        and parsed.target.startswith(b"/")
        and _HARMLESS.issuperset(name for name, _ in parsed.headers)
        and b"\t" not in head
    )


def _parse(head: bytes) -> h11.Request:
    """Return the request as h11 reads it, with one Host at most; nothing else is checked yet.

    Raises:
        h11.RemoteProtocolError: it is no request.
    """
    # Targets with raw UTF-8 are no URLs, but are sent (by curl) and understood (by Caddy). What
    # they stand for can be written in ASCII, so they are read so.
    method, space, rest = head.partition(b" ")
    line, crlf, fields = rest.partition(b"\r\n")
    line = _NOT_ASCII.sub(lambda octet: b"%%%02X" % ord(octet[0]), line)
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"".join((method, space, line, crlf, fields)))
    parsed = connection.next_event()
    if not isinstance(parsed, h11.Request):  # not met yet: the head is whole
        raise h11.RemoteProtocolError("no request")
    return parsed


class _TargetError(ValueError):
    """A request target that is none here; the message says why."""


def _routable(method: str, target: str, field: bytes | None, size: int) -> Hello:
    """Return the hello of a request, by the Host field or, before that, the target's authority.

    Raises:
        hostname.HostnameError: what is there for a Host is none.
        _TargetError: the target is of no form that is served here.
    """
    name, host = (None, None) if field is None else _read_authority(field)
    if method == "CONNECT":
        # RFC 9110 section 9.3.6: it asks a proxy for a tunnel to what it names. Who is routed by
        # name here is not to be given a tunnel, and Caddy would read a name of its own in it.
        raise _TargetError("CONNECT is for proxies")
    absolute = _ABSOLUTE_FORM.fullmatch(target)
    if absolute:  # RFC 9112 section 3.2.2: then the Host field is to be ignored, as Caddy does
        name, host = _read_authority(absolute[1].encode("ascii"))
        target = absolute[2] or "/"
        target = target if target.startswith("/") else f"/{target}"
    elif not target.startswith("/") and (method, target) != ("OPTIONS", "*"):
        raise _TargetError("the target is neither a path nor a URL")
    return Hello(name, (), False, size, Request(method, host, target))


def _read_authority(authority: bytes) -> tuple[str | None, str]:
    """Return the canonical name (None for an IP literal) and what a URL has for it; no port.

    Raises:
        hostname.HostnameError: it is neither.
    """
    match = _AUTHORITY.fullmatch(authority.decode("latin-1"))
    if match is None:
        raise hostname.HostnameError("neither a name nor an address, with or without a port")
    host = match[1]
    try:
        if host.startswith("["):
            return None, f"[{ipaddress.IPv6Address(host[1:-1])}]"
        return None, str(ipaddress.IPv4Address(host))
    except ValueError:
        name = hostname.from_wire(host.encode("latin-1"))
        return name, name


# Status and words, which are for whoever sees them in a browser or by curl. They tell nothing of
# the servers behind.
_LARGE = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
_WORDS = {
    Reason.MALFORMED_HELLO: (
        HTTPStatus.BAD_REQUEST,
        "This request is not as HTTP/1.1 wants it; the log of the server says in which way.",
    ),
    Reason.BAD_SERVER_NAME: (
        HTTPStatus.BAD_REQUEST,
        "The Host of this request is no host name. Ask for the server by its name.",
    ),
    Reason.UNEXPECTED_MESSAGE: (
        HTTPStatus.BAD_REQUEST,
        "This version of HTTP is not served here. Ask by HTTP/1.1.",
    ),
    Reason.HELLO_TOO_LARGE: (
        _LARGE,
        "The head of this request is too large. Send a shorter URL, or fewer cookies.",
    ),
    Reason.HELLO_TIMEOUT: (
        HTTPStatus.REQUEST_TIMEOUT,
        "The head of this request did not come whole in time. Send it again.",
    ),
    Reason.ACCESS_DENIED: (
        HTTPStatus.FORBIDDEN,
        "This is not served to your address.",
    ),
    Reason.ROUTE_REFUSES: (
        HTTPStatus.FORBIDDEN,
        "This is not served to anybody.",
    ),
    Reason.NO_ROUTE: (
        HTTPStatus.NOT_FOUND,
        "No server of this name is known here. Check the name, and where its DNS records point.",
    ),
    Reason.NO_HTTP: (
        HTTPStatus.NOT_FOUND,
        "No server answers this by plain HTTP here, and it is nothing to redirect to https.",
    ),
    Reason.BACKEND_DOWN: (
        HTTPStatus.BAD_GATEWAY,
        "The server of this name does not answer. Try again later.",
    ),
    Reason.NO_SOURCE: (
        HTTPStatus.BAD_GATEWAY,
        "The server of this name cannot be reached from an address like yours.",
    ),
    Reason.OUT_OF_RESOURCES: (
        HTTPStatus.SERVICE_UNAVAILABLE,
        "There is no room for more connections now. Try again later.",
    ),
    Reason.TOO_MANY_FROM_SOURCE: (
        HTTPStatus.TOO_MANY_REQUESTS,
        "There are too many connections from your address. Close some, and try again.",
    ),
    Reason.RATE_LIMITED: (
        HTTPStatus.TOO_MANY_REQUESTS,
        "There are too many new connections from your address. Try again later.",
    ),
}
_NO_HOST = "This request has no Host. Ask for the server by its name."


def farewell(reason: Reason, hello: Hello | None = None) -> bytes:
    """Return what an HTTP client is sent on a refusal: a response; nothing if it speaks no HTTP.

    Args:
        reason: why it is refused.
        hello: its request, if that is known.
    """
    if reason not in _WORDS:
        return b""
    status, words = _WORDS[reason]
    request = hello.request if hello else None
    if request is None:
        return _response(status, words)
    if not request.target:
        return _goaway(reason, words)
    if request.host is None and status is HTTPStatus.NOT_FOUND:
        status, words = HTTPStatus.BAD_REQUEST, _NO_HOST
    return _response(status, words, method=request.method)


def redirect(hello: Hello, https_port: int = _HTTPS_PORT) -> Redirect | None:
    """Return where a request finds the same by https; None for what is not to be redirected.

    Args:
        hello: a request's, by ``peek``.
        https_port: where TLS is served; it is left out if it is 443.
    """
    request = hello.request
    if request is None or request.host is None or not request.target.startswith("/"):
        return None
    if request.target.startswith(_VALIDATION):
        return None
    port = "" if https_port == _HTTPS_PORT else f":{https_port}"
    # Nothing in it can end the line: the host is canonical, and targets are visible ASCII to h11.
    location = f"https://{request.host}{port}{request.target}"
    status = HTTPStatus.PERMANENT_REDIRECT
    words = "This server is asked by https, as Location says."
    return Redirect(location, _response(status, words, method=request.method, location=location))


def _response(status: HTTPStatus, words: str, *, method: str = "GET", location: str = "") -> bytes:
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        "Content-Type: text/plain; charset=utf-8",
        f"Content-Length: {len(words) + 1}",
        "Connection: close",
    ]
    lines += [f"Location: {location}"] if location else []
    body = "" if method == "HEAD" else f"{words}\n"
    return ("\r\n".join(lines) + f"\r\n\r\n{body}").encode("ascii")


def _goaway(reason: Reason, words: str) -> bytes:
    """Return SETTINGS and GOAWAY: to HTTP/2 clients a response would be noise.

    Source: RFC 9113 sections 3.4 (a server begins with SETTINGS), 4.1, 6.8 and 7.
    """
    http_1_1_required, internal_error = 0xD, 0x2
    nameless = (Reason.NO_ROUTE, Reason.ROUTE_REFUSES, Reason.NO_HTTP)  # by HTTP/1.1 it has a Host
    code = http_1_1_required if reason in nameless else internal_error
    last_stream = 0
    goaway = last_stream.to_bytes(4, "big") + code.to_bytes(4, "big") + words.encode("ascii")
    return _frame(4, b"") + _frame(7, goaway)


def _frame(kind: int, payload: bytes) -> bytes:
    flags_and_stream = bytes(5)
    return len(payload).to_bytes(3, "big") + bytes([kind]) + flags_and_stream + payload


def _refuse(
    reason: Reason, detail: str, status: HTTPStatus | None = None, *, method: str = "GET"
) -> Malformed:
    usual, words = _WORDS[reason]
    return Malformed(reason, detail, _response(status or usual, words, method=method))


_LATE = farewell(Reason.HELLO_TIMEOUT)

HTTP = Protocol("http", "plain HTTP", 80, peek, farewell, redirect)
