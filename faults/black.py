"""A path goes black midway: for a while, and nothing is lost; for ever, and places are given back.

For a while: first packets vanish, which nobody is told of; then the device of snimux is down, which
its kernel is told of. For ever, a connection ends by ``idle_timeout``, by the kernel's keepalive,
or, with bytes under way, by the kernel's patience with them; the last two are made shorter here
than Linux has them.
"""

import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import trio

from faults import network, running
from faults.bed import bed
from faults.client import Got
from faults.found import Found, Size
from faults.network import OUTSIDE, Rough
from tests.support import muxes
from tests.support.caddy import until

_PATHS = Rough(delay=0.01), Rough()
_WITHIN = 120.0  # seconds
_FOREVER = 10**9  # bytes
_PLACES = 4


def missing() -> str | None:
    """Say what is missing, or None."""
    return network.missing()


async def run(here: Path, size: Size) -> list[Found]:
    """Have the path black for a while, and for ever."""
    found: list[Found] = []
    for number, relay in enumerate(("auto",) if size.quick else ("auto", "portable")):
        directory = here / str(number)
        directory.mkdir()
        found.append(await _for_a_while(directory, size, relay))
        found.append(await _for_ever(directory, relay, _IDLE_TIMEOUT))
        if not size.quick:
            found += [await _for_ever(directory, relay, end) for end in _OTHERS]
    return found


async def _for_a_while(here: Path, size: Size, relay: str) -> Found:
    count, seconds = size.pick(4, 24), size.pick(1, 10)
    much = size.pick(200_000, 1_000_000)
    async with bed(here, *_PATHS, f"--relay={relay}") as made:
        with running.process(*made.clients(count, much, much, much // 4)) as load:
            assert await running.line(load, within=_WITHIN) == "midway"
            await made.network.outer.tell("black")
            await trio.sleep(seconds)
            await made.network.outer.tell("clear")
            made.network.mux.ip("link", "set", network.device(OUTSIDE), "down")
            await trio.sleep(seconds)
            made.network.mux.ip("link", "set", network.device(OUTSIDE), "up")
            results = Counter(json.loads(await running.line(load, within=_WITHIN)))
    return Found(
        f"black midway for {seconds} s, then link down for {seconds} s, --relay {relay}",
        count,
        lost=count - results[Got.ALL],
        remark=f"{much:,} bytes both ways on each",
    )


async def _for_ever(here: Path, relay: str, end: "_End") -> Found:
    """All places are taken when the path goes black; then it is to be good for others."""
    flags = [f"--relay={relay}", f"--max-connections={_PLACES}", *end.flags]
    async with bed(here, *_PATHS, *flags) as made:
        mux = made.mux
        for name, value in end.sysctls.items():
            made.network.mux.sysctl(name, value)
        much = (0, 1000, 1000, "stay") if end.idle else (0, _FOREVER, 100_000)
        with running.process(*made.clients(_PLACES, *much)) as load:
            assert await running.line(load, within=_WITHIN) == "midway"
            await made.network.outer.tell("black")
            began = time.monotonic()

            def ended() -> list[muxes.Line]:
                return mux.lines(event="connection")

            await until(lambda: len(ended()) == _PLACES, "all end", seconds=_WITHIN)
            seconds = time.monotonic() - began
        await made.network.outer.tell("clear")
        with running.process(*made.clients(_PLACES, 1000, 1000, 1000)) as load:
            assert await running.line(load, within=_WITHIN) == "midway"
            results = Counter(json.loads(await running.line(load, within=_WITHIN)))
        words = sorted({line["ended"] for line in ended()[:_PLACES]})
    return Found(
        f"black for ever, all places taken: ended by {end.by}, --relay {relay}",
        _PLACES,
        lost=_PLACES - results[Got.ALL],
        remark=f"all ended after {seconds:.0f} s ({', '.join(words)}), and their places are good "
        "for others",
    )


@dataclass(frozen=True, slots=True)
class _End:
    """What ends a connection on a path that is black."""

    by: str
    flags: tuple[str, ...] = ()
    sysctls: Mapping[str, int] = field(default_factory=dict)
    idle: bool = False
    """Whether it is so of a connection on which nothing is under way."""


_IDLE_TIMEOUT = _End("idle_timeout of 3 s", flags=("--idle-timeout=3",))
_OTHERS = (
    _End(
        "keepalive, after a minute, with 2 probes of 1 s",
        sysctls={"tcp_keepalive_intvl": 1, "tcp_keepalive_probes": 2},
        idle=True,
    ),
    _End("TCP's patience, with tcp_retries2 = 5", sysctls={"tcp_retries2": 5}),
)
