"""Ask a backend whether it understands the PROXY protocol: by a header and a first request.

The header is v2 LOCAL, "the connection was established on purpose by the proxy", which is there for
health checks. A server that does not understand it takes it for the first bytes of the request. So
whatever only a request that was understood is answered by, proves that the header was, too.

Looks at no certificate, finishes no handshake and asks for nothing that a site would serve, log or
count. What follows from an answer for routes is not known here.

Source: proxy-protocol.txt section 2.2 (LOCAL), RFC 8446 sections 4, 5.1 and 6, RFC 9110 section
9.3.7 (``OPTIONS *``). The answers were looked at with Caddy 2.6.2, 2.8.4 and 2.11.7, nginx 1.22,
HAProxy 2.6, OpenSSL 3.0 and GnuTLS 3.7.
"""

import functools
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass

import trio

from snimux.net.dial import NotDialled, dial
from snimux.net.loop import NOWHERE, Own
from snimux.proto import proxy_header
from snimux.routing.address import DialAddress

LOCAL_HEADER = proxy_header.build("v2", None, None)
"""What goes before the request, to ask whether it is understood."""

# Seconds for one answer, dialling included: a server that is asked by nobody else takes a few
# milliseconds.
_TIME = 2.0

# Hellos that are kept, half a kilobyte each: to make one takes as long as to connect.
_KEPT = 1024

_READ_SIZE = 4096
# Bytes within which any answer shows what it is.
_FIRST = 16

# Alerts that say no to a hello that was read: handshake_failure, access_denied, internal_error,
# unrecognized_name, no_application_protocol (RFC 8446 section 6.2, RFC 6066, RFC 7301). The
# others may be said of a header that was taken for a record: unexpected_message by GnuTLS.
_OF_A_HELLO = frozenset({40, 49, 80, 112, 120})


@dataclass(frozen=True, slots=True)
class ServerHello:
    """The answer to a hello that was read, and whose name is served."""

    def __str__(self) -> str:
        return "a ServerHello"


@dataclass(frozen=True, slots=True)
class Alert:
    """A TLS alert; its number is the AlertDescription."""

    description: int

    def __str__(self) -> str:
        return f"the TLS alert {self.description}"


@dataclass(frozen=True, slots=True)
class Http:
    """The status line of an HTTP/1 response."""

    status: int

    def __str__(self) -> str:
        return f"the HTTP status {self.status}"


@dataclass(frozen=True, slots=True)
class HungUp:
    """The connection was ended or reset without an answer."""

    def __str__(self) -> str:
        return "no answer: it hung up"


@dataclass(frozen=True, slots=True)
class Silent:
    """There was no answer within the time."""

    def __str__(self) -> str:
        return "no answer: it was silent"


@dataclass(frozen=True, slots=True)
class Unreached:
    """The connection was refused, or could not be made; the detail says why.

    ``exhausted`` if the fault was this machine's, and says nothing of the backend.
    """

    detail: str
    exhausted: bool = False

    def __str__(self) -> str:
        return f"no connection: {self.detail}"


@dataclass(frozen=True, slots=True)
class Other:
    """Bytes that are no answer, whole or in time; the first of them."""

    first: bytes

    def __str__(self) -> str:
        return f"no answer, but {self.first!r}"


Answer = ServerHello | Alert | Http | HungUp | Silent | Unreached | Other


@dataclass(frozen=True, slots=True)
class Question:
    """First bytes of a connection, and how to read what they are answered by."""

    data: bytes
    read: Callable[[bytes], Answer | None]
    """The answer that begins so; None if more bytes are needed."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The answers of a backend to a request with the header, and without it."""

    with_header: Answer
    without: Answer

    @property
    def understands(self) -> bool:
        """Return whether the header is proved to be understood."""
        return is_understood(self.with_header)

    @property
    def requires(self) -> bool:
        """Return whether it is understood, and a connection without it is turned away."""
        is_away = isinstance(self.without, HungUp | Alert | Http)
        return self.understands and is_away and not is_understood(self.without)

    @property
    def refuses(self) -> bool:
        """Return whether a connection is served without the header, and with it is not."""
        return is_understood(self.without) and not self.understands

    @property
    def is_nothing(self) -> bool:
        """Return whether nothing follows: it has no time, or there is no way to ask it."""
        return all(_is_nothing(answer) for answer in (self.with_header, self.without))


def _is_nothing(answer: Answer) -> bool:
    return isinstance(answer, Silent) or (isinstance(answer, Unreached) and answer.exhausted)


def is_understood(answer: Answer) -> bool:
    """Return whether an answer is one that only a request which was understood gets."""
    match answer:
        case ServerHello():
            return True
        case Alert(description):
            return description in _OF_A_HELLO
        case Http(status):
            return 200 <= status < 300
        case _:
            return False


@functools.lru_cache(_KEPT)
def by_tls(name: str | None) -> Question:
    """A ClientHello as OpenSSL makes it, with no ALPN.

    It is made once: no handshake by it comes to use its key.

    Args:
        name: the canonical server name; None for none, where no name is known for sure: one that
            was made up could make a server ask for a certificate.
    """
    out = ssl.MemoryBIO()
    client = _context().wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return Question(out.read(), _read_tls)
    raise AssertionError("a handshake without a server")


@functools.cache
def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # The handshake goes no further than the first answer.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def by_http(name: str) -> Question:
    """``OPTIONS *``: Caddy answers it before any site is looked for, and does not log it.

    Args:
        name: the host to ask for.
    """
    lines = ("OPTIONS * HTTP/1.1", f"Host: {name}", "Connection: close", "", "")
    return Question("\r\n".join(lines).encode("ascii"), _read_http)


async def ask_both(
    address: DialAddress,
    question: Question,
    *,
    answer_timeout: float = _TIME,
    own: Own = NOWHERE,
) -> ProbeResult:
    """Ask with the header and without it, at the same time.

    Args:
        address: where to ask.
        question: what to ask, ``by_tls`` or ``by_http``.
        answer_timeout: seconds for each answer, dialling included.
        own: where this snimux listens, and what is reserved, which is not asked.
    """
    answers: dict[bytes, Answer] = {}

    async def note(header: bytes) -> None:
        answers[header] = await ask(
            address, question, header, answer_timeout=answer_timeout, own=own
        )

    async with trio.open_nursery() as nursery:
        nursery.start_soon(note, LOCAL_HEADER)
        nursery.start_soon(note, b"")
    return ProbeResult(answers[LOCAL_HEADER], answers[b""])


async def ask(
    address: DialAddress,
    question: Question,
    header: bytes,
    *,
    answer_timeout: float = _TIME,
    own: Own = NOWHERE,
) -> Answer:
    """Ask once, on a connection that ends with the answer's first bytes.

    Args:
        address: where to ask.
        question: what to ask, ``by_tls`` or ``by_http``.
        header: what goes before it.
        answer_timeout: seconds for the answer, dialling included.
        own: where this snimux listens, which is not asked.

    Returns:
        The answer. Raises nothing but ``trio.Cancelled``.
    """
    deadline = trio.current_time() + answer_timeout
    dialled = await dial(address, dial_timeout=answer_timeout, own=own)
    if isinstance(dialled, NotDialled):
        return Unreached(dialled.detail.removeprefix(f"{address}: "), dialled.exhausted)
    received = bytearray()
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(dialled.socket))
    async with stream:
        with trio.move_on_at(deadline):
            try:
                await stream.send_all(header + question.data)
                while data := await stream.receive_some(_READ_SIZE):
                    received += data
                    answer = question.read(bytes(received))
                    if answer is not None:
                        return answer
            except trio.BrokenResourceError:
                pass
            return Other(bytes(received[:_FIRST])) if received else HungUp()
    return Other(bytes(received[:_FIRST])) if received else Silent()


def _read_tls(received: bytes) -> Answer | None:
    """A ServerHello is of record type 22 and handshake type 2; an alert of record type 21."""
    header, body = received[:5], received[5:]
    if header[0] not in (21, 22) or header[1:2] not in (b"", b"\x03"):
        return Other(received[:_FIRST])
    if len(body) < 2:
        return None
    if header[0] == 22 and body[0] == 2:
        return ServerHello()
    if header[0] == 21 and header[3:] == b"\0\2":
        return Alert(body[1])
    return Other(received[:_FIRST])


def _read_http(received: bytes) -> Answer | None:
    start = received[:12]
    whole = re.fullmatch(rb"HTTP/1\.[01] ([1-5][0-9][0-9])", start)
    if whole:
        return Http(int(whole[1]))
    # as far as it is there, with the rest of such a line behind it
    if re.fullmatch(rb"HTTP/1\.[01] ([1-5][0-9][0-9])", start + b"HTTP/1.1 200"[len(start) :]):
        return None
    return Other(received[:_FIRST])
