"""``service.server``: limits over all connections, what is summed up, and drain."""

import contextlib
import io
import json
import math
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import trio
from trio.socket import SocketType
from trio.testing import MockClock, wait_all_tasks_blocked

from snimux.config.model import BackendDefaults, Config, Limits
from snimux.frontend.limits import LocalLimits
from snimux.log import Log
from snimux.net.listeners import Listener, open_listeners
from snimux.proto.client_hello import TLS, alert
from snimux.proto.proxy_header import build
from snimux.routing.access import Access, Admission
from snimux.routing.address import TcpAddress, UnixAddress, parse_listen
from snimux.routing.decide import EntryPoint
from snimux.routing.networks import Networks, parse_network
from snimux.routing.routes import Backend, Check, Route, parse_pattern, targets
from snimux.service.control import Order, send
from snimux.service.generation import basis
from snimux.service.server import serve, status
from snimux.service.systemd import Manager
from tests.hellos import load
from tests.support.caddy import short_directory
from tests.support.sockets import fin, open_descriptors, read, read_to_end, send_all

HELLO = next(hello.data for hello in load() if hello.slug == "curl")


@dataclass
class Running:
    """A server in this process, its log, and the backend of its only route."""

    port: int
    listeners: list[Listener]
    backend: SocketType
    stream: io.StringIO = field(default_factory=io.StringIO)
    done: trio.Event = field(default_factory=trio.Event)

    async def connect(self, data: bytes = b"", port: int | None = None) -> SocketType:
        sock = trio.socket.socket()
        try:
            await sock.connect(("127.0.0.1", port or self.port))
        except OSError:
            sock.close()
            raise
        await send_all(sock, data)
        return sock

    async def relayed(self) -> tuple[SocketType, SocketType]:
        """A client's end and a backend's end of a connection that is being relayed."""
        client = await self.connect(HELLO)
        backend, _ = await self.backend.accept()
        assert await read(backend, len(HELLO)) == HELLO
        return client, backend

    def lines(self, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.stream.getvalue().splitlines()]
        return [line for line in lines if line["event"] == event]


@contextlib.asynccontextmanager
async def running(
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    max_connections: int = 100,
    level: str = "info",
    listen: int = 1,
    relay: str = "auto",
    http: int = 0,
    orders: int | None = None,
    manager: Manager | None = None,
    admission: Admission | None = None,
    check: Check = "off",
    is_loop: bool = False,
) -> AsyncIterator[Running]:
    """A server until the test is over; stopped by two signals, if it is not before."""
    anywhere = TcpAddress("127.0.0.1", 0)
    listeners = open_listeners([anywhere] * listen, [anywhere] * http)
    with trio.socket.socket() as backend:
        await backend.bind(("127.0.0.1", 0))
        backend.listen(200)
        address = TcpAddress("127.0.0.1", backend.getsockname()[1])
        if is_loop:
            address = TcpAddress("localhost", listeners[0].socket.getsockname()[1])
        backends = BackendDefaults(wait=0, check=check, fall=1)
        route = Route(parse_pattern("secure.ciso.com"), targets(tls=Backend((address,))))
        config = Config(
            (), (route,), limits, relay, "json", level, admission=admission, backends=backends
        )
        run = Running(listeners[0].socket.getsockname()[1], listeners, backend)
        log = Log(run.stream, form="json", level=level)

        async def work(*, task_status: trio.TaskStatus[None]) -> None:
            places = LocalLimits(max_connections)
            await serve(
                config, places, listeners, log,
                orders=orders, manager=manager, task_status=task_status,
            )  # fmt: skip
            run.done.set()

        async with trio.open_nursery() as nursery:
            await nursery.start(work)
            yield run
            while not run.done.is_set():
                signal.raise_signal(signal.SIGTERM)
                await wait_all_tasks_blocked(0.01)


@pytest.mark.parametrize(
    ("listen", "port"),
    [(("127.0.0.1:443",), 443), (("127.0.0.1:1", ":443"), 443), (("fd/3",), 443),
     (("127.0.0.1:1", "fd/3"), 443), (("unix//run/x",), 443), (("127.0.0.1:0",), None),
     (("unix//run/x", "127.0.0.1:0"), None)],
)  # fmt: skip
def test_redirects_go_to_the_port_that_clients_find(
    listen: tuple[str, ...], port: int | None
) -> None:
    addresses = tuple(map(parse_listen, listen))
    tcp = [x for x in addresses if isinstance(x, TcpAddress)]
    # where the port is 443 or unknown, what is bound here stands for it
    bound = open_listeners([TcpAddress("127.0.0.1", 0) for _ in tcp], [TcpAddress("127.0.0.1", 0)])
    try:
        entries = tuple(EntryPoint(TLS, x) for x in addresses)
        config = Config(entries, (), Limits(), "auto", "json", "info")
        own = bound[0].socket.getsockname()[1]
        found = basis(config, bound[::-1], 1, ()).https_port
        assert found == (own if port is None else port)
    finally:
        for listener in bound:
            listener.close()


async def test_both_protocols_are_served_each_at_its_own_listener() -> None:
    async with running(http=1) as run:
        assert [line["protocol"] for line in run.lines("listening")] == ["tls", "http"]
        port = run.listeners[1].socket.getsockname()[1]
        request = b"GET / HTTP/1.1\r\nHost: secure.ciso.com\r\n\r\n"
        with await run.connect(request, port) as client:
            told, _ = await read_to_end(client)
        location = f"\r\nLocation: https://secure.ciso.com:{run.port}/\r\n"
        assert location in told.decode()
        with await run.connect(request) as client:
            assert await read_to_end(client) == (b"", False)
        with await run.connect(HELLO, port) as client:
            assert await read_to_end(client) == (b"", False)
        for sock in await run.relayed():
            sock.close()
        await wait_all_tasks_blocked(0.02)
        lines = run.lines("connection")
        assert sorted(line.get("protocol", "") for line in lines) == ["", "http"]
        (line,) = (line for line in lines if "protocol" in line)
        assert (line["ended"], line["level"]) == ("redirected", "info")
    (summary,) = run.lines("scanners")
    assert (summary["http"], summary["tls"]) == (1, 1)


@pytest.mark.parametrize("check", ["off", "tcp", "tls"])
async def test_a_backend_that_is_snimux_itself_is_down(check: Check) -> None:
    async with running(check=check, is_loop=True) as run:
        own = run.listeners[0]
        words = f"it is snimux itself (listener {own})"
        with await run.connect(HELLO) as client:
            assert await read(client, 1) == b"\x15"  # an alert
            while not run.lines("connection"):
                await trio.sleep(0.01)
        (line,) = run.lines("connection")
        assert (line["reason"], line["detail"]) == (
            "backend-down", f"localhost:{own.socket.getsockname()[1]}: {words}",
        )  # fmt: skip
        (told,) = run.lines("backend")
        assert told["state"] == "down"
        assert told["detail"].endswith(words)


async def test_a_source_has_one_limit_for_both_protocols() -> None:
    async with running(Limits(max_connections_per_source=1), http=1) as run:
        first = await run.relayed()
        port = run.listeners[1].socket.getsockname()[1]
        with await run.connect(b"", port) as second:
            told, _ = await read_to_end(second)
            assert told.startswith(b"HTTP/1.1 429 ")
        for sock in first:
            sock.close()


@pytest.mark.parametrize("relay", ["auto", "portable"])
async def test_a_connection_is_served_and_logged_once(relay: str) -> None:
    before = open_descriptors()
    async with running(relay=relay) as run:
        has_engine = relay == "auto" and sys.platform == "linux"
        assert run.lines("relay")[0]["relay"] == ("engine" if has_engine else "portable")
        client, backend = await run.relayed()
        with client, backend:
            fin(client)
            assert await read_to_end(backend) == (b"", False)
            fin(backend)
            assert await read_to_end(client) == (b"", False)
        await wait_all_tasks_blocked(0.01)
        (line,) = run.lines("connection")
        assert (line["name"], line["ended"], line["level"]) == ("secure.ciso.com", "eof", "info")
        assert run.lines("listening")[0]["address"] == f"127.0.0.1:{run.port}"
    assert open_descriptors() == before


async def test_at_the_limit_new_connections_wait_and_are_served_when_there_is_room() -> None:
    async with running(max_connections=2, listen=2) as run:
        first, second = await run.relayed(), await run.relayed()
        third = await run.connect(HELLO)
        with trio.move_on_after(0.2) as waited:
            await run.backend.accept()
        assert waited.cancelled_caught
        (full,) = run.lines("full")
        assert full["max_connections"] == 2
        for sock in first:
            sock.close()
        backend, _ = await run.backend.accept()
        assert await read(backend, len(HELLO)) == HELLO
        for sock in (*second, third, backend):
            sock.close()


async def test_one_source_has_its_own_limit() -> None:
    limits = Limits(max_connections_per_source=2)
    async with running(limits) as run:
        first, second = await run.relayed(), await run.relayed()
        with await run.connect(HELLO) as third:
            assert await read_to_end(third) == (alert(49), False)
        await wait_all_tasks_blocked(0.02)
        (line,) = run.lines("connection")
        assert line["reason"] == "too-many-from-source"
        for sock in first:
            sock.close()
        await wait_all_tasks_blocked(0.02)
        fourth = await run.relayed()
        for sock in (*second, *fourth):
            sock.close()


async def test_a_source_that_does_not_heed_its_refusals_is_closed_without_a_word() -> None:
    """Else its refusals, each of which is said for two seconds, would take everyone's places."""
    async with running(Limits(max_connections_per_source=2), max_connections=10) as run:
        first, second = await run.relayed(), await run.relayed()
        stubborn = [await run.connect(HELLO) for _ in range(30)]
        ends = [await read_to_end(sock) for sock in stubborn]
        assert ends.count((alert(49), False)) >= 2
        assert all(told in (b"", alert(49)) for told, _ in ends)
        assert not run.lines("full")
        for sock in (*stubborn, *first, *second):
            sock.close()


HERE = Networks((parse_network("127.0.0.1"),))


async def test_behind_a_balancer_a_source_is_who_it_says() -> None:
    first, other = (build("v2", (f"192.0.2.{x}", 1), ("198.51.100.1", 443)) for x in (1, 2))
    limits = Limits(max_connections_per_source=1)
    async with running(limits, admission=Admission(proxy_from=HERE)) as run:
        socks = []
        for header in (first, other):
            client = await run.connect(header + HELLO)
            backend, _ = await run.backend.accept()
            assert await read(backend, len(HELLO)) == HELLO
            socks += [client, backend]
        with await run.connect(first + HELLO) as third:
            assert await read_to_end(third) == (alert(49), False)
        await wait_all_tasks_blocked(0.02)
        (line,) = run.lines("connection")
        assert (line["reason"], line["client"]) == ("too-many-from-source", "192.0.2.1:1")
        for sock in socks:
            sock.close()
        await wait_all_tasks_blocked(0.02)
        again = await run.connect(first + HELLO)
        backend, _ = await run.backend.accept()
        for sock in (again, backend):
            sock.close()


async def test_who_is_denied_uses_up_no_share_and_no_more_places_than_that() -> None:
    limits = Limits(max_connections_per_source=1)
    denied = Admission(Access(deny=HERE))
    async with running(limits, admission=denied) as run:
        stubborn = [await run.connect(HELLO) for _ in range(5)]
        ends = [await read_to_end(sock) for sock in stubborn]
        assert ends[0] == (alert(49), False)
        assert all(told in (b"", alert(49)) for told, _ in ends)
        for sock in stubborn:
            sock.close()
        await wait_all_tasks_blocked(0.02)
        assert {line["reason"] for line in run.lines("connection")} == {"access-denied"}


@pytest.mark.parametrize("per_source", [None, 9])
async def test_new_connections_of_a_source_may_come_no_faster(per_source: int | None) -> None:
    limits = Limits(
        max_rate_per_source=0.001, max_burst_per_source=2, max_connections_per_source=per_source
    )
    first, other = (build("v1", (f"192.0.2.{x}", 1), ("198.51.100.1", 443)) for x in (1, 2))
    async with running(limits, admission=Admission(proxy_from=HERE), http=1) as run:
        for header in (first, other, first):
            client = await run.connect(header + HELLO)
            backend, _ = await run.backend.accept()
            assert await read(backend, len(HELLO)) == HELLO
            client.close()
            backend.close()
        with await run.connect(first + HELLO) as client:
            assert await read_to_end(client) == (alert(49), False)
        port = run.listeners[1].socket.getsockname()[1]
        with await run.connect(first, port) as client:
            told, _ = await read_to_end(client)
            assert told.startswith(b"HTTP/1.1 429 ")
        await wait_all_tasks_blocked(0.02)
        lines = [line for line in run.lines("connection") if line["ended"] == "refused"]
        assert {(x["reason"], x["client"]) for x in lines} == {("rate-limited", "192.0.2.1:1")}


async def test_who_comes_too_fast_has_no_more_refusals_at_a_time_than_its_burst() -> None:
    limits = Limits(max_rate_per_source=0.001, max_burst_per_source=2)
    async with running(limits, max_connections=10) as run:
        for _ in range(2):
            for sock in await run.relayed():
                sock.close()
        stubborn = [await run.connect(HELLO) for _ in range(30)]
        ends = [await read_to_end(sock) for sock in stubborn]
        assert ends.count((alert(49), False)) >= 2
        assert all(told in (b"", alert(49)) for told, _ in ends)
        assert not run.lines("full")
        for sock in stubborn:
            sock.close()


async def test_who_comes_by_a_unix_socket_is_of_no_source() -> None:
    limits = Limits(max_rate_per_source=0.001, max_burst_per_source=1)
    with short_directory() as directory:
        places, stream = LocalLimits(9), io.StringIO()
        listeners = open_listeners([UnixAddress(str(directory / "s"))])
        config = Config((), (), limits, "auto", "json", "info")
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, config, places, listeners, Log(stream, form="json"))
            for _ in range(3):
                with trio.socket.socket(socket.AF_UNIX) as client:
                    await client.connect(str(directory / "s"))
                    await send_all(client, HELLO)
                    assert await read_to_end(client) == (alert(112), False)
            signal.raise_signal(signal.SIGTERM)


async def test_scanners_are_counted_not_listed(mock_clock: MockClock) -> None:
    async with running() as run:
        for data in (b"GET / HTTP/1.1\r\n\r\n", b"SSH-2.0-x\r\n", b"\0\0\0", b"", b"SSH-2.0-y\r\n"):
            with await run.connect(data) as client:
                fin(client)
                assert await read_to_end(client) == (b"", False)
        await wait_all_tasks_blocked(0.05)
        mock_clock.jump(601)
        await wait_all_tasks_blocked(0.02)
        (line,) = run.lines("scanners")
        counts = {key: line[key] for key in ("http", "ssh", "noise", "no-bytes", "seconds")}
        assert counts == {"http": 1, "ssh": 2, "noise": 1, "no-bytes": 1, "seconds": 601}
        assert not run.lines("connection")
        mock_clock.jump(601)
        await wait_all_tasks_blocked(0.02)
        assert len(run.lines("scanners")) == 1


async def test_scanners_are_listed_at_debug_and_summed_up_in_the_end() -> None:
    async with running(level="debug") as run:
        with await run.connect(b"GET / HTTP/1.1\r\n\r\n") as client:
            assert await read_to_end(client) == (b"", False)
        await wait_all_tasks_blocked(0.02)
        (line,) = run.lines("connection")
        assert (line["level"], line["reason"]) == ("debug", "http")
    assert run.lines("scanners")[0]["http"] == 1
    assert run.lines("stopped")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_accepting_and_lets_open_connections_end(
    number: signal.Signals,
) -> None:
    async with running() as run:
        client, backend = await run.relayed()
        signal.raise_signal(number)
        await wait_all_tasks_blocked(0.02)
        assert run.lines("draining")[0]["connections"] == 1
        with pytest.raises(ConnectionRefusedError):
            await run.connect()
        await send_all(backend, bytes(500_000))
        assert await read(client, 500_000) == bytes(500_000)
        assert not run.done.is_set()
        client.close()
        backend.close()
        await run.done.wait()
    assert run.lines("connection")[0]["ended"] in ("eof", "client-reset")


async def test_what_the_kernel_has_accepted_before_the_signal_is_served() -> None:
    async with running() as run:
        signal.raise_signal(signal.SIGTERM)
        # The server's tasks have not run since, so these wait in the queue of the listener.
        queued = [socket.create_connection(("127.0.0.1", run.port)) for _ in range(20)]
        for client in queued:
            client.sendall(HELLO)
        backends = [(await run.backend.accept())[0] for _ in queued]
        await wait_all_tasks_blocked(0.02)
        assert run.lines("draining")[0]["connections"] == 20
        for backend in backends:
            backend.close()
        for client in queued:
            client.close()
        await run.done.wait()


async def test_drain_has_a_deadline(mock_clock: MockClock) -> None:
    async with running(Limits(drain=30)) as run:
        client, backend = await run.relayed()
        signal.raise_signal(signal.SIGTERM)
        await wait_all_tasks_blocked(0.02)
        mock_clock.jump(29)
        await wait_all_tasks_blocked(0.02)
        assert not run.done.is_set()
        mock_clock.jump(2)
        await run.done.wait()
        assert await read_to_end(client) == (b"", False)
        client.close()
        backend.close()
    assert run.lines("connection")[0]["ended"] == "shutdown"


async def test_a_second_signal_closes_now(mock_clock: MockClock) -> None:
    async with running(Limits(drain=math.inf, idle_timeout=math.inf)) as run:
        client, backend = await run.relayed()
        signal.raise_signal(signal.SIGTERM)
        await wait_all_tasks_blocked(0.02)
        mock_clock.jump(1e9)
        await wait_all_tasks_blocked(0.02)
        assert not run.done.is_set()
        assert run.lines("draining")[0]["seconds"] == "off"
        signal.raise_signal(signal.SIGINT)
        await run.done.wait()
        client.close()
        backend.close()


async def test_orders_are_stages_and_one_wish_that_comes_both_ways_is_one() -> None:
    supervisor, own = socket.socketpair()
    async with running(Limits(drain=math.inf), orders=own.detach()) as run:
        assert not run.lines("listening")  # the supervisor has said it
        client, backend = await run.relayed()
        send(supervisor, Order("drain"))
        signal.raise_signal(signal.SIGTERM)
        await wait_all_tasks_blocked(0.02)
        assert run.lines("draining")[0]["connections"] == 1
        assert not run.done.is_set()
        send(supervisor, Order("close"))
        await run.done.wait()
        client.close()
        backend.close()
    assert not run.lines("supervisor-gone")
    assert supervisor.recv(1) == b""  # its end is closed
    supervisor.close()


async def test_the_end_of_the_supervisor_is_a_drain_whatever_was_ordered_before() -> None:
    for ordered in ([], [Order("drain")]):
        supervisor, own = socket.socketpair()
        async with running(Limits(drain=math.inf), orders=own.detach()) as run:
            client, backend = await run.relayed()
            for order in ordered:
                send(supervisor, order)
            supervisor.close()
            await wait_all_tasks_blocked(0.02)
            assert run.lines("supervisor-gone")[0]["level"] == "error"
            assert len(run.lines("draining")) == 1
            assert not run.done.is_set()
            client.close()
            backend.close()
            await run.done.wait()


async def test_no_drain_is_no_wait() -> None:
    async with running(Limits(drain=0)) as run:
        client, backend = await run.relayed()
        signal.raise_signal(signal.SIGTERM)
        await run.done.wait()
        client.close()
        backend.close()


def test_the_status_is_words() -> None:
    assert status(0, 1) == "0 connections, 1 route"
    assert status(1, 2, workers=1) == "1 connection, 2 routes, 1 worker"
    assert status(2, 0, draining=True) == "draining: 2 connections, 0 routes"


@pytest.mark.parametrize("relay", ["auto", "portable"])
async def test_the_manager_is_told_how_it_is(relay: str, mock_clock: MockClock) -> None:
    with (
        short_directory() as directory,
        trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told,
    ):
        await told.bind(str(directory / "s"))
        manager = Manager(str(directory / "s"), watchdog=20)
        async with running(relay=relay, manager=manager) as run:
            ready = (await told.recv(4096)).decode().split("\n")
            assert ready == ["READY=1", f"MAINPID={os.getpid()}", "STATUS=0 connections, 1 route"]
            client, backend = await run.relayed()
            mock_clock.jump(5)
            assert await told.recv(4096) == b"WATCHDOG=1\nSTATUS=1 connection, 1 route"
            mock_clock.jump(5)
            assert await told.recv(4096) == b"WATCHDOG=1"
            signal.raise_signal(signal.SIGTERM)
            ending = b"STOPPING=1\nSTATUS=draining: 1 connection, 1 route\n"
            assert await told.recv(4096) == ending + b"EXTEND_TIMEOUT_USEC=35000000"
            mock_clock.jump(5)
            assert await told.recv(4096) == b"WATCHDOG=1"
            client.close()
            backend.close()
            await run.done.wait()


async def test_a_worker_shows_that_it_is_alive(mock_clock: MockClock) -> None:
    supervisor, own = socket.socketpair()
    shown = trio.Event()

    class Places(LocalLimits):
        def show_life(self, routes: int) -> None:
            self.routes = routes
            shown.set()

    places = Places(1)
    config = Config((), (), Limits(), "auto", "json", "info")
    listeners = open_listeners([TcpAddress("127.0.0.1", 0)])
    log = Log(io.StringIO(), form="json")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(serve, config, places, listeners, log, orders=own.detach()))
        for _ in range(3):
            await shown.wait()
            assert places.routes == 0
            shown = trio.Event()
            mock_clock.jump(1)
        supervisor.close()
