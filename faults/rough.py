"""Paths that lose, double, overtake and delay: every byte is to arrive all the same, both ways.

Bulk both ways at the same time on many connections, by both relays, each checked by its digests.
"""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

from faults import network, running
from faults.bed import bed
from faults.client import Got
from faults.found import Found, Size
from faults.network import Rough

_WITHIN = 600.0  # seconds: whatever TCP takes to get it through

# Deadlines are for attackers, and for backends nearby: what one hello of hundreds needs where so
# much is lost may well be more.
_DEADLINES = "--hello-timeout=300", "--dial-timeout=300"

_LOSS = Rough(loss=0.1)
_FAR = Rough(delay=0.1)
_ALL = Rough(loss=0.07, twice=0.03, late=0.1, delay=0.1)
_QUICK = Rough(loss=0.07, twice=0.03, late=0.1, delay=0.005)


def missing() -> str | None:
    """Say what is missing, or None."""
    return network.missing()


async def run(here: Path, size: Size) -> list[Found]:
    """Move bytes over each kind of path, by each relay."""
    roughs = [_QUICK] if size.quick else [_LOSS, _FAR, _ALL]
    found: list[Found] = []
    for rough in roughs:
        for relay in ("auto", "portable"):
            directory = here / f"{len(found)}"
            directory.mkdir()
            found.append(await _run(directory, size, rough, relay))
    return found


async def _run(here: Path, size: Size, rough: Rough, relay: str) -> Found:
    count, up, down = size.pick(4, 24), size.pick(40_000, 200_000), size.pick(60_000, 300_000)
    async with bed(
        here, rough, replace(rough, seed="inner"), f"--relay={relay}", *_DEADLINES
    ) as made:
        with running.process(*made.clients(count, up, down, down // 4)) as load:
            assert await running.line(load, within=_WITHIN) == "midway"
            results = Counter(json.loads(await running.line(load, within=_WITHIN)))
        counts = Counter(await made.network.outer.counts()) + Counter(
            await made.network.inner.counts()
        )
    good = results[Got.ALL]
    return Found(
        f"{_words(rough)}, --relay {relay}: {up:,} bytes up and {down:,} down on each",
        count,
        lost=count - good,
        remark=", ".join(f"{number:,} {what}" for what, number in counts.items()),
    )


def _words(rough: Rough) -> str:
    words = {
        "lost": rough.loss,
        "doubled": rough.twice,
        "overtaken": rough.late,
    }
    found = [f"{chance:.0%} {what}" for what, chance in words.items() if chance]
    if rough.delay:
        found.append(f"{rough.delay * 2000:.0f} ms there and back")
    return "both paths " + ", ".join(found)
