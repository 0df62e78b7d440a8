"""Clients that come and go all the time, and others that stay: what each got.

Knows nothing of what is done to the other end meanwhile.
"""

import contextlib
import re
import shutil
import ssl
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import trio

from faults import client
from faults.client import Got
from faults.server import Stream
from tests.support.caddy import until
from tests.support.muxes import Mux

PATIENT = "--hello-timeout=60"
"""snimux's flag: so many clients at once, in one process, may take long to say their hellos."""

_WAIT = 60.0  # seconds, at the most, for whatever is waited for

_READINGS = 3


class Exchange(Protocol):
    """What a client does on its connection, once or more often."""

    async def __call__(self, tls: Stream, name: str, *, first: bool) -> None:
        """Do it; raises what `client.judged` knows."""


@dataclass(frozen=True, slots=True)
class Result:
    """What one client got, and its port: 0 if it was not even connected."""

    port: int
    got: Got
    stayed: bool


class Load:
    """The clients of one name."""

    def __init__(
        self, port: int, name: str, context: ssl.SSLContext, exchange: Exchange = client.echoed
    ) -> None:
        self.port = port
        self.name = name
        self.context = context
        self.exchange = exchange
        self.results: list[Result] = []

    @contextlib.asynccontextmanager
    async def coming(self, clients: int) -> AsyncIterator[None]:
        """Have so many clients connect again and again; on leaving, the last ones end."""
        enough = trio.Event()

        async def again_and_again() -> None:
            while not enough.is_set():
                await self.one()

        async with trio.open_nursery() as nursery:
            for _ in range(clients):
                nursery.start_soon(again_and_again)
            yield
            enough.set()

    @contextlib.asynccontextmanager
    async def staying(self, clients: int) -> AsyncIterator[None]:
        """Have so many connections open; on leaving, each is to be as good as ever."""
        there: list[None] = []
        leave = trio.Event()

        async def stay() -> None:
            there.append(None)
            await leave.wait()

        async with trio.open_nursery() as nursery:
            for _ in range(clients):
                nursery.start_soon(self.one, stay)
            await wait(lambda: len(there) == clients, "all are there")
            yield
            leave.set()

    async def one(self, stay: Callable[[], Awaitable[None]] | None = None) -> None:
        """One connection, from its beginning to its end."""
        port = 0
        with client.judged(lambda got: self.results.append(Result(port, got, stay is not None))):
            plain = await trio.open_tcp_stream("127.0.0.1", self.port)
            port = client.port_of(plain)
            async with client.secured(plain, self.name, self.context) as tls:
                await self.exchange(tls, self.name, first=True)
                if stay is not None:
                    await stay()
                    await self.exchange(tls, self.name, first=False)

    async def more(self, count: int) -> None:
        """Wait until so many more have ended well."""
        enough = self.count()[Got.ALL] + count
        await wait(lambda: self.count()[Got.ALL] >= enough, "connections end well")

    def count(self) -> Counter[Got]:
        """How many got what."""
        return Counter(result.got for result in self.results)


def why(mux: Mux, failed: Iterable[Result]) -> tuple[str, ...]:
    """What is known of connections that did not get all; nothing if there are none."""
    results = Counter(result.got for result in failed)
    reasons = Counter(
        f"{line['ended']} {line.get('reason', '')} {line.get('detail', '')}".strip()
        for line in mux.lines(event="connection")
        if line["ended"] != "eof"
    )
    words = [f"{count} {what}" for what, count in [*results.items(), *reasons.items()]]
    return (", ".join(words),) if results else ()


def missing() -> str | None:
    """Say what `held` needs and is missing, or None."""
    return None if shutil.which("ss") else "needs ss: apt-get install iproute2"


def held(pid: int, port: int) -> set[int]:
    """The other ports of the connections that a process has, of which one end is at a port.

    Asks the kernel for those of the port only: the list of all may take seconds to read, in which
    no client here would be served.
    """
    command = ["ss", "-tnHe", "state", "connected", f"( sport = :{port} or dport = :{port} )"]
    found: set[int] = set()
    inodes = {name.partition("[")[2].rstrip("]") for name in _descriptors(pid)}
    # It leaves some out if they change while they are listed, in parts.
    for _ in range(_READINGS):
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        for line in done.stdout.splitlines():
            ends = [int(word.rpartition(":")[2]) for word in line.split()[3:5]]
            inode = re.search(r"\bino:(\d+)", line)
            if inode and inode[1] in inodes:
                found |= {*ends} - {port}
    return found


def _descriptors(pid: int) -> Iterable[str]:
    """What the descriptors of a process are."""
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            yield str(each.readlink())


def sockets(pid: int) -> int:
    """How many sockets a process has."""
    return sum(name.startswith("socket:") for name in _descriptors(pid))


async def wait(condition: Callable[[], object], what: str) -> None:
    """Wait until something is so; for long, if it must be: nothing is to depend on speed."""
    await until(condition, what, seconds=_WAIT)
