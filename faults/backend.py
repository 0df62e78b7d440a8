"""A backend, a real Caddy, is killed and started again under load.

What it had open ends. Who comes while it is away is to wait; whoever has another backend is to see
nothing of it. snimux is stopped for the moment of the killing, so that it is known what the backend
has open.
"""

import signal
from pathlib import Path

from faults import client, load
from faults.client import Got
from faults.found import Found, Size
from faults.load import PATIENT, Load, held, why
from tests.support import caddy, muxes
from tests.support.caddy import Caddy
from tests.support.muxes import Mux

# A machine that is busy with other things may take long to start a Caddy.
_WAIT = "--wait=60"
_KILLED, _OTHER = "killed.test", "other.test"


def missing() -> str | None:
    """Say what is missing, or None."""
    return caddy.missing() or load.missing()


async def run(here: Path, size: Size) -> list[Found]:
    """Kill one of two, again and again, while connections to both come all the time."""
    caddies = {name: _start(here, name) for name in (_KILLED, _OTHER)}
    try:
        for name, each in caddies.items():
            await caddy.answering(each, [name])
        flags = [f"--route={name}=127.0.0.1:{each.port}" for name, each in caddies.items()]
        async with muxes.running(here, *flags, PATIENT, _WAIT) as mux:
            return await _run(mux, caddies, size)
    finally:
        for each in caddies.values():
            each.kill()


def _start(here: Path, name: str) -> Caddy:
    directory = here / name.partition(".")[0]
    directory.mkdir()
    return caddy.start(directory, f'{name} {{\n tls internal\n respond "{name}"\n}}')


async def _run(mux: Mux, caddies: dict[str, Caddy], size: Size) -> list[Found]:
    rounds = 1 if size.quick else size.rounds
    loads = {
        name: Load(mux.port, name, client.context(each.root), client.asked)
        for name, each in caddies.items()
    }
    killed, other = loads[_KILLED], loads[_OTHER]
    clients, stay = size.pick(3, 12), size.pick(8, 50)
    had = 0
    async with killed.coming(clients), other.coming(clients):
        for _ in range(rounds):
            async with killed.staying(stay), other.staying(stay):
                await killed.more(20)
                had += _kill(mux, caddies[_KILLED])
                await other.more(20)
                caddies[_KILLED] = _again(caddies[_KILLED])
                await killed.more(20)
    results = killed.count()
    broken = results[Got.BROKEN]
    failed = [result for result in other.results if result.got is not Got.ALL]
    refused = f"{results[Got.REFUSED]} came while it was away, and got internal_error"
    return [
        Found(
            f"a Caddy killed and restarted {rounds} times under load",
            len(killed.results),
            lost=results[Got.REFUSED] + results[Got.WRONG] + max(broken - had, 0),
            own=min(broken, had),
            remark=f"{had} were open on it" + f"; {refused}" * bool(results[Got.REFUSED]),
        ),
        Found(
            "meanwhile another Caddy behind the same snimux",
            len(other.results),
            lost=len(failed),
            problems=why(mux, failed),
        ),
    ]


def _kill(mux: Mux, killed: Caddy) -> int:
    """Kill a Caddy; gives how many connections it had from snimux."""
    mux.send_signal(signal.SIGSTOP)
    try:
        had = len(held(mux.pid, killed.port))
        killed.kill()
    finally:
        mux.send_signal(signal.SIGCONT)
    return had


def _again(killed: Caddy) -> Caddy:
    """The same Caddy, started anew."""
    caddyfile = (killed.directory / "Caddyfile").read_text("utf-8")
    killed.admin.unlink(missing_ok=True)
    return caddy.run(killed.directory, caddyfile, port=killed.port)
