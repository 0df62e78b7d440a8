"""Several workers on the same sockets: started, replaced when they die, told to stop.

The supervisor holds the listening sockets and never accepts. Each worker is the same command
again, which is handed by the supervisor: the sockets; ``places``, the counts that all share;
``config``, the file's text as it was when it was checked; and ``worker-K``, a pipe for orders, by
which it knows that it is one. A pipe rather than signals: its end tells that the supervisor is
gone, and what is in it waits until the worker is ready to read.

No SO_REUSEPORT: the sockets' queues belong to all workers, so none is lost with one of them.

Knows nothing of connections: a worker is ``server.serve``.
"""

import math
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from urllib.parse import quote, unquote

import trio

from snimux import places, systemd
from snimux.address import FdAddress, parse_listen
from snimux.listeners import Listener
from snimux.log import Field, Log
from snimux.server import STOP_SIGNALS, status

_WORKER, _PLACES, _CONFIG = "worker-", "places", "config"
_ACTIVATED = "activated-"  # before the protocol's name: the supervisor was handed the socket itself

# Orders that a worker knows: to drain, and to close what is open.
_STAGES = 2

# Seconds. How often to look whether a worker serves until the first one does; and how long one may
# be silent, at the least, before it counts as stuck: they show life every second.
_SOON = 0.1
_SILENT = 10.0

# One that died before was young, and the next may be no better: the second in a row waits a
# second, and each further one twice as long, up to the longest. Seconds.
_YOUNG = 10.0
_LONGEST_PAUSE = 30.0


@dataclass(frozen=True, slots=True)
class Handed:
    """What a worker was handed: its number, from 1 up, and descriptors, which it owns."""

    number: int
    orders: int
    places: int
    config: int | None
    sockets: tuple[systemd.Named, ...]
    """Listening, by the name of the protocol."""

    def config_text(self) -> str | None:
        """The text of the configuration file; None where there is none."""
        if self.config is None:
            return None
        # The position in the file is shared with the other workers, so it is not used.
        size = os.fstat(self.config).st_size
        return os.pread(self.config, size, 0).decode("utf-8")

    def listeners(self) -> list[Listener]:
        """The listeners, which leave UNIX sockets' files to the supervisor."""
        return [_listener(name, descriptor) for name, descriptor in self.sockets]

    def activated(self) -> list[systemd.Named]:
        """Those of the sockets that the supervisor was handed itself."""
        return [
            (name.removeprefix(_ACTIVATED).partition("=")[0], descriptor)
            for name, descriptor in self.sockets
            if name.startswith(_ACTIVATED)
        ]


def _name(listener: Listener) -> str:
    """The protocol of a listener that is handed to workers, and what it was configured by."""
    if listener.handed_over or listener.wanted is None:
        return _ACTIVATED * listener.handed_over + listener.protocol
    return f"{listener.protocol}={quote(str(listener.wanted), safe='/')}"  # no colon in a name


def _listener(name: str, descriptor: int) -> Listener:
    protocol, _, wanted = name.removeprefix(_ACTIVATED).partition("=")
    address = parse_listen(unquote(wanted)) if wanted else FdAddress(descriptor)
    return Listener(socket.socket(fileno=descriptor), protocol=protocol, wanted=address)


def handed_to_worker(descriptors: Sequence[systemd.Named]) -> Handed | None:
    """What a supervisor has handed over; None if these are not from a supervisor."""
    own = {name: descriptor for name, descriptor in descriptors if name in (_PLACES, _CONFIG)}
    for name, descriptor in descriptors:
        number = name.removeprefix(_WORKER)
        if number != name and number.isdecimal() and _PLACES in own:
            rest = [each for each in descriptors if each[0] not in (name, _PLACES, _CONFIG)]
            return Handed(int(number), descriptor, own[_PLACES], own.get(_CONFIG), tuple(rest))
    return None


def processors() -> int:
    """How many processors this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def pause(young_deaths: int) -> float:
    """Seconds until the next worker, after so many in a row that died young."""
    return 0.0 if young_deaths < 2 else min(2.0 ** min(young_deaths - 2, 10), _LONGEST_PAUSE)


@dataclass(frozen=True, slots=True)
class Team:
    """How many workers, and what they share: see ``places.lay_out`` for limit and ``by_source``."""

    workers: int
    limit: int
    by_source: bool
    config: str | None
    """The text of the configuration file, if there is one."""
    drain: float = math.inf
    """Seconds that they may take to end."""


async def supervise(
    command: Sequence[str],
    listeners: Sequence[Listener],
    team: Team,
    log: Log,
    *,
    manager: systemd.Manager | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Have workers until SIGTERM or SIGINT; then tell them to drain, and wait for all.

    A second signal tells them to close what is still open, a third one kills them.

    Args:
        command: path of the program that each worker is, and its arguments.
        listeners: what the workers accept on.
        team: the workers.
        log: told when one is started, and when one dies.
        manager: told that connections are served: as soon as one worker does, and then for as long
            as none is stuck.
        task_status: told once signals are heeded.

    Resource handling: closes the listeners when told to stop.
    """
    with ExitStack() as files:
        shared = [(_name(listener), listener.socket.fileno()) for listener in listeners]
        counts = _unnamed_file(_PLACES, files)
        places.lay_out(counts, workers=team.workers, limit=team.limit, by_source=team.by_source)
        shared.append((_PLACES, counts))
        if team.config is not None:
            shared.append((_CONFIG, _unnamed_file(_CONFIG, files, team.config.encode())))
        manager = manager or systemd.Manager()
        supervisor = _Supervisor(command, listeners, shared, counts, log, manager, team.drain)
        with trio.open_signal_receiver(signal.SIGCHLD, *STOP_SIGNALS) as signals:
            # One may be waiting already; and whoever started this may have blocked SIGCHLD.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGCHLD, *STOP_SIGNALS))
            for listener in listeners:
                where: dict[str, Field] = {
                    "address": str(listener),
                    "protocol": listener.protocol,
                    "workers": team.workers,
                }
                log.write("info", "listening", where)
            async with trio.open_nursery() as watch:
                watch.start_soon(supervisor.heed, signals)
                if manager.is_there:
                    watch.start_soon(supervisor.watch)
                async with trio.open_nursery() as keeping:
                    for number in range(1, team.workers + 1):
                        keeping.start_soon(supervisor.keep, number)
                    task_status.started()
                watch.cancel_scope.cancel()
        log.write("info", "stopped", {})


def _unnamed_file(name: str, files: ExitStack, content: bytes = b"") -> int:
    """A new file that has no name anywhere, closed with the others."""
    if sys.platform == "linux":
        # In memory: there may be no directory that can be written to.
        descriptor = os.memfd_create(f"snimux-{name}")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    files.callback(os.close, descriptor)
    with os.fdopen(descriptor, "wb", closefd=False) as writing:
        writing.write(content)
    return descriptor


@dataclass(slots=True)
class _Worker:
    """One process: the pipe for its orders, and how it ended, once it has."""

    number: int
    pid: int
    orders: int
    ended: trio.Event = field(default_factory=trio.Event)
    exit_code: int = 0
    """As of ``os.waitstatus_to_exitcode``: negative for a signal."""
    sign: places.Sign = field(default_factory=places.Sign)
    """What was seen of it last."""
    heard: float = field(default_factory=trio.current_time)
    """When it had shown life, or was started."""
    silent: bool = False
    """Whether it should have shown life since."""

    def order(self) -> None:
        """Have it go one stage further to its end."""
        with suppress(BrokenPipeError):  # it has just ended
            os.write(self.orders, b".")

    def fields(self) -> dict[str, Field]:
        """How it ended, for the log."""
        if self.exit_code >= 0:
            return {"status": self.exit_code}
        number = -self.exit_code
        known = number in set(signal.Signals)
        return {"signal": signal.Signals(number).name if known else number}


class _Supervisor:
    """The workers that are alive, and whether they are to be replaced."""

    def __init__(
        self,
        command: Sequence[str],
        listeners: Sequence[Listener],
        shared: Sequence[systemd.Named],
        counts: int,
        log: Log,
        manager: systemd.Manager,
        drain: float,
    ) -> None:
        self.command = command
        self.listeners = listeners
        self.shared = shared
        self.counts = counts
        self.log = log
        self.manager = manager
        self.drain = drain
        self.patience = max((manager.watchdog or 0) / 2, _SILENT)
        self.alive: dict[int, _Worker] = {}
        self.stopping = trio.Event()
        self.told = 0  # how often to stop

    async def heed(self, signals: AsyncIterator[int]) -> None:
        """Do what signals tell, until cancelled."""
        async for number in signals:
            if number == signal.SIGCHLD:
                self.reap()
            else:
                self.stop()

    def reap(self) -> None:
        """See which workers have ended; of other children nothing is known here."""
        for worker in list(self.alive.values()):
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if pid:
                del self.alive[pid]
                os.close(worker.orders)
                worker.exit_code = os.waitstatus_to_exitcode(status)
                worker.ended.set()

    def stop(self) -> None:
        """Go one stage further: replace nobody, and let all drain; let all close; kill all.

        The last is for a worker that is stuck, and with it whoever waits for it.
        """
        self.told += 1
        if not self.stopping.is_set():
            self.stopping.set()
            # First: whoever closes a listener last resets what is in its queue, and the workers
            # empty it before.
            for listener in self.listeners:
                listener.close()
            self.look()
            self.manager.stopping(self.status(), within=self.drain)
        for worker in self.alive.values():
            if self.told <= _STAGES:
                worker.order()
            else:
                os.kill(worker.pid, signal.SIGKILL)

    async def watch(self) -> None:
        """Tell the manager that connections are served, until cancelled, unless one is stuck.

        Not by the workers themselves: it would take one's life for that of all.
        """
        while True:
            self.look()
            workers = self.alive.values()
            if any(x.sign.beats for x in workers) and not any(x.silent for x in workers):
                self.manager.serving(self.status())
            await trio.sleep(self.manager.every if self.manager.is_ready else _SOON)

    def look(self) -> None:
        """Look which workers have shown life; say once of each that it is stuck."""
        now = trio.current_time()
        for worker in self.alive.values():
            sign = places.look(self.counts, worker.number)
            if sign.beats != worker.sign.beats:
                worker.heard, worker.silent = now, False
            elif now - worker.heard > self.patience and not worker.silent:
                worker.silent = True
                fields = {"worker": worker.number, "seconds": round(now - worker.heard, 3)}
                self.log.write("error", "worker-silent", fields)
            worker.sign = sign

    def status(self) -> str:
        """How the workers are, for people."""
        signs = [worker.sign for worker in self.alive.values()]
        return status(
            sum(sign.taken for sign in signs),
            max((sign.routes for sign in signs), default=0),
            workers=len(signs),
            draining=self.stopping.is_set(),
        )

    async def keep(self, number: int) -> None:
        """Have a worker of this number until all are told to stop, and wait for its end then."""
        young_deaths = 0
        while not self.stopping.is_set():
            started = trio.current_time()
            how = await self.work(number)
            lived = trio.current_time() - started
            if self.stopping.is_set():
                if how.get("status") != 0:
                    self.log.write("error", "worker-died", {"worker": number, **how})
                return
            young_deaths = young_deaths + 1 if lived < _YOUNG else 0
            again_in = pause(young_deaths)
            times = {"seconds": round(lived, 3), "again_in": again_in}
            if how.get("status") == 0:  # somebody has told it
                self.log.write("info", "worker-ended", {"worker": number, **how, **times})
            else:
                self.log.write("error", "worker-died", {"worker": number, **how, **times})
            with trio.move_on_after(again_in):
                await self.stopping.wait()

    async def work(self, number: int) -> Mapping[str, Field]:
        """Start a worker and wait for its end; how it ended."""
        try:
            worker = self.start(number)
        except OSError as error:
            return {"detail": f"not started: {error.strerror}"}
        self.log.write("info", "worker-started", {"worker": number, "pid": worker.pid})
        await worker.ended.wait()
        places.clear(self.counts, number)
        return {"pid": worker.pid, **worker.fields()}

    def start(self, number: int) -> _Worker:
        """Start a worker; raises OSError."""
        reader, writer = os.pipe()
        # A stop signal waits until the worker heeds it.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            pid = systemd.start(
                self.command,
                [(f"{_WORKER}{number}", reader), *self.shared],
                environment=os.environ,
                # A Ctrl-C is for the supervisor: its workers are told by it.
                new_session=True,
            )
        except OSError:
            os.close(writer)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.close(reader)
        worker = self.alive[pid] = _Worker(number, pid, writer)
        return worker
