"""The clients in front: real TLS, and each knows whether it got every byte.

``python -m faults.client`` is some of them as a process of their own, for other network
namespaces: see `main`.
"""

import contextlib
import hashlib
import json
import random
import re
import socket
import ssl
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from enum import StrEnum
from pathlib import Path

import trio

from faults.server import DIGEST, Stream, send, stream

_HANDSHAKE = 60.0  # seconds, at the most
_END = 5.0  # seconds, at the most


class Got(StrEnum):
    """What a client got."""

    ALL = "all"
    REFUSED = "refused"
    """A TLS alert instead of a connection."""
    BROKEN = "broken"
    """An end, or a reset, before all was there."""
    WRONG = "wrong"
    """Other bytes than were sent."""


def context(root: Path) -> ssl.SSLContext:
    """One that trusts this authority only."""
    return ssl.create_default_context(cafile=root)


class WrongError(Exception):
    """Other bytes than were sent."""


@contextlib.asynccontextmanager
async def secured(
    plain: trio.SocketStream, name: str, trusting: ssl.SSLContext
) -> AsyncIterator[Stream]:
    """The same connection, with the handshake done; closed on leaving."""
    tls = trio.SSLStream(plain, trusting, server_hostname=name, https_compatible=True)
    try:
        with trio.fail_after(_HANDSHAKE):
            await tls.do_handshake()
        yield tls
        with trio.move_on_after(_END), contextlib.suppress(trio.BrokenResourceError):
            await tls.aclose()
    finally:
        await trio.aclose_forcefully(plain)


async def exactly(tls: trio.abc.Stream, count: int) -> bytes:
    """So many bytes; raises `trio.BrokenResourceError` if there are fewer."""
    data = bytearray()
    while len(data) < count:
        piece = await tls.receive_some(count - len(data))
        if not piece:
            raise trio.BrokenResourceError("ended early")
        data += piece
    return bytes(data)


async def echoed(tls: Stream, name: str, *, first: bool) -> None:
    """Have a message echoed; the first one says what the connection is for."""
    message = f"{name} {random.random()}".encode()
    await tls.send_all(b"echo\n" * first + message)
    if await exactly(tls, len(message)) != message:
        raise WrongError("echo")


async def asked(tls: Stream, name: str, *, first: bool) -> None:
    """Get a page of a Caddy whose only answer is the name; first or not is all the same."""
    await tls.send_all(f"GET / HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
    received = bytearray()
    while b"\r\n\r\n" not in received:
        received += await exactly(tls, 1)
    found = re.search(rb"(?i)^content-length: (\d+)", received, re.MULTILINE)
    if found is None or await exactly(tls, int(found[1])) != name.encode():
        raise WrongError("page")


async def bulk(
    tls: Stream,
    up: int,
    down: int,
    seed: int,
    *,
    seen: Callable[[int], None] = lambda _: None,
    asked: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
) -> None:
    """Send and receive so many bytes at the same time, and see that both ends have the same.

    Args:
        tls: the connection.
        up: bytes to the server.
        down: bytes from it.
        seed: of both streams.
        seen: is told, again and again, how many have come.
        asked: awaited when the server was told what to do.
    """
    await tls.send_all(f"bulk {up} {down} {seed}\n".encode("ascii"))
    await asked()
    sent = hashlib.sha256()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, tls, seed, up, sent.update)
        came = 0
        for piece in stream(seed, down):
            if await exactly(tls, len(piece)) != piece:
                raise WrongError("bulk down")
            came += len(piece)
            seen(came)
    if await exactly(tls, DIGEST) != sent.digest():
        raise WrongError("bulk up")


@contextlib.contextmanager
def judged(tell: Callable[[Got], object]) -> Iterator[None]:
    """Tell what a client got, from what is raised within."""
    got = Got.ALL
    try:
        yield
    except* WrongError:
        got = Got.WRONG
    except* (trio.BrokenResourceError, trio.TooSlowError, OSError) as group:
        causes = [each.__cause__ for each in _leaves(group)]
        alert = any(isinstance(cause, ssl.SSLError) and "ALERT" in str(cause) for cause in causes)
        got = Got.REFUSED if alert else Got.BROKEN
    tell(got)


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for each in group.exceptions:
        found += _leaves(each) if isinstance(each, BaseExceptionGroup) else [each]
    return found


def port_of(plain: trio.SocketStream) -> int:
    """The client's own port."""
    port: int = plain.socket.getsockname()[1]
    return port


def reset(plain: trio.SocketStream) -> None:
    """End a connection by a reset."""
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    plain.socket.close()


def client_hello(name: str) -> bytes:
    """The first flight of Python's ssl."""
    outgoing = ssl.MemoryBIO()
    blank = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls = blank.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


async def main(*words: str) -> None:
    """Have so many connections at the same time, each with bulk both ways.

    Prints ``midway`` when each has had so many bytes, and in the end what each got, as a JSON list.

    Args:
        words: host, port, name, authority (a file); how many connections; bytes up and down; after
            how many it is midway; and ``stay``, if they are not to end by themselves.
    """
    host, port, name, authority, *numbers = words
    count, up, down, after = map(int, numbers[:4])
    trusting = context(Path(authority))
    results: list[Got] = []
    midway: set[int] = set()

    async def one(seed: int) -> None:
        def seen(came: int) -> None:
            if came >= after and seed not in midway:
                midway.add(seed)
                if len(midway) == count:
                    print("midway", flush=True)

        with judged(results.append):
            plain = await trio.open_tcp_stream(host, int(port))
            async with secured(plain, name, trusting) as tls:
                await bulk(tls, up, down, seed, seen=seen)
                if numbers[4:] == ["stay"]:
                    await exactly(tls, 1)

    async with trio.open_nursery() as nursery:
        for seed in range(count):
            nursery.start_soon(one, seed)
    print(json.dumps(results), flush=True)


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
