"""Routes for one listener, through the snimux command: real sockets, workers and reloads."""

import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio

from snimux.net.http_get import fetch
from snimux.proto.client_hello import alert
from snimux.routing.address import parse_dial
from tests.hellos import load
from tests.support import muxes
from tests.support.caddy import free_port, short_directory

NAME = "secure.ciso.com"
HELLO = next(hello.data for hello in load() if hello.slug == "chromium")


@pytest.fixture
def directory() -> Iterator[Path]:
    with short_directory() as short:
        yield short


@contextlib.asynccontextmanager
async def backends(*words: bytes) -> AsyncIterator[list[int]]:
    """Serve at some ports, each of which answers whatever it is sent with its word."""
    async with trio.open_nursery() as nursery:
        ports = []
        for word in words:

            async def answer(stream: trio.SocketStream, word: bytes = word) -> None:
                async with stream:
                    await stream.receive_some()
                    await stream.send_all(word)

            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            ports.append(listener.socket.getsockname()[1])
            nursery.start_soon(trio.serve_listeners, answer, [listener])
        yield ports
        nursery.cancel_scope.cancel()


async def snimux(*args: str) -> str:
    done = await trio.run_process([sys.executable, "-m", "snimux", *args], capture_stdout=True)
    return done.stdout.decode()


async def answer(port: int, sent: bytes) -> bytes:
    with trio.fail_after(30):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(sent)
            return b"".join([data async for data in stream])


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_name_has_other_backends_inside_than_outside_and_a_reload_changes_which(
    directory: Path, workers: int
) -> None:
    outer, inner, plain = free_port(), free_port(), free_port()
    file, status = directory / "snimux.toml", f"unix/{directory}/status"
    async with backends(b"outside", b"inside", b"plain") as (outside, inside, http):
        text = f"""
            workers = {workers}
            watch = "off"
            status = "{status}"
            [[listen]]
            address = "127.0.0.1:{outer}"
            name = "public"
            [[listen]]
            address = "127.0.0.1:{inner}"
            name = "internal"
            [[http]]
            address = "127.0.0.1:{plain}"
            name = "internal"
            [[route]]
            hosts = "*.ciso.com"
            to = "127.0.0.1:{outside}"
            [[route]]
            hosts = "*.ciso.com"
            listen = "internal"
            to = "127.0.0.1:{inside}"
            http = "127.0.0.1:{http}"
            """
        file.write_text(text)
        async with muxes.running(directory, f"--config={file}", listen=None) as mux:
            assert await answer(outer, HELLO) == b"outside"
            assert await answer(inner, HELLO) == b"inside"
            request = f"GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode()
            assert await answer(plain, request) == b"plain"
            line = await mux.log_line(event="connection", route="*.ciso.com@internal")
            assert line["backend"] == f"127.0.0.1:{inside}"
            # what runs is asked, and what is written
            for source in (f"--status={status}", f"--config={file}"):
                for listener, port in (("internal", inside), ("public", outside)):
                    if source.startswith("--status") and listener == "public":
                        continue  # no route is for it alone, so nobody there has said its name
                    explained = await snimux("explain", NAME, source, f"--listener={listener}")
                    assert f"127.0.0.1:{port}" in explained
            assert "*.ciso.com@internal" in await snimux("check", f"--config={file}")
            # the listeners stay, and get each other's names
            swapped = text.replace('name = "public"', 'name = "x"', 1)
            swapped = swapped.replace('name = "internal"', 'name = "public"', 1)
            file.write_text(swapped.replace('name = "x"', 'name = "internal"'))
            mux = mux.from_here()
            mux.send_signal(signal.SIGHUP)
            await mux.log_line(event="reloaded", within=60)
            assert await answer(outer, HELLO) == b"inside"
            assert await answer(inner, HELLO) == b"outside"


async def test_a_name_is_closed_under_an_open_wildcard(directory: Path) -> None:
    plain, status = free_port(), f"unix/{directory}/status"
    async with backends(b"open") as (port,):
        flags = [f"--route=**.com=127.0.0.1:{port}", f"--route={NAME}=refuse"]
        flags += [f"--http=127.0.0.1:{plain}", f"--status={status}"]
        async with muxes.running(directory, *flags) as mux:
            assert await answer(mux.port, HELLO) == alert(112)
            assert await answer(mux.port, HELLO.replace(b"secure", b"sesame")) == b"open"
            request = f"GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode()
            assert (await answer(plain, request)).startswith(b"HTTP/1.1 403 ")
            lines = [await mux.log_line(event="connection", route=NAME, reason="route-refuses")]
            assert "backend" not in lines[0]
            explained = await trio.run_process(
                [sys.executable, "-m", "snimux", "explain", NAME, f"--status={status}"],
                capture_stdout=True, check=False,
            )  # fmt: skip
            assert explained.stdout.decode().endswith(
                "refused: route-refuses, its route refuses whoever asks\n"
            )
            page = json.loads(await fetch(parse_dial(status), "/routes"))
            assert [(x["pattern"], x["refuses"], x["backend"]) for x in page["routes"]] == [
                ("**.com", False, [f"127.0.0.1:{port}"]), (NAME, True, None),
            ]  # fmt: skip
            figures = await fetch(parse_dial(status), "/metrics")
            assert b'reason="route-refuses"' in figures
