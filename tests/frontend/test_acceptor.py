"""``acceptor``: accepting where there is room, what goes wrong there, and doors that change."""

import contextlib
import errno
import io
import json
import os
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest
import trio
from trio.socket import SocketType
from trio.testing import MockClock, wait_all_tasks_blocked

from snimux.backend.pool import Backends
from snimux.config.model import Limits
from snimux.frontend.acceptor import Acceptor
from snimux.frontend.connection import Service
from snimux.frontend.events import Observer
from snimux.frontend.limits import LocalLimits
from snimux.frontend.outcome import Outcome
from snimux.frontend.source_limits import SourceLimits
from snimux.log import Log
from snimux.net.listeners import Listener, open_listeners
from snimux.proto.client_hello import TLS, alert
from snimux.proto.http_head import HTTP
from snimux.relay.portable import relay
from snimux.routing.address import TcpAddress
from snimux.routing.decide import EntryPoint
from snimux.service.generation import Current, Generation
from tests.hellos import load
from tests.support.generations import configured, in_effect
from tests.support.observers import keeping
from tests.support.sockets import fin, open_descriptors, read_to_end, send_all

HELLO = next(hello.data for hello in load() if hello.slug == "curl")


def port(listener: Listener) -> int:
    number: int = listener.socket.getsockname()[1]
    return number


async def connect(listener: Listener, data: bytes = b"") -> SocketType:
    sock = trio.socket.socket()
    await sock.connect(("127.0.0.1", port(listener)))
    await send_all(sock, data)
    return sock


async def refused(listener: Listener) -> bool:
    """Whether there is somebody who answers a hello for which there is no route."""
    with await connect(listener, HELLO) as client:
        return await read_to_end(client) == (alert(112), False)


@dataclass
class Open:
    """Acceptor that are open, what they serve with, and what they have said."""

    limits: LocalLimits
    listeners: list[Listener]
    accepting: trio.Nursery
    connections: trio.Nursery
    observers: Sequence[Observer] = ()
    closed: list[Listener] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    stream: io.StringIO = field(default_factory=io.StringIO)
    acceptor: Acceptor = field(init=False)

    def __post_init__(self) -> None:
        log = Log(self.stream, form="json")
        # whoever says nothing keeps its place
        self.config = configured(limits=Limits(hello_timeout=1e6))
        self.current = Current(self.generation(self.listeners))
        counts = SourceLimits(self.limits, self.current)
        events = keeping(self.outcomes, *self.observers, log=log)
        service = Service(EntryPoint(TLS), self.current, relay, Backends(), counts, events)
        services = [service, replace(service, entry=EntryPoint(HTTP))]
        self.acceptor = Acceptor(services, self.limits, log, close=self.close)
        self.acceptor.reconcile(self.current.value)

    def generation(self, listeners: list[Listener]) -> Generation:
        return in_effect(self.config, listeners, max_connections=self.limits.limit)

    def reconcile(self, *listeners: Listener) -> None:
        self.acceptor.reconcile(self.generation([*listeners]))

    def close(self, listener: Listener) -> None:
        listener.close()
        self.closed.append(listener)

    def lines(self, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.stream.getvalue().splitlines()]
        return [line for line in lines if line["event"] == event]


def listeners(count: int) -> list[Listener]:
    return open_listeners([TcpAddress("127.0.0.1", 0)] * count)


@contextlib.asynccontextmanager
async def opened(
    listening: list[Listener], *observers: Observer, room: int = 9
) -> AsyncIterator[Open]:
    """Acceptor that are open until the test is over; connections that are left end then."""
    async with trio.open_nursery() as connections:
        async with trio.open_nursery() as accepting:
            open_ = Open(LocalLimits(room), listening, accepting, connections, observers)
            open_.acceptor.open(accepting, connections)
            yield open_
            accepting.cancel_scope.cancel()
        assert set(map(id, open_.closed)) >= {id(bind.listener) for bind in open_.acceptor.binds}
        connections.cancel_scope.cancel()
    assert open_.limits.acquired == 0


async def test_before_they_are_open_all_that_is_listened_on_is_known() -> None:
    both = listeners(2)
    async with opened(both) as run:
        assert run.acceptor.listeners == both
        other = Acceptor(run.acceptor.services.values(), run.limits, Log(io.StringIO()))
        other.reconcile(run.current.value)
        assert other.listeners == both


async def test_each_listener_serves_what_it_is_for() -> None:
    before = open_descriptors()
    async with opened(listeners(2)) as run:
        first, second = run.listeners
        run.reconcile(first, replace(second, protocol="http"))
        assert await refused(first)
        with await connect(second, b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n") as client:
            told, _ = await read_to_end(client)
        assert told.startswith(b"HTTP/1.1 ")
        await wait_all_tasks_blocked()
        assert [outcome.ended for outcome in run.outcomes] == ["refused"] * 2
        source = run.outcomes[0].source
        assert source is not None
        assert source[0] == "127.0.0.1"
    assert open_descriptors() == before


async def test_without_room_who_comes_waits_and_that_is_said_once(
    autojump_clock: MockClock,
) -> None:
    autojump_clock.autojump_threshold = 0.05
    async with opened(listeners(2), room=2) as run:
        first, second = [await connect(x) for x in run.listeners]
        await trio.sleep(1)  # both have their places
        third = await connect(run.listeners[0], HELLO)
        await trio.sleep(600)
        assert run.limits.acquired == 2
        assert not run.outcomes
        (line,) = run.lines("full")
        assert (line["max_connections"], line["level"]) == (2, "warning")
        fin(first)
        assert await read_to_end(third) == (alert(112), False)
        for sock in (first, second, third):
            sock.close()


async def test_that_there_is_no_room_is_said_again_but_not_within_a_minute(
    autojump_clock: MockClock,
) -> None:
    autojump_clock.autojump_threshold = 0.05

    async def fill(run: Open) -> None:
        with await connect(run.listeners[0]):
            await trio.sleep(1)
            waiting = await connect(run.listeners[0])
            await trio.sleep(1)
        waiting.close()
        await trio.sleep(1)
        assert run.limits.acquired == 0

    async with opened(listeners(1), room=1) as run:
        await fill(run)
        await fill(run)
        assert len(run.lines("full")) == 1
        await trio.sleep(61)
        await fill(run)
        assert len(run.lines("full")) == 2


async def test_idle_doors_hold_no_places() -> None:
    async with opened(listeners(5), room=1) as run:
        for _ in range(3):
            assert await refused(run.listeners[0])
            await wait_all_tasks_blocked(0.02)
        assert not run.lines("full")


async def test_more_room_is_for_those_who_wait() -> None:
    async with opened(listeners(1), room=1) as run:
        with await connect(run.listeners[0]), await connect(run.listeners[0], HELLO) as waiting:
            await wait_all_tasks_blocked(0.02)
            assert run.limits.acquired == 1
            run.acceptor.reconcile(replace(run.current.value, max_connections=2))
            assert await read_to_end(waiting) == (alert(112), False)


async def test_room_that_another_process_gives_is_found(autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05
    async with opened(listeners(1), room=1) as run:
        run.limits.retry_after = 0.5
        run.limits.acquired = 1  # the other's
        with await connect(run.listeners[0], HELLO) as waiting:
            await trio.sleep(2)
            assert not run.outcomes
            run.limits.acquired = 0
            assert await read_to_end(waiting) == (alert(112), False)


class Faulty:
    """A listening socket whose ``accept`` fails as told, then goes on; the rest is real."""

    def __init__(self, real: socket.socket, errors: list[int]) -> None:
        self.real = real
        self.errors = errors
        self.asked = 0

    def accept(self) -> tuple[socket.socket, Any]:
        self.asked += 1
        if self.errors:
            number = self.errors.pop(0)
            raise OSError(number, os.strerror(number))
        return self.real.accept()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


def faulty(errors: list[int]) -> tuple[Listener, Faulty]:
    (real,) = listeners(1)
    sock = Faulty(real.socket, errors)
    return Listener(cast(socket.socket, sock)), sock


async def test_out_of_descriptors_backs_off_says_so_once_and_recovers(
    autojump_clock: MockClock,
) -> None:
    autojump_clock.autojump_threshold = 0.05
    listener, sock = faulty([errno.EMFILE] * 5)
    async with opened([listener]) as run:
        started = trio.current_time()
        assert await refused(listener)
        assert 0.4 < trio.current_time() - started < 5
        assert sock.asked < 20
        await trio.sleep(61)  # it is over, so the next time is said anew
        sock.errors += [errno.ENFILE]
        assert await refused(listener)
        failures = [(line["level"], line["detail"]) for line in run.lines("accept-failed")]
        assert failures == [
            ("error", os.strerror(errno.EMFILE)),
            ("error", os.strerror(errno.ENFILE)),
        ]


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN])
async def test_what_is_gone_with_the_next_call_is_no_reason_to_wait(
    number: int, mock_clock: MockClock
) -> None:
    # this clock stands still: whoever waited would wait for ever
    listener, _ = faulty([number] * 3)
    async with opened([listener]) as run:
        assert await refused(listener)
        assert not run.lines("accept-failed")


class Raising(Observer):
    """Raises when it hears of some things."""

    def __init__(self, *faults: str) -> None:
        self.faults = faults
        self.told: list[str] = []

    def tell(self, what: str) -> None:
        self.told.append(what)
        if what in self.faults:
            raise RuntimeError(what)

    def accepted(self, outcome: Outcome) -> None:
        self.tell("accepted")

    def ended(self, outcome: Outcome) -> None:
        self.tell("ended")


@pytest.mark.parametrize("faults", [["accepted"], ["ended"], ["accepted", "ended"]])
async def test_what_an_observer_raises_is_said_and_ends_nothing(faults: list[str]) -> None:
    listening = listeners(1)
    observer = Raising(*faults)
    async with opened(listening, observer, observer, room=1) as run:
        assert await refused(listening[0])
        assert await refused(listening[0])  # it has the only place, which the first gave back
        while run.limits.acquired:
            await trio.sleep(0.01)
        assert observer.told == ["accepted", "accepted", "ended", "ended"] * 2
        assert len(run.outcomes) == 2
        lines = run.lines("observer-failed")
        assert [(x["observer"], x["detail"]) for x in lines] == [
            (f"Raising.{fault}", f"RuntimeError('{fault}')") for fault in faults for _ in "12"
        ] * 2


async def test_a_connection_that_raises_gives_its_place_back_and_ends_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def raising(client: socket.socket, *how: object) -> None:
        client.close()
        raise RuntimeError("not expected")

    listening = listeners(1)
    async with opened(listening, room=1) as run:
        with monkeypatch.context() as patched:
            patched.setattr("snimux.frontend.acceptor.serve_connection", raising)
            with await connect(listening[0], HELLO) as client:
                await read_to_end(client)
        assert await refused(listening[0])
        (line,) = run.lines("connection-failed")
        assert (line["level"], line["detail"]) == ("error", "(RuntimeError('not expected'),)")


async def test_listeners_change_without_leaving_out_who_is_in_a_queue() -> None:
    old, kept = listeners(2)
    (new,) = listeners(1)
    async with opened([old, kept], room=30) as run:
        # The tasks that accept have not run since, so these wait in the queue.
        queued = [socket.create_connection(("127.0.0.1", port(old))) for _ in range(20)]
        run.reconcile(replace(kept, protocol="http"), new)
        await run.acceptor.until_closed()
        assert run.closed == [old]
        assert run.acceptor.listeners == [replace(kept, protocol="http"), new]
        assert old.socket.fileno() == -1
        for each in queued:
            each.close()
        assert await refused(new)
        with await connect(kept, b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n") as client:
            told, _ = await read_to_end(client)
        assert told.startswith(b"HTTP/1.1 ")
        await wait_all_tasks_blocked(0.02)
        assert len(run.outcomes) == 22
        run.reconcile(kept, new)
        await run.acceptor.until_closed()
        assert run.closed == [old]


async def test_what_is_in_the_queue_when_all_close_is_served_as_far_as_there_is_room() -> None:
    (listener,) = listeners(1)
    async with trio.open_nursery() as connections:
        async with trio.open_nursery() as accepting:
            run = Open(LocalLimits(3), [listener], accepting, connections)
            run.acceptor.open(accepting, connections)
            await wait_all_tasks_blocked()
            queued = [socket.create_connection(("127.0.0.1", port(listener))) for _ in range(5)]
            accepting.cancel_scope.cancel()
        assert run.closed == [listener]
        await wait_all_tasks_blocked(0.02)
        assert run.limits.acquired == 3
        for each in queued:
            each.close()
    assert run.limits.acquired == 0
    assert len(run.outcomes) == 3
