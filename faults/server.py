"""The server behind, byte for byte: ``python -m faults.server HOST PORT CERTIFICATE``.

Prints its port and serves until killed. TLS, where a connection begins with a line that says what
it is for:

``echo``
    what comes goes back, until the client's end;
``bulk UP DOWN SEED``
    so many bytes are taken, and at the same time so many of `stream` are sent; then the SHA-256 of
    what came.

It ends no connection before its client does: what it sent last would be lost with a reset.
"""

import hashlib
import random
import ssl
import sys
from collections.abc import Callable, Iterator

import trio

_PIECE = 64 * 1024
DIGEST = 32
"""Bytes of the digest."""

Stream = trio.SSLStream[trio.SocketStream]


def stream(seed: int, length: int) -> Iterator[bytes]:
    """So many bytes that are like no others, in pieces."""
    source = random.Random(seed)
    while length > 0:
        piece = source.randbytes(min(_PIECE, length))
        length -= len(piece)
        yield piece


async def send(
    tls: Stream, seed: int, length: int, sent: Callable[[bytes], None] = lambda _: None
) -> None:
    """Send the bytes of `stream`; ``sent`` is told which."""
    for piece in stream(seed, length):
        await tls.send_all(piece)
        sent(piece)


async def _line(tls: Stream) -> tuple[list[str], bytes]:
    received = b""
    while b"\n" not in received:
        data = await tls.receive_some(_PIECE)
        if not data:
            return [], b""
        received += data
    line, _, rest = received.partition(b"\n")
    return line.decode("ascii").split(), rest


async def _echo(tls: Stream, rest: bytes) -> None:
    await tls.send_all(rest)
    while data := await tls.receive_some(_PIECE):
        await tls.send_all(data)


async def _bulk(tls: Stream, rest: bytes, up: int, down: int, seed: int) -> None:
    digest = hashlib.sha256(rest)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, tls, seed, down)
        left = up - len(rest)
        while left > 0:
            data = await tls.receive_some(min(left, _PIECE))
            if not data:
                nursery.cancel_scope.cancel()
                return
            digest.update(data)
            left -= len(data)
    await tls.send_all(digest.digest())
    await tls.receive_some(1)


async def _serve(plain: trio.SocketStream, context: ssl.SSLContext) -> None:
    try:
        async with trio.SSLStream(plain, context, server_side=True, https_compatible=True) as tls:
            words, rest = await _line(tls)
            if words[:1] == ["echo"]:
                await _echo(tls, rest)
            elif words[:1] == ["bulk"]:
                up, down, seed = map(int, words[1:])
                await _bulk(tls, rest, up, down, seed)
    except* (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
        pass  # the client has gone


async def _main(host: str, port: int, certificate: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    (listener,) = await trio.open_tcp_listeners(port, host=host, backlog=4096)
    print(listener.socket.getsockname()[1], flush=True)

    async def serve(plain: trio.SocketStream) -> None:
        await _serve(plain, context)

    await trio.serve_listeners(serve, [listener])


if __name__ == "__main__":
    trio.run(_main, sys.argv[1], int(sys.argv[2]), sys.argv[3])
