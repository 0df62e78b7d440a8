"""``top.poll``: pages that are there, gone, back, old, or somebody else's."""

import contextlib
import io
import math
import queue
import threading
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
import trio

from snimux.log import Log
from snimux.net.listeners import open_listeners
from snimux.routing.address import TcpAddress
from snimux.status.sample import Sample
from snimux.status.web import Page, serve_pages
from snimux.top.poll import Answer, NoAnswer, Poller, PollerThread, poll_twice
from snimux.top.tree import Overview, PerSecond
from tests.support.caddy import free_port
from tests.top.test_tree import Pages, bodies, pages, route, share

ONE = "10.0.0.1:443"


@dataclass
class Shown:
    """What is served, which may be changed, and what was asked for."""

    address: TcpAddress
    bodies: dict[str, bytes]
    asked: Counter[str] = field(default_factory=Counter)


@contextlib.asynccontextmanager
async def serving(shown: Pages, port: int = 0, without: str = "") -> AsyncIterator[Shown]:
    (listener,) = open_listeners([TcpAddress("127.0.0.1", port)])
    address = TcpAddress("127.0.0.1", listener.socket.getsockname()[1])
    here = Shown(address, bodies(shown))

    async def page(path: str) -> Page:
        await trio.lowlevel.checkpoint()
        here.asked[path] += 1
        return Page(here.bodies[path])

    paths = {x: lambda accept, x=x: page(x) for x in here.bodies if x != without}
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_pages, [listener], paths, Log(io.StringIO()))
        yield here
        nursery.cancel_scope.cancel()


def lost(found: Answer | Overview) -> str:
    assert isinstance(found, NoAnswer)
    return found.why


async def test_pages_are_asked_for_at_once() -> None:
    """As each may take a second, where a worker is stuck."""
    others = {"/connections", "/refused", "/routes"}
    there, asked, all_asked = bodies(pages()), set(), trio.Event()

    async def page(path: str) -> Page:
        asked.add(path)
        if others <= asked:
            all_asked.set()
        if path in others:
            await all_asked.wait()
        return Page(there[path])

    (listener,) = open_listeners([TcpAddress("127.0.0.1", 0)])
    address = TcpAddress("127.0.0.1", listener.socket.getsockname()[1])
    paths = {x: lambda accept, x=x: page(x) for x in there}
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_pages, [listener], paths, Log(io.StringIO()))
        assert isinstance(await Poller(address).poll(), Sample)
        nursery.cancel_scope.cancel()


async def test_two_looks_are_an_overview_with_rates() -> None:
    shares = [share("a.test", ONE, 4, 1, 1000, 0)]
    async with serving(pages(shares=shares, accepted=4)) as shown:
        found = await poll_twice(Poller(shown.address), 0.01)
    assert isinstance(found, Overview)
    assert (found.total.total, found.total.up) == (4, 1000)
    assert found.rates == PerSecond(0, 0, 0)


async def test_nobody_is_there_and_then_somebody_is() -> None:
    port = free_port()
    poller = Poller(TcpAddress("127.0.0.1", port))
    assert lost(await poll_twice(poller, 0)) == "Connection refused"
    async with serving(pages(), port):
        assert isinstance(await poller.poll(), Sample)
    assert lost(await poller.poll()) == "Connection refused"
    async with serving(pages(routes=2, shown=[route("b.test", ONE)] * 2), port):
        found = await poller.poll()
        assert isinstance(found, Sample)
        assert [x.pattern for x in found.routes.shown] == ["b.test"] * 2  # those of before are gone


async def test_one_that_is_older_and_one_that_is_none_are_told_apart() -> None:
    async with serving(pages(), without="/figures") as shown:
        assert lost(await Poller(shown.address).poll()) == (
            "a snimux that is too old for this: it has no /figures"
        )
        shown.bodies.clear()
    async with serving(pages()) as shown:
        shown.bodies["/figures"] = b"<html>"
        assert lost(await Poller(shown.address).poll()) == (
            "no snimux: what it answers cannot be understood"
        )

    async def other(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(b"HTTP/1.1 404 Not Answer\r\nContent-Length: 2\r\n\r\nno")

    async def ssh(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(b"SSH-2.0-OpenSSH\r\n")
            await stream.receive_some()

    for handler, why in ((other, "no snimux: it has no /figures"), (ssh, "no answer in HTTP: ")):
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, handler, [listener])
            port = listener.socket.getsockname()[1]
            assert lost(await Poller(TcpAddress("127.0.0.1", port)).poll()).startswith(why)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("many", "times"), [(10, 12), (10_000, 2)])
async def test_very_many_routes_are_not_asked_for_each_time(many: int, times: int) -> None:
    shown = [route(f"{number}.test", ONE) for number in range(many)]
    async with serving(pages(routes=many, shown=shown)) as here:
        poller = Poller(here.address)
        for _ in range(12):
            assert isinstance(await poller.poll(), Sample)
        assert here.asked == {"/figures": 12, "/connections": 12, "/refused": 12, "/routes": times}
        # but are when their number has changed
        here.bodies |= bodies(pages(routes=1))
        assert isinstance(await poller.poll(), Sample)
        found = await poller.poll()
        assert isinstance(found, Sample)
        assert len(found.routes.shown) == 1


async def test_in_a_thread_it_looks_again_until_it_is_told_not_to() -> None:
    told: queue.Queue[Answer] = queue.Queue()
    threads = set(threading.enumerate())

    async def next_one() -> Answer:
        return await trio.to_thread.run_sync(lambda: told.get(timeout=20))

    async with serving(pages()) as shown:
        with PollerThread(Poller(shown.address), 0.001, told.put) as thread:
            for _ in range(3):
                assert isinstance(await next_one(), Sample)
            thread.set_every(math.inf)
            thread.set_every(0.001)
            while not told.empty():
                told.get_nowait()
            assert isinstance(await next_one(), Sample)
        assert not [x for x in set(threading.enumerate()) - threads if "run" in x.name]
