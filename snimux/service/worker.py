"""A worker as its supervisor sees it: started, given orders, asked, looked after, and reaped.

Knows nothing of other workers, nor when one is to be replaced.
"""

import os
import signal
import socket
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import trio

from snimux.routing.address import DialAddress
from snimux.service import scoreboard, spawn
from snimux.service.control import Gone, Lines, Order, Respondent, receive, send
from snimux.service.handover import alone, variable
from snimux.service.lifecycle import STOP_SIGNALS
from snimux.service.systemd import Named
from snimux.service.upgrade import SIGNAL as UPGRADE_SIGNAL


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
    sign: scoreboard.Sign = field(default_factory=scoreboard.Sign)
    """What was seen of it last."""
    silence: float = 0.0
    """Seconds since it has shown life, or was started, as far as the supervisor was awake."""
    silent: bool = False
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

    async def hear(self) -> None:
        """Take its answers, until it has ended."""
        answers = Lines(self.socket)
        with suppress(trio.ClosedResourceError, ValueError):
            while answer := await receive(answers):
                self.reloaded = answer.number
                self.answered.unpark_all()

    def look(self, counts: int, *, elapsed: float) -> None:
        """Look whether it has shown life.

        Args:
            counts: the descriptor of the places.
            elapsed: seconds since the last look that it had to show life.
        """
        sign = scoreboard.look(counts, self.number)
        if sign.beats != self.sign.beats:
            self.silence, self.silent = 0.0, False
        else:
            self.silence += elapsed
        self.sign = sign

    def reap(self) -> bool:
        """See whether it has ended, and keep nothing of it then."""
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


def start(
    command: Sequence[str],
    number: int,
    handed: Sequence[Named],
    *,
    is_asked: bool,
    sockets: Iterable[DialAddress] = (),
    reload: int = 0,
) -> Worker:
    """Start a worker.

    Args:
        command: path of the program, and its arguments.
        number: the worker's, from 1 up.
        handed: what all workers are.
        is_asked: whether it is to be asked how it is.
        sockets: the supervisor's own, which it is to know.
        reload: the last before, whose configuration it is handed.

    Raises:
        OSError: it could not be started.
    """
    near, far = socket.socketpair()
    near.setblocking(False)
    here, there = socket.socketpair() if is_asked else (None, None)
    try:
        process = spawn.start(
            command,
            [*alone(number, orders=far, status=there), *handed],
            environment={**os.environ, **variable(sockets)},
            # A stop signal waits until the worker heeds it, and others for ever.
            blocked=(signal.SIGHUP, UPGRADE_SIGNAL, *STOP_SIGNALS),
            # A Ctrl-C is for the supervisor: its workers are told by it.
            new_session=True,
        )
    except OSError:
        near.close()
        if here is not None:
            here.close()
        raise
    finally:
        far.close()
        if there is not None:
            there.close()
    respondent = None if here is None else Respondent(here)
    return Worker(number, process, near, respondent, started_by=reload, reloaded=reload)
