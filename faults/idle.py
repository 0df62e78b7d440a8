"""Thousands of idle connections: what they take, and whether all are as good as ever in the end.

The bytes of the handshake are a real client's, but no TLS is spoken behind it: to snimux there is
no difference.
"""

import contextlib
import resource
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import trio

from bench import load, names, proc
from faults import running
from faults.found import Found, Size
from faults.load import wait
from tests.support import muxes
from tests.support.muxes import Mux

_BACKEND = 100  # descriptors of the server that are no connections', and some to spare
_MUX = 600  # the same of snimux


def missing() -> None:
    """Nothing is missing anywhere."""


async def run(here: Path, size: Size) -> list[Found]:
    """Open connections, let them be, and have a byte echoed on each."""
    with _descriptors() as most, running.process(*running.python("bench.backend", "echoes")) as end:
        wanted = size.pick(500, 10_000)
        count = min(wanted, most - _BACKEND)
        # one process has two descriptors for each
        workers = -(-2 * count // (most - _MUX))
        host = f"{names.host(names.ECHOES)}=127.0.0.1:{await running.line(end)}"
        async with muxes.running(here, f"--route={host}", f"--workers={workers}") as mux:
            family, before = await _begin(mux, workers)
            with contextlib.ExitStack() as stack:
                opened = []
                for each in load.open_echoing(mux.port, count):
                    opened.append(stack.enter_context(each))
                resident = proc.resident(family) - before
                await trio.sleep(size.pick(0, 30))
                alive = _echoed(opened)
            await wait(lambda: len(mux.lines(event="connection")) > count, "all have ended")
    words = [f"{resident / count / 1024:.1f} KiB of RSS each"]
    if workers > 1:
        words.append(f"{workers} workers, as a process may have {most:,} descriptors here")
    if count < wanted:
        words.append(f"not {wanted:,}, as a process may have {most:,} descriptors here")
    done = f"{count:,} connections open, idle for {size.pick(0, 30)} s, then a byte each"
    return [Found(done, count, lost=count - alive, remark="; ".join(words))]


@contextlib.contextmanager
def _descriptors() -> Iterator[int]:
    """As many descriptors as this process and its children may have; gives how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def _begin(mux: Mux, workers: int) -> tuple[Sequence[int], int]:
    """Its processes, all of which serve, and the bytes of memory that they have before."""
    for each in load.open_echoing(mux.port, 1):
        each.close()
    await wait(lambda: mux.lines(event="connection"), "it serves")
    await wait(lambda: len(proc.family(mux.pid)) == (workers + 1 if workers > 1 else 1), "all run")
    family = proc.family(mux.pid)
    return family, proc.resident(family)


def _echoed(opened: Sequence[socket.socket]) -> int:
    """How many of the connections echo a byte."""
    alive = 0
    for each in opened:
        with contextlib.suppress(OSError):
            each.settimeout(60)
            each.send(b"!")
            alive += each.recv(2) == b"!"
    return alive
