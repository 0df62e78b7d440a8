"""The life of a process that serves: what it is told meanwhile, by whom, and its last stages.

It is told by signals, a worker by its supervisor, and who has handed over by its successor. First
it leaves: it accepts no more. Then it hurries: what is open is to end within the drain. Then it
closes what still is. Knows nothing of connections.
"""

import contextlib
import itertools
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator

import trio

from snimux.log import Log
from snimux.service.control import Orders
from snimux.service.reload import Follower, NotFollowed, Reloader
from snimux.service.upgrade import SIGNAL as UPGRADE_SIGNAL
from snimux.service.upgrade import Succession

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
SIGNALS = (*STOP_SIGNALS, signal.SIGHUP, UPGRADE_SIGNAL, signal.SIGCHLD)
"""All that a process heeds; a worker heeds the first ones alone."""


class Life:
    """How far a process is on its way to its end, and how it is told things meanwhile."""

    def __init__(
        self,
        log: Log,
        succession: Succession,
        reload: Reloader | Follower | None,
        *,
        hurry_up: Callable[[], None],
    ) -> None:
        """Begin before the first stage.

        Args:
            log: told what went wrong with whoever tells.
            succession: those before and after, who are told as well.
            reload: what has other configurations put into effect, if that is possible.
            hurry_up: has the Caddys asked at once.
        """
        self.log = log
        self.succession = succession
        self.reload = reload
        self.hurry_up = hurry_up
        self.leaving = trio.Event()  # accept no more
        self.hurrying = trio.Event()  # and end within the drain
        self.closing = trio.Event()  # or at once
        self.reloading = trio.CancelScope()

    def stages(self) -> Iterator[Callable[[], None]]:
        """What each wish to stop does that comes in one way."""
        return itertools.chain([self.stop], itertools.repeat(self.shut))

    def leave(self) -> None:
        """Accept no more. What is being reloaded is not waited for: to read it takes a while."""
        self.leaving.set()
        self.reloading.cancel()

    def stop(self) -> None:
        """Accept no more, and let connections end within the drain."""
        if not self.hurrying.is_set():
            self.succession.stop()
        self.leave()
        self.hurrying.set()

    def shut(self) -> None:
        """Close what is still open."""
        if not self.closing.is_set():
            self.succession.stop()
        self.closing.set()

    async def heed(self, signals: AsyncIterator[int], upgrade: Callable[[], None]) -> None:
        """Do what signals tell, until cancelled.

        Args:
            signals: as they come.
            upgrade: has a successor started.
        """
        stages = self.stages()
        async for number in signals:
            if number in STOP_SIGNALS:
                next(stages)()
            elif number == signal.SIGCHLD:
                self.succession.reap()
            elif number == UPGRADE_SIGNAL:
                if not self.leaving.is_set():
                    upgrade()
            elif number == signal.SIGHUP:
                self.succession.hang_up()
                self.hurry_up()
                if isinstance(self.reload, Reloader):
                    self.reload.ask()
                else:
                    self.log.write("info", "reloaded", {"detail": "no --config FILE to read again"})

    async def obey(self, supervisor: socket.socket) -> None:
        """Heed the supervisor.

        Signals and orders are counted apart: what stops a whole service (systemd) signals each of
        its processes, and one wish that comes both ways is still one.
        """
        stages = self.stages()
        with contextlib.closing(Orders(supervisor)) as orders:
            try:
                while order := await orders.receive():
                    if order.what in ("drain", "close"):
                        next(stages)()
                    elif order.what == "leave":
                        self.leave()
                    elif order.what == "ask":
                        self.hurry_up()
                    elif isinstance(self.reload, Follower):
                        self.reload.hear(order)
            except ValueError as error:
                self.log.write("error", "reload-failed", {"detail": str(error)})
        self.log.write("error", "supervisor-gone", {})
        self.stop()

    async def obey_successor(self) -> None:
        """Stop as it is told to, which may be long after this process has left it the work."""
        stages = self.stages()
        await self.succession.listen_to_successor(lambda: next(stages)())

    async def keep_reloading(self) -> None:
        """Have other configurations put into effect until this process leaves."""
        with self.reloading:
            try:
                if self.reload is not None:
                    await self.reload.run()
            except NotFollowed as error:
                # The supervisor starts another one, which has what it needs from the start.
                self.log.write("error", "reload-failed", {"detail": str(error)})
                self.stop()
