"""A snimux process that is stopped for a while judges nobody by the time that passed meanwhile."""

import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.e2e.test_serve import client_hello
from tests.support import muxes
from tests.support.caddy import short_directory
from tests.support.muxes import Mux

LIMIT = 2.0
STOP = 3 * LIMIT
COUNT = 40

HELLO = client_hello("stopped.test")
RELAYS = pytest.mark.parametrize("relay", ["auto", "portable"])


@contextlib.asynccontextmanager
async def behind(relay: str, *flags: str) -> AsyncIterator[Mux]:
    """A snimux in front of a server that sends back what it gets."""
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, echo, [listener])
        with short_directory() as directory:
            routes = [f"--route=stopped.test=127.0.0.1:{port}", f"--relay={relay}", *flags]
            async with muxes.running(Path(directory), *routes) as mux:
                yield mux
        nursery.cancel_scope.cancel()


async def echo(stream: trio.SocketStream) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        async for data in stream:
            await stream.send_all(data)


async def read(stream: trio.SocketStream, count: int) -> bytes:
    data = bytearray()
    with trio.fail_after(30):
        while len(data) < count:
            piece = await stream.receive_some(count - len(data))
            assert piece, f"ended after {len(data)} of {count} bytes"
            data += piece
    return bytes(data)


@contextlib.asynccontextmanager
async def stopped(mux: Mux) -> AsyncIterator[None]:
    """Stop it for longer than its limits, with what is done in the block at the beginning."""
    mux.send_signal(signal.SIGSTOP)
    try:
        yield
        await trio.sleep(STOP)
    finally:
        mux.send_signal(signal.SIGCONT)


async def connect(mux: Mux) -> list[trio.SocketStream]:
    return [await trio.open_tcp_stream("127.0.0.1", mux.port) for _ in range(COUNT)]


@RELAYS
async def test_who_spoke_while_it_was_stopped_is_not_idle(relay: str) -> None:
    async with behind(relay, f"--idle-timeout={LIMIT:g}") as mux:
        clients = await connect(mux)
        for client in clients:
            await client.send_all(HELLO)
            assert await read(client, len(HELLO)) == HELLO
        async with stopped(mux):
            for client in clients:
                await client.send_all(b"still there")
        for client in clients:
            assert await read(client, 11) == b"still there"
        # and who says nothing then is idle in time
        await mux.log_line(ended="idle", within=60)
        for client in clients:
            await client.aclose()


@RELAYS
async def test_a_hello_that_came_while_it_was_stopped_is_in_time(relay: str) -> None:
    async with behind(relay, f"--hello-timeout={LIMIT:g}") as mux:
        clients = await connect(mux)
        for client in clients:
            await client.send_all(HELLO[:100])
        await trio.sleep(0.2)
        async with stopped(mux):
            for client in clients:
                await client.send_all(HELLO[100:])
        for client in clients:
            assert await read(client, len(HELLO)) == HELLO
            await client.aclose()
