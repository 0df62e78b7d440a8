"""``service.reload``: all or nothing; and the command, as a process, that is reloaded in use."""

import contextlib
import io
import json
import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from snimux.config.load import load
from snimux.config.model import Config
from snimux.log import Log
from snimux.net.listeners import Listener, besides, open_listeners
from snimux.proto.client_hello import TLS
from snimux.routing.address import TcpAddress
from snimux.runtime.filewatch import look
from snimux.service.control import Lines, Order, receive
from snimux.service.reload import File, Follower, NotFollowed, Reloader, Source
from snimux.service.systemd import Manager
from tests.hellos import load as load_hellos
from tests.support import muxes
from tests.support.caddy import free_port, short_directory, until
from tests.support.muxes import Mux
from tests.support.sockets import open_descriptors

HELLO = next(hello.data for hello in load_hellos() if hello.slug == "curl")
NAME = "secure.ciso.com"

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="looks at the process in /proc")
WORKERS = pytest.mark.parametrize("workers", [1, 2])


@pytest.fixture
def here() -> Iterator[Path]:
    """A directory whose path leaves room for a UNIX socket."""
    with short_directory() as directory:
        yield directory


def write(file: Path, text: str) -> None:
    """Write a file in one step, as it should be."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.rename(file)


# --- in this process, with somebody who only notes what is to be served


@dataclass
class Noted:
    """Who serves by a configuration, as far as a reload can see."""

    config: Config
    listeners: list[Listener]
    taken: list[Config] = field(default_factory=list)
    may_go_on: trio.Event | None = None

    def status(self) -> str:
        return "fine"

    async def take(self, config: Config, listeners: Sequence[Listener], text: str) -> None:
        self.taken.append(config)
        if self.may_go_on is not None:
            await self.may_go_on.wait()
        gone = besides(self.listeners, listeners)
        self.config, self.listeners = config, list(listeners)
        for listener in gone:
            listener.close()


@dataclass
class Tried:
    """A reloader that runs, with its file and its log."""

    file: Path
    target: Noted
    reloader: Reloader
    stream: io.StringIO

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]

    async def reload(self, text: str | None = None) -> dict[str, Any]:
        """Reload; the line that was logged last."""
        if text is not None:
            write(self.file, text)
        before = len(self.lines())
        self.reloader.ask()
        # the clock is the real one, for threads are not waited for by another
        await until(lambda: len(self.lines()) > before, "it has said how that went")
        await wait_all_tasks_blocked()
        line = self.lines()[-1]
        return {key: line[key] for key in line if key not in ("time", "seconds")}


ANYWHERE = 'listen = "127.0.0.1:0"\nwatch = "off"\n'
ROUTE = '[[route]]\nhosts = "{}"\nto = "127.0.0.1:{}"\n'
FIRST = ANYWHERE + ROUTE.format("a.test", 1)
UNCHANGED = {"added": 0, "removed": 0, "changed": 0, "opened": 0, "closed": 0}


@contextlib.asynccontextmanager
async def trying(directory: Path, manager: Manager | None = None) -> AsyncIterator[Tried]:
    before = open_descriptors()
    path = directory / "snimux.toml"
    write(path, FIRST)
    parse = partial(load, {"drain": "7"}, "f")
    config = parse(FIRST)
    target = Noted(config, open_listeners(config.addresses(TLS)))
    stream = io.StringIO()
    source = Source(File(str(path), FIRST, parse, look(str(path))), lambda _: 1)
    log = Log(stream, form="json")
    reloader = Reloader(source, target, log, manager or Manager())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reloader.run)
        yield Tried(path, target, reloader, stream)
        nursery.cancel_scope.cancel()
    for listener in target.listeners:
        listener.close()
    assert open_descriptors() == before


async def test_what_is_good_is_taken_whole_and_counted(tmp_path: Path) -> None:
    async with trying(tmp_path) as tried:
        (first,) = tried.target.listeners
        said = await tried.reload('drain = 8\nidle_timeout = 9\nhttp = "127.0.0.1:0"\n' + FIRST)
        assert said == {
            "level": "info", "event": "reloaded", **UNCHANGED, "opened": 1,
            "settings": "http,idle_timeout",
        }  # fmt: skip
        # flags win
        limits = tried.target.config.limits
        assert (limits.idle_timeout, limits.drain) == (9, 7)
        assert tried.target.listeners[0] == first
        assert tried.lines()[-2]["event"] == "listening"
        assert tried.lines()[-2]["protocol"] == "http"
        said = await tried.reload(ANYWHERE + ROUTE.format("a.test", 2) + ROUTE.format("b.test", 2))
        assert {key: said[key] for key in UNCHANGED} == {
            **UNCHANGED, "added": 1, "changed": 1, "closed": 1,
        }  # fmt: skip
        assert tried.lines()[-2]["event"] == "listening-ended"
        assert len(tried.target.taken) == 2


async def test_the_same_again_is_said_to_be_nothing(tmp_path: Path) -> None:
    async with trying(tmp_path) as tried:
        nothing = {"level": "info", "event": "reloaded", "detail": "nothing has changed"}
        assert await tried.reload() == {**nothing, **UNCHANGED}
        assert await tried.reload("# a comment\n" + FIRST) == {**nothing, **UNCHANGED}
        assert len(tried.target.taken) == 1


async def test_what_cannot_change_stays_and_is_named(tmp_path: Path) -> None:
    async with trying(tmp_path) as tried:
        await tried.reload('workers = 2\nrelay = "portable"\ndial_timeout = 3\n' + FIRST)
        warnings = [line for line in tried.lines() if line["level"] == "warning"]
        assert [(line["event"], line["setting"]) for line in warnings] == [
            ("needs-restart", "workers"), ("needs-restart", "relay"),
        ]  # fmt: skip
        config = tried.target.config
        assert (config.workers, config.relay, config.limits.dial_timeout) == (1, "auto", 3)


BAD: list[tuple[str | bytes | None, str]] = [
    ("drain = 3\n[[route]", "f: not TOML: "),
    ("", "no routes: "),
    ("max_helo = 3\n" + FIRST, "f: unknown key 'max_helo'; did you mean max_hello?"),
    (b"\xff", "not UTF-8, so not TOML"),
    (None, "No such file or directory"),
]


@pytest.mark.parametrize(("text", "words"), BAD, ids=range(len(BAD)))
async def test_what_is_bad_changes_nothing_and_says_why(
    tmp_path: Path, text: str | bytes | None, words: str
) -> None:
    async with trying(tmp_path) as tried:
        before = tried.target.config, tried.target.listeners
        if text is None:
            tried.file.unlink()
        elif isinstance(text, bytes):
            tried.file.write_bytes(text)
        said = await tried.reload(text if isinstance(text, str) else None)
        assert (said["level"], said["event"]) == ("error", "reload-failed")
        assert words in said["detail"]
        assert tried.reloader.last is not None
        assert tried.reloader.last.problems[0] == said["detail"]
        assert (tried.target.config, tried.target.listeners) == before
        assert tried.target.taken == []
        assert (await tried.reload(FIRST))["detail"] == "nothing has changed"
        assert not tried.reloader.last.problems


async def test_of_many_problems_the_first_are_said(tmp_path: Path) -> None:
    async with trying(tmp_path) as tried:
        said = await tried.reload("".join(f"bad{number} = 1\n" for number in range(30)))
        assert said["detail"] == "and 10 more"
        assert len(tried.lines()) == 21


async def test_what_is_no_regular_file_is_neither_read_nor_waited_for(tmp_path: Path) -> None:
    async with trying(tmp_path) as tried:
        before = open_descriptors()
        for make, kind in (
            (os.mkfifo, "a FIFO"),
            (partial(os.symlink, "/dev/zero"), "a character device"),
            (partial(os.symlink, "/dev/full"), "a character device"),
            (partial(os.symlink, "/dev/null"), "a character device"),
        ):
            tried.file.unlink()
            make(tried.file)
            line = await tried.reload()
            assert line["event"] == "reload-failed"
            assert line["detail"] == f"--config: {tried.file}: is {kind} and not a regular file"
        assert open_descriptors() == before
        tried.file.unlink()
        assert (await tried.reload(FIRST))["detail"] == "nothing has changed"


async def test_a_directory_is_no_file_and_leaves_nothing_open(tmp_path: Path) -> None:
    async with trying(tmp_path) as tried:
        tried.file.unlink()
        tried.file.mkdir()
        line = await tried.reload()
        assert (line["event"], line["detail"][-16:]) == ("reload-failed", ": Is a directory")


async def test_what_is_far_too_large_is_not_read(tmp_path: Path) -> None:
    async with trying(tmp_path) as tried:
        with tried.file.open("ab") as file:
            file.truncate(2**40)
        line = await tried.reload()
        assert line["event"] == "reload-failed"
        assert line["detail"].endswith(": is larger than 16 MiB")


async def test_keys_that_are_nested_thousands_deep_change_nothing(tmp_path: Path) -> None:
    async with trying(tmp_path) as tried:
        line = await tried.reload(f"{FIRST}[{'a.' * 100_000}a]\n")
        assert line["detail"] == "f: not TOML that can be read: nested too deep"
        assert tried.target.taken == []


async def test_if_one_address_cannot_be_had_nothing_changes(tmp_path: Path) -> None:
    async with trying(tmp_path) as tried:
        with socket.create_server(("127.0.0.1", 0)) as holder:
            taken = f'"127.0.0.1:{holder.getsockname()[1]}"'
            more = FIRST.replace('"127.0.0.1:0"', f'["127.0.0.1:0", "[::1]:0", {taken}]')
            descriptors = open_descriptors()
            said = await tried.reload(more)
            assert said["detail"].startswith(f"cannot listen on {taken[1:-1]}: ")
            assert open_descriptors() == descriptors
            assert tried.target.taken == []
        # it is tried again, though the file has not changed
        assert (await tried.reload())["opened"] == 2


async def test_an_error_that_nobody_expects_ends_nothing(tmp_path: Path) -> None:
    async with trying(tmp_path) as tried:
        broken = File(str(tried.file), FIRST, lambda _: 1 / 0)  # type: ignore[arg-type, return-value]
        good, tried.reloader.source = tried.reloader.source, Source(broken, lambda _: 1)
        assert "ZeroDivisionError" in (await tried.reload("# other\n" + FIRST))["detail"]
        tried.reloader.source = good
        assert (await tried.reload())["event"] == "reloaded"


async def test_who_asks_during_a_reload_is_heeded_afterwards_once(tmp_path: Path) -> None:
    async with trying(tmp_path) as tried:
        tried.target.may_go_on = trio.Event()
        write(tried.file, "idle_timeout = 1\n" + FIRST)
        tried.reloader.ask()
        await until(lambda: tried.target.taken, "the first has begun")
        write(tried.file, "idle_timeout = 2\n" + FIRST)
        for _ in range(3):
            tried.reloader.ask()
            await wait_all_tasks_blocked()
        assert len(tried.target.taken) == 1
        tried.target.may_go_on.set()
        await until(lambda: len(tried.lines()) == 2, "both are done")
        await wait_all_tasks_blocked(0.02)
        assert [x.limits.idle_timeout for x in tried.target.taken] == [1, 2]
        assert len(tried.lines()) == 2


async def test_a_reload_that_is_cancelled_leaves_nothing_open(tmp_path: Path) -> None:
    async with trying(tmp_path) as tried:
        tried.target.may_go_on = trio.Event()
        write(tried.file, 'http = "127.0.0.1:0"\n' + FIRST)
        tried.reloader.ask()
        await until(lambda: tried.target.taken, "it has begun")
    assert tried.lines() == []


async def test_who_stops_in_the_moment_in_which_a_reload_is_wanted_does_not_reload(
    tmp_path: Path,
) -> None:
    async with trying(tmp_path) as tried:
        await wait_all_tasks_blocked()
        tried.reloader.ask()
        for listener in tried.target.listeners:
            listener.close()
    assert tried.lines() == []


async def test_the_manager_is_told_of_begin_end_and_fault(tmp_path: Path, here: Path) -> None:
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        await told.bind(str(here / "s"))
        manager = Manager(str(here / "s"))
        manager.serving("fine")
        await told.recv(4096)
        async with trying(tmp_path, manager) as tried:
            await tried.reload("x = 1\n" + FIRST)
            assert (await told.recv(4096)).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
            fault = b"fine; not reloaded: f: unknown key 'x'; "
            assert (await told.recv(4096)).startswith(b"READY=1\nSTATUS=" + fault)
            await tried.reload(FIRST)
            assert (await told.recv(4096)).startswith(b"RELOADING=1\n")
            assert await told.recv(4096) == b"READY=1\nSTATUS=fine"


@contextlib.contextmanager
def following() -> Iterator[tuple[Follower, Noted, socket.socket]]:
    """A worker's part, and its supervisor's end; no descriptor is left open after it."""
    before = open_descriptors()
    config = load({}, "f", FIRST)
    (first,) = open_listeners(config.addresses(TLS))
    target = Noted(config, [Listener(first.socket, number=5)])
    source = Source(File("f", FIRST, partial(load, {}, "f")), lambda _: 1)
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)
    with ends[0], ends[1]:
        yield Follower(source, target, ends[1]), target, ends[0]
    for listener in target.listeners:
        listener.close()
    assert open_descriptors() == before


def descriptor(text: str) -> int:
    """One of a file with this content, which is closed by whom it is given to."""
    reading = Path("/dev/fd") if sys.platform == "darwin" else None
    assert reading is None or reading.exists()
    with short_directory() as directory:
        (directory / "f").write_text(text)
        return os.open(directory / "f", os.O_RDONLY)


async def test_a_worker_follows_step_by_step_and_answers() -> None:
    with following() as (follower, target, supervisor):
        (new,) = open_listeners([TcpAddress("127.0.0.1", 0)])
        for order in (
            Order("listener", 6, {}, (os.dup(new.socket.fileno()),), "127.0.0.1:0"),
            Order("reload", 1, {5: "http", 6: "tls"}, (descriptor("drain = 1\n" + FIRST),)),
            Order("reload", 2, {6: "tls"}, (descriptor("drain = 2\n" + FIRST),)),
        ):
            follower.hear(order)
        new.close()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follower.run)
            answers = Lines(supervisor)
            assert await receive(answers) == Order("reloaded", 1)
            assert await receive(answers) == Order("reloaded", 2)
            nursery.cancel_scope.cancel()
        assert [x.limits.drain for x in target.taken] == [1, 2]
        assert [(x.number, x.protocol) for x in target.listeners] == [(6, "tls")]


@pytest.mark.parametrize("text", [FIRST, "no TOML"])
async def test_a_worker_that_cannot_follow_says_so_and_keeps_nothing(text: str) -> None:
    with following() as (follower, target, _):
        (new,) = open_listeners([TcpAddress("127.0.0.1", 0)])
        serve = {5: "tls"} if text != FIRST else {7: "tls"}
        for order in (
            Order("listener", 6, {}, (os.dup(new.socket.fileno()),), "127.0.0.1:0"),
            Order("reload", 1, serve, (descriptor(text),)),
            Order("reload", 2, serve, (descriptor(text),)),
        ):
            follower.hear(order)
        new.close()
        with pytest.raises(NotFollowed):
            await follower.run()
        assert target.taken == []


async def test_a_worker_that_ends_keeps_nothing_and_is_not_waited_for() -> None:
    with following() as (follower, target, supervisor):
        answers = Lines(supervisor)
        target.may_go_on = trio.Event()
        follower.hear(Order("reload", 1, {5: "http"}, (descriptor("drain = 1\n" + FIRST),)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follower.run)
            await until(lambda: target.taken, "it has begun")
            follower.hear(Order("reload", 2, {5: "tls"}, (descriptor(FIRST),)))
            nursery.cancel_scope.cancel()
        (new,) = open_listeners([TcpAddress("127.0.0.1", 0)])
        handed = (os.dup(new.socket.fileno()),)
        follower.hear(Order("listener", 6, {}, handed, "127.0.0.1:0"))
        follower.hear(Order("reload", 3, {6: "tls"}, (descriptor(FIRST),)))
        new.close()
        for number in (1, 2, 3):
            assert await receive(answers) == Order("reloaded", number)


# --- the command, as a process


@dataclass(frozen=True, slots=True)
class Backends:
    """Two servers, which answer a hello with their letter, and then echo."""

    a: int
    b: int


@contextlib.asynccontextmanager
async def backends() -> AsyncIterator[Backends]:
    async def answer(letter: bytes, stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            async with stream:
                rest = len(HELLO)
                while rest and (data := await stream.receive_some(rest)):
                    rest -= len(data)
                await stream.send_all(letter)
                async for more in stream:
                    await stream.send_all(more)

    async with trio.open_nursery() as nursery:
        ports = []
        for letter in (b"a", b"b"):
            listening = partial(trio.serve_tcp, partial(answer, letter), 0, host="127.0.0.1")
            (listener,) = await nursery.start(listening)
            ports.append(listener.socket.getsockname()[1])
        yield Backends(*ports)
        nursery.cancel_scope.cancel()


async def begin(port: int) -> tuple[trio.SocketStream, bytes]:
    """A connection that is relayed, and the letter of its backend; fails if it is refused."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    await stream.send_all(HELLO)
    return stream, bytes(await stream.receive_some(1))


async def letter(port: int) -> bytes:
    stream, found = await begin(port)
    await stream.aclose()
    return found


@dataclass
class Reloaded:
    """A snimux, and its file."""

    mux: Mux
    file: Path

    def count(self, event: str = "reloaded") -> int:
        return self.mux.stderr.count(f'"event": "{event}"')

    async def reload(self, text: str, event: str = "reloaded") -> dict[str, Any]:
        """Write the file and tell it; what it says of that."""
        before = self.count(event)
        write(self.file, text)
        self.mux.send_signal(signal.SIGHUP)
        await until(lambda: self.count(event) > before, f"it says {event}", seconds=30)
        return self.mux.lines(event=event)[-1]


@contextlib.asynccontextmanager
async def reloadable(
    directory: Path, text: str, *args: str, workers: int = 1, listen: str = ""
) -> AsyncIterator[Reloaded]:
    """A snimux that serves by a file, which it does not watch unless told to."""
    file = directory / "snimux.toml"
    write(file, text)
    flags = ["--config", str(file), "--watch", "off", "--workers", str(workers), *args]
    async with muxes.running(directory, *flags, listen=listen) as mux:
        yield Reloaded(mux, file)


def to(port: int, listen: Sequence[int] = (), more: str = "") -> str:
    addresses = [f"127.0.0.1:{each}" for each in listen]
    where = f"listen = {json.dumps(addresses)}\n" if listen else ""
    return more + where + ROUTE.format(NAME, port)


@WORKERS
async def test_new_connections_go_elsewhere_and_open_ones_stay(here: Path, workers: int) -> None:
    async with backends() as there:
        async with reloadable(here, to(there.a), workers=workers, listen="127.0.0.1:0") as snimux:
            port = snimux.mux.port
            open_one, found = await begin(port)
            assert found == b"a"
            said = await snimux.reload(to(there.b))
            assert (said["changed"], said["opened"], said["closed"]) == (1, 0, 0)
            for _ in range(10):
                assert await letter(port) == b"b"
            await open_one.send_all(b"still")
            assert await open_one.receive_some(100) == b"still"
            await open_one.aclose()
            # a bad one changes nothing, and a worker that starts then has what is in effect
            said = await snimux.reload(to(there.a, more="drain = -1\n"), "reload-failed")
            assert said["detail"].endswith(": drain: -1 is not a number of seconds above 0; "
                                           "write off for no limit")  # fmt: skip
            if workers > 1:
                started = snimux.mux.lines(event="worker-started")
                os.kill(started[0]["pid"], signal.SIGKILL)
                await until(lambda: snimux.count("worker-started") == 3, "it is replaced")
                os.kill(started[1]["pid"], signal.SIGKILL)
                await until(lambda: snimux.count("worker-started") == 4, "it is replaced")
            for _ in range(10):
                assert await letter(port) == b"b"


@WORKERS
async def test_a_listener_that_comes_is_no_backend(here: Path, workers: int) -> None:
    stays, comes = free_port(), free_port()
    # it is not known for what it is by what is written
    loop = f'wait = "off"\ndefault = "[::ffff:127.0.0.1]:{comes}"\nlisten = "127.0.0.1:{stays}"\n'
    both = loop.replace(f'"127.0.0.1:{stays}"', f'["127.0.0.1:{stays}", "127.0.0.1:{comes}"]')
    words = f"it is snimux itself (listener 127.0.0.1:{comes})"
    async with reloadable(here, loop, workers=workers) as snimux:
        for text in ("", both, loop):
            if text:
                await snimux.reload(text)
            mux = snimux.mux.from_here()
            assert await letter(stays) == b"\x15"  # an alert
            line = await mux.log_line(reason="backend-down")
            assert line["detail"].endswith(words) == (text == both), line


@WORKERS
async def test_listeners_come_and_go_and_nobody_is_refused(here: Path, workers: int) -> None:
    stays, comes = free_port(), free_port()
    done = trio.Event()
    served = 0

    async def keep_connecting() -> None:
        nonlocal served
        while not done.is_set():
            assert await letter(stays) == b"a"
            served += 1

    async def be_answered(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(HELLO)
            assert await stream.receive_some(1) == b"a"

    async with backends() as there:
        async with reloadable(here, to(there.a, [stays]), workers=workers) as snimux:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(keep_connecting)
                for _ in range(5):
                    said = await snimux.reload(to(there.a, [stays, comes]))
                    assert (said["opened"], said["closed"]) == (1, 0)
                    assert await letter(comes) == b"a"
                    # these are in its queue at most when it goes
                    streams = [await trio.open_tcp_stream("127.0.0.1", comes) for _ in range(20)]
                    said = await snimux.reload(to(there.a, [stays]))
                    assert (said["opened"], said["closed"]) == (0, 1)
                    async with trio.open_nursery() as waiting:
                        for stream in streams:
                            waiting.start_soon(be_answered, stream)
                    with pytest.raises(OSError, match="connect"):
                        await letter(comes)
                done.set()
            assert served
            # to the other protocol and back, on the same socket
            http = to(there.a, [stays], f'http = "127.0.0.1:{comes}"\n')
            await snimux.reload(to(there.a, [stays, comes]))
            said = await snimux.reload(http)
            assert (said["opened"], said["closed"]) == (0, 0)
            async with await trio.open_tcp_stream("127.0.0.1", comes) as stream:
                await stream.send_all(b"GET / HTTP/1.1\r\nHost: secure.ciso.com\r\n\r\n")
                assert (await stream.receive_some(100)).startswith(b"HTTP/1.1 308 ")


@WORKERS
async def test_flags_still_win_and_limits_change(here: Path, workers: int) -> None:
    async with backends() as there:
        route = f"--route={NAME}=127.0.0.1:{there.a}"
        flags = (route, "--idle-timeout", "9")
        async with reloadable(
            here, to(there.b), *flags, workers=workers, listen="127.0.0.1:0"
        ) as snimux:
            port, other = snimux.mux.port, free_port()
            limits = "idle_timeout = 5\nmax_connections_per_source = 2\n"
            said = await snimux.reload(to(there.b, [other], limits))
            assert said["settings"] == "max_connections_per_source"
            assert (said["opened"], said["closed"], said["changed"]) == (0, 0, 0)
            streams = []
            for _ in range(2):
                stream, found = await begin(port)
                assert found == b"a"
                streams.append(stream)
            assert await letter(port) == b"\x15"  # an alert
            said = await snimux.reload(to(there.b, [other], limits.replace("2", "3")))
            stream, found = await begin(port)
            assert found == b"a"
            for each in (*streams, stream):
                await each.aclose()


@WORKERS
async def test_the_limit_of_the_whole_changes_for_who_waits(here: Path, workers: int) -> None:
    async with backends() as there:
        limited = to(there.a, more="max_connections = 1\n")
        async with reloadable(here, limited, workers=workers, listen="127.0.0.1:0") as snimux:
            first, _ = await begin(snimux.mux.port)
            second = await trio.open_tcp_stream("127.0.0.1", snimux.mux.port)
            await second.send_all(HELLO)
            await snimux.mux.log_line(event="full")
            await snimux.reload(to(there.a, more="max_connections = 2\n"))
            with trio.fail_after(10):
                assert await second.receive_some(1) == b"a"
            await first.aclose()
            await second.aclose()


@ON_LINUX
@pytest.mark.parametrize(("workers", "reloads"), [(1, 1000), (2, 30)])
async def test_reloads_under_load_lose_nothing_and_leak_nothing(
    here: Path, workers: int, reloads: int
) -> None:
    done, served = trio.Event(), 0

    async def keep_connecting(port: int) -> None:
        nonlocal served
        while not done.is_set():
            assert await letter(port) in (b"a", b"b")
            served += 1
            await trio.sleep(0.005)

    def held() -> tuple[list[int], list[int]]:
        pids = [snimux.mux.pid, *(x["pid"] for x in snimux.mux.lines(event="worker-started"))]
        descriptors = [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids]  # noqa: PTH208
        pages = [int(Path(f"/proc/{pid}/statm").read_text("utf-8").split()[1]) for pid in pids]
        return descriptors, pages

    async def both() -> None:
        # what a first time takes (a thread, a module) is no leak
        for text in texts:
            await snimux.reload(text)

    async with backends() as there:
        stays, comes = free_port(), free_port()
        texts = [to(there.a, [stays]), to(there.b, [stays, comes], "drain = 3\n")]
        async with reloadable(here, texts[0], workers=workers) as snimux:
            await letter(stays)
            await both()
            await until(lambda: snimux.count("connection") == 1, "it has ended")
            before = held()
            with snimux.mux.log_file.open("rb") as log:
                log.seek(0, os.SEEK_END)
                async with trio.open_nursery() as nursery:
                    for _ in range(4):
                        nursery.start_soon(keep_connecting, stays)
                    for number in range(reloads):
                        write(snimux.file, texts[number % 2])
                        snimux.mux.send_signal(signal.SIGHUP)
                        with trio.fail_after(30):
                            while b'"event": "reloaded"' not in log.read():
                                await trio.sleep(0.001)
                    done.set()
            assert snimux.count("reload-failed") == 0
            assert snimux.count() == 2 + reloads
            await until(lambda: snimux.count("connection") == 1 + served, "all have ended")
            after = held()
            assert served > 20
            assert after[0] == before[0]
            # 20 KiB a reload would be 20 MiB
            for old, new in zip(before[1], after[1], strict=True):
                assert (new - old) * os.sysconf("SC_PAGE_SIZE") < 10 * 2**20


@pytest.mark.parametrize(("workers", "how"), [(1, Path.write_text), (2, write)])
async def test_a_change_of_the_file_is_seen(
    here: Path, workers: int, how: Callable[[Path, str], object]
) -> None:
    async with backends() as there:
        watched = ("--watch", "on")
        async with reloadable(
            here, to(there.a), *watched, workers=workers, listen="127.0.0.1:0"
        ) as snimux:
            assert await letter(snimux.mux.port) == b"a"
            how(snimux.file, to(there.b))
            await until(snimux.count, "it has seen it", seconds=30)
            assert await letter(snimux.mux.port) == b"b"


async def test_a_file_for_fewer_workers_is_read_for_those_there_are(here: Path) -> None:
    file, rest = here / "f", 'to = "127.0.0.1:1"'
    write(file, f"workers = 2\n{FIRST}")
    async with muxes.running(here, "--config", str(file), listen="") as mux:
        one = '[[listen]]\naddress = "fd/9"\nallow = "192.0.2.0/24"\n'
        write(file, f'workers = 1\nwatch = "off"\n{one}[[route]]\nhosts = "a.test"\n{rest}\n')
        mux.send_signal(signal.SIGHUP)
        said = await mux.log_line(event="reload-failed")
        assert "which workers do not know by its number" in said["detail"]


@WORKERS
async def test_without_a_file_it_says_that_there_is_none(here: Path, workers: int) -> None:
    async with backends() as there:
        flags = (f"--route={NAME}=127.0.0.1:{there.a}", "--workers", str(workers))
        async with muxes.running(here, *flags) as mux:
            mux.send_signal(signal.SIGHUP)
            said = await mux.log_line(event="reloaded")
            assert said["detail"] == "no --config FILE to read again"
            # systemd signals each process of a service
            for line in mux.lines(event="worker-started"):
                os.kill(line["pid"], signal.SIGHUP)
            assert await letter(mux.port) == b"a"
            assert not mux.lines(event="worker-died")


# Blocked from the start, a signal waits until it is heeded or is an end.
HELD = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
os.kill(os.getpid(), signal.SIGHUP)
os.execv(sys.argv[1], sys.argv[1:])
"""


@WORKERS
async def test_a_signal_before_it_is_ready_is_heeded_then(here: Path, workers: int) -> None:
    file = here / "f"
    write(file, FIRST)
    flags = ("--config", str(file), "--workers", str(workers))
    async with muxes.running(here, *flags, wrapper=[sys.executable, "-c", HELD]) as mux:
        await mux.log_line(event="reloaded")


@WORKERS
async def test_told_to_stop_it_does_not_wait_for_a_reload(here: Path, workers: int) -> None:
    routes = "".join(ROUTE.format(f"h{number}.test", 1) for number in range(20_000))
    async with backends() as there:
        async with reloadable(here, to(there.a), workers=workers, listen="127.0.0.1:0") as snimux:
            open_one, _ = await begin(snimux.mux.port)
            write(snimux.file, to(there.a) + routes)
            snimux.mux.send_signal(signal.SIGHUP)
            snimux.mux.send_signal(signal.SIGTERM)
            await snimux.mux.log_line(event="draining")
            # and in the drain nothing is read
            snimux.mux.send_signal(signal.SIGHUP)
            await open_one.send_all(b"still")
            assert await open_one.receive_some(100) == b"still"
            await open_one.aclose()
            assert await snimux.mux.exit_status(seconds=30) == 0, snimux.mux.stderr
            assert snimux.count() == snimux.count("reload-failed") == 0


IN_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(2, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def in_terminal(terminal: int, command: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, which has this terminal."""
    return subprocess.Popen(
        [sys.executable, "-c", IN_TERMINAL, *command],
        stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
    )  # fmt: skip


async def test_a_terminal_that_closes_is_no_end(here: Path) -> None:
    port = free_port()
    async with backends() as there:
        file = here / "f"
        write(file, to(there.a, [port]))
        master, slave = pty.openpty()
        command = [sys.executable, "-m", "snimux", "--config", str(file)]
        process = in_terminal(slave, command)
        os.close(slave)
        try:
            seen = bytearray()
            with trio.fail_after(30):
                while b"event=listening" not in seen:
                    await trio.lowlevel.wait_readable(master)
                    seen += os.read(master, 4096)
            os.close(master)
            write(file, to(there.b, [port]))
            with trio.fail_after(30):
                while await letter(port) != b"b":  # by the hang-up, or by the watch
                    await trio.sleep(0.01)
            process.terminate()
            await until(lambda: process.poll() is not None, "it ends", seconds=30)
            assert process.returncode == 0
        finally:
            process.kill()
            process.wait()
