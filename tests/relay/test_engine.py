"""``snimux.relay.engine``, beyond the conformance suite: pipes, turns, descriptors, errors."""

import contextlib
import errno
import math
import os
import random
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
import trio
from trio.socket import SocketType
from trio.testing import MockClock, wait_all_tasks_blocked

if sys.platform != "linux":
    pytest.skip("the engine is Linux's", allow_module_level=True)

from snimux.relay import mover, pipes
from snimux.relay.engine import _Engine
from snimux.relay.interface import End, Tally
from tests.support.sockets import (
    BLOCK,
    fin,
    open_descriptors,
    read,
    read_to_end,
    reset,
    send_all,
    tcp_pair,
)


@pytest.fixture
async def running(nursery: trio.Nursery) -> AsyncIterator[_Engine]:
    """An engine at work."""
    started = _Engine()
    nursery.start_soon(started.run)
    nursery.start_soon(started.watch_idle)
    yield started
    nursery.cancel_scope.cancel()
    started.close()


@dataclass
class Relayed:
    """A connection in the engine's care, and the far ends of its sockets."""

    near: tuple[socket.socket, socket.socket]
    client: SocketType
    backend: SocketType
    tally: Tally = field(default_factory=Tally)
    end: End | None = None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    done: trio.Event = field(default_factory=trio.Event)
    idle_timeout: float = math.inf

    async def run(self, running: _Engine) -> None:
        try:
            with self.near[0], self.near[1], self.scope:
                self.end = await running.relay(
                    *self.near, self.tally, head=bytearray(), idle_timeout=self.idle_timeout
                )
        finally:
            self.done.set()


async def relayed(
    running: _Engine, nursery: trio.Nursery, *, idle_timeout: float = math.inf
) -> Relayed:
    near_client, client = await tcp_pair()
    near_backend, backend = await tcp_pair()
    near = near_client, near_backend
    connection = Relayed(near, client, backend, idle_timeout=idle_timeout)
    nursery.start_soon(connection.run, running)
    await wait_all_tasks_blocked(0.001)
    return connection


async def fill(sock: SocketType) -> int:
    """Send until nothing more is taken; how much that was."""
    sent = 0
    while True:
        with trio.move_on_after(0.1) as waiting:
            sent += await sock.send(bytes(BLOCK))
        if waiting.cancelled_caught:
            return sent


def bytes_in_pipes(running: _Engine) -> int:
    return sum(side.outward.in_pipe for side in running.mover.sides.values())


def pipes_in_use(running: _Engine) -> int:
    return running.mover.pipes._count - len(running.mover.pipes._reserve)


async def test_a_bulk_transfer_goes_through_a_pipe_and_gives_it_back(
    running: _Engine, nursery: trio.Nursery
) -> None:
    connection = await relayed(running, nursery)
    data = random.Random(1).randbytes(5_000_000)
    nursery.start_soon(send_all, connection.client, data)
    used = False
    got = bytearray()
    while len(got) < len(data):
        got += await read(connection.backend, 50_000)
        used = used or pipes_in_use(running) > 0
    assert got == data
    assert used
    for sender, reader in [(connection.client, connection.backend)] * 2:
        await wait_all_tasks_blocked(0.01)
        assert pipes_in_use(running) == 0
        await send_all(sender, b"small again")
        assert await read(reader, 11) == b"small again"
    await wait_all_tasks_blocked(0.01)
    assert pipes_in_use(running) == 0
    connection.scope.cancel()
    connection.client.close()
    connection.backend.close()


async def stalled_with_bytes_in_a_pipe(running: _Engine, nursery: trio.Nursery) -> Relayed:
    connection = await relayed(running, nursery)
    await fill(connection.client)
    assert bytes_in_pipes(running) > 0
    return connection


async def test_cancelled_with_bytes_in_a_pipe_it_is_closed(
    running: _Engine, nursery: trio.Nursery
) -> None:
    before = open_descriptors()
    connection = await stalled_with_bytes_in_a_pipe(running, nursery)
    connection.scope.cancel()
    await connection.done.wait()
    connection.client.close()
    connection.backend.close()
    running.mover.pipes.close()
    assert open_descriptors() == before
    assert not running.mover.sides


@pytest.mark.parametrize("side", ["client", "backend"])
async def test_a_peer_gone_with_bytes_in_a_pipe_ends_it(
    running: _Engine, nursery: trio.Nursery, side: str
) -> None:
    before = open_descriptors()
    connection = await stalled_with_bytes_in_a_pipe(running, nursery)
    if side == "backend":
        reset(connection.backend)
        with pytest.raises(OSError, match=r"reset|Broken pipe"):
            while True:
                await connection.client.send(bytes(BLOCK))
        connection.client.close()
        await connection.done.wait()
        assert connection.end is End.BACKEND_RESET
    else:
        # What the client had sent is delivered first, so it takes a reader to find out.
        reset(connection.client)
        got, was_reset = await read_to_end(connection.backend)
        assert len(got) == connection.tally.up
        assert was_reset
        await connection.done.wait()
        assert connection.end is End.CLIENT_RESET
        connection.backend.close()
    running.mover.pipes.close()
    assert open_descriptors() == before


async def test_without_pipes_bytes_are_copied(
    running: _Engine, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipes, "MOST", 0)
    connection = await relayed(running, nursery)
    data = random.Random(2).randbytes(3_000_000)
    nursery.start_soon(send_all, connection.backend, data)
    assert await read(connection.client, len(data)) == data
    connection.scope.cancel()
    connection.client.close()
    connection.backend.close()


@pytest.mark.parametrize("bulk", [False, True])
async def test_a_turn_has_an_end(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, bulk: bool
) -> None:
    """However much there is to read, the others have their turn before the rest."""
    monkeypatch.setattr(mover, "_TURN", BLOCK)
    running = _Engine()  # not at work: its steps are taken by hand
    connection = await relayed(running, nursery)
    sent = await connection.client.send(bytes(3 * BLOCK))
    assert sent > 2 * BLOCK
    way = next(
        side for side in running.mover.sides.values() if side.fd == connection.near[0].fileno()
    )
    way.readable, way.outward.bulk = True, bulk
    running.mover.step(way.outward)
    assert 0 < connection.tally.up <= 2 * BLOCK
    assert running.mover.again == [way.outward]
    connection.scope.cancel()
    await connection.done.wait()
    running.close()
    connection.client.close()
    connection.backend.close()


async def test_descriptor_numbers_may_be_reused_at_once(
    running: _Engine, nursery: trio.Nursery
) -> None:
    """A connection that ends in a pass must not be taken for the next one with its numbers."""
    numbers = set()
    for turn in range(200):
        connection = await relayed_now(running, nursery)
        numbers.add(connection.near[0].fileno())
        data = turn.to_bytes(4, "big") * 50
        await send_all(connection.client, data)
        assert await read(connection.backend, len(data)) == data
        if turn % 3 == 0:
            reset(connection.client)
        else:
            fin(connection.client)
            fin(connection.backend)
        await connection.done.wait()
        connection.client.close()
        connection.backend.close()
    assert len(numbers) < 10
    assert not running.mover.sides


async def relayed_now(running: _Engine, nursery: trio.Nursery) -> Relayed:
    near_client, client = await tcp_pair()
    near_backend, backend = await tcp_pair()
    connection = Relayed((near_client, near_backend), client, backend)
    nursery.start_soon(connection.run, running)
    return connection


async def test_5000_short_connections_leave_nothing(running: _Engine) -> None:
    before = open_descriptors()

    async def one(nursery: trio.Nursery, number: int) -> None:
        connection = await relayed_now(running, nursery)
        with connection.client, connection.backend:
            await send_all(connection.client, b"hello")
            assert await read(connection.backend, 5) == b"hello"
            if number % 2:
                fin(connection.client)
                fin(connection.backend)
        await connection.done.wait()

    for batch in range(50):
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(one, nursery, batch + number)
    assert open_descriptors() == before
    assert not running.mover.sides
    assert not running.mover.again


async def test_a_connection_that_cannot_begin_leaves_nothing(
    running: _Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its numbers would stand for connections that have them later."""
    near_client, client = await tcp_pair()
    near_backend, backend = await tcp_pair()

    def no_room(connection: mover.Pair) -> None:
        raise OSError(errno.ENOSPC, "max_user_watches")

    monkeypatch.setattr(running.mover, "step", lambda way: no_room(way.pair))
    with near_client, client, near_backend, backend, pytest.raises(OSError, match="watches"):
        await running.relay(
            near_client, near_backend, Tally(), head=bytearray(b"x"), idle_timeout=math.inf
        )
    assert not running.mover.sides


async def test_an_error_that_nobody_expected_ends_only_its_connection(
    running: _Engine, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = await relayed(running, nursery)
    caught: list[ValueError] = []

    async def expect_error(connection: Relayed) -> None:
        try:
            await connection.run(running)
        except ValueError as error:
            caught.append(error)

    near_client, client = await tcp_pair()
    near_backend, backend = await tcp_pair()
    bad = Relayed((near_client, near_backend), client, backend)
    nursery.start_soon(expect_error, bad)
    await wait_all_tasks_blocked(0.01)
    copy = running.mover.copy

    def broken(way: mover.Way) -> int:
        if way.source.fd == near_client.fileno():
            raise ValueError("boom")
        return copy(way)

    monkeypatch.setattr(running.mover, "copy", broken)
    await send_all(client, b"x")
    await bad.done.wait()
    await wait_all_tasks_blocked(0.01)
    assert [str(error) for error in caught] == ["boom"]
    await send_all(good.client, b"still here")
    assert await read(good.backend, 10) == b"still here"
    good.scope.cancel()
    with contextlib.ExitStack() as stack:
        for sock in (client, backend, good.client, good.backend):
            stack.enter_context(sock)


async def test_who_spoke_before_the_limit_was_looked_at_is_not_idle(
    running: _Engine, nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    """A process that was stopped finds what was sent meanwhile, and all limits past, at once."""
    connections = [await relayed(running, nursery, idle_timeout=60) for _ in range(200)]
    mock_clock.jump(1)
    with contextlib.ExitStack() as stack:
        for connection in connections:
            sender = stack.enter_context(socket.socket(fileno=os.dup(connection.client.fileno())))
            sender.send(b"x")
        mock_clock.jump(60)
        for connection in connections:
            assert await read(connection.backend, 1) == b"x"
            assert connection.end is None
    for connection in connections:
        connection.scope.cancel()
        connection.client.close()
        connection.backend.close()


async def test_a_turn_that_ended_before_its_bytes_goes_on_after_the_limit_was_looked_at(
    running: _Engine, nursery: trio.Nursery
) -> None:
    connection = await relayed(running, nursery)
    size = 30_000_000

    async def look() -> None:
        while True:
            await running.catch_up()
            await trio.sleep(0.001)

    async with trio.open_nursery() as looking:
        looking.start_soon(look)
        looking.start_soon(send_all, connection.client, bytes(size))
        assert len(await read(connection.backend, size)) == size
        looking.cancel_scope.cancel()
    connection.scope.cancel()
    connection.client.close()
    connection.backend.close()


async def test_one_that_ends_while_all_that_is_ready_is_served_ends_nobody_else(
    running: _Engine, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = await relayed(running, nursery)
    way = next(iter(running.mover.sides.values())).outward
    serve = running.serve

    def serve_a_full_turn() -> bool:
        serve()
        way.again = True  # it has used up its turn, and has more to do
        running.mover.again.append(way)
        connection.scope.cancel()
        return True

    monkeypatch.setattr(running, "serve", serve_a_full_turn)
    await running.catch_up()
    monkeypatch.undo()
    await connection.done.wait()
    assert way.done
    connection.client.close()
    connection.backend.close()
