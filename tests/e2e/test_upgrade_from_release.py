"""From the version that is installed to this one, and back: two wheels, under load, nothing lost.

The two versions speak with each other: by the names in LISTEN_FDNAMES, by words on sockets, and by
counts in shared memory. That is a protocol, and a change of it is seen here alone, for all other
tests have one version on both sides. So only the entry points are known here: ``snimux.cli:main``,
the console script that calls it, and ``python -m snimux``; besides, what users see.
"""

import contextlib
import importlib.metadata
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil
import pytest
import trio

from tests import hellos
from tests.conftest import need
from tests.support import muxes
from tests.support.caddy import short_directory, until
from tests.support.machine import REPOSITORY
from tests.support.muxes import Mux
from tests.support.sockets import read

RELEASE = "17fe10825bcd1fb1c2095a9584acbb43b28a3c20"
"""The commit of the version that is installed."""

# The copy may be somebody else's, as in CI.
GIT = ("git", "-c", f"safe.directory={REPOSITORY}", "-C", str(REPOSITORY))

# What a wheel is built from.
SOURCES = ("snimux", "setup.cfg", "pyproject.toml", "README.rst", "CHANGES.rst", "LICENSE")

FIRST = {
    "tls": [hello.data for hello in hellos.load()],
    "unix": [hello.data for hello in hellos.load()],
    "http": [b"GET / HTTP/1.1\r\nHost: secure.ciso.com\r\n\r\n"],
}
"""What clients begin with, by the kind of listener."""

# More than the relay moves in one go, less than the sockets on the way hold.
BLOCK = os.urandom(48 * 1024)

PATIENCE = 60.0
"""Seconds for what takes one or two on an idle machine."""

pytestmark = [
    # The threads are those of other tests, and the child does nothing but execute.
    pytest.mark.filterwarnings("ignore:.* is multi-threaded:DeprecationWarning"),
    pytest.mark.timeout(300),
]

WAYS = pytest.mark.parametrize(
    ("before", "after", "workers", "entry"),
    [
        pytest.param("release", "tree", 1, "-m", id="upgrade"),
        pytest.param("release", "tree", 2, "script", id="upgrade-of-workers"),
        pytest.param("tree", "release", 1, "script", id="downgrade"),
    ],
)


# --- two versions, and one folder in which either is installed


def missing() -> str | None:
    """Say what is missing to build both wheels, or None if nothing is."""
    command = [*GIT, "cat-file", "-e", f"{RELEASE}^{{commit}}"]
    if not shutil.which("git") or subprocess.run(command, capture_output=True).returncode:
        return f"needs git and the history: a clone that reaches back to {RELEASE[:7]}"
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        if int(importlib.metadata.version("setuptools").partition(".")[0]) >= 77:
            return None
    return "needs setuptools: pip install 'setuptools>=77'"


@pytest.fixture(scope="session")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A folder with each version as pip has installed it from a wheel."""
    need(missing())
    archive = [*GIT, "archive", "--format=zip", RELEASE, *SOURCES]
    folders = {name: tmp_path_factory.mktemp(name) for name in ("release", "tree")}
    with zipfile.ZipFile(io.BytesIO(subprocess.check_output(archive))) as files:
        files.extractall(folders["release"] / "source")
    for name in SOURCES:
        path, copy = REPOSITORY / name, folders["tree"] / "source" / name
        if path.is_dir():
            shutil.copytree(path, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, copy)
    return {name: installed(name, folder) for name, folder in folders.items()}


def installed(version: str, folder: Path) -> Path:
    """Build a wheel, and install that; each process of it says on stderr which version it is."""
    wheel, site = folder / "wheel", folder / "site"
    pip("wheel", "--no-build-isolation", f"--wheel-dir={wheel}", str(folder / "source"))
    pip("install", f"--target={site}", *map(str, wheel.iterdir()))
    with (site / "snimux/__init__.py").open("a") as module:
        module.write(f'\nimport sys\n\nprint("version: {version}", file=sys.stderr)\n')
    return site


def pip(command: str, *args: str) -> None:
    flags = ["--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    whole = [sys.executable, "-m", "pip", command, *flags, *args]
    done = subprocess.run(whole, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def install(version: Path, site: Path) -> None:
    """Put a version where another one is, as pip does."""
    shutil.rmtree(site / "snimux", ignore_errors=True)
    shutil.copytree(version, site, dirs_exist_ok=True)


def started_by(entry: str, site: Path) -> Sequence[str]:
    """What has `muxes` start the snimux that is installed there, by an entry point."""
    if entry == "-m":
        return ["sh", "-c", 'cd "$0" && exec "$@"', str(site)]
    # instead of python -m snimux
    script = ["sh", "-c", 'shift 3; exec "$0" "$@"', str(site / "bin/snimux")]
    return ["env", f"PYTHONPATH={site}", *script]


# --- what runs


@dataclass
class Backend:
    """Sends back what it is sent, and counts it."""

    address: str = ""
    bytes: int = 0
    connections: int = 0

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            tcp = partial(trio.serve_tcp, self.echo, 0, host="127.0.0.1")
            (listener, *_) = await nursery.start(tcp)
            self.address = f"127.0.0.1:{listener.socket.getsockname()[1]}"
            task_status.started()

    async def echo(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        with contextlib.suppress(trio.BrokenResourceError):  # its client says what is missing
            async for data in stream:
                self.bytes += len(data)
                await stream.send_all(data)


def write_config(directory: Path, workers: int, backend: Backend, more: str = "tls") -> Path:
    """Have all go to a backend, by a file that is read on a signal alone; listen there, too."""
    unix = ", ".join(f'"unix/{directory}/{name}"' for name in dict.fromkeys(["tls", more]))
    file = directory / "snimux.toml"
    file.write_text(f"""\
listen = ["127.0.0.1:0", {unix}]
http = "127.0.0.1:0"
status = "127.0.0.1:0"
workers = {workers}
watch = "off"
[[route]]
hosts = "*"
to = "{backend.address}"
http = "{backend.address}"
""")
    return file


def is_alive(process: psutil.Process) -> bool:
    """Whether it has not ended; an orphan may have nobody who asks how."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@dataclass
class Service:
    """A snimux and its successor, and the folder in which they are installed."""

    mux: Mux
    directory: Path
    workers: int
    backends: tuple[Backend, Backend]
    main: psutil.Process
    processes: set[psutil.Process] = field(default_factory=set)
    """All that were seen."""
    ports: dict[str, int] = field(default_factory=dict)
    """On TCP, by what is served there."""

    @property
    def unix(self) -> Path:
        return self.directory / "tls"

    def family(self) -> set[psutil.Process]:
        """The main process and its workers."""
        family = {self.main, *self.main.children(recursive=True)}
        self.processes |= family
        return family

    def kill(self) -> None:
        """Leave nothing of it."""
        for line in self.mux.lines(event="upgrading"):
            with contextlib.suppress(psutil.NoSuchProcess):
                self.main = psutil.Process(line["pid"])
                self.family()
        for process in filter(is_alive, self.processes):
            process.kill()

    async def lines(self, count: int, **fields: object) -> list[muxes.Line]:
        """The lines of the log that have these fields, as soon as there are so many."""
        words, log = f"{count} lines with {fields}", self.mux
        try:
            await until(lambda: len(log.lines(**fields)) >= count, words, seconds=PATIENCE)
        except AssertionError as error:
            notable = [x for x in log.stderr.splitlines() if '"connection"' not in x]
            raise AssertionError("\n".join([str(error), *notable])) from None
        return log.lines(**fields)

    async def has_ended(self, processes: set[psutil.Process]) -> None:
        def left() -> list[psutil.Process]:
            return [process for process in processes if is_alive(process)]

        await until(lambda: not left(), f"{processes} have ended", seconds=PATIENCE)

    async def upgrade(self, version: Path) -> set[psutil.Process]:
        """Hand over to another version; the processes that leave, and accept no more."""
        install(version, self.directory / "site")
        leaving = self.family()
        self.main.send_signal(signal.SIGUSR2)
        (line,) = await self.lines(1, event="handed-over")
        self.main = psutil.Process(line["pid"])
        await self.lines(self.workers, event="draining")
        assert all(map(is_alive, self.family()))
        return leaving

    async def reload(self, backend: Backend, more: str = "tls") -> None:
        """Route to another backend, and listen there, too."""
        write_config(self.directory, self.workers, backend, more)
        self.main.send_signal(signal.SIGHUP)
        await self.lines(1, event="reloaded")
        assert backend.address in await self.get("/routes")

    async def stop(self) -> None:
        """End the main process, and by it all."""
        self.family()
        self.main.send_signal(signal.SIGTERM)
        await self.has_ended(self.processes)
        assert await self.mux.exit_status() == 0
        assert not self.unix.exists()
        with pytest.raises(OSError, match="all attempts to connect"):
            await self.connect("tls")

    async def connect(self, kind: str) -> trio.SocketStream:
        if kind == "unix":
            return await trio.open_unix_socket(self.unix)
        return await trio.open_tcp_stream("127.0.0.1", self.ports[kind])

    async def get(self, path: str) -> str:
        """What it shows of itself."""
        async with await self.connect("status") as stream:
            head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            await stream.send_all(head.encode())
            answer = b"".join([data async for data in stream]).decode()
        if not answer:
            raise trio.BrokenResourceError("no answer")
        assert answer.startswith("HTTP/1.1 200 "), answer
        return answer


@contextlib.asynccontextmanager
async def running(version: Path, workers: int, entry: str) -> AsyncIterator[Service]:
    """A version that serves TLS on TCP and a UNIX socket, plain HTTP, and what it is like."""
    with short_directory() as directory:
        site, backends = directory / "site", (Backend(), Backend())
        install(version, site)
        async with trio.open_nursery() as nursery:
            for backend in backends:
                await nursery.start(backend.serve)
            config = f"--config={write_config(directory, workers, backends[0])}"
            wrapper = started_by(entry, site)
            async with muxes.running(directory, config, listen=None, wrapper=wrapper) as mux:
                service = Service(mux, directory, workers, backends, psutil.Process(mux.pid))
                try:
                    await service.lines(workers, event="relay")
                    (line,) = await service.lines(1, event="status")
                    lines = [line, *await service.lines(3, event="listening")]
                    places = {x.get("protocol", "status"): x["address"] for x in lines[::-1]}
                    service.ports = {x: int(y.rpartition(":")[2]) for x, y in places.items()}
                    service.family()
                    yield service
                finally:
                    service.kill()
            nursery.cancel_scope.cancel()


# --- what goes through it


async def exchange(stream: trio.SocketStream, data: bytes) -> None:
    """Have what is sent come back."""
    await stream.send_all(data)
    assert await read(stream.socket, len(data)) == data


async def end(stream: trio.SocketStream) -> None:
    """Have the end come back, and nothing before it."""
    await stream.send_eof()
    assert await stream.receive_some() == b""


@dataclass
class Load:
    """Connections on each kind of listener, short and long ones; any that fails ends the test."""

    service: Service
    count: Counter[str] = field(default_factory=Counter)
    """How often what was done, by name."""
    sent: int = 0
    """Bytes to backends."""
    connections: int = 0
    cut_looks: int = 0
    """Answers that did not come: the release ends those that it is about to give."""
    is_enough: bool = False
    is_enough_of_long_ones: bool = False

    @contextlib.asynccontextmanager
    async def connected(self, kind: str) -> AsyncIterator[trio.SocketStream]:
        """A connection that has begun; the next client's hello is another one's."""
        first = FIRST[kind][self.connections % len(FIRST[kind])]
        self.connections += 1
        async with await self.service.connect(kind) as stream:
            await self.exchange(stream, first)
            yield stream
            await end(stream)

    async def exchange(self, stream: trio.SocketStream, data: bytes) -> None:
        await exchange(stream, data)
        self.sent += len(data)

    async def short_ones(self, kind: str) -> None:
        while not self.is_enough:
            async with self.connected(kind) as stream:
                await self.exchange(stream, b"more")
            self.count[f"short {kind}"] += 1

    async def long_one(self, kind: str, *, task_status: trio.TaskStatus[None]) -> None:
        async with self.connected(kind) as stream:
            task_status.started()
            while not self.is_enough_of_long_ones:
                await self.exchange(stream, BLOCK[: 1 + self.sent % len(BLOCK)])
                self.count[f"long {kind}"] += 1

    async def looks(self) -> None:
        while not self.is_enough:
            try:
                await self.service.get("/healthz")
            except trio.BrokenResourceError:
                self.cut_looks += 1
            self.count["looks"] += 1

    async def goes_on(self) -> None:
        """Wait until each has done some more."""
        before = self.count.copy()

        def has_gone_on() -> bool:
            names = [x for x in before if not (self.is_enough_of_long_ones and "long" in x)]
            return all(self.count[name] > before[name] + 5 for name in names)

        await until(has_gone_on, f"more than {before}", seconds=PATIENCE)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.looks)
            for kind in FIRST:
                await nursery.start(self.long_one, kind)
                nursery.start_soon(self.short_ones, kind)
            nursery.start_soon(self.short_ones, "tls")
            kinds = 2 * len(FIRST) + 1
            await until(lambda: len(self.count) == kinds, "the load is on", seconds=PATIENCE)
            await self.goes_on()
            yield
            self.is_enough = self.is_enough_of_long_ones = True


# --- the tests


def started_versions(service: Service) -> list[str]:
    """The versions of all processes, in the order of their starts."""
    lines = service.mux.stderr.splitlines()
    return [line.removeprefix("version: ") for line in lines if line.startswith("version: ")]


@WAYS
async def test_between_two_versions_nothing_is_lost_under_load(
    versions: Mapping[str, Path], before: str, after: str, workers: int, entry: str
) -> None:
    async with running(versions[before], workers, entry) as service:
        load, old = Load(service), service.main
        async with load.running():
            async with load.connected("tls") as silent:
                leaving = await service.upgrade(versions[after])
                await load.goes_on()
                assert is_alive(old)
                await load.exchange(silent, b"after it")
                load.is_enough_of_long_ones = True
            await service.has_ended(leaving)
            await load.goes_on()
            await service.reload(service.backends[1])
            await load.goes_on()
        await service.stop()
        assert load.cut_looks <= (before == "release")
        first, second = service.backends
        assert second.connections > 0
        assert first.bytes + second.bytes == load.sent
        ends = Counter(line["ended"] for line in service.mux.lines(event="connection"))
        assert ends == {"eof": load.connections}
        assert not service.mux.lines(level="error")
        assert started_versions(service) == [before] * len(leaving) + [after] * len(leaving)


@WAYS
async def test_who_stops_the_new_version_stops_the_old_one_too(
    versions: Mapping[str, Path], before: str, after: str, workers: int, entry: str
) -> None:
    async with running(versions[before], workers, entry) as service:
        load, old = Load(service), service.main
        async with load.connected("tls") as closed:
            async with load.connected("tls") as drained:
                await service.upgrade(versions[after])
                service.main.send_signal(signal.SIGTERM)
                # those of the new version, and of the old one who have a connection
                await service.lines(workers + 1, event="draining", seconds=30.0)
                await load.exchange(drained, b"while they drain")
                assert is_alive(old)
                assert is_alive(service.main)
            service.main.send_signal(signal.SIGTERM)
            assert await closed.receive_some() == b""
        await service.has_ended(service.processes)
        ends = Counter(line["ended"] for line in service.mux.lines(event="connection"))
        assert ends == {"eof": 1, "shutdown": 1}
        assert not service.mux.lines(level="error")


@pytest.mark.parametrize(
    ("before", "after"), [("release", "tree"), ("tree", "release")], ids=["upgrade", "downgrade"]
)
async def test_workers_that_are_replaced_between_installing_and_upgrading_take_all_orders(
    versions: Mapping[str, Path], before: str, after: str
) -> None:
    workers = 2
    async with running(versions[before], workers, "script") as service:
        load = Load(service)
        await service.get("/metrics")  # the release imports what makes it at the first look
        install(versions[after], service.directory / "site")
        for worker in service.family() - {service.main}:
            worker.kill()
        await service.lines(2 * workers, event="relay")
        service.family()
        async with load.connected("unix") as closed, load.connected("http") as stream:
            await service.reload(service.backends[1], more="more")
            async with await trio.open_unix_socket(service.directory / "more") as new:
                await load.exchange(new, FIRST["tls"][0])
                shown = json.loads((await service.get("/connections")).partition("\r\n\r\n")[2])
                routes = Counter(x["backend"] for x in shown["connections"])
                assert routes == {service.backends[0].address: 2, service.backends[1].address: 1}
                await end(new)
            for path in ("/figures", "/metrics", "/refused", "/healthz"):
                await service.get(path)
            await service.upgrade(versions[after])
            await load.exchange(stream, b"more")
            await end(stream)
            service.main.send_signal(signal.SIGTERM)
            await service.lines(workers + 1, event="draining", seconds=30.0)
            service.main.send_signal(signal.SIGTERM)
            assert await closed.receive_some() == b""
        await service.has_ended(service.processes)
        assert started_versions(service) == [before] * (1 + workers) + [after] * (2 * workers + 1)
        died = service.mux.lines(level="error")
        assert [(x["event"], x["signal"]) for x in died] == [("worker-died", "SIGKILL")] * workers
