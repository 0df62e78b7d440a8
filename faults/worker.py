"""A worker is killed under load: what it had open ends, and nothing else does, nor what waited.

It is stopped first, so that what it has open can be read off and stays so until it is killed.
"""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import psutil

from faults import client, load, running
from faults.client import Got
from faults.found import Found, Size
from faults.load import PATIENT, Load, held, wait, why
from tests.support import muxes
from tests.support.muxes import Mux

_NAME = "worker.test"


def missing() -> str | None:
    """Say what is missing, or None."""
    return load.missing()


async def run(here: Path, size: Size) -> list[Found]:
    """Kill one of two workers, again and again, while connections come all the time."""
    signed = running.authority(here, _NAME)
    killed: set[int] = set()
    rounds = 1 if size.quick else size.rounds
    async with (
        running.server(signed) as port,
        muxes.running(here, f"--route={_NAME}=127.0.0.1:{port}", PATIENT, "--workers=2") as mux,
    ):
        clients = Load(mux.port, _NAME, client.context(signed.root))
        async with clients.coming(size.pick(4, 16)):
            for number in range(rounds):
                await wait(lambda: len(mux.lines(event="relay")) > number + 1, "both serve")  # noqa: B023
                async with clients.staying(size.pick(8, 100)):
                    await clients.more(size.pick(10, 50))
                    busiest = max(_alive(mux), key=lambda pid: len(held(pid, mux.port)))
                    killed |= _kill(mux, busiest)
                    await wait(
                        lambda: len(mux.lines(event="worker-died")) > number,  # noqa: B023
                        "its death is seen",
                    )
                    await clients.more(size.pick(10, 50))
    failed = {result for result in clients.results if result.got is not Got.ALL}
    own = {result for result in failed if result.port in killed}
    stayed = sum(result.stayed for result in own)
    return [
        Found(
            f"a worker of two killed {rounds} times under load",
            len(clients.results),
            lost=len(failed) - len(own),
            own=len(own),
            remark=f"{len(killed)} were open on it; {stayed} of those that ended had been idle",
            problems=(*_kept(clients, killed), *why(mux, failed - own)),
        )
    ]


def _alive(mux: Mux) -> Sequence[int]:
    """The processes of the workers that are alive, as far as the log says."""
    started = [int(line["pid"]) for line in mux.lines(event="worker-started")]
    gone = [line.get("pid") for line in mux.lines(event="worker-died")]
    return [pid for pid in started if pid not in gone]


def _kill(mux: Mux, pid: int) -> set[int]:
    """Kill a worker; gives the ports of the clients whose connections it had."""
    os.kill(pid, signal.SIGSTOP)
    while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
        pass
    had = held(pid, mux.port)
    os.kill(pid, signal.SIGKILL)
    return had


def _kept(clients: Load, killed: set[int]) -> tuple[str, ...]:
    """Connections that were idle on the killed process, and yet did not end: there are none."""
    odd = [x for x in clients.results if x.stayed and x.port in killed and x.got is Got.ALL]
    return (f"{len(odd)} went on without their worker",) if odd else ()
