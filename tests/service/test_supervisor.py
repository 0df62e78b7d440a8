"""``service.supervisor``: real processes as workers, small ones; time is the test's.

What it is like with real workers, see ``test_end_to_end``.
"""

import contextlib
import io
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from snimux.config.model import Config, Limits
from snimux.log import Log
from snimux.net.listeners import Listener, open_listeners
from snimux.routing.address import ListenAddress, TcpAddress, UnixAddress
from snimux.service.supervisor import Team, _Supervisor, pause, processors, supervise
from snimux.service.systemd import Manager
from snimux.service.upgrade import Succession
from tests.support.caddy import free_port, short_directory, until
from tests.support.sockets import open_descriptors, read_to_end, send_all

DIES = [sys.executable, "-c", "raise SystemExit(3)"]

# As a worker: ends when it was told so twice, or when nobody is left who could.
LINES = "import socket\nlines = socket.socket(fileno=3).makefile()\n"
OBEYS = [sys.executable, "-c", LINES + "lines.readline() and lines.readline()"]

OBEYS_AT_ONCE = [sys.executable, "-c", LINES + "lines.readline()"]

# Ends only when nobody is left who could tell it anything.
HEEDS_NOTHING = [sys.executable, "-c", LINES + "while lines.readline(): pass"]

# Takes all places and as many of a source, writes down whether it could, and waits.
TAKES = """
import os, sys
from snimux.service.scoreboard import SharedLimits
from snimux.service.handover import handed_to_worker
from snimux.service.systemd import receive
handed = handed_to_worker(receive(os.environ, os.getpid()))
assert handed.config_text() == "# one\\n" == handed.config_text()
assert [f"{each.protocol} {each}" for each in handed.listeners()] == sys.argv[2:]
places = SharedLimits(handed.places, handed.number, most=99)
could = [places.acquire() and bool(places.count_source(b"x", 2)) for _ in range(3)]
with open(sys.argv[1], "a") as said:
    print(handed.number, could, file=said)
os.read(handed.orders, 1)
"""


# Has a place and 3 routes. The first shows life all the time, others at first and with a signal.
LIVES = """
import os, select, signal
from snimux.service.scoreboard import SharedLimits
from snimux.service.handover import handed_to_worker
from snimux.service.systemd import receive
handed = handed_to_worker(receive(os.environ, os.getpid()))
assert "NOTIFY_SOCKET" not in os.environ
places = SharedLimits(handed.places, handed.number, most=99)
places.acquire()
signal.signal(signal.SIGUSR1, lambda *_: places.show_life(3))
signal.raise_signal(signal.SIGUSR1)
while not select.select([handed.orders], [], [], 0.001 if handed.number == 1 else None)[0]:
    places.show_life(3)
"""


# Answers what it is asked as one of another version would.
OTHER = """
import os, select
from snimux.service.handover import handed_to_worker
from snimux.service.systemd import receive
handed = handed_to_worker(receive(os.environ, os.getpid()))
asked = handed.questions()
while handed.orders not in select.select([handed.orders, asked], [], [])[0]:
    question = asked.recv(100)
    asked.send(b'{"version": "0", "counts": 7}\\n' + question.split()[0] + b"\\n")
"""


# As a successor: says that it serves, and is gone once it is heard.
SUCCEEDS = """
import os, socket
number = 3 + os.environ["LISTEN_FDNAMES"].split(":").index("predecessor")
channel = socket.socket(fileno=number)
channel.setblocking(True)
channel.send(b"r")
assert channel.recv(1) == b"h"
"""


class Stream(io.StringIO):
    """A log in memory that can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.written = trio.Event()

    def write(self, text: str) -> int:
        self.written.set()
        return super().write(text)


@dataclass
class Running:
    """A supervisor in this process, and its log."""

    listeners: Sequence[Listener]
    stream: Stream
    done: trio.Event = field(default_factory=trio.Event)

    async def lines(self, event: str, count: int) -> list[dict[str, Any]]:
        """The lines of an event, as soon as there are so many."""
        while True:
            # without a deadline, which would set the clock going: pytest has one
            self.stream.written = trio.Event()
            lines = [json.loads(line) for line in self.stream.getvalue().splitlines()]
            lines = [line for line in lines if line["event"] == event]
            if len(lines) >= count:
                return lines
            await self.stream.written.wait()


@contextlib.asynccontextmanager
async def running(
    command: Sequence[str],
    workers: int = 1,
    listen: Sequence[ListenAddress] = (TcpAddress("127.0.0.1", 0),),
    http: Sequence[ListenAddress] = (),
    manager: Manager | None = None,
    status: Sequence[Listener] = (),
) -> AsyncIterator[Running]:
    """A supervisor until the test is over; stopped by signals, if it is not before."""
    listeners = open_listeners(listen, http)
    stream = Stream()
    log = Log(stream, form="json")
    manager = manager or Manager()
    succession = Succession(log, manager, command=[sys.executable, "-c", SUCCEEDS])
    run = Running(listeners, stream)
    config = Config((), (), Limits(drain=60), "auto", "json", "info")
    team = Team(workers, limit=2, most=2, config=config, text="# one\n")

    async def work(*, task_status: trio.TaskStatus[None]) -> None:
        await supervise(
            command, listeners, team, log, manager=manager, succession=succession,
            status=status, task_status=task_status,
        )  # fmt: skip
        run.done.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(work)
        try:
            yield run
        finally:
            with trio.CancelScope(shield=True):
                for _ in range(2):
                    if not run.done.is_set():
                        signal.raise_signal(signal.SIGTERM)
                        await trio.testing.wait_all_tasks_blocked(0.01)
                await run.done.wait()


def test_the_pause_is_none_at_first_then_a_second_and_doubles_up_to_thirty() -> None:
    assert [pause(deaths) for deaths in range(9)] == [0, 0, 1, 2, 4, 8, 16, 30, 30]
    assert pause(10**6) == 30


def test_there_are_processors() -> None:
    assert 1 <= processors() <= (os.cpu_count() or 1)


async def waited(clock: MockClock, seconds: float, run: Running) -> None:
    """Wait, and see that there is nothing in the log before."""
    if seconds:
        clock.jump(seconds / 2)
        await trio.testing.wait_all_tasks_blocked(0.01)
        before = run.stream.getvalue()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert run.stream.getvalue() == before
        clock.jump(seconds / 2)


async def test_who_dies_at_once_again_and_again_is_replaced_ever_later(
    mock_clock: MockClock,
) -> None:
    before = open_descriptors()
    async with running(DIES) as run:
        for count, again_in in enumerate([0, 1, 2, 4, 8, 16, 30, 30], 1):
            died = (await run.lines("worker-died", count))[count - 1]
            assert (died["worker"], died["status"], died["level"]) == (1, 3, "error")
            assert died["again_in"] == again_in
            started = await run.lines("worker-started", count)
            assert died["pid"] == started[count - 1]["pid"]
            assert len(started) == count or not again_in
            if count < 8:
                await waited(mock_clock, again_in, run)
        # told to stop, it does not sit the pause out: no clock goes on
        signal.raise_signal(signal.SIGTERM)
        await run.done.wait()
    assert len(await run.lines("stopped", 1)) == 1
    assert open_descriptors() == before


async def test_who_lived_for_a_while_is_replaced_at_once(mock_clock: MockClock) -> None:
    async with running(OBEYS) as run:
        for count, (lived, again_in) in enumerate([(0, 0), (11, 0), (0, 0), (9, 1), (20, 0)], 1):
            pid = (await run.lines("worker-started", count))[-1]["pid"]
            mock_clock.jump(lived)
            os.kill(pid, signal.SIGKILL)
            died = (await run.lines("worker-died", count))[-1]
            assert (died["pid"], died["signal"]) == (pid, "SIGKILL")
            assert (died["seconds"], died["again_in"]) == (lived, again_in)
            mock_clock.jump(again_in)


async def test_what_cannot_be_started_is_said_and_tried_again(mock_clock: MockClock) -> None:
    async with running(["/nonexistent"]) as run:
        for count, again_in in enumerate([0, 1, 2], 1):
            died = (await run.lines("worker-died", count))[count - 1]
            assert died["again_in"] == again_in
            assert died["detail"] == "not started: No such file or directory"
            await waited(mock_clock, again_in, run)
        assert not await run.lines("worker-started", 0)


async def test_signals_are_passed_on_as_orders_and_the_end_is_awaited() -> None:
    with short_directory() as directory:
        path = directory / "socket"
        address = TcpAddress("127.0.0.1", free_port())
        listen: list[ListenAddress] = [address, UnixAddress(str(path))]
        async with running(OBEYS, 2, listen) as run:
            lines = await run.lines("listening", 2)
            assert [line["workers"] for line in lines] == [2, 2]
            assert [line["protocol"] for line in lines] == ["tls", "tls"]
            assert lines[1]["address"] == f"unix/{path}"
            pids = {line["pid"] for line in await run.lines("worker-started", 2)}
            # its file is not the worker's to remove
            os.kill(min(pids), signal.SIGKILL)
            assert (await run.lines("worker-died", 1))[0]["signal"] == "SIGKILL"
            await run.lines("worker-started", 3)
            assert path.is_socket()
            signal.raise_signal(signal.SIGTERM)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert all(listener.socket.fileno() < 0 for listener in run.listeners)
            assert not path.exists()
            assert not run.done.is_set()
            signal.raise_signal(signal.SIGINT)
            await run.done.wait()
            # nobody has the port any more
            open_listeners([address])[0].close()
        assert len(await run.lines("worker-died", 1)) == 1
        assert len(await run.lines("worker-started", 3)) == 3


async def test_who_dies_of_a_signal_while_stopping_is_named_and_not_replaced() -> None:
    async with running(OBEYS, 2) as run:
        victim = (await run.lines("worker-started", 2))[0]
        signal.raise_signal(signal.SIGTERM)
        await trio.testing.wait_all_tasks_blocked(0.01)
        os.kill(victim["pid"], signal.SIGKILL)
        (died,) = await run.lines("worker-died", 1)
        assert (died["worker"], died["signal"]) == (victim["worker"], "SIGKILL")
        assert "again_in" not in died
    assert len(await run.lines("worker-started", 2)) == 2


async def test_who_is_stuck_is_killed_by_the_third_signal() -> None:
    async with running(HEEDS_NOTHING, 2) as run:
        await run.lines("worker-started", 2)
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
            await trio.testing.wait_all_tasks_blocked(0.01)
        await run.done.wait()
        died = await run.lines("worker-died", 2)
        assert [line["signal"] for line in died] == ["SIGKILL"] * 2


async def test_whoever_started_it_may_have_blocked_sigchld() -> None:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    try:
        async with running(OBEYS, 1) as run:
            (worker,) = await run.lines("worker-started", 1)
            os.kill(worker["pid"], signal.SIGKILL)
            await run.lines("worker-started", 2)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


async def test_a_signal_that_waits_already_is_heeded() -> None:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    handler = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        signal.raise_signal(signal.SIGTERM)
        async with running(OBEYS_AT_ONCE, 2) as run:
            await run.done.wait()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGTERM, handler)
    assert not await run.lines("worker-died", 0)


async def test_workers_get_the_listeners_the_text_and_what_the_dead_gave_back() -> None:
    with short_directory() as directory:
        listen, http = (UnixAddress(str(directory / name)) for name in ("tls", "http"))
        said = directory / "said"
        said.touch()
        command = [sys.executable, "-c", TAKES, str(said), f"tls {listen}", f"http {http}"]
        async with running(command, listen=[listen], http=[http]) as run:
            for count in (1, 2):
                await until(lambda: said.read_text().count("\n") == count, "it has said so")  # noqa: B023
                os.kill((await run.lines("worker-started", count))[-1]["pid"], signal.SIGKILL)
                await run.lines("worker-died", count)
        assert said.read_text().splitlines() == ["1 [True, True, False]"] * 2


async def connected(listener: Listener) -> trio.socket.SocketType:
    sock = trio.socket.socket()
    await sock.connect(listener.socket.getsockname())
    return sock


async def page(listener: Listener, path: str) -> str:
    """Return the answer to a GET."""
    return await answer_on(await connected(listener), path)


async def answer_on(sock: trio.socket.SocketType, path: str) -> str:
    with sock:
        await send_all(sock, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        return (await read_to_end(sock))[0].decode()


async def test_who_asks_when_a_successor_has_just_begun_to_serve_hears_that_all_is_well(
    mock_clock: MockClock,
) -> None:
    shown = open_listeners([TcpAddress("127.0.0.1", 0)])
    async with running(OBEYS, status=shown) as run:  # which serves nothing
        client = await connected(shown[0])
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert (await page(shown[0], "/healthz")).endswith("\r\nno worker serves\n")
        signal.raise_signal(signal.SIGUSR2)
        await run.lines("handed-over", 1)
        assert (await answer_on(client, "/healthz")).endswith("\r\nok\n")


async def test_what_a_worker_of_another_version_counts_is_left_out() -> None:
    shown = open_listeners([TcpAddress("127.0.0.1", 0)])
    async with running([sys.executable, "-c", OTHER], status=shown) as run:
        await run.lines("worker-started", 1)
        figures = await page(shown[0], "/metrics")
        assert '\nsnimux_worker_up{worker="1"} 0.0\n' in figures
        assert '\nsnimux_connections_total{protocol="tls"} 0.0\n' in figures


async def test_who_is_to_drain_just_as_it_has_listened_last_tells_its_workers() -> None:
    orders: list[str] = []
    stand_in: Any = SimpleNamespace(
        life=SimpleNamespace(draining=trio.Event(), closing=trio.Event(), killing=trio.Event()),
        workers=SimpleNamespace(
            order=lambda order: orders.append(order.what), check_heartbeats=lambda: 0.0
        ),
        listeners=[],
        manager=Manager(),
        status=str,
    )
    async with trio.open_nursery() as nursery:
        is_draining = _Supervisor.stop_accepting(stand_in)
        nursery.start_soon(partial(_Supervisor.end, stand_in, is_draining=is_draining))
        stand_in.life.draining.set()  # by a signal that comes in the same turn
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert orders == ["leave", "drain"]


@pytest.mark.parametrize(("program", "status"), [(OBEYS[2], 503), (LIVES, 200)])
async def test_it_is_well_as_soon_as_a_worker_shows_life(program: str, status: int) -> None:
    """And these workers are asked for their figures, and answer nothing."""
    shown = open_listeners([TcpAddress("127.0.0.1", 0)])
    async with running([sys.executable, "-c", program], 2, status=shown) as run:
        await run.lines("worker-started", 2)
        with trio.fail_after(10):
            while (answer := await page(shown[0], "/healthz")).split()[1] != str(status):
                await trio.sleep(0.01)
        assert answer.endswith("\r\nok\n" if status == 200 else "\r\nno worker serves\n")
        figures = await page(shown[0], "/metrics")
        for line in ('worker_up{worker="1"} 0.0', 'worker_up{worker="2"} 0.0', "routes 0.0"):
            assert f"\nsnimux_{line}\n" in figures
        assert '"total": 0, "lists": [], "routes": []' in await page(shown[0], "/routes")
    assert shown[0].socket.fileno() == -1


@contextlib.asynccontextmanager
async def told() -> AsyncIterator[tuple[Manager, trio.socket.SocketType]]:
    """A manager with a watchdog of 30 seconds, and its end."""
    with short_directory() as directory:
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            await sock.bind(str(directory / "s"))
            yield Manager(str(directory / "s"), watchdog=30), sock


async def said(sock: trio.socket.SocketType, clock: MockClock, step: float) -> list[str]:
    """What is said next, after as many steps of the clock as it takes."""
    words: list[str] = []

    async def hear(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        words.extend((await sock.recv(4096)).decode().split("\n"))

    async with trio.open_nursery() as nursery:
        await nursery.start(hear)
        while not words:
            await trio.testing.wait_all_tasks_blocked(0.01)
            clock.jump(0 if words else step)
    return words


async def test_the_manager_is_told_how_all_workers_are(mock_clock: MockClock) -> None:
    command = [sys.executable, "-c", LIVES]
    async with told() as (manager, sock), running(command, 2, manager=manager) as run:
        words = await said(sock, mock_clock, 0.01)
        assert words[:2] == ["READY=1", f"MAINPID={os.getpid()}"]
        both = "2 connections, 3 routes, 2 workers"
        while words[-1] != f"STATUS={both}":
            words = await said(sock, mock_clock, 0.01)
            assert words[0] == "WATCHDOG=1"
        signal.raise_signal(signal.SIGTERM)
        while words[0] != "STOPPING=1":
            words = await said(sock, mock_clock, 0)
        assert words[1:] == [f"STATUS=draining: {both}", "EXTEND_TIMEOUT_USEC=65000000"]
        await run.done.wait()


# --- a worker that is stuck

# Shows life when the test has it do so, and says that it has done it. Whoever is not told is stuck.
BEATS = """
import os, select, socket, sys
from snimux.service.scoreboard import SharedLimits
from snimux.service.handover import handed_to_worker
from snimux.service.systemd import receive
handed = handed_to_worker(receive(os.environ, os.getpid()))
places = SharedLimits(handed.places, handed.number, most=99)
test = socket.socket(socket.AF_UNIX)
test.connect(sys.argv[1])
test.sendall(b"%d %d\\n" % (handed.number, os.getpid()))
while handed.orders not in select.select([handed.orders, test], [], [])[0] and test.recv(1):
    places.show_life(3)
    test.sendall(b".")
"""


@dataclass
class Hearts:
    """Workers, two at the least, that show life when they are to; the clock is the test's."""

    run: Running
    clock: MockClock
    listener: trio.SocketListener
    manager: trio.socket.SocketType
    pids: dict[int, int] = field(default_factory=dict)
    streams: dict[int, trio.SocketStream] = field(default_factory=dict)
    fed: int = 0
    """How often the manager's watchdog was fed in the last second."""

    async def meet(self) -> int:
        """Wait for one that has been started; its number."""
        stream = await self.listener.accept()
        words = b""
        while not words.endswith(b"\n"):
            words += await stream.receive_some()
        number, pid = map(int, words.split())
        if number in self.streams:
            await self.streams[number].aclose()
        self.pids[number], self.streams[number] = pid, stream
        return number

    async def second(self, *alive: int) -> None:
        """Pass a second, in which these show life."""
        for number in alive:
            await self.streams[number].send_all(b".")
            assert await self.streams[number].receive_some(1) == b"."
        with contextlib.suppress(BlockingIOError):
            while os.read(self.manager.fileno(), 4096):
                pass
        self.clock.jump(1)
        await trio.testing.wait_all_tasks_blocked(0.01)
        self.fed = 0
        with contextlib.suppress(BlockingIOError):
            while words := os.read(self.manager.fileno(), 4096):
                self.fed += b"WATCHDOG=1" in words or b"READY=1" in words


@contextlib.asynccontextmanager
async def hearts(clock: MockClock, *, has_manager: bool) -> AsyncIterator[Hearts]:
    """Two workers that have shown life."""
    with short_directory() as directory, trio.socket.socket(socket.AF_UNIX) as sock:
        path = str(directory / "hearts")
        await sock.bind(path)
        sock.listen()
        command = [sys.executable, "-c", BEATS, path]
        async with told() as (manager, end):
            told_to = manager if has_manager else None
            async with running(command, 2, manager=told_to) as run:
                both = Hearts(run, clock, trio.SocketListener(sock), end)
                assert {await both.meet(), await both.meet()} == {1, 2}
                await both.second(1, 2)
                try:
                    yield both
                finally:
                    for stream in both.streams.values():
                        stream.socket.close()


@pytest.mark.parametrize(("has_manager", "patience"), [(False, 10), (True, 15)])
async def test_one_that_is_stuck_is_said_then_killed_and_replaced_and_no_other(
    has_manager: bool, patience: int, mock_clock: MockClock
) -> None:
    async with hearts(mock_clock, has_manager=has_manager) as workers:
        before = dict(workers.pids)
        for _ in range(patience):
            await workers.second(1)
            assert workers.fed == has_manager
        assert not await workers.run.lines("worker-silent", 0)
        await workers.second(1)
        (silent,) = await workers.run.lines("worker-silent", 1)
        assert (silent["worker"], silent["seconds"], silent["level"]) == (2, patience + 1, "error")
        assert silent["killed_after"] == 2 * patience
        for _ in range(patience - 1):
            await workers.second(1)
            assert workers.fed == has_manager
        assert not await workers.run.lines("worker-died", 0)
        await workers.second(1)
        (died,) = await workers.run.lines("worker-died", 1)
        assert (died["worker"], died["pid"], died["signal"]) == (2, before[2], "SIGKILL")
        assert await workers.meet() == 2
        assert workers.pids[1] == before[1]
        for _ in range(3 * patience):
            await workers.second(1, 2)
            assert workers.fed == has_manager
        assert len(await workers.run.lines("worker-silent", 1)) == 1
        assert len(await workers.run.lines("worker-started", 3)) == 3


async def test_one_that_was_silent_for_a_while_is_left_alone(mock_clock: MockClock) -> None:
    async with hearts(mock_clock, has_manager=False) as workers:
        for _ in range(3):
            for _ in range(19):
                await workers.second(1)
            await workers.second(1, 2)
        assert len(await workers.run.lines("worker-silent", 3)) == 3
        assert not await workers.run.lines("worker-died", 0)


async def test_the_time_that_all_were_stopped_together_is_nobodys_silence(
    mock_clock: MockClock,
) -> None:
    async with hearts(mock_clock, has_manager=True) as workers:
        for hours in (1, 1, 20):
            mock_clock.jump(3600 * hours)
            await trio.testing.wait_all_tasks_blocked(0.01)
            for _ in range(10):  # and they may take their time
                await workers.second()
            await workers.second(1, 2)
        assert not await workers.run.lines("worker-silent", 0)
        assert not await workers.run.lines("worker-died", 0)
        assert len(await workers.run.lines("worker-started", 2)) == 2


async def test_the_manager_hears_nothing_when_no_worker_serves_for_a_minute(
    mock_clock: MockClock,
) -> None:
    async with hearts(mock_clock, has_manager=True) as workers:
        for _ in range(31):
            await workers.second()
            assert workers.fed
        # those who are started instead never begin
        assert {await workers.meet(), await workers.meet()} == {1, 2}
        hopeless = 0
        while len(await workers.run.lines("worker-died", 2)) < 4:
            await workers.second()
            hopeless += not workers.fed
        assert hopeless > 10
        assert {await workers.meet(), await workers.meet()} == {1, 2}
        await workers.second(1)
        assert workers.fed
