"""The verdicts on a connection's first bytes, and what makes a protocol.

A protocol's ``peek`` looks at all bytes received so far and concludes one of four things:
*NeedMore*, *Malformed*, *Foreign* or *Hello*. They are values, so that ``match`` with
``assert_never`` proves every outcome handled.

Knows no protocol's details; those are in ``client_hello`` and ``http_head``.
"""

from collections.abc import Callable
from dataclasses import dataclass

from snimux.proto.reason import Reason


@dataclass(frozen=True, slots=True)
class NeedMore:
    """No verdict yet. Handed back to the next ``peek``, so that no byte is looked at twice.

    ``farewell`` is what the client should be told if no more comes. The rest is the protocol's
    own: ``scanned`` bytes from the start need not be looked at again; they held ``gathered`` bytes
    of the message itself, whose whole length is ``expected`` bytes, once that is known.
    """

    scanned: int = 0
    gathered: int = 0
    expected: int | None = None
    farewell: bytes = b""


@dataclass(frozen=True, slots=True)
class Malformed:
    """This protocol, but wrong; ``farewell`` is what the client should be told."""

    reason: Reason
    detail: str
    farewell: bytes


@dataclass(frozen=True, slots=True)
class Foreign:
    """Not this protocol at all; ``reason`` says what it looks like."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class Request:
    """The parts of an HTTP request that an answer needs, where it is not passed on.

    ``host`` is what a URL has: the canonical name, or an IP literal, or None where the request
    has none; ``target`` is path and query, ``*``, or empty where it cannot be known; ``closes``
    says that every server takes it for the last of its connection.
    """

    method: str
    host: str | None
    target: str
    closes: bool = False


@dataclass(frozen=True, slots=True)
class Hello:
    """All that routing may know of a connection.

    ``name`` is canonical (see ``hostname``) or None where the hello names no server; ``alpn`` are
    the protocols offered, in the client's order of preference; ``ech`` says that Encrypted Client
    Hello was offered, so that ``name`` may be a public name only; ``size`` is how many of the
    bytes peeked at belong to the hello; ``request`` is there where it is a request's head.
    """

    name: str | None
    alpn: tuple[bytes, ...]
    ech: bool
    size: int
    request: Request | None = None


@dataclass(frozen=True, slots=True)
class Redirect:
    """Another place for a client to go to; ``farewell`` is what tells it so."""

    location: str
    farewell: bytes


Verdict = NeedMore | Malformed | Foreign | Hello

START = NeedMore()


@dataclass(frozen=True, slots=True)
class Protocol:
    """A protocol that can be told apart and routed by its first bytes.

    ``name`` is for programs, ``label`` for people. ``peek(received, since, max_hello)`` takes every
    byte received so far, what the last peek concluded (``START`` at first) and the bound in bytes
    on the message; it never raises. ``farewell(reason, hello)`` gives the bytes that tell a client
    politely, or none; ``hello`` is what it said, if that is known. ``redirect(hello, port)`` says
    where it can go for the same by TLS, which is on that port; None if nowhere. A protocol without
    it has no redirects.
    """

    name: str
    label: str
    default_port: int
    peek: Callable[[bytes | bytearray, NeedMore, int], Verdict]
    farewell: Callable[[Reason, Hello | None], bytes]
    redirect: Callable[[Hello, int], Redirect | None] | None = None
