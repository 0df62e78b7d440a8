"""Several workers on the same sockets: started, replaced when they die, told to stop.

The supervisor holds the listening sockets and never accepts. Each worker is the same command
again, which is handed by the supervisor: the sockets; ``places``, the counts that all share;
``config``, the file's text as it was when it was checked; and ``worker-K``, a socket for orders, by
which it knows that it is one. A socket rather than signals: its end tells that the supervisor is
gone, what is in it waits until the worker is ready to read, and other listeners come by it.

A reload is the supervisor's first: what it could not do is not ordered. Those who start later have
what is in effect then.

No SO_REUSEPORT: the sockets' queues belong to all workers, so none is lost with one of them.

Knows nothing of connections: a worker is ``server.serve``.
"""

import math
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import trio

from snimux.config.model import Config
from snimux.log import Field, Log
from snimux.net.listeners import Listener, besides
from snimux.service import scoreboard, systemd
from snimux.service.control import Order
from snimux.service.handover import handing, shared
from snimux.service.lifecycle import SIGNALS, Lifecycle, received
from snimux.service.reload import Reloader, Source, say_listeners
from snimux.service.server import own_sockets
from snimux.service.server import status as described
from snimux.service.status_server import StatusServer
from snimux.service.upgrade import Succession
from snimux.service.worker import Workers, start
from snimux.status.api import Answers, Figures, Uptime

# Seconds. How often to look whether workers serve, until the first one does, and then.
_SOON = 0.1
_OFTEN = 1.0

# Seconds without a worker that serves, after which a service manager is to start all anew.
_HOPELESS = 60.0

# Seconds that the workers have to reload before that is said of those who have not.
_PATIENCE = 30.0

# One that died before was young, and the next may be no better: the second in a row waits a
# second, and each further one twice as long, up to the longest. Seconds.
_YOUNG = 10.0
_LONGEST_PAUSE = 30.0


def processors() -> int:
    """Return how many processors this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def pause(young_deaths: int) -> float:
    """Return the seconds until the next worker, after so many in a row that died young."""
    return 0.0 if young_deaths < 2 else min(2.0 ** min(young_deaths - 2, 10), _LONGEST_PAUSE)


@dataclass(frozen=True, slots=True)
class Team:
    """The number of workers, and what they share: as of ``scoreboard.lay_out``."""

    workers: int
    limit: int
    most: int
    config: Config
    text: str | None
    """Of the configuration file, if there is one."""


async def supervise(
    command: Sequence[str],
    listeners: Sequence[Listener],
    team: Team,
    log: Log,
    *,
    manager: systemd.Manager | None = None,
    source: Source | None = None,
    succession: Succession | None = None,
    status: Sequence[Listener] = (),
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Have workers until SIGTERM or SIGINT; then tell them to drain, and wait for all.

    A second signal tells them to close what is still open, a third one kills them. SIGHUP has the
    Caddys asked at once, and the configuration read again. SIGUSR2 hands over to a successor, and
    waits for workers whose connections end without haste.

    Args:
        command: path of the program that each worker is, and its arguments.
        listeners: what the workers accept on.
        team: the workers.
        log: told when one is started, and when one dies.
        manager: told that connections are served: as soon as one worker does, and then unless none
            does for a minute.
        source: where the configuration comes from, if it can be read again.
        succession: who came before this process, and who comes after it.
        status: where to show how the workers are.
        task_status: told once signals are handled.

    Resource handling: closes the listeners when told to stop, and those of ``status`` in the end.
    """
    with ExitStack() as files:
        counts = _unnamed_file("places")
        files.callback(os.close, counts)
        scoreboard.lay_out(counts, workers=team.workers, limit=team.limit, most=team.most)
        manager = manager or systemd.Manager()
        succession = succession or Succession(log, manager)
        supervisor = _Supervisor(
            command, listeners, team, counts, log, manager, source, succession, status=status
        )
        files.callback(supervisor.use_text, None)
        life = supervisor.life
        with received(SIGNALS) as signals:
            say_listeners(log, listeners, workers=team.workers)
            async with trio.open_nursery() as watch:
                watch.start_soon(life.keep_reloading)
                watch.start_soon(succession.listen_to_predecessors)
                watch.start_soon(life.handle_successor)
                watch.start_soon(supervisor.watch)
                if status:
                    watch.start_soon(supervisor.workers.keep_figures)
                    await watch.start(supervisor.status_server.run, supervisor)
                async with trio.open_nursery() as keeping:
                    upgrade = partial(keeping.start_soon, life.hand_over)
                    watch.start_soon(life.handle_signals, signals, upgrade)
                    for number in range(1, team.workers + 1):
                        keeping.start_soon(supervisor.keep, number)
                    task_status.started()
                    await life.stopped_accepting.wait()
                    if life.draining.is_set():
                        drain_time = supervisor.config.limits.drain
                        keeping.start_soon(succession.wait_for_predecessors, drain_time)
                    is_draining = supervisor.stop_accepting()
                    watch.start_soon(partial(supervisor.end, is_draining=is_draining))
                watch.cancel_scope.cancel()
        log.write("info", "stopped", {})


def _unnamed_file(name: str, content: bytes = b"") -> int:
    """Return a new file that has no name anywhere."""
    if sys.platform == "linux":
        # In memory: there may be no directory that can be written to.
        descriptor = os.memfd_create(f"snimux-{name}")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    with os.fdopen(descriptor, "wb", closefd=False) as writing:
        writing.write(content)
    return descriptor


class _Supervisor:
    """The workers, all that they are started with, and whether they are to be replaced."""

    def __init__(
        self,
        command: Sequence[str],
        listeners: Sequence[Listener],
        team: Team,
        counts: int,
        log: Log,
        manager: systemd.Manager,
        source: Source | None,
        succession: Succession,
        *,
        status: Sequence[Listener],
    ) -> None:
        self.command = command
        self.count = team.workers
        self.sockets = own_sockets(status, manager)
        self.status_server = StatusServer(status, log, succession)
        self.config = team.config
        self.listeners = listeners
        self.counts = counts
        self.text: int | None = None
        self.use_text(team.text)
        self.log = log
        self.manager = manager
        self.source = source
        self.workers = Workers(log, counts, patience=(manager.watchdog or 0) / 2)
        self.life = Lifecycle(
            log,
            succession,
            Reloader(source, self, log, manager) if source else None,
            listeners=lambda: [*self.listeners, *self.status_server.listeners],
            poll_now=partial(self.workers.order, Order("ask")),
            reap=self.workers.reap,
        )
        self.started = time.monotonic()
        self.succession = succession
        self.reloads = 0

    async def take(self, config: Config, listeners: Sequence[Listener], text: str) -> None:
        """Have all workers serve by another configuration, on other listeners.

        Whoever has not done so after a while does it when it can.
        """
        before = self.listeners
        self.use_text(text)
        self.config, self.listeners = config, listeners
        self.log.change(form=config.log_format, level=config.log_level)
        if self.source:
            scoreboard.resize(self.counts, self.source.limit(config.limits))
        # First: whoever closes a listener last resets what is in its queue, and the workers empty
        # it before.
        for listener in besides(before, listeners):
            listener.close()
        self.reloads = number = self.reloads + 1
        workers = list(self.workers.alive.values())
        for worker in workers:
            worker.order(*self.orders(besides(listeners, before)))
        with trio.move_on_after(_PATIENCE):
            for worker in workers:
                while worker.reloaded < number and not worker.ended.is_set():
                    await worker.answered.park()
        for worker in workers:
            if worker.reloaded < number and not worker.ended.is_set():
                fields = {"worker": worker.number, "seconds": _PATIENCE}
                self.log.write("warning", "worker-not-reloaded", fields)

    def orders(self, new: Iterable[Listener]) -> list[Order]:
        """Return the orders by which a worker does as all do, if these listeners are new to it."""
        assert self.text is not None
        serve = {x.socket.fileno(): x.protocol for x in self.listeners}
        return [
            *(handing(listener) for listener in new),
            Order("reload", self.reloads, serve=serve, descriptors=(self.text,)),
        ]

    def use_text(self, text: str | None) -> None:
        """Hand this text of the configuration to the workers from now on."""
        new = None if text is None else _unnamed_file("config", text.encode())
        before, self.text = self.text, new
        if before is not None:
            os.close(before)

    def shared(self) -> list[systemd.Named]:
        """Return what all workers are handed."""
        return shared(self.listeners, places=self.counts, config=self.text)

    def stop_accepting(self) -> bool:
        """Listen no more, and have the workers do the same; nobody is replaced from now on.

        Returns:
            Whether they were told to drain, too, which ``end`` need not tell them then.
        """
        is_draining = self.life.draining.is_set()
        # First: whoever closes a listener last resets what is in its queue, and the workers empty
        # it before.
        for listener in self.listeners:
            self.succession.close(listener)
        self.workers.check_heartbeats()
        within = self.config.limits.drain if is_draining else math.inf
        self.manager.stopping(self.status(), within=within)
        self.workers.order(Order("drain" if is_draining else "leave"))
        return is_draining

    async def end(self, *, is_draining: bool) -> None:
        """Pass on to the workers each stage that follows, until cancelled.

        The last is for a worker that is stuck, and with it whoever waits for it.
        """
        if not is_draining:
            await self.life.draining.wait()
            self.workers.order(Order("drain"))
        await self.life.closing.wait()
        self.workers.order(Order("close"))
        await self.life.killing.wait()
        self.workers.kill()

    async def watch(self) -> None:
        """Look after the workers, and tell the manager that they serve, until cancelled.

        Not by the workers themselves: it would take one's life for that of all.
        """
        has_served, unserved = False, 0.0
        while True:
            elapsed = self.workers.check_heartbeats()
            serves = self.workers.serves
            has_served = has_served or serves
            unserved = 0.0 if serves else unserved + elapsed
            if serves:
                await self.succession.take_over()
            # Also while some are stuck: the manager would end all for that, with what they serve.
            if has_served and unserved < _HOPELESS:
                self.manager.serving(self.status())
            await trio.sleep(min(self.manager.every, _OFTEN) if has_served else _SOON)

    async def ask(self, what: str) -> Answers:
        """Ask all workers the same."""
        return await self.workers.ask(what)

    async def figures(self) -> Figures:
        """Return the figures of all workers, of those that are gone, too."""
        return await self.workers.figures(self.count)

    def why_not_serving(self) -> str | None:
        """Return what keeps connections from being accepted; None if nothing does."""
        if self.life.draining.is_set():
            return "draining"
        if self.succession.handed_over.is_set():  # the successor serves
            return None
        well = (x.number for x in self.workers.alive.values() if not x.is_silent)
        served = (scoreboard.heartbeat(self.counts, number).beats for number in well)
        return None if any(served) else "no worker serves"

    def uptime(self) -> Uptime:
        """Return since when they run, and how the last reload went."""
        reloader = self.life.reload
        return Uptime(self.started, reloader.last if isinstance(reloader, Reloader) else None)

    def status(self) -> str:
        """Return how the workers are, in words for people."""
        workers = self.workers.alive.values()
        newest = max(((x.reloaded, x.heartbeat.routes) for x in workers), default=(0, 0))
        return described(
            sum(worker.heartbeat.taken for worker in workers),
            newest[1],
            workers=len(workers),
            draining=self.life.stopped_accepting.is_set(),
        )

    async def keep(self, number: int) -> None:
        """Have a worker of this number until all are told to stop, and wait for its end then."""
        young_deaths = 0
        while not self.life.stopped_accepting.is_set():
            started = trio.current_time()
            how = await self.work(number)
            lived = trio.current_time() - started
            if self.life.stopped_accepting.is_set():
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
                await self.life.stopped_accepting.wait()

    async def work(self, number: int) -> Mapping[str, Field]:
        """Start a worker and wait for its end; return how it ended."""
        try:
            worker = start(
                self.command,
                number,
                self.shared(),
                has_questions=bool(self.status_server.listeners),
                sockets=self.sockets,
                reload=self.reloads,
            )
        except OSError as error:
            return {"detail": f"not started: {error.strerror}"}
        self.workers.alive[worker.pid] = worker
        self.log.write("info", "worker-started", {"worker": number, "pid": worker.pid})
        await worker.receive_answers()
        await worker.ended.wait()
        scoreboard.clear(self.counts, number)
        return {"pid": worker.pid, **systemd.how_ended(worker.exit_code)}
