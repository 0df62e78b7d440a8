"""The conformance suite of relays: each implementation passes every test here.

A relay sits between two connected sockets. The tests hold the far ends of both: what a client and
a backend would hold. TCP is real, over loopback, because resets and half-closes are the kernel's.
"""

import contextlib
import errno
import hashlib
import itertools
import math
import os
import random
import socket
import struct
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field

import pytest
import trio
from trio.socket import SocketType
from trio.testing import MockClock, wait_all_tasks_blocked

from snimux.relay import portable
from snimux.relay.interface import End, Relay, Tally
from tests.support.sockets import (
    BLOCK,
    fin,
    read,
    read_to_end,
    reset,
    send_all,
    tcp_pair,
    unacknowledged,
    unix_pair,
)

RELAYS = ["portable", *(["engine"] if sys.platform == "linux" else [])]


@pytest.fixture(params=RELAYS)
async def relay(request: pytest.FixtureRequest) -> AsyncIterator[Relay]:
    """Each relay there is."""
    if request.param == "portable":
        yield portable.relay
    else:
        from snimux.relay.engine import engine

        async with engine() as running:
            yield running


@dataclass
class Relaying:
    """A relay at work, and the far ends of its sockets."""

    client: SocketType
    backend: SocketType
    near: tuple[socket.socket, socket.socket]
    head: bytearray
    tally: Tally = field(default_factory=Tally)
    end: End | None = None
    done: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    def far(self, side: str) -> SocketType:
        return self.client if side == "client" else self.backend

    def other(self, side: str) -> SocketType:
        return self.backend if side == "client" else self.client

    def moved(self, side: str) -> int:
        """How many bytes of a side were relayed."""
        return self.tally.up if side == "client" else self.tally.down

    async def run(self, relay: Relay, idle_timeout: float) -> None:
        with self.near[0], self.near[1], self.scope:
            self.end = await relay(
                *self.near, self.tally, head=self.head, idle_timeout=idle_timeout
            )
        self.done.set()


@contextlib.asynccontextmanager
async def relaying(
    relay: Relay,
    *,
    head: bytes = b"",
    idle_timeout: float = math.inf,
    pair: Callable[[], object] = tcp_pair,
    buffers: int | None = None,
) -> AsyncIterator[Relaying]:
    """Run a relay; what is left of it on leaving is cancelled."""
    near_client, client = await pair()  # type: ignore[misc]
    near_backend, backend = await pair()  # type: ignore[misc]
    if buffers is not None:
        for sock in (near_client, client, near_backend, backend):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
    running = Relaying(client, backend, (near_client, near_backend), bytearray(head))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(running.run, relay, idle_timeout)
        with client, backend:
            yield running
        running.scope.cancel()


SIDES = pytest.mark.parametrize("side", ["client", "backend"])
PAIRS = pytest.mark.parametrize("pair", [tcp_pair, unix_pair], ids=["tcp", "unix"])


# Bytes.


@PAIRS
@pytest.mark.parametrize("sizes", [[5_000_000], [1, 2, 3, 65536, 65537, 1] * 20, [1] * 300])
async def test_every_byte_arrives_in_order_both_ways_at_once(
    relay: Relay, pair: Callable[[], object], sizes: list[int]
) -> None:
    random_bytes = random.Random(1).randbytes
    up = [random_bytes(size) for size in sizes]
    down = [random_bytes(size) for size in reversed(sizes)]

    async def send(sock: SocketType, pieces: Iterable[bytes]) -> None:
        for piece in pieces:
            await send_all(sock, piece)
        fin(sock)

    async with relaying(relay, pair=pair) as running:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, running.client, up)
            nursery.start_soon(send, running.backend, down)
            got_down, _ = await read_to_end(running.client)
            got_up, _ = await read_to_end(running.backend)
        await running.done.wait()
    assert digest(got_up) == digest(b"".join(up))
    assert digest(got_down) == digest(b"".join(down))
    assert running.end is End.EOF
    assert (running.tally.up, running.tally.down) == (sum(sizes), sum(sizes))


def digest(data: bytes) -> tuple[int, str]:
    return len(data), hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("size", [1, 2_000, 3_000_000])
async def test_the_head_comes_first(relay: Relay, size: int) -> None:
    head = random.Random(2).randbytes(size)
    async with relaying(relay, head=head) as running:
        await send_all(running.client, b"next")
        assert await read(running.backend, size + 4) == head + b"next"
        await send_all(running.backend, b"answer")
        assert await read(running.client, 6) == b"answer"
        assert not running.head  # nobody holds it any longer
        fin(running.client)
        fin(running.backend)
        await running.done.wait()
    assert running.tally == Tally(size + 4, 6)


async def test_when_the_first_byte_went_down_is_noted(relay: Relay, mock_clock: MockClock) -> None:
    async with relaying(relay, head=b"hello") as running:
        await read(running.backend, 5)
        assert running.tally.answered == 0
        mock_clock.jump(2)
        first = trio.current_time()
        for _ in range(2):
            await send_all(running.backend, b"answer")
            assert await read(running.client, 6) == b"answer"
            await wait_all_tasks_blocked()  # the bytes are there before they are counted
            assert running.tally.answered == first
            mock_clock.jump(3)


async def test_an_answer_may_come_before_the_head_is_read(relay: Relay) -> None:
    async with relaying(relay, head=bytes(20_000_000)) as running:
        await send_all(running.backend, b"answer")
        assert await read(running.client, 6) == b"answer"


# Ends.


@PAIRS
@SIDES
async def test_a_half_close_is_passed_on_and_the_other_direction_goes_on(
    relay: Relay, pair: Callable[[], object], side: str
) -> None:
    async with relaying(relay, pair=pair) as running:
        first, other = running.far(side), running.other(side)
        await send_all(first, b"request")
        fin(first)
        assert await read_to_end(other) == (b"request", False)
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_all, other, bytes(1_000_000))
                assert await read(first, 1_000_000) == bytes(1_000_000)
        assert running.end is None
        fin(other)
        assert await read_to_end(first) == (b"", False)
        await running.done.wait()
    assert running.end is End.EOF


@PAIRS
async def test_both_sides_may_close_at_once(relay: Relay, pair: Callable[[], object]) -> None:
    async with relaying(relay, pair=pair) as running:
        fin(running.client)
        fin(running.backend)
        assert await read_to_end(running.client) == (b"", False)
        assert await read_to_end(running.backend) == (b"", False)
        await running.done.wait()
    assert running.end is End.EOF


LOST = {"client": End.CLIENT_RESET, "backend": End.BACKEND_RESET}


@SIDES
@pytest.mark.parametrize("size", [0, 1, 100_000])
async def test_a_reset_is_passed_on_after_what_came_before_it(
    relay: Relay, side: str, size: int
) -> None:
    data = random.Random(3).randbytes(size)
    async with relaying(relay) as running:
        await send_all(running.far(side), data)
        while running.moved(side) < size:
            await trio.sleep(0.001)
        reset(running.far(side))
        assert await read_to_end(running.other(side)) == (data, True)
        await running.done.wait()
    assert running.end is LOST[side]


@SIDES
async def test_a_slow_reader_still_gets_all_before_the_reset(relay: Relay, side: str) -> None:
    data = random.Random(4).randbytes(300_000)
    async with relaying(relay) as running:
        other = running.other(side)
        await send_all(running.far(side), data)
        while running.moved(side) < len(data):
            await trio.sleep(0.001)
        reset(running.far(side))
        await trio.sleep(0.05)
        assert await read_to_end(other) == (data, True)


async def send_some(sock: SocketType, size: int, *, within: float = 0.3) -> int:
    """Send so much, or as much as is taken soon; how much that was."""
    sent = 0
    with trio.move_on_after(within):
        while sent < size:
            sent += await sock.send(bytes(min(BLOCK, size - sent)))
    return sent


@SIDES
@pytest.mark.parametrize("size", [221_454, 3_000_000])
async def test_a_bulk_transfer_that_is_reset_ends_in_a_reset(
    relay: Relay, side: str, size: int
) -> None:
    """It took one in ten for whole: ``splice`` had told of the reset, and ``read`` of an end."""
    ends = dict.fromkeys([False, True], 0)
    for _ in range(60):
        async with relaying(relay) as running, trio.open_nursery() as nursery:
            far = running.far(side)
            # a thread, so that the relay reads while this is sent
            blocking = plain_twin(far)
            blocking.setblocking(True)
            far.close()
            nursery.start_soon(trio.to_thread.run_sync, send_and_reset, blocking, size)
            _, was_reset = await read_to_end(running.other(side))
            ends[was_reset] += 1
    assert ends == {False: 0, True: 60}


def send_and_reset(sock: socket.socket, size: int) -> None:
    sock.sendall(bytes(size))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@SIDES
async def test_a_reset_that_is_noticed_by_sending_is_one_for_the_other_direction(
    relay: Relay, side: str
) -> None:
    """The kernel tells of it once: a read behind the send that failed shows no more than an end."""
    ends = dict.fromkeys([False, True], 0)
    for _ in range(60):
        async with relaying(relay) as running:
            far, other = running.far(side), running.other(side)
            await send_all(far, b"cut")
            await wait_all_tasks_blocked(0.001)
            with plain_twin(other) as sender:
                reset(far)
                sender.send(b"answer")
                # a reset of its own makes what it reads an end, too
                with contextlib.suppress(BlockingIOError):
                    sender.send(b"more")
            _, was_reset = await read_to_end(other)
            ends[was_reset] += 1
    assert ends == {False: 0, True: 60}


@SIDES
async def test_a_unix_socket_that_closes_on_unread_bytes_is_a_reset(
    relay: Relay, side: str
) -> None:
    async def mixed() -> object:  # the sender's is a UNIX socket, the receiver's is TCP
        is_unix = next(kinds) == side
        return await (unix_pair() if is_unix else tcp_pair())

    for size in (1, 221_454, 3_000_000):
        kinds = iter(["client", "backend"])
        async with relaying(relay, pair=mixed) as running:
            far, other = running.far(side), running.other(side)
            await send_all(other, b"unread")
            await trio.lowlevel.wait_readable(far)
            got = bytearray()
            async with trio.open_nursery() as nursery:

                async def send(far: SocketType = far, size: int = size) -> None:
                    await send_all(far, bytes(size))
                    far.close()

                nursery.start_soon(send)
                got, was_reset = await read_to_end(other)  # type: ignore[assignment]
            assert (len(got), was_reset) == (size, True)
            await running.done.wait()
        assert running.end is LOST[side]


@SIDES
async def test_a_unix_socket_that_had_sent_what_nobody_read_gets_a_reset(
    relay: Relay, side: str
) -> None:
    """What it had sent before the reset, it may have read: it gets the end of the stream then."""

    async def mixed() -> object:
        is_unix = next(kinds) != side
        return await (unix_pair() if is_unix else tcp_pair())

    kinds = iter(["client", "backend"])
    async with relaying(relay, pair=mixed) as running:
        far, other = running.far(side), running.other(side)
        await send_all(far, bytes(1000))
        while running.moved(side) < 1000:
            await trio.sleep(0.001)
        reset(far)
        await trio.sleep(0.05)  # the reset is noticed; what was sent is waited for
        await send_all(other, b"unread")
        assert await read_to_end(other) == (bytes(1000), True)


@pytest.mark.skipif(sys.platform != "linux", reason="sees by SIOCOUTQ what was acknowledged")
@SIDES
async def test_what_was_acknowledged_before_a_reset_is_delivered_before_it(
    relay: Relay, side: str
) -> None:
    """However much, and whether its reader is quick, slow, or pauses for less than two seconds."""

    async def one(size: int, pause: float, room: int | None) -> None:
        async with relaying(relay) as running:
            far, other = running.far(side), running.other(side)
            if room is not None:
                other.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
            sent = await send_some(far, size)
            with trio.move_on_after(0.2):
                while unacknowledged(far):
                    await trio.sleep(0.001)
            acknowledged = sent - unacknowledged(far)
            reset(far)
            await trio.sleep(pause)
            got, was_reset = await read_to_end(other)
            assert was_reset
            assert acknowledged <= len(got) <= size
            await running.done.wait()
        assert running.end is LOST[side]

    async with trio.open_nursery() as nursery:
        for size, pause in itertools.product([1, 1_000, 221_454, 3_000_000], [0, 1.7]):
            nursery.start_soon(one, size, pause, None)
        for pause in (0, 1.7):  # a window so small that it takes some seconds
            nursery.start_soon(one, 221_454, pause, 4096)


Event = tuple[str, str]
EVENTS = [(side, what) for side in ("client", "backend") for what in ("FIN", "RST")]


def orders() -> list[tuple[Event, ...]]:
    """Every order of FIN and RST up to the end of the connection."""
    found: list[tuple[Event, ...]] = []
    for length in (1, 2, 3):
        for order in itertools.permutations(EVENTS, length):
            resets = [place for place, (_, what) in enumerate(order) if what == "RST"]
            fins = {side for side, what in order if what == "FIN"}
            over = resets == [length - 1] or (not resets and len(fins) == 2)
            both_before = len({side for side, what in order[:-1] if what == "FIN"}) == 2
            if over and not both_before:
                found.append(order)
    return found


@pytest.mark.parametrize("order", orders(), ids=str)
async def test_every_order_of_fin_and_rst(relay: Relay, order: tuple[Event, ...]) -> None:
    async with relaying(relay) as running:
        open_ends = {"client", "backend"}
        for side, what in order:
            other = running.other(side)
            if what == "FIN":
                fin(running.far(side))
                assert await read_to_end(other) == (b"", False)
            else:
                reset(running.far(side))
                open_ends.discard(side)
        with trio.fail_after(10):
            await running.done.wait()
        last_side, last = order[-1]
        assert running.end is (LOST[last_side] if last == "RST" else End.EOF)
        if last == "RST":
            # After FIN was read, the reset shows as the socket's error, or at the next send.
            assert await is_reset(running.other(last_side))


async def is_reset(sock: SocketType) -> bool:
    with trio.move_on_after(5):
        while True:
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                return error in (errno.ECONNRESET, errno.EPIPE)
            await trio.sleep(0.005)
    return False


@SIDES
async def test_a_side_that_closes_on_unread_bytes_is_heard_out_first(
    relay: Relay, side: str
) -> None:
    """A server that answers "413" and closes, while the client is still sending the upload."""
    async with relaying(relay) as running:
        hasty, sender = running.far(side), running.other(side)
        answer = random.Random(5).randbytes(50_000)

        async def upload() -> None:
            with pytest.raises(OSError, match=r"reset|Broken pipe"):
                while True:
                    await sender.send(bytes(BLOCK))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload)
            await read(hasty, 10)
            await send_all(hasty, answer)
            while running.moved(side) < len(answer):
                await trio.sleep(0.001)
            hasty.close()  # with bytes unread: the kernel sends RST
            got, _ = await read_to_end(sender)
        await running.done.wait()
    assert got == answer
    assert running.end is LOST[side]


@SIDES
async def test_a_reset_is_noticed_while_the_other_side_only_sends(relay: Relay, side: str) -> None:
    async with relaying(relay) as running:
        fin(running.far(side))
        assert await read_to_end(running.other(side)) == (b"", False)
        reset(running.far(side))
        with pytest.raises(OSError, match=r"reset|Broken pipe"):
            while True:
                await running.other(side).send(bytes(BLOCK))
        await running.done.wait()
    assert running.end is LOST[side]


async def test_a_reset_behind_a_fin_is_not_forgotten_while_the_backend_is_slow(
    relay: Relay,
) -> None:
    head = bytes(20_000_000)
    async with relaying(relay, head=head) as running:
        await wait_all_tasks_blocked(0.02)  # the backend does not read
        await send_all(running.client, b"tail")
        fin(running.client)
        await wait_all_tasks_blocked(0.02)
        reset(running.client)
        await wait_all_tasks_blocked(0.02)
        got, _ = await read_to_end(running.backend)
        assert got in (head, head + b"tail")  # the kernel may discard what it had not given out
        with trio.fail_after(5):
            await running.done.wait()
    assert running.end is End.CLIENT_RESET


# What reads stop short at.


@pytest.mark.parametrize(("pair", "size"), [(tcp_pair, 3), (tcp_pair, 2 * BLOCK), (unix_pair, 3)])
@SIDES
async def test_bytes_behind_an_urgent_one_arrive(
    relay: Relay, pair: Callable[[], object], side: str, size: int
) -> None:
    """TLS knows no urgent data; but whoever sends some must not have the stream cut short."""
    before, after = b"b" * size, b"a" * size
    async with relaying(relay, pair=pair) as running:
        reader = running.other(side)
        with plain_twin(running.far(side)) as sender:
            sender.send(before)
            try:
                sender.send(b"!", socket.MSG_OOB)
            except OSError:
                pytest.skip()  # a UNIX socket of a kernel that knows none there
            sender.send(after)
            assert await read(reader, 2 * size) == before + after
            sender.send(before)
            sender.send(b"!", socket.MSG_OOB)
            sender.send(after)
            fin(running.far(side))
            assert await read_to_end(reader) == (before + after, False)


@SIDES
async def test_bytes_behind_a_descriptor_that_was_passed_arrive(relay: Relay, side: str) -> None:
    async with relaying(relay, pair=unix_pair) as running:
        with plain_twin(running.far(side)) as sender:
            sender.send(b"abc")
            socket.send_fds(sender, [b"F"], [0])
            sender.send(b"defgh")
            assert await read(running.other(side), 9) == b"abcFdefgh"


def plain_twin(sock: SocketType) -> socket.socket:
    """The same socket, to send with at once: nothing else runs in between."""
    return socket.socket(fileno=os.dup(sock.fileno()))


# Back-pressure.


@SIDES
async def test_a_slow_reader_holds_its_sender_back(relay: Relay, side: str) -> None:
    async with relaying(relay, buffers=32 * 1024) as running:
        sender, reader = running.far(side), running.other(side)
        sent = 0
        stalled = False
        while not stalled:
            with trio.move_on_after(0.3) as waiting:
                sent += await sender.send(bytes(BLOCK))
            stalled = waiting.cancelled_caught
            assert sent < 4_000_000
        # What is on its way is in the kernel's buffers, or in the relay's two.
        fin(sender)
        data, was_reset = await read_to_end(reader)
        assert (data, was_reset) == (bytes(sent), False)


@SIDES
async def test_a_stalled_direction_does_not_hold_the_other_back(relay: Relay, side: str) -> None:
    async with relaying(relay, buffers=32 * 1024) as running:
        sender, reader = running.far(side), running.other(side)
        stalled = False
        while not stalled:
            with trio.move_on_after(0.1) as waiting:
                await sender.send(bytes(BLOCK))
            stalled = waiting.cancelled_caught
        for _ in range(50):
            await send_all(reader, b"x" * 1000)
            assert await read(sender, 1000) == b"x" * 1000


# The idle limit, on a clock that is driven.


async def test_an_idle_connection_is_given_up(relay: Relay, mock_clock: MockClock) -> None:
    async with relaying(relay, idle_timeout=3600) as running:
        for side in ("client", "backend"):
            await wait_all_tasks_blocked(0.01)
            mock_clock.jump(3599)
            await send_all(running.far(side), b"x")
            assert await read(running.other(side), 1) == b"x"
        await wait_all_tasks_blocked(0.01)
        mock_clock.jump(3599)
        await wait_all_tasks_blocked(0.01)
        assert running.end is None
        mock_clock.jump(2)
        await running.done.wait()
        assert running.end is End.IDLE
        assert await read_to_end(running.client) == (b"", False)


@SIDES
async def test_the_idle_limit_holds_half_closed_and_stalled(
    relay: Relay, side: str, mock_clock: MockClock
) -> None:
    async with relaying(relay, idle_timeout=60, buffers=32 * 1024) as running:
        fin(running.far(side))
        assert await read_to_end(running.other(side)) == (b"", False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_until_error, running.other(side))
            await wait_all_tasks_blocked(0.2)
            mock_clock.jump(61)
            await running.done.wait()
    assert running.end is End.IDLE


async def send_until_error(sock: SocketType) -> None:
    with pytest.raises(OSError, match=r"reset|Broken pipe"):
        while True:
            await sock.send(bytes(BLOCK))


@SIDES
async def test_a_reset_stays_one_if_the_idle_limit_comes_first(
    relay: Relay, side: str, mock_clock: MockClock
) -> None:
    async with relaying(relay, idle_timeout=1.5, buffers=32 * 1024) as running:
        with plain_twin(running.far(side)) as sender:
            for _ in range(50):  # more than there is room for
                with contextlib.suppress(BlockingIOError):
                    sender.send(bytes(BLOCK))
                await wait_all_tasks_blocked(0.001)
        reset(running.far(side))
        await wait_all_tasks_blocked(0.02)
        for _ in range(10):
            mock_clock.jump(1)
            await wait_all_tasks_blocked(0.02)
        assert (await read_to_end(running.other(side)))[1]
        await running.done.wait()
    assert running.end is not None


async def test_off_means_off(relay: Relay, mock_clock: MockClock) -> None:
    async with relaying(relay, idle_timeout=math.inf) as running:
        await wait_all_tasks_blocked(0.01)
        mock_clock.jump(1e9)
        await send_all(running.client, b"x")
        assert await read(running.backend, 1) == b"x"
        assert running.end is None


# Cancellation.


@PAIRS
async def test_cancelled_midway_the_tally_is_right_and_no_byte_is_twice(
    relay: Relay, pair: Callable[[], object]
) -> None:
    data = random.Random(6).randbytes(8_000_000)
    async with relaying(relay, pair=pair) as running:
        got = bytearray()

        async def receive() -> None:
            while piece := await running.backend.recv(5000):
                got.extend(piece)
                if len(got) > 1_000_000:
                    running.scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                await send_all(running.client, data)
        await running.done.wait()
        assert running.end is None
        assert running.tally.up == len(got)
        assert bytes(got) == data[: len(got)]


async def test_cancelled_at_any_point_nothing_is_left(relay: Relay) -> None:
    for _ in range(30):
        async with relaying(relay, head=b"head") as running:
            fin(running.client)
            running.scope.cancel()
            await running.done.wait()
            with pytest.raises(OSError, match="Bad file descriptor"):
                running.near[0].getsockname()


# Many at once.


async def test_connections_do_not_mix(relay: Relay) -> None:
    async def one(number: int) -> None:
        data = struct.pack(">I", number) * 20_000
        async with relaying(relay, head=data[:100]) as running:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_all, running.client, data[100:])
                nursery.start_soon(send_all, running.backend, data)
                assert await read(running.backend, len(data)) == data
                assert await read(running.client, len(data)) == data

    async with trio.open_nursery() as nursery:
        for number in range(60):
            nursery.start_soon(one, number)
