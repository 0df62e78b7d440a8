"""The processes before this one and after it: a newer snimux takes over, and nobody is refused.

On a signal the old process starts its own command again, and hands it what it listens on and a
socket called ``predecessor``. Both accept then, from the same queues. Once connections come through
the new one, it says so there; the old one tells the service manager which is the main process
now, answers, and accepts no more. If it does not come to that, the log says why, and that is all.
That socket stays: a process that is told to stop tells those before it, which have connections
still. A UNIX socket's file is removed by the one that has taken over last.

Knows nothing of connections and workers.

Source: nginx.org, "Controlling nginx", "Upgrading Executable on the Fly"; the protocol by which
descriptors are handed over is that of sd_listen_fds(3).
"""

import os
import signal
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from dataclasses import dataclass, field

import trio

from snimux.log import Field, Level, Log
from snimux.net.listeners import Listener, besides
from snimux.service import systemd
from snimux.service.handover import Inheritance, to_successor
from snimux.service.spawn import Apart, start_apart
from snimux.service.systemd import Manager

SIGNAL = signal.SIGUSR2
"""Asks for a successor: nginx's signal for it."""

# They wait until the successor handles them: it must not end by one halfway.
_KEPT_WAITING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, SIGNAL)

# Words on the socket: a protocol with the version that is installed.
_READY, _HEARD, _STOP = b"r", b"h", b"s"

# A process can be told so often to stop: to drain, and to close what is open.
_STAGES = 2

# Seconds: what a start may take, with a hundred thousand routes on a busy machine.
_PATIENCE = 60.0

# One that has hung up mostly has ended.
_GRACE = 5.0

# How often to try to tell a service manager that has no ear just now; and seconds in between.
_TRIES = 50
_AGAIN = 0.1


_NOTHING = Inheritance(())
_NO_LOCK: AbstractAsyncContextManager[object] = nullcontext()


@dataclass(frozen=True, slots=True)
class _Successor:
    """The process that is to serve instead of this one, and the socket to it."""

    program: Apart
    channel: trio.socket.SocketType
    ended: trio.Event = field(default_factory=trio.Event)

    @property
    def pid(self) -> int:
        """Its process id, or that of its keeper as long as it is not known."""
        return self.program.pid or self.program.keeper.pid


class Succession:
    """The predecessors of this process that may be alive still, and its successor."""

    def __init__(
        self,
        log: Log,
        manager: Manager,
        inherited: Inheritance = _NOTHING,
        *,
        command: Sequence[str] = (),
        listeners: Iterable[Listener] = (),
    ) -> None:
        """Begin with what was inherited.

        Args:
            log: told how an upgrade goes.
            manager: told who is the main process.
            inherited: by this process.
            command: the program that each successor is, and its arguments; without one, whoever
                asks for a successor is not heard.
            listeners: what this process listens on; what it inherited besides is closed as soon as
                it has taken over.
        """
        self.handed_over = trio.Event()
        """Set when a successor serves, and this process is to leave all to it."""
        self.taken_over = trio.Event()
        """Set when there is no predecessor to take over from."""
        self._log = log
        self._manager = manager
        self._activated = inherited.activated
        self.command = command
        self._left_out = besides(inherited.listeners, listeners)
        self._predecessors = [_channel(number) for number in inherited.predecessors]
        self._settled = trio.Event()  # taken over, or told to stop
        self._predecessors_ended = trio.Event()
        self._successor: _Successor | None = None
        self._is_handing_over = False
        self._stop_count = 0
        if not self._predecessors:
            self._settle()
            self._predecessors_ended.set()

    def close(self, listener: Listener) -> None:
        """Close a listener, and leave its file to whoever serves it."""
        if self.taken_over.is_set() and not self.handed_over.is_set():
            listener.close()
        else:
            listener.socket.close()

    def stop(self) -> None:
        """Pass it on: to those before, and to a successor that does not serve yet.

        The second time that one is killed; the third time nobody before is waited for. Who has
        handed over passes nothing on: the successor does.
        """
        self._stop_count += 1
        self._settled.set()
        if self.handed_over.is_set():
            return
        if self._successor is not None:
            program = self._successor.program
            if not program.pid:
                program.keeper.kill()
            program.send(signal.SIGTERM if self._stop_count == 1 else signal.SIGKILL)
        if self.taken_over.is_set():
            for channel in self._predecessors:
                _say(channel, _STOP)
        if not self.taken_over.is_set() or self._stop_count > _STAGES:
            self._predecessors_ended.set()

    def forward_hangup(self) -> None:
        """Send a SIGHUP to the successor, which may have read before what is to be read now."""
        if self._successor is not None:
            self._successor.program.send(signal.SIGHUP)

    # --- who came before

    @property
    def has_predecessor(self) -> bool:
        """Say whether a predecessor waits for this process to take over."""
        return not self.taken_over.is_set()

    async def take_over(self) -> None:
        """Say that this process serves, and wait until the one before has handed over."""
        if self.has_predecessor and not self._stop_count:
            _say(self._predecessors[0], _READY)
            await self.taken_over.wait()
            for listener in self._left_out:
                listener.close()
            self._left_out = []

    async def listen_to_predecessors(self) -> None:
        """Hear what the predecessors say, until all of them have ended."""
        async with trio.open_nursery() as nursery:
            for place, channel in enumerate(self._predecessors):
                nursery.start_soon(self._listen_to, channel, place == 0)
        self._predecessors_ended.set()

    async def _listen_to(self, channel: trio.socket.SocketType, is_first: bool) -> None:
        with channel:
            is_alive = True
            while is_alive:
                is_alive = bool(await _hear(channel))
                if is_first:  # it has handed over, or ended without
                    self._settle()
        self._predecessors.remove(channel)

    def _settle(self) -> None:
        self.taken_over.set()
        self._settled.set()

    async def wait_for_predecessors(self, within: float) -> None:
        """Wait until the predecessors have ended, but not for longer than so many seconds."""
        with trio.move_on_after(within):
            await self._predecessors_ended.wait()

    # --- who comes after

    async def hand_over(
        self,
        listeners: Callable[[], Iterable[Listener]],
        lock: AbstractAsyncContextManager[object] = _NO_LOCK,
    ) -> bool:
        """Start a successor, and wait until it serves; return whether it does.

        It does not if it ends, or is silent for ``_PATIENCE``, or if this process is told to stop
        meanwhile.

        Args:
            listeners: what this process listens on.
            lock: held while that is not to change.

        Resource handling: a successor that does not serve has ended on return.
        """
        if not self.command:
            return False
        await self._settled.wait()  # it may be asked for as soon as this process has been started
        reason = self._why_not()
        if reason:
            self._log.write("warning", "upgrade-ignored", {"detail": reason})
            return False
        self._is_handing_over = True
        try:
            async with lock:
                return not self._stop_count and await self._hand_over(listeners())
        finally:
            self._is_handing_over = False

    async def _hand_over(self, listeners: Iterable[Listener]) -> bool:
        try:
            successor = self._successor = self._start(listeners)
        except OSError as error:
            self._log.write("error", "upgrade-failed", {"detail": f"not started: {error.strerror}"})
            return False
        try:
            if await self._is_ready(successor):
                self.handed_over.set()
                successor.ended.set()  # as far as it can be seen from here
                # Its parent is the service manager then, which hears of it next.
                await successor.program.let_go()
                await self._tell_manager(successor.pid)
                _say(successor.channel, _HEARD)
                self._log.write("info", "handed-over", {"pid": successor.pid})
        finally:
            if not self.handed_over.is_set():
                await self._give_up(successor)
        return self.handed_over.is_set()

    async def listen_to_successor(self, stop: Callable[[], None]) -> None:
        """Wait until this process has handed over, and then for the end of all that come after.

        Args:
            stop: called each time that the successor is told to stop.
        """
        await self.handed_over.wait()
        assert self._successor is not None
        with self._successor.channel as channel:
            while await _hear(channel):
                stop()
        if not self._stop_count:
            self._log.write("error", "successor-gone", {"pid": self._successor.pid})
        self._successor = None

    def reap(self) -> None:
        """See whether the successor has ended; of other children nothing is known here."""
        successor = self._successor
        if successor is not None and not successor.ended.is_set():
            exit_code = successor.program.exit_code()
            if exit_code is not None:
                self._fail(successor, exit_code)

    def _why_not(self) -> str:
        if self._is_handing_over or self.handed_over.is_set():
            return "there is a successor already"
        if self._stop_count:
            return "told to stop"
        # With its end that of the successor would come, and of all others that are in there.
        if os.getpid() == 1:
            return "process 1, as of a container, can have no successor: restart that"
        return ""

    def _start(self, listeners: Iterable[Listener]) -> _Successor:
        """Start a successor; raises OSError."""
        numbers = [number for _, number in self._activated]
        own = [x for x in listeners if x.socket.fileno() not in numbers]
        ours, its = trio.socket.socketpair()
        channels = [channel.fileno() for channel in (its, *self._predecessors)]
        try:
            program = start_apart(
                self.command,
                # The first have the numbers that they had.
                [*self._activated, *to_successor(own, channels)],
                environment={**os.environ, **self._manager.variables},
                blocked=_KEPT_WAITING,
                # Who signals all processes of a service (systemctl kill) means this one.
                ignored=SIGNAL,
            )
        except OSError:
            ours.close()
            raise
        finally:
            its.close()
        return _Successor(program, ours)

    async def _is_ready(self, successor: _Successor) -> bool:
        """Wait for it; return whether it serves, and this process is not told to stop.

        Else it mostly has ended.
        """
        with trio.move_on_after(_PATIENCE):
            if await successor.program.identify():
                if self._stop_count:
                    return False
                successor.program.begin()
                self._log.write("info", "upgrading", {"pid": successor.pid})
                if await _hear(successor.channel) == _READY:
                    if not (self._stop_count or successor.ended.is_set()):
                        return True
                    await successor.ended.wait()
            with trio.move_on_after(_GRACE):
                await successor.ended.wait()
            return False
        fields = {"pid": successor.pid, "seconds": _PATIENCE}
        self._log.write("error", "successor-silent", fields)
        return False

    async def _tell_manager(self, pid: int) -> None:
        """Tell it who the main process is, as it hears no other; before the successor is told."""
        for _ in range(_TRIES):
            if self._manager.hand_over(pid):
                return
            await trio.sleep(_AGAIN)

    async def _give_up(self, successor: _Successor) -> None:
        """End a successor that does not serve, if it has not ended."""
        if not successor.ended.is_set():
            await successor.program.kill()
            self.reap()
        successor.channel.close()
        self._successor = None

    def _fail(self, successor: _Successor, exit_code: int) -> None:
        successor.ended.set()
        how: dict[str, Field] = {"pid": successor.pid, **systemd.how_ended(exit_code)}
        level: Level = "info" if self._stop_count else "error"
        self._log.write(level, "upgrade-failed", how)


def _channel(number: int) -> trio.socket.SocketType:
    return trio.socket.from_stdlib_socket(socket.socket(fileno=number))


def _say(channel: trio.socket.SocketType, word: bytes) -> None:
    """Say a word to whoever is at the other end, if anybody is."""
    with suppress(OSError):
        os.write(channel.fileno(), word)


async def _hear(channel: trio.socket.SocketType) -> bytes:
    """Wait for a word; none if nobody is there who could say one."""
    try:
        return await channel.recv(1)
    except OSError:  # it had not heard all that it was told
        return b""
