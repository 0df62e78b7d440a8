"""Look at a running snimux every so often: its pages -> a ``Sample``, or why there is none.

In a thread of its own, for trio; whoever shows what was found may run another loop. Whether snimux
is restarted, upgraded or gone for a while makes no difference: it is asked again. Changes nothing.
"""

import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

import trio

from snimux.net.http_get import FetchError, StatusError, fetch
from snimux.routing.address import DialAddress
from snimux.status.client import ApiError, read, read_route_rows
from snimux.status.sample import RouteRows, Sample
from snimux.top.tree import Overview, overview

# One look more without the routes for so many of them; ten, of the 10,000 that are shown at most.
# They take longest to be told and to be read, and how many there are is told with each look.
_ROUTES_A_LOOK = 1000

_NOT_FOUND = 404


@dataclass(frozen=True, slots=True)
class Lost:
    """There is no answer."""

    why: str


Found = Sample | Lost


class Eye:
    """Looks at one snimux; remembers its routes for a few looks."""

    def __init__(self, address: DialAddress) -> None:
        self.address = address
        self.routes = RouteRows()
        self.looks_left = 0  # until the routes are asked for again

    async def look(self) -> Found:
        """Look once."""
        try:
            return await self._state()
        except (FetchError, ApiError) as error:
            self.looks_left = 0
            return Lost(str(error))

    async def _state(self) -> Sample:
        figures = await self._figures()
        at, now = time.monotonic(), time.time()
        others = ["/connections", "/refused", *["/routes"] * (self.looks_left == 0)]
        connections, refused, *routes = await self._fetched(others)
        for page in routes:
            self.routes = read_route_rows(page)
            self.looks_left = 1 + len(self.routes.shown) // _ROUTES_A_LOOK
        self.looks_left -= 1
        state = read(figures, connections, refused, self.routes, at=at, time=now)
        if state.routes_total != self.routes.total:
            self.looks_left = 0
        return state

    async def _fetched(self, paths: Sequence[str]) -> list[bytes]:
        """Pages, all at once: snimux waits for a worker that is stuck, with each anew."""
        found: dict[str, bytes | FetchError] = {}

        async def get(path: str) -> None:
            try:
                found[path] = await fetch(self.address, path)
            except FetchError as error:
                found[path] = error

        async with trio.open_nursery() as nursery:
            for path in paths:
                nursery.start_soon(get, path)
        for error in found.values():
            if isinstance(error, FetchError):
                raise error
        return [page for path in paths if isinstance(page := found[path], bytes)]

    async def _figures(self) -> bytes:
        try:
            return await fetch(self.address, "/figures")
        except StatusError as error:
            if error.status != _NOT_FOUND:
                raise
            if b"/connections" in error.body:  # it names the pages that there are
                raise FetchError("a snimux that is too old for this: it has no /figures") from None
            raise FetchError("no snimux: it has no /figures") from None


async def glance(eye: Eye, seconds: float) -> Overview | Lost:
    """Look twice, with so many seconds between."""
    before = await eye.look()
    if isinstance(before, Lost):
        return before
    await trio.sleep(seconds)
    now = await eye.look()
    return now if isinstance(now, Lost) else overview(now, before)


class Looking:
    """An ``Eye`` that looks every so often, in a thread; any thread may call all methods.

    Resource handling: a context manager; the thread has ended on leaving.
    """

    def __init__(self, eye: Eye, every: float, tell: Callable[[Found], object]) -> None:
        """What to look at.

        Args:
            eye: looks.
            every: how often, in seconds.
            tell: called with what was found, in the thread.
        """
        self._eye = eye
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
        """Look as often from now on; infinity: no more, until this is called again."""
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
                    self._tell(await self._eye.look())
                self._again = trio.Event()
                with trio.move_on_at(began + self._every):
                    await self._again.wait()
