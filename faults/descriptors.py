"""Few descriptors, many clients: who finds no place waits, nobody is lost, and nothing spins."""

import shutil
from pathlib import Path

import trio

from faults import client, running
from faults.client import Got
from faults.found import Found, Size
from faults.load import PATIENT, Load, wait
from tests.support import muxes

_NAME = "few.test"
_DESCRIPTORS = 64
_LOOK = 2.0  # seconds in which nothing moves
# Of these, seconds on a processor: accepting again and again would take all of them.
_MOST_CPU = 0.5


def missing() -> str | None:
    """Say what is missing, or None."""
    return None if shutil.which("prlimit") else "needs prlimit: apt-get install util-linux"


async def run(here: Path, size: Size) -> list[Found]:
    """Have far more clients than there are descriptors for."""
    signed = running.authority(here, _NAME)
    few = ["prlimit", f"--nofile={_DESCRIPTORS}"]
    clients = size.pick(40, 500)
    async with (
        running.server(signed) as port,
        muxes.running(here, f"--route={_NAME}=127.0.0.1:{port}", PATIENT, wrapper=few) as mux,
    ):
        load = Load(mux.port, _NAME, client.context(signed.root))
        await load.one()
        await wait(lambda: mux.lines(event="connection"), "the first one has ended")
        before = mux.descriptors
        leave = trio.Event()
        async with trio.open_nursery() as nursery:
            for _ in range(clients):
                nursery.start_soon(load.one, leave.wait)
            places = (await mux.log_line(event="full", within=60))["max_connections"]
            await wait(lambda: mux.descriptors >= before + 2 * places, "all places are in use")
            used = mux.cpu_seconds
            await trio.sleep(_LOOK)
            used = mux.cpu_seconds - used
            leave.set()
        await wait(lambda: mux.descriptors == before, "nothing is left open")
        await load.one()
    problems = (f"{used:.2f} s of processor time while all waited",) if used > _MOST_CPU else ()
    return [
        Found(
            f"{clients} clients at the same time, {_DESCRIPTORS} descriptors",
            len(load.results),
            lost=len(load.results) - load.count()[Got.ALL],
            remark=f"{places} at a time, the others waited; meanwhile {used:.2f} s of processor "
            f"time in {_LOOK:.0f} s",
            problems=problems,
        )
    ]
