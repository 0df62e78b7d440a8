"""``doctor.certificate``: what real TLS servers show for a name, and what comes of others."""

import builtins
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest
import trio
import trustme

from snimux.doctor.certificate import _read, certificate
from snimux.doctor.facts import Certificate, Down, NoHandshake, Unread
from snimux.proto.proxy_header import build
from snimux.routing.address import TcpAddress
from tests.support import caddy

Handler = Callable[[trio.SocketStream], Awaitable[None]]


@asynccontextmanager
async def server(handler: Handler) -> AsyncIterator[TcpAddress]:
    """A server on loopback; what its handler raises when the client has gone, is nothing."""

    async def handle(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await handler(stream)

    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, handle, 0, host="127.0.0.1")
        (listener,) = await nursery.start(serve)
        yield TcpAddress("127.0.0.1", listener.socket.getsockname()[1])
        nursery.cancel_scope.cancel()


def tls(*names: str, first: bytes = b"") -> Handler:
    """Speaks TLS with a certificate for names, after these bytes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert(*names).configure_cert(context)

    async def handle(stream: trio.SocketStream) -> None:
        if first:
            assert await stream.receive_some(len(first)) == first
        await trio.SSLStream(stream, context, server_side=True).do_handshake()
        await trio.sleep_forever()

    return handle


async def look(address: TcpAddress, name: str = "a.example", **rest: Any) -> object:
    return await certificate(name, address, **{"proxy": None, "within": 10, **rest})


async def test_the_names_and_times_of_a_certificate() -> None:
    async with server(tls("a.example", "*.B.example")) as address:
        shown = await look(address)
    assert isinstance(shown, Certificate)
    assert shown.names == ("a.example", "*.b.example")
    assert shown.not_before < shown.not_after


async def test_the_proxy_protocol_goes_first_where_it_is_wanted() -> None:
    async with server(tls("a.example", first=build("v2", None, None))) as address:
        assert isinstance(await look(address, proxy="v2"), Certificate)


async def test_nobody_there() -> None:
    outcome = await look(TcpAddress("127.0.0.1", caddy.closed_port()))
    assert outcome == Down("Connection refused")


async def test_no_tls_there() -> None:
    async def http(stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await trio.sleep_forever()

    async with server(http) as address:
        outcome = await look(address)
    assert isinstance(outcome, NoHandshake)
    assert "wrong version number" in outcome.why or "record layer" in outcome.why


async def test_a_close_in_the_handshake() -> None:
    async def close(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.aclose()

    async with server(close) as address:
        assert await look(address) == NoHandshake("the connection ends in the middle of it")


async def test_an_alert_has_its_name() -> None:
    async def alert(stream: trio.SocketStream) -> None:
        await stream.send_all(bytes.fromhex("15030300020250"))
        await trio.sleep_forever()

    async with server(alert) as address:
        outcome = await look(address)
    assert isinstance(outcome, NoHandshake)
    assert "alert internal error" in outcome.why


async def test_silence_is_not_waited_for_longer_than_the_time(autojump_clock: object) -> None:
    async def silent(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with server(silent) as address:
        assert await look(address, within=3) == NoHandshake("not over in 3 s")


async def test_a_name_that_openssl_does_not_take() -> None:
    async with server(tls("a.example")) as address:
        assert await look(address, ".a.example") == NoHandshake("OpenSSL takes no such name")


def test_without_cryptography_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name.startswith("cryptography"):
            raise ImportError
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert _read(b"") == Unread(
        "no cryptography here", f"{sys.executable} -m pip install cryptography"
    )


@pytest.mark.parametrize("der", [b"", b"\x30\x80", b"\0" * 100])
def test_what_is_no_certificate_is_not_read(der: bytes) -> None:
    assert isinstance(_read(der), Unread)
