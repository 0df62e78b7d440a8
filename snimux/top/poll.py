"""Poll a running snimux every so often: its pages -> a ``Sample``, or why there is none.

In a thread of its own, for trio; whoever shows the answers may run another loop. Whether snimux
is restarted, upgraded or gone for a while makes no difference: it is asked again. Changes nothing.
"""

import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Self

import trio

from snimux.net.http_get import FetchError, StatusError, fetch
from snimux.routing.address import DialAddress
from snimux.status.client import ApiError, read, read_route_rows
from snimux.status.sample import RouteRows, Sample
from snimux.top.tree import Overview, overview

# One poll more without the routes for so many of them; ten, of the 10,000 that are shown at most.
# They take longest to be written and read, and how many there are comes with each poll.
_ROUTES_A_POLL = 1000


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """Nobody answers, or no snimux."""

    why: str


Answer = Sample | NoAnswer


class Poller:
    """Polls one snimux; remembers its routes for a few polls."""

    def __init__(self, address: DialAddress) -> None:
        self.address = address
        self.routes = RouteRows()
        self.polls_left = 0  # until the routes are asked for again

    async def poll(self) -> Answer:
        """Poll once."""
        try:
            return await self._sample()
        except (FetchError, ApiError) as error:
            self.polls_left = 0
            return NoAnswer(str(error))

    async def _sample(self) -> Sample:
        figures = await self._figures()
        at, now = time.monotonic(), time.time()
        paths = ["/connections", "/refused", *["/routes"] * (self.polls_left == 0)]
        connections, refused, *routes = await self._fetched(paths)
        for page in routes:
            self.routes = read_route_rows(page)
            self.polls_left = 1 + len(self.routes.shown) // _ROUTES_A_POLL
        self.polls_left -= 1
        sample = read(figures, connections, refused, self.routes, at=at, time=now)
        if sample.routes_total != self.routes.total:
            self.polls_left = 0
        return sample

    async def _fetched(self, paths: Sequence[str]) -> list[bytes]:
        """Fetch pages, all at once: snimux waits for a worker that is stuck, with each anew."""
        answers: dict[str, bytes | FetchError] = {}

        async def get(path: str) -> None:
            try:
                answers[path] = await fetch(self.address, path)
            except FetchError as error:
                answers[path] = error

        async with trio.open_nursery() as nursery:
            for path in paths:
                nursery.start_soon(get, path)
        for error in answers.values():
            if isinstance(error, FetchError):
                raise error
        return [page for path in paths if isinstance(page := answers[path], bytes)]

    async def _figures(self) -> bytes:
        try:
            return await fetch(self.address, "/figures")
        except StatusError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            if b"/connections" in error.body:  # it names the pages that there are
                raise FetchError("a snimux that is too old for this: it has no /figures") from None
            raise FetchError("no snimux: it has no /figures") from None


async def poll_twice(poller: Poller, seconds: float) -> Overview | NoAnswer:
    """Poll twice, with so many seconds between."""
    before = await poller.poll()
    if isinstance(before, NoAnswer):
        return before
    await trio.sleep(seconds)
    now = await poller.poll()
    return now if isinstance(now, NoAnswer) else overview(now, before)


class PollerThread:
    """A ``Poller`` that polls every so often, in a thread; any thread may call all methods.

    Resource handling: a context manager; the thread has ended on leaving.
    """

    def __init__(self, poller: Poller, every: float, tell: Callable[[Answer], object]) -> None:
        """Have it poll as soon as the thread runs.

        Args:
            poller: asks the snimux.
            every: how often, in seconds.
            tell: called with each answer, in the thread.
        """
        self._poller = poller
        self._every = every
        self._tell = tell
        self._scope = trio.CancelScope()
        self._again = trio.Event()
        self._started = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._run,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._in_loop(self._scope.cancel)
        self._thread.join()

    def set_every(self, seconds: float) -> None:
        """Poll as often from now on; infinity: no more, until this is called again."""
        self._every = seconds
        self._in_loop(lambda: self._again.set())

    def _in_loop(self, call: Callable[[], object]) -> None:
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(call)

    async def _run(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._started.set()
        with self._scope:
            while True:
                began = trio.current_time()
                if self._every < math.inf:
                    self._tell(await self._poller.poll())
                self._again = trio.Event()
                with trio.move_on_at(began + self._every):
                    await self._again.wait()
