"""``service.upgrade``: real processes, each of which hands over to the next, under load.

With a real systemd, see ``test_units``.
"""

import atexit
import contextlib
import io
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio
from trio.testing import MockClock

from snimux.log import Log
from snimux.net.listeners import Listener, adopted, open_listeners
from snimux.routing.address import FdAddress, TcpAddress, UnixAddress
from snimux.service.handover import Inheritance, inheritance
from snimux.service.systemd import HandoverError, Manager
from snimux.service.upgrade import Succession
from tests.hellos import load
from tests.support import muxes
from tests.support.caddy import free_port, short_directory, until
from tests.support.machine import REPOSITORY
from tests.support.muxes import Mux
from tests.support.sockets import open_descriptors, read

HELLO = next(hello.data for hello in load() if hello.slug == "curl")
REQUEST = b"GET / HTTP/1.1\r\nHost: secure.ciso.com\r\n\r\n"

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="looks at the process in /proc")
WORKERS = pytest.mark.parametrize("workers", [1, 2])


@pytest.fixture
def here() -> Iterator[Path]:
    with short_directory() as directory:
        yield directory


def is_running(pid: int) -> bool:
    """Whether it has not ended; an orphan may have nobody who asks how."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def gone(pids: Sequence[int]) -> None:
    """Wait until they have ended; whoever does not is killed, and that is a failure."""
    try:
        await until(lambda: not any(map(is_running, pids)), "all have ended", seconds=30)
    finally:
        for pid in filter(is_running, pids):
            os.kill(pid, signal.SIGKILL)


async def echo(stream: trio.SocketStream) -> None:
    """A backend that sends back what it is sent."""
    with contextlib.suppress(trio.BrokenResourceError):
        async for data in stream:
            await stream.send_all(data)


@dataclass
class Dynasty:
    """A snimux and its successors: the one that serves now, and how to ask for the next."""

    mux: Mux
    pid: int
    unix: Path
    http: int
    workers: int = 1
    pids: list[int] = field(default_factory=list)

    def has(self, count: int, **fields: object) -> Callable[[], bool]:
        """Whether there are so many lines that have these fields."""
        return lambda: len(self.mux.lines(**fields)) >= count

    async def lines(self, count: int, **fields: object) -> list[muxes.Line]:
        """The lines that have these fields, as soon as there are so many."""
        try:
            await until(self.has(count, **fields), f"{count} lines with {fields}", seconds=60)
        except AssertionError as error:
            said = [x for x in self.mux.stderr.splitlines() if '"connection"' not in x]
            raise AssertionError("\n".join([str(error), *said])) from None
        return self.mux.lines(**fields)

    async def upgrade(self) -> int:
        """Hand over once, to the end of it; the process id of the one that leaves."""
        leaves, count = self.pid, len(self.mux.lines(event="handed-over"))
        drained = len(self.mux.lines(event="draining"))
        os.kill(leaves, signal.SIGUSR2)
        self.pid = (await self.lines(count + 1, event="handed-over"))[-1]["pid"]
        self.pids.append(self.pid)
        # each worker is told, and none accepts any more
        await self.lines(drained + self.workers, event="draining")
        return leaves

    async def has_ended(self, pid: int) -> None:
        if pid == self.mux.pid:
            assert await self.mux.exit_status(seconds=30) == 0
        else:
            await until(lambda: not is_running(pid), f"{pid} has ended", seconds=30)

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.mux.port)


@contextlib.asynccontextmanager
async def running(
    here: Path, *args: str, workers: int = 1, wrapper: Sequence[str] = ()
) -> AsyncIterator[Dynasty]:
    """A snimux on TCP, on a UNIX socket and for plain HTTP, before a backend that echoes."""
    unix, http = here / "listen", free_port()
    async with trio.open_nursery() as nursery:
        (backend, *_) = await nursery.start(partial(trio.serve_tcp, echo, 0, host="127.0.0.1"))
        to = f"127.0.0.1:{backend.socket.getsockname()[1]}"
        file = here / "snimux.toml"
        file.write_text(f'[[route]]\nhosts = "*"\nto = "{to}"\nhttp = "{to}"\n')
        flags = [f"--listen=unix/{unix}", f"--http=127.0.0.1:{http}", f"--config={file}"]
        flags += [f"--workers={workers}", *args]
        async with muxes.running(here, *flags, wrapper=wrapper) as mux:
            run = Dynasty(mux, mux.pid, unix, http, workers, [mux.pid])
            try:
                await run.lines(1, event="relay")
                yield run
            finally:
                pids = [line["pid"] for line in mux.lines(event="upgrading")]
                for pid in filter(is_running, pids):
                    os.kill(pid, signal.SIGTERM)
                with trio.CancelScope(shield=True):
                    await gone(pids)
        nursery.cancel_scope.cancel()


async def exchanged(stream: trio.SocketStream, first: bytes = HELLO) -> None:
    """Have what was sent come back."""
    await stream.send_all(first)
    assert await read(stream.socket, len(first)) == first


class Load:
    """Connections, one after the other, on each kind of listener; any that fails ends the test."""

    def __init__(self, run: Dynasty) -> None:
        self.run = run
        self.count = 0
        self.enough = False

    async def tcp(self) -> None:
        await self.again_and_again(self.run.connect, HELLO)

    async def unix(self) -> None:
        await self.again_and_again(partial(trio.open_unix_socket, self.run.unix), HELLO)

    async def http(self) -> None:
        connect = partial(trio.open_tcp_stream, "127.0.0.1", self.run.http)
        await self.again_and_again(connect, REQUEST)

    async def again_and_again(self, connect: Any, first: bytes) -> None:
        while not self.enough:
            async with await connect() as stream:
                await exchanged(stream, first)
                await exchanged(stream, b"more")
                await stream.send_eof()
                assert await stream.receive_some() == b""
            self.count += 1

    @contextlib.asynccontextmanager
    async def going_on(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            for kind in (self.tcp, self.unix, self.http, self.tcp):
                nursery.start_soon(kind)
            await until(lambda: self.count > 20, "the load is on")
            yield
            so_far = self.count
            await until(lambda: self.count > so_far + 20, "the load goes on")
            self.enough = True


@WORKERS
async def test_upgrades_in_a_row_lose_nothing_and_long_lives_end_where_they_began(
    here: Path, workers: int
) -> None:
    async with running(here, workers=workers) as run:
        load = Load(run)
        async with load.going_on():
            for _ in range(3 - workers):
                async with await run.connect() as long, await run.connect() as longer:
                    await exchanged(long)
                    await exchanged(longer)
                    leaves = await run.upgrade()
                    await exchanged(long, b"bytes")
                    assert is_running(leaves)
                    await run.upgrade()
                    await exchanged(longer, b"bytes")
                    assert is_running(leaves)
                await run.has_ended(leaves)
        ends = run.mux.lines(event="connection")
        assert {line["ended"] for line in ends} <= {"eof", "client-reset"}
        for pid in run.pids[:-1]:
            await run.has_ended(pid)
        assert run.unix.is_socket()
        os.kill(run.pid, signal.SIGTERM)
        await run.has_ended(run.pid)
        assert not run.unix.exists()
        assert len(run.mux.lines(event="stopped")) == len(run.pids) * (1 if workers == 1 else 3)
        assert not run.mux.lines(level="error")
        # nothing that was open had a limit
        limits = [line["seconds"] for line in run.mux.lines(event="draining")]
        assert limits == ["off"] * workers * len(run.pids[1:]) + [30.0] * workers


@ON_LINUX
@pytest.mark.timeout(300)
async def test_ten_upgrades_leak_nothing(here: Path) -> None:
    async with running(here) as run:
        found = []
        for _ in range(10):
            await run.has_ended(await run.upgrade())
            await exchanged_once(run)
            found.append(await settled(run.pid))
        assert len(set(found)) == 1
        assert not psutil.Process(run.pid).children()


async def exchanged_once(run: Dynasty) -> None:
    async with await run.connect() as stream:
        await exchanged(stream)


async def settled(pid: int) -> int:
    """How many descriptors it has when it has none of connections."""
    process = psutil.Process(pid)

    def is_idle() -> bool:
        return all(x.status == psutil.CONN_LISTEN for x in process.net_connections("tcp"))

    await until(is_idle, "all connections have been closed")
    return process.num_fds()


# --- what does not come to an upgrade


async def refused(run: Dynasty) -> muxes.Line:
    """Ask for an upgrade that comes to nothing; what is said of it."""
    count = len(run.mux.lines(event="upgrade-failed"))
    os.kill(run.pid, signal.SIGUSR2)
    return (await run.lines(count + 1, event="upgrade-failed"))[-1]


async def test_a_bad_file_changes_nothing_and_the_next_one_is_heeded(here: Path) -> None:
    async with running(here) as run, await run.connect() as long:
        await exchanged(long)
        file = here / "snimux.toml"
        good = file.read_text()
        file.write_text(f"drian = 3\n{good}")
        said = await refused(run)
        assert (said["status"], said["level"]) == (2, "error")
        assert "snimux.toml: unknown key 'drian'; did you mean drain?" in run.mux.stderr
        assert not is_running(said["pid"])
        await exchanged(long, b"bytes")
        await exchanged_once(run)
        assert not psutil.Process(run.pid).children()
        # an address that cannot be had leaves those that are there alone
        file.write_text(f'listen = "192.0.2.1:1"\n{good}')
        # by flags, which win: so that is of no matter
        leaves = await run.upgrade()
        await exchanged_once(run)
        await long.aclose()
        await run.has_ended(leaves)


async def test_the_file_is_read_anew_and_listeners_come_and_go(here: Path) -> None:
    file, wanted, unwanted = here / "flags", here / "wanted", here / "unwanted"
    kept = f"127.0.0.1:{free_port()}"
    async with running(here) as first:
        route = (here / "snimux.toml").read_text()
        file.write_text(f'listen = ["{kept}", "unix/{unwanted}"]\n{route}')
        command = [sys.executable, "-m", "snimux", "--log-format=json", f"--config={file}"]
        mux = started(command, here / "other.log")
        run = Dynasty(mux, mux.pid, unwanted, first.http)
        try:
            await run.lines(1, event="relay")
            async with await trio.open_unix_socket(unwanted) as long:
                await exchanged(long)
                file.write_text(f'listen = ["unix/{wanted}", "{kept}"]\n{route}')
                leaves = await run.upgrade()
                # what the new one does not want is gone as soon as it serves
                await until(lambda: not unwanted.exists(), "its file is removed")
                for connect in (run.connect, partial(trio.open_unix_socket, wanted)):
                    async with await connect() as short:
                        await exchanged(short)
                # one that cannot be had
                file.write_text(f'listen = ["192.0.2.1:1", "{kept}"]\n{route}')
                assert (await refused(run))["status"] == 1
                assert "cannot listen on 192.0.2.1:1: no interface" in run.mux.stderr
                assert wanted.is_socket()
                await exchanged(long, b"bytes")
            await run.has_ended(leaves)
        finally:
            await ended(run)
        assert not wanted.exists()
        assert "Traceback" not in run.mux.stderr


def started(command: Sequence[str], log_file: Path) -> Mux:
    """One whose listeners are not by flag."""
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log)
    atexit.register(process.kill)
    return Mux(process, log_file)


async def ended(run: Dynasty) -> None:
    """End whichever is left."""
    for pid in (run.mux.pid, run.pid):
        if is_running(pid):
            os.kill(pid, signal.SIGTERM)
    await until(lambda: not is_running(run.pid), "it has ended")
    run.mux.process.wait(timeout=10)


def copied(here: Path) -> tuple[Path, list[str]]:
    """A copy of the program that can be changed, and how to start that."""
    package = here / "site/snimux"
    shutil.copytree(REPOSITORY / "snimux", package, ignore=shutil.ignore_patterns("__pycache__"))
    return package / "__init__.py", ["sh", "-c", 'cd "$0" && exec "$@"', str(here / "site")]


async def test_the_successor_is_what_is_installed_now(here: Path) -> None:
    module, wrapper = copied(here)
    text = module.read_text()
    async with running(here, wrapper=wrapper) as run:
        for version in ("one", "two"):
            module.write_text(f'{text}\nimport sys\nprint("version {version}", file=sys.stderr)\n')
            await run.upgrade()
            await exchanged_once(run)
        said = [line for line in run.mux.stderr.splitlines() if line.startswith("version")]
        assert said == ["version one", "version two"]
        # one that cannot even be read
        module.write_text("import no_such_module\n")
        assert (await refused(run))["status"] == 1
        assert "No module named 'no_such_module'" in run.mux.stderr
        await exchanged_once(run)
        # `Mux.end` takes that for snimux's own
        run.mux.log_file.write_text(run.mux.stderr.replace("Traceback", "Trace"))


def ignored_by(pid: int) -> list[int]:
    """The signals that a process ignores: proc(5), SigIgn."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (mask,) = [int(line.split()[1], 16) for line in lines if line.startswith("SigIgn")]
    return [number for number in range(1, 65) if mask >> (number - 1) & 1]


@ON_LINUX
async def test_who_is_told_to_stop_leaves_nobody_half_started(here: Path) -> None:
    module, wrapper = copied(here)
    os.mkfifo(here / "never")
    async with running(here, "--drain=off", wrapper=wrapper) as run:
        module.write_text(f"open({str(here / 'never')!r}).read()")
        os.kill(run.pid, signal.SIGUSR2)
        (successor,) = await run.lines(1, event="upgrading")
        # one at a time
        os.kill(run.pid, signal.SIGUSR2)
        (ignored,) = await run.lines(1, event="upgrade-ignored")
        assert ignored["detail"] == "there is a successor already"
        # nor one of its own: who wants one may signal all processes of a service
        assert signal.SIGUSR2 in ignored_by(successor["pid"])
        await exchanged_once(run)
        os.kill(run.pid, signal.SIGTERM)
        await run.lines(1, event="draining")
        assert is_running(successor["pid"])  # it has time to end well
        os.kill(run.pid, signal.SIGTERM)
        assert await run.mux.exit_status() == 0
        assert not is_running(successor["pid"])
        assert run.mux.lines(event="upgrade-failed", signal="SIGKILL", level="info")
        assert not run.unix.exists()


async def test_who_is_told_to_stop_while_the_successor_starts_is_obeyed_by_both(
    here: Path,
) -> None:
    async with running(here, workers=2) as run:
        os.kill(run.pid, signal.SIGUSR2)
        (successor,) = await run.lines(1, event="upgrading")
        os.kill(run.pid, signal.SIGTERM)
        assert await run.mux.exit_status(seconds=30) == 0
        await run.has_ended(successor["pid"])
        with pytest.raises(OSError, match="all attempts to connect"):
            await run.connect()
        assert not run.unix.exists()


@WORKERS
async def test_a_file_that_changes_while_the_successor_starts_is_read_by_it(
    here: Path, workers: int
) -> None:
    module, wrapper = copied(here)
    process, wait = module.with_name("service") / "run.py", here / "wait"
    os.mkfifo(wait)
    async with running(here, "--watch=off", workers=workers, wrapper=wrapper) as run:
        # When the file has been read; workers do not wait.
        before, log, after = process.read_text().partition("    log = _log(config)\n")
        process.write_text(f"{before}    open({str(wait)!r}).read()\n{log}{after}")
        os.kill(run.pid, signal.SIGUSR2)
        with await trio.to_thread.run_sync(wait.open, "w"):  # it waits there
            file = here / "snimux.toml"
            file.write_text(f'{file.read_text()}[[route]]\nhosts = "more"\nto = "127.0.0.1:1"\n')
            os.kill(run.pid, signal.SIGHUP)
        await run.lines(1, event="handed-over")
        (reloaded,) = await run.lines(1, event="reloaded")
        assert reloaded["added"] == 1


# --- after it


@WORKERS
async def test_to_stop_the_new_one_is_to_stop_those_before_it(here: Path, workers: int) -> None:
    async with running(here, workers=workers) as run, contextlib.AsyncExitStack() as stack:
        longs = []
        for count in range(4):  # the third one has no connection, and ends at once
            if count != 2:
                longs.append(await stack.enter_async_context(await run.connect()))
                await exchanged(longs[-1])
            if count != 3:
                await run.upgrade()
        await run.has_ended(run.pids[2])
        os.kill(run.pid, signal.SIGTERM)
        # of workers, only those are there that have a connection, and all of the last one
        await run.lines(2 + workers, event="draining", seconds=30.0)
        for long in longs:
            await exchanged(long, b"bytes")
        await longs.pop().aclose()
        for pid in run.pids:  # who was told waits for all, or a service manager would end them
            assert is_running(pid) is (pid != run.pids[2])
        await stack.aclose()
        for pid in run.pids:
            await run.has_ended(pid)


@ON_LINUX
async def test_what_was_inherited_by_number_is_known_by_it(here: Path) -> None:
    code = (
        "import os, socket, sys; sock = socket.create_server(('127.0.0.1', 0));"
        "os.dup2(sock.fileno(), 20); os.execv(sys.argv[1], sys.argv[1:])"
    )
    wrapper = [sys.executable, "-c", code]
    async with running(here, "--listen=fd/20", wrapper=wrapper) as run:
        (line,) = [x for x in run.mux.lines(event="listening") if x["protocol"] == "tls"][-1:]
        port = int(line["address"].rpartition(":")[2])
        for _ in range(2):
            await run.upgrade()
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await exchanged(stream)


async def test_the_old_one_can_be_told_alone(here: Path) -> None:
    async with running(here, "--drain=off") as run:
        async with await run.connect() as long:
            await exchanged(long)
            leaves = await run.upgrade()
            os.kill(leaves, signal.SIGUSR2)  # which says nothing to it
            os.kill(leaves, signal.SIGINT)
            await run.lines(2, event="draining")
            os.kill(leaves, signal.SIGINT)
            await run.has_ended(leaves)
            assert await long.receive_some() == b""
        assert len(run.mux.lines(event="connection", ended="shutdown")) == 1
        assert len(run.mux.lines(event="upgrading")) == 1
        await exchanged_once(run)


async def test_a_successor_that_dies_later_is_said(here: Path) -> None:
    async with running(here) as run, await run.connect() as long:
        await exchanged(long)
        leaves = await run.upgrade()
        os.kill(run.pid, signal.SIGKILL)
        (gone,) = await run.lines(1, event="successor-gone")
        assert gone["pid"] == run.pid
        await exchanged(long, b"bytes")
        await long.aclose()
        await run.has_ended(leaves)


async def test_the_old_one_may_be_killed_before_and_after(here: Path) -> None:
    module, wrapper = copied(here)
    text = module.read_text()
    os.mkfifo(here / "wait")
    async with running(here, wrapper=wrapper) as run:
        module.write_text(f"{text}\nopen({str(here / 'wait')!r}).read()")
        os.kill(run.pid, signal.SIGUSR2)
        (successor,) = await run.lines(1, event="upgrading")
        (between,) = psutil.Process(run.pid).children()
        os.kill(run.pid, signal.SIGKILL)
        run.mux.process.wait(timeout=10)
        await run.has_ended(between.pid)
        with (here / "wait").open("w"):
            pass
        run.pid = successor["pid"]
        await run.lines(2, event="relay")
        await exchanged_once(run)
        module.write_text(text)
        await run.upgrade()
        await exchanged_once(run)


async def between(pid: int) -> psutil.Process:
    """The process between one that upgrades and its successor, as soon as there is one."""
    found: list[psutil.Process] = []
    with trio.fail_after(60):
        while not (found := psutil.Process(pid).children()):
            await trio.lowlevel.checkpoint()
    return found[0]


def serving_by(file: Path) -> set[int]:
    """All that serve by a configuration file, whoever knows them."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess):
            if f"--config={file}" in process.cmdline() and is_running(process.pid):
                found.add(process.pid)
    return found


@ON_LINUX
@pytest.mark.timeout(300)
async def test_whenever_the_process_between_is_killed_nobody_is_left_whom_nobody_knows(
    here: Path,
) -> None:
    async with running(here) as run:
        known = {run.pid}
        for moment in range(20):
            seen = len(run.mux.stderr.splitlines())
            os.kill(run.pid, signal.SIGUSR2)
            process = await between(run.pid)
            await trio.sleep(0.001 * 1.4**moment if moment else 0)
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

            def ends(seen: int = seen) -> list[muxes.Line]:
                """How it went, as far as it is said by now."""
                lines = map(json.loads, run.mux.stderr.splitlines()[seen:])
                return [x for x in lines if x["event"] in ("upgrade-failed", "handed-over")]

            await until(ends, "it has come to an end", seconds=60)
            if ends()[0]["event"] == "handed-over":
                leaves, run.pid = run.pid, ends()[0]["pid"]
                await run.has_ended(leaves)
                known.add(run.pid)
            try:
                only = lambda: serving_by(here / "snimux.toml") == {run.pid}  # noqa: E731
                await until(only, "there is one", seconds=30)
            finally:
                for pid in serving_by(here / "snimux.toml") - known:
                    os.kill(pid, signal.SIGKILL)
            await exchanged_once(run)


@ON_LINUX
async def test_one_between_that_is_stopped_holds_nobody_up(here: Path) -> None:
    module, wrapper = copied(here)
    os.mkfifo(here / "wait")
    async with running(here, wrapper=wrapper) as run, await run.connect() as long:
        await exchanged(long)
        text = module.read_text()
        module.write_text(f"{text}\nopen({str(here / 'wait')!r}).read()")
        os.kill(run.pid, signal.SIGUSR2)
        leaves, (successor,) = run.pid, await run.lines(1, event="upgrading")
        (process,) = psutil.Process(leaves).children()
        process.suspend()
        try:
            with await trio.to_thread.run_sync((here / "wait").open, "w"):
                pass
            await run.lines(2, event="relay")
            await exchanged(long, b"bytes")
            (line,) = await run.lines(1, event="handed-over")
            run.pid = line["pid"]
            await exchanged(long, b"bytes")
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
        assert run.pid == successor["pid"]
        assert psutil.Process(run.pid).ppid() not in (leaves, process.pid)
        await long.aclose()
        await run.has_ended(leaves)


@ON_LINUX
async def test_process_1_has_no_successor(here: Path) -> None:
    spaces = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
    if (await trio.run_process([*spaces, "true"], check=False)).returncode:
        pytest.skip("needs namespaces")
    async with running(here, wrapper=spaces) as run:
        (first,) = psutil.Process(run.mux.pid).children()
        first.send_signal(signal.SIGUSR2)
        (ignored,) = await run.lines(1, event="upgrade-ignored")
        assert ignored["detail"].startswith("process 1, as of a container,")
        await exchanged_once(run)
        first.send_signal(signal.SIGTERM)
        await run.mux.exit_status()


# --- one process's side of it, with others that are no snimux


@dataclass
class Alone:
    """The side of a process that hands over, in this process."""

    succession: Succession
    listeners: list[Listener]
    stream: io.StringIO

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]

    async def hand_over(self) -> bool:
        return await self.succession.hand_over(lambda: self.listeners)


@contextlib.asynccontextmanager
async def alone(here: Path, code: str) -> AsyncIterator[Alone]:
    """One whose successor is some Python."""
    before = open_descriptors()
    stream = io.StringIO()
    listeners = open_listeners([TcpAddress("127.0.0.1", 0), UnixAddress(str(here / "a:b"))])
    command = [sys.executable, "-c", code]
    log = Log(stream, form="json")
    with trio.open_signal_receiver(signal.SIGCHLD) as signals:
        async with trio.open_nursery() as nursery:
            one = Alone(Succession(log, Manager(), command=command), listeners, stream)

            async def reap() -> None:
                async for _ in signals:
                    one.succession.reap()

            nursery.start_soon(reap)
            yield one
            nursery.cancel_scope.cancel()
    for listener in listeners:
        listener.close()
    assert open_descriptors() == before


async def test_one_that_says_nothing_is_killed_in_the_end(
    here: Path, mock_clock: MockClock
) -> None:
    mock_clock.rate = 1000  # nobody says when it is started, so that cannot be waited for
    async with alone(here, "import signal; signal.pause()") as one:
        assert not await one.hand_over()
        upgrading, silent, failed = one.lines()
        assert silent["event"] == "successor-silent"
        assert silent["seconds"] == 60
        assert (failed["event"], failed["signal"]) == ("upgrade-failed", "SIGKILL")
        assert upgrading["pid"] == silent["pid"] == failed["pid"]


async def test_one_that_ends_as_soon_as_it_is_ready_takes_nothing_over(here: Path) -> None:
    class Slow(io.StringIO):
        """Takes so long to be written to that the successor has ended by then."""

        def write(self, text: str) -> int:
            size = super().write(text)
            give_up = time.monotonic() + 30
            while '"upgrade-failed"' not in self.getvalue() and time.monotonic() < give_up:
                time.sleep(0.01)
                one.succession.reap()
            return size

    async with alone(here, HEIR.rpartition("assert")[0]) as one:
        one.stream = Slow()
        log = Log(one.stream, form="json")
        one.succession = Succession(log, Manager(), command=one.succession.command)
        assert not await one.hand_over()
        _, failed = one.lines()
        assert (failed["event"], failed["status"]) == ("upgrade-failed", 0)


async def test_one_that_cannot_be_started_is_said(here: Path) -> None:
    async with alone(here, "") as one:
        one.succession = Succession(
            Log(one.stream, form="json"), Manager(), command=["/nonexistent"]
        )
        assert not await one.hand_over()
        (failed,) = one.lines()
        assert failed["detail"] == "not started: No such file or directory"


async def test_with_too_few_descriptors_none_is_started_and_none_is_lost(here: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with alone(here, "") as one:
        for room in range(8):  # it takes two for each of a pair of sockets and two pipes
            before = open_descriptors()
            free = [os.dup(0) for _ in range(room + 1)]
            for descriptor in free:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free[-1], hard))
            try:
                assert not await one.hand_over()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert open_descriptors() == before, room
        assert one.lines()[0]["detail"] == "not started: Too many open files"


async def test_whoever_has_no_command_is_not_heard(here: Path) -> None:
    assert not await Succession(Log(io.StringIO()), Manager()).hand_over(list)


# Says what it has inherited, as a successor does, and that it is ready.
HEIR = """
import os, sys
from snimux.service.systemd import receive
from snimux.service.handover import inheritance
found = inheritance(receive(os.environ, os.getpid()))
for x in found.listeners:
    print(x, x.spec, x.protocol, x.inode, x.handed_over, file=sys.stderr)
print([*found.activated], file=sys.stderr)
os.set_blocking(found.predecessors[0], True)
os.write(found.predecessors[0], b"r")
assert os.read(found.predecessors[0], 1) == b"h"
"""


async def test_a_successor_inherits_what_is_listened_on_and_what_was_activated(here: Path) -> None:
    said = here / "said"
    code = HEIR.replace("sys.stderr", f"open({str(said)!r}, 'a')")
    async with alone(here, code) as one:
        with socket.create_server(("127.0.0.1", 0)) as handed:
            log, number = Log(one.stream, form="json"), handed.fileno()
            inherited = Inheritance((("http", number),))
            command = [sys.executable, "-c", code]
            one.succession = Succession(log, Manager(), inherited, command=command)
            activated = adopted(number, FdAddress(number))
            assert await one.succession.hand_over(lambda: [*one.listeners, activated])
            activated.socket.detach()
            tcp, unix = one.listeners
            ports = [x.getsockname()[1] for x in (handed, tcp.socket)]
            await until(lambda: said.read_text().endswith("]\n"), "it has said all")
            assert said.read_text().splitlines() == [
                f"127.0.0.1:{ports[0]} fd/3 tls None True",
                f"127.0.0.1:{ports[1]} 127.0.0.1:0 tls None False",
                f"{unix} {unix} tls {unix.inode} False",
                "[('http', 3)]",
            ]
            assert not await one.hand_over()
            assert one.lines()[-1]["detail"] == "there is a successor already"
            await one.succession.listen_to_successor(lambda: None)
            assert one.lines()[-1]["event"] == "successor-gone"
            # its file is the successor's
            for listener in one.listeners:
                one.succession.close(listener)
            one.listeners.clear()
            (here / "a:b").unlink()


@pytest.mark.parametrize("name", ["listener-1", "listener-0-0-tls-nowhere", "listener-0-0-tls-:1"])
def test_what_no_predecessor_hands_over_is_told(name: str) -> None:
    reader, writer = socket.socketpair()
    with reader, writer:
        named = [("predecessor", reader.fileno()), (name, writer.fileno())]
        with pytest.raises(HandoverError, match=f"LISTEN_FDNAMES: '{name}': "):
            inheritance(named)


def test_what_is_inherited_without_a_predecessor_is_activated() -> None:
    assert inheritance([("tls", 3), ("listener-x", 4)]) == Inheritance(
        (("tls", 3), ("listener-x", 4))
    )
