"""Workers as their supervisor sees them: started, given orders, asked, looked after, and reaped.

Knows nothing of when one is to be replaced, nor of what they are asked.
"""

import os
import signal
import socket
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import trio

from snimux import __version__
from snimux.log import Log
from snimux.routing.address import DialAddress
from snimux.service import scoreboard, spawn
from snimux.service.control import Gone, Lines, Order, Respondent, receive, send
from snimux.service.handover import alone, variable
from snimux.service.lifecycle import STOP_SIGNALS
from snimux.service.systemd import Named
from snimux.service.upgrade import SIGNAL as UPGRADE_SIGNAL
from snimux.status.api import Answers, Figures
from snimux.status.metrics import Totals, snapshot

# Seconds. Workers show life every second. A look that comes later than this was held up, as by a
# machine that slept, and the workers may have been held up with it: more than that counts for none.
_LATE = 2.0

# Seconds. How long one may be silent, at the least, before it counts as stuck; and one that has
# just been started, which may have 100,000 routes to read. It is killed after twice as long.
_SILENT = 10.0
_SILENT_AT_FIRST = 30.0
_KILLED_AFTER = 2

# How often workers are asked for their figures (seconds); but with very many, to be asked takes no
# more than a part of their time.
_FIGURES_EVERY = 1.0
_FIGURES_SHARE = 20


@dataclass(slots=True)
class Worker:
    """One process: the socket for its orders, and how it ended, once it has."""

    number: int
    process: subprocess.Popen[bytes]
    socket: socket.socket
    respondent: Respondent | None = None
    """Where it is asked, if it is."""
    ended: trio.Event = field(default_factory=trio.Event)
    exit_code: int = 0
    """As of ``os.waitstatus_to_exitcode``: negative for a signal."""
    heartbeat: scoreboard.Heartbeat = field(default_factory=scoreboard.Heartbeat)
    """The last one that was seen."""
    silence: float = 0.0
    """Seconds since it has shown life, or was started, as far as the supervisor was awake."""
    is_silent: bool = False
    """Whether it should have shown life since."""
    started_by: int = 0
    """The last reload before it was started."""
    reloaded: int = 0
    """The last reload that it has done, or was started by."""
    answered: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def order(self, *orders: Order) -> None:
        """Give it orders, or let it know that there will be none any more.

        Who has not read for so long that they do not fit is stuck. Should it ever read again, it
        finds the end, drains, and is replaced by one that knows all.
        """
        try:
            for each in orders:
                send(self.socket, each)
        except Gone:
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_WR)

    async def receive_answers(self) -> None:
        """Receive its answers to orders, until it has ended."""
        answers = Lines(self.socket)
        with suppress(trio.ClosedResourceError, ValueError):
            while answer := await receive(answers):
                self.reloaded = answer.number
                self.answered.unpark_all()

    def check_heartbeat(self, counts: int, *, elapsed: float) -> None:
        """See whether it has shown life.

        Args:
            counts: the descriptor of the places.
            elapsed: seconds since the last look that it had to show life.
        """
        heartbeat = scoreboard.heartbeat(counts, self.number)
        if heartbeat.beats != self.heartbeat.beats:
            self.silence, self.is_silent = 0.0, False
        else:
            self.silence += elapsed
        self.heartbeat = heartbeat

    def reap(self) -> bool:
        """Return whether it has ended, and keep nothing of it then."""
        exit_code = self.process.poll()
        if exit_code is not None:
            trio.lowlevel.notify_closing(self.socket)
            self.socket.close()
            if self.respondent is not None:
                self.respondent.close()
            self.exit_code = exit_code
            self.ended.set()
            self.answered.unpark_all()
        return exit_code is not None


class Workers:
    """The workers that are alive, and what those that were have counted."""

    def __init__(self, log: Log, counts: int, *, patience: float) -> None:
        """Begin with none.

        Args:
            log: gets a line for each worker that is stuck.
            counts: the descriptor of the places.
            patience: seconds without a sign of life after which one is stuck, if not fewer than 10.
        """
        self.alive: dict[int, Worker] = {}
        self._log = log
        self._counts = counts
        self._patience = max(patience, _SILENT)
        self._checked = trio.current_time()
        self._totals = Totals()

    @property
    def serves(self) -> bool:
        """Say whether one of them does, as far as was seen at the last check."""
        return any(x.heartbeat.beats and not x.is_silent for x in self.alive.values())

    def order(self, order: Order) -> None:
        """Give all of them an order."""
        for worker in self.alive.values():
            worker.order(order)

    def kill(self) -> None:
        """Kill all of them."""
        for worker in self.alive.values():
            worker.process.kill()

    def reap(self) -> None:
        """See which have ended; of other children nothing is known here."""
        for worker in list(self.alive.values()):
            if worker.reap():
                del self.alive[worker.pid]
                self._totals.lose(worker.pid)

    def check_heartbeats(self) -> float:
        """See which have shown life; say once of each that it is stuck, and later kill it.

        Returns:
            How much of the time since the last check counts (seconds).
        """
        now = trio.current_time()
        elapsed, self._checked = min(now - self._checked, _LATE), now
        for worker in self.alive.values():
            worker.check_heartbeat(self._counts, elapsed=elapsed)
            started = worker.heartbeat.beats > 0
            patience = self._patience if started else max(self._patience, _SILENT_AT_FIRST)
            if worker.silence > patience and not worker.is_silent:
                worker.is_silent = True
                seconds = {
                    "seconds": round(worker.silence, 3),
                    "killed_after": _KILLED_AFTER * patience,
                }
                self._log.write("error", "worker-silent", {"worker": worker.number, **seconds})
            if worker.silence > _KILLED_AFTER * patience:
                worker.process.kill()
        return elapsed

    async def ask(self, what: str) -> Answers:
        """Ask all of them the same; what they count is kept."""
        answers: dict[int, list[Any] | None] = {}

        async def ask(worker: Worker, respondent: Respondent) -> None:
            pieces = await respondent.ask(what)
            try:
                if pieces and "generation" in pieces[0]:  # counted from its start
                    pieces[0]["generation"][0] += worker.started_by
                if what == "figures" and pieces is not None:
                    # One that was started after an upgrade may count otherwise.
                    if pieces[0].get("version") != __version__:
                        pieces = None
                    elif worker.pid in self.alive:
                        self._totals.take(worker.pid, snapshot(pieces))
            except (AttributeError, LookupError, TypeError, ValueError):  # or say it otherwise
                pieces = None
            answers[worker.number] = pieces

        async with trio.open_nursery() as nursery:
            for worker in self.alive.values():
                if worker.respondent is not None:
                    nursery.start_soon(ask, worker, worker.respondent)
        return answers

    async def figures(self, count: int) -> Figures:
        """Return the figures of all, of those that are gone, too; ``count`` should be alive."""
        processes = {str(worker.number): worker.pid for worker in self.alive.values()}
        answers = await self.ask("figures")
        workers = {number: answers.get(number) is not None for number in range(1, count + 1)}
        processes["supervisor"] = os.getpid()
        return Figures(self._totals.sum(), answers, workers, processes)

    async def keep_figures(self) -> None:
        """Ask for the figures now and then, until cancelled: those that die take theirs along."""
        while True:
            started = trio.current_time()
            answers = await self.ask("figures")
            # One that is stuck says nothing of how long it takes.
            took = 0 if None in answers.values() else trio.current_time() - started
            await trio.sleep(max(_FIGURES_EVERY, took * _FIGURES_SHARE))


def start(
    command: Sequence[str],
    number: int,
    handed: Sequence[Named],
    *,
    has_questions: bool,
    sockets: Iterable[DialAddress] = (),
    reload: int = 0,
) -> Worker:
    """Start a worker.

    Args:
        command: path of the program, and its arguments.
        number: the worker's, from 1 up.
        handed: what all workers are.
        has_questions: whether it is to be asked how it is.
        sockets: the supervisor's own, which it is to know.
        reload: the last before, whose configuration it is handed.

    Raises:
        OSError: it could not be started.
    """
    near, far = socket.socketpair()
    near.setblocking(False)
    asking, answering = socket.socketpair() if has_questions else (None, None)
    try:
        process = spawn.start(
            command,
            [*alone(number, orders=far, status=answering), *handed],
            environment={**os.environ, **variable(sockets)},
            # A stop signal waits until the worker handles it, and others for ever.
            blocked=(signal.SIGHUP, UPGRADE_SIGNAL, *STOP_SIGNALS),
            # A Ctrl-C is for the supervisor: its workers are told by it.
            new_session=True,
        )
    except OSError:
        near.close()
        if asking is not None:
            asking.close()
        raise
    finally:
        far.close()
        if answering is not None:
            answering.close()
    respondent = None if asking is None else Respondent(asking)
    return Worker(number, process, near, respondent, started_by=reload, reloaded=reload)
