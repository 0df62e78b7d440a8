"""A mixed load for minutes: what snimux holds stays as it was, and nothing is left in the end.

Memory and descriptors are looked at all the time, under a load that is the same all the time.
What it has still to do for connections is known in the end: told to stop, it says how many are
open, and ends by itself.
"""

import random
import ssl
import statistics
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from faults import client, running
from faults.client import Got, judged
from faults.found import Found, Size
from faults.load import PATIENT, Load, sockets, wait
from tests.support import muxes
from tests.support.muxes import Mux

_NAME, _NOBODY = "soak.test", "nobody.test"
_QUICK = 2.0  # seconds
_STAYING = 30
_EACH = 3  # clients of each kind at a time
# What the median of the last quarter may be above that of the second: the allocator's noise.
_MORE_MEMORY, _MORE_DESCRIPTORS = 1024 * 1024, 8


def missing() -> None:
    """Nothing is missing anywhere."""


async def run(here: Path, size: Size) -> list[Found]:
    """Have all kinds of connections for so many minutes."""
    seconds = _QUICK if size.quick else size.minutes * 60
    signed = running.authority(here, _NAME)
    async with (
        running.server(signed) as port,
        muxes.running(here, f"--route={_NAME}=127.0.0.1:{port}", PATIENT) as mux,
    ):
        load = Load(mux.port, _NAME, client.context(signed.root))
        await load.one()
        await wait(lambda: mux.lines(event="connection"), "the first has ended")
        before = sockets(mux.pid)
        kinds = _Kinds(load)
        async with load.staying(_STAYING):
            samples = await kinds.keep_up(mux, seconds)
        problems = _grown(samples) if not size.quick else []
        await wait(lambda: sockets(mux.pid) == before, "all sockets are closed")
        mux.send_signal()
        drained = await mux.log_line(event="draining")
        if drained["connections"]:
            problems.append(f"{drained['connections']} connections were left")
        if status := await mux.exit_status(seconds=60):
            problems.append(f"exit status {status}")
    lost = sum(result.got is not Got.ALL for result in load.results)
    lost += sum(count for (_, got), count in kinds.results.items() if got is not Got.ALL)
    made = Counter(kind for kind, _ in kinds.results.elements())
    mixed = ", ".join(f"{count:,} {kind}" for kind, count in made.items())
    return [
        Found(
            f"{_STAYING} connections that stay, and for {seconds / 60:g} minutes {mixed}",
            made.total() + len(load.results),
            lost=lost,
            remark=f"{_words(samples)}; in the end no connection, and as many sockets as before",
            problems=tuple(problems),
        )
    ]


class _Kinds:
    """The clients, of every kind."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.dice = random.Random("soak")
        self.results: Counter[tuple[str, Got]] = Counter()

    async def keep_up(self, mux: Mux, seconds: float) -> list[tuple[int, int]]:
        """Have them all for so long; gives memory and descriptors, again and again."""
        samples = []
        end = trio.current_time() + seconds
        kinds = {
            "short": self.short,
            "bulk": self.bulk,
            "half-closed": self.half_closed,
            "reset": self.reset,
            "with slow hellos": self.slow_hello,
            "refused": self.refused,
            "of noise": self.noise,
        }
        async with trio.open_nursery() as nursery:
            for words, kind in kinds.items():
                for _ in range(_EACH):
                    nursery.start_soon(self.again_and_again, words, kind, end)
            while trio.current_time() < end:
                await trio.sleep(seconds / 100)
                samples.append((mux.resident, mux.descriptors))
        return samples

    async def again_and_again(
        self, words: str, kind: Callable[[], Awaitable[None]], end: float
    ) -> None:
        """Have connections of a kind, one after the other."""
        while trio.current_time() < end:
            with judged(lambda got: self.results.update([(words, got)])):
                await kind()

    async def plain(self) -> trio.SocketStream:
        """A connection on which nothing has been said yet."""
        return await trio.open_tcp_stream("127.0.0.1", self.load.port)

    async def short(self) -> None:
        """An echo."""
        async with client.secured(await self.plain(), _NAME, self.load.context) as tls:
            await client.echoed(tls, _NAME, first=True)

    async def bulk(self) -> None:
        """Much, both ways at the same time."""
        up, down = self.dice.randrange(2_000_000), self.dice.randrange(2_000_000)
        async with client.secured(await self.plain(), _NAME, self.load.context) as tls:
            await client.bulk(tls, up, down, self.dice.randrange(2**32))

    async def half_closed(self) -> None:
        """A FIN behind the question, and then the whole answer."""
        plain = await self.plain()
        async with client.secured(plain, _NAME, self.load.context) as tls:
            await client.bulk(tls, 0, 100_000, self.dice.randrange(2**32), asked=plain.send_eof)

    async def reset(self) -> None:
        """A reset in the middle of an answer."""
        plain = await self.plain()
        async with client.secured(plain, _NAME, self.load.context) as tls:
            await tls.send_all(b"bulk 0 1000000 1\n")
            await client.exactly(tls, 1000)
            client.reset(plain)

    async def slow_hello(self) -> None:
        """A hello in pieces that take their time, and what the backend answers to it."""
        hello = client.client_hello(_NAME)
        async with await self.plain() as plain:
            for at in range(0, len(hello), 100):
                await plain.send_all(hello[at : at + 100])
                await trio.sleep(0.02)
            await client.exactly(plain, 100)

    async def refused(self) -> None:
        """A name that nobody has."""
        try:
            async with client.secured(await self.plain(), _NOBODY, self.load.context):
                pass
        except trio.BrokenResourceError as error:
            cause = error.__cause__
            if not isinstance(cause, ssl.SSLError) or cause.reason != "TLSV1_UNRECOGNIZED_NAME":
                raise
            return
        raise client.WrongError("not refused")

    async def noise(self) -> None:
        """Bytes that are no hello, or none at all, and then nobody."""
        async with await self.plain() as plain:
            await plain.send_all(self.dice.randbytes(self.dice.choice([0, 1, 100])) or b"\x16")


def _grown(samples: list[tuple[int, int]]) -> list[str]:
    """What is more in the last quarter than it was in the second."""
    memory, descriptors = _growth(samples)
    found = [f"{memory / 1024:.0f} KiB more memory"] if memory > _MORE_MEMORY else []
    if descriptors > _MORE_DESCRIPTORS:
        found.append(f"{descriptors:.0f} more descriptors")
    return found


def _growth(samples: list[tuple[int, int]]) -> tuple[float, float]:
    quarter = max(len(samples) // 4, 1)
    early, late = samples[quarter : 2 * quarter] or samples, samples[-quarter:]
    memory, descriptors = (
        statistics.median(each[what] for each in late)
        - statistics.median(each[what] for each in early)
        for what in (0, 1)
    )
    return memory, descriptors


def _words(samples: list[tuple[int, int]]) -> str:
    memory, descriptors = _growth(samples)
    whole = statistics.median(each[0] for each in samples) / 2**20
    return (
        f"RSS {whole:.1f} MiB, and from the second quarter to the last {memory / 1024:+.0f} KiB; "
        f"descriptors {descriptors:+.0f}"
    )
