"""Very many routes: each name goes where it is to go, and none costs more than with few.

Each route is to one of four servers, which answer who they are. The hellos are real; the answers
are no TLS, which nobody here wants to know.
"""

import random
import statistics
import time
import zlib
from pathlib import Path

import trio

from bench import proc
from faults.client import client_hello
from faults.found import Found, Size
from tests.support import muxes
from tests.support.muxes import Mux

_SERVERS = 4
_FEW = 10
# The alert unrecognized_name(112): what a name that has no route gets.
_NO_ROUTE = bytes([21, 3, 1, 0, 2, 2, 112])
_STARTS_WITHIN = 120.0  # seconds


def missing() -> None:
    """Nothing is missing anywhere."""


async def run(here: Path, size: Size) -> list[Found]:
    """Ask for random names of many routes, and the same of few."""
    count, number = size.pick(2_000, 100_000), size.pick(200, 4_000)
    async with trio.open_nursery() as nursery:
        ports = []
        for each in range(_SERVERS):
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            ports.append(listener.socket.getsockname()[1])
            nursery.start_soon(trio.serve_listeners, _Server(each).answer, [listener])
        began = time.monotonic()
        many = await _start(here, count, ports)
        seconds, processor = time.monotonic() - began, proc.cpu_seconds([many.pid])
        few = await _start(here, _FEW, ports)
        try:
            found = await _ask(many, few, count, number)
        finally:
            for mux in (many, few):
                mux.end()
        nursery.cancel_scope.cancel()
    wrong, ratio, resident = found
    return [
        Found(
            f"{count:,} routes, a tenth of them wildcards: random names, and some without a route",
            2 * number,
            lost=wrong,
            remark=f"a connection cost {ratio:.2f} times what it does with {_FEW}; ready after "
            f"{seconds:.1f} s ({processor:.1f} s of processor time); "
            f"{resident / 2**20:.0f} MiB of RSS",
        )
    ]


class _Server:
    """One that answers who it is."""

    def __init__(self, number: int) -> None:
        self.said = _answer(number)

    async def answer(self, stream: trio.SocketStream) -> None:
        """Serve one connection."""
        async with stream:
            if await stream.receive_some(16384):
                await stream.send_all(self.said)


def _answer(number: int) -> bytes:
    return f"server {number}\n".encode()


def _name(number: int) -> str:
    return f"host-{number}.customers.example.net"


def _is_wildcard(number: int) -> bool:
    return number % 10 == 0


def _server(number: int) -> int:
    """Which one a route is to."""
    return zlib.crc32(_name(number).encode()) % _SERVERS


def _asked(number: int) -> str:
    """The name that a route is to match."""
    return f"www.{_name(number)}" if _is_wildcard(number) else _name(number)


async def _start(here: Path, count: int, ports: list[int]) -> Mux:
    """A snimux with so many routes, listening."""
    file = here / f"{count}.toml"
    with file.open("w", encoding="utf-8") as out:
        for number in range(count):
            pattern = f"*.{_name(number)}" if _is_wildcard(number) else _name(number)
            out.write(
                f'[[route]]\nhosts = "{pattern}"\nto = "127.0.0.1:{ports[_server(number)]}"\n'
            )
    mux = muxes.start(here / f"{count}.log", f"--config={file}")
    try:
        await mux.log_line(event="listening", within=_STARTS_WITHIN)
    except BaseException:
        mux.process.kill()
        raise
    return mux


async def _ask(many: Mux, few: Mux, count: int, number: int) -> tuple[int, float, int]:
    """How many got something wrong; how many times as much many cost; and their memory."""
    dice = random.Random(count)
    wrong, ratios = 0, []
    for _ in range(10):
        wanted = [dice.randrange(-count // 10, count) for _ in range(number // 10)]
        before = proc.cpu_seconds([many.pid]), proc.cpu_seconds([few.pid])
        for each in wanted:
            wrong += not await _is_right(many, each if each >= 0 else None, each)
            wrong += not await _is_right(few, each % _FEW if each >= 0 else None, each)
        after = proc.cpu_seconds([many.pid]), proc.cpu_seconds([few.pid])
        ratios.append((after[0] - before[0]) / max(after[1] - before[1], 1e-9))
    return wrong, statistics.median(ratios), proc.resident([many.pid])


async def _is_right(mux: Mux, number: int | None, other: int) -> bool:
    """Whether a name gets the answer that it is to get; without a number it is to have no route."""
    name = _asked(number) if number is not None else f"other{other}.example.net"
    expected = _answer(_server(number)) if number is not None else _NO_ROUTE
    plain = await trio.open_tcp_stream("127.0.0.1", mux.port)
    async with plain:
        await plain.send_all(client_hello(name))
        came = b""
        with trio.fail_after(60):
            while data := await plain.receive_some(64):
                came += data
    return came == expected
