"""The life of a process that serves, or whose workers do: signals, orders, and its last stages.

First it stops accepting. Then it drains: what is open is to end within the drain. Then it closes
what still is, and at last it kills: workers, where it has some. A process is told so by signals, a
worker by its supervisor too, and one that has handed over by its successor. Knows nothing of
connections.
"""

import contextlib
import itertools
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence

import trio

from snimux.log import Log
from snimux.net.listeners import Listener
from snimux.service.control import Lines, receive
from snimux.service.reload import Follower, NotFollowed, Reloader
from snimux.service.upgrade import SIGNAL as UPGRADE_SIGNAL
from snimux.service.upgrade import Succession

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
SIGNALS = (*STOP_SIGNALS, signal.SIGHUP, UPGRADE_SIGNAL, signal.SIGCHLD)
"""All that a process handles; a worker handles the first ones alone."""


@contextlib.contextmanager
def received(numbers: Sequence[int]) -> Iterator[AsyncIterator[int]]:
    """Receive signals instead of being ended by them, and what has come already first."""
    with trio.open_signal_receiver(*numbers) as signals:
        # One may be waiting already; and whoever started this may have blocked SIGCHLD.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
        yield signals


class Lifecycle:
    """The stages that a process goes through on its way to its end; none is left again.

    Signals, orders and the successor's words are counted apart: what stops a whole service
    (systemd) signals each of its processes, and one wish that comes two ways is still one.
    """

    def __init__(
        self,
        log: Log,
        succession: Succession,
        reload: Reloader | Follower | None,
        *,
        listeners: Callable[[], Iterable[Listener]],
        poll_now: Callable[[], None],
        reap: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin before the first stage.

        Args:
            log: gets what went wrong with a reload or a supervisor.
            succession: those before and after, who are told to stop as well.
            reload: puts other configurations into effect, if that is possible.
            listeners: returns all that is to be handed over to a successor.
            poll_now: has the Caddys asked at once.
            reap: sees which children of the process have ended, besides a successor.
        """
        self.log = log
        self.succession = succession
        self.reload = reload
        self.stopped_accepting = trio.Event()
        self.draining = trio.Event()
        self.closing = trio.Event()
        self.killing = trio.Event()
        self._listeners = listeners
        self._poll_now = poll_now
        self._reap = reap
        self._reloading = trio.CancelScope()

    def stop_accepting(self) -> None:
        """Accept no more. What is being reloaded is not waited for: to read it takes a while."""
        self.stopped_accepting.set()
        self._reloading.cancel()

    def drain(self) -> None:
        """Accept no more, and let connections end within the drain."""
        self._enter(self.draining)
        self.stop_accepting()

    def close(self) -> None:
        """Close what is still open."""
        self._enter(self.closing)

    def kill(self) -> None:
        """Wait no longer for anybody."""
        self._enter(self.killing)

    def _enter(self, stage: trio.Event) -> None:
        if not stage.is_set():
            self.succession.stop()
            stage.set()

    def _stages(self) -> Iterator[Callable[[], None]]:
        """Return what each wish to stop does, of those that come in one way."""
        return itertools.chain([self.drain, self.close], itertools.repeat(self.kill))

    async def handle_signals(
        self, signals: AsyncIterator[int], upgrade: Callable[[], object]
    ) -> None:
        """Do what signals say, until cancelled.

        Args:
            signals: as they come.
            upgrade: has ``hand_over`` run in a task that the process waits for.
        """
        stages = self._stages()
        async for number in signals:
            if number in STOP_SIGNALS:
                next(stages)()
            elif number == signal.SIGCHLD:
                self._reap()
                self.succession.reap()
            elif number == UPGRADE_SIGNAL:
                if not self.stopped_accepting.is_set():
                    upgrade()
            elif number == signal.SIGHUP:
                self.succession.forward_hangup()
                self._poll_now()
                if isinstance(self.reload, Reloader):
                    self.reload.ask()
                else:
                    self.log.write("info", "reloaded", {"detail": "no --config FILE to read again"})

    async def handle_orders(self, supervisor: socket.socket) -> None:
        """Do what the supervisor says; drain when it is gone."""
        stages = self._stages()
        with contextlib.closing(Lines(supervisor)) as orders:
            try:
                while order := await receive(orders):
                    if order.what in ("drain", "close"):
                        next(stages)()
                    elif order.what == "leave":
                        self.stop_accepting()
                    elif order.what == "ask":
                        self._poll_now()
                    elif isinstance(self.reload, Follower):
                        self.reload.hear(order)
            except ValueError as error:
                self.log.write("error", "reload-failed", {"detail": str(error)})
        self.log.write("error", "supervisor-gone", {})
        self.drain()

    async def handle_successor(self) -> None:
        """Stop as the successor is told to, which may be long after it has the work."""
        stages = self._stages()
        await self.succession.listen_to_successor(lambda: next(stages)())

    async def hand_over(self) -> None:
        """Have a successor started, and stop accepting once it serves, if it comes to that."""
        # A reload would change what is handed over.
        lock = self.reload.lock if isinstance(self.reload, Reloader) else contextlib.nullcontext()
        if await self.succession.hand_over(self._listeners, lock):
            self.stop_accepting()

    async def keep_reloading(self) -> None:
        """Have other configurations put into effect until this process stops accepting."""
        with self._reloading:
            try:
                if self.reload is not None:
                    await self.reload.run()
            except NotFollowed as error:
                # The supervisor starts another one, which has what it needs from the start.
                self.log.write("error", "reload-failed", {"detail": str(error)})
                self.drain()
