"""Put another configuration into effect while connections are served: all of it, or nothing.

Read, parsed and compared in a thread, because that takes seconds where routes are 100,000; then the
new listeners are opened, and only when nothing can go wrong any more, it is handed to who serves by
it, in one step. A worker follows its supervisor, which has seen by then that all is good. Knows
nothing of connections: whoever serves is a ``Target``.
"""

import contextlib
import math
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import trio

from snimux.config.diff import Difference, difference, in_effect
from snimux.config.from_toml import LARGEST
from snimux.config.model import Config, ConfigError, Limits
from snimux.log import Field, Log
from snimux.net.listeners import Listener, ListenError, besides, open_listeners
from snimux.proto.client_hello import TLS
from snimux.proto.http_head import HTTP
from snimux.routing.address import parse_listen
from snimux.runtime.background import giving_way
from snimux.runtime.files import read, read_shared
from snimux.runtime.filewatch import State, look, watch
from snimux.service.control import Gone, Order, send
from snimux.service.systemd import Manager
from snimux.status.api import Reloaded

# Problems of one file that are said, one a line; one slip may have a thousand.
_MOST_PROBLEMS = 20


@dataclass(frozen=True, slots=True)
class File:
    """A configuration file, as it was read at the start."""

    path: str
    text: str
    parse: Callable[[str], Config]
    """Another text of it, with the flags, which still win; raises ``ConfigError``."""
    state: State | None = None
    """How the file was just before it was read; None if it cannot be read again."""


@dataclass(frozen=True, slots=True)
class Source:
    """The file that a process has its configuration from, and what follows from that."""

    file: File
    limit: Callable[[Limits], int]
    """How many connections there may be."""
    settle: Callable[[Config], None] = lambda config: None
    """Called when another configuration is in effect, and the old one is no longer needed."""


class Target(Protocol):
    """A process that serves by a configuration, alone or by workers."""

    @property
    def config(self) -> Config:
        """The configuration that is in effect."""

    @property
    def listeners(self) -> Sequence[Listener]:
        """The listeners on which connections are accepted."""

    def status(self) -> str:
        """Return how it is, in words for people."""

    async def take(self, config: Config, listeners: Sequence[Listener], text: str) -> None:
        """Serve by another configuration, on other listeners; close those that are left out.

        May wait before and after, but changes all in one step.
        """


class Reloader:
    """Reloads on request, one at a time; what is requested meanwhile is done afterwards, once."""

    def __init__(self, source: Source, target: Target, log: Log, manager: Manager) -> None:
        self.source = source
        self.target = target
        self.log = log
        self.manager = manager
        self.path = source.file.path
        self.text = source.file.text
        self.state = source.file.state
        self.requested = trio.Event()
        self.lock = trio.Lock()
        """Whoever has it reloads, or sees to it that nobody does."""
        self.last: Reloaded | None = None
        """The last time, once there was one."""

    def ask(self) -> None:
        """Request a reload."""
        self.requested.set()

    async def run(self) -> None:
        """Reload whenever that was requested, until cancelled."""
        async with trio.open_nursery() as nursery:
            if self.source.file.state is not None:
                nursery.start_soon(self._watch)
            while True:
                await self.requested.wait()
                self.requested = trio.Event()
                async with self.lock:
                    # Who stops in the same moment has closed the listeners by now.
                    await trio.lowlevel.checkpoint_if_cancelled()
                    with giving_way():
                        await self._reload()

    async def _watch(self) -> None:
        def changed() -> None:
            if self.target.config.watch == "on":
                self.ask()

        def missing(why: str) -> None:
            self.state = None
            fields = {"config": self.path, "detail": f"{why}; all stays as it is"}
            self.log.write("warning", "config-missing", fields)

        await watch(self.path, lambda: self.state, changed, missing)

    async def _reload(self) -> None:
        started = trio.current_time()
        self.manager.reloading()
        problems: Sequence[str] = ()
        before = {x.socket: (str(x), x.protocol) for x in self.target.listeners}
        changes = Difference()
        try:
            changes = await self._take()
        except ConfigError as error:
            problems = error.problems
        except ListenError as error:
            problems = [str(error)]
        except OSError as error:
            problems = [f"--config: {self.path}: {error.strerror}"]
        except Exception as error:  # not expected; but what is served must go on
            problems = [repr(error)]
        # A thread is not cancelled, and what it says to who has stopped is not to be said.
        await trio.lowlevel.checkpoint_if_cancelled()
        self.last = Reloaded(time.time(), problems)
        if problems:
            self._say_problems(problems)
        else:
            self._say(changes, before, trio.current_time() - started)
        self.manager.reloaded(self.target.status(), fault=problems[0] if problems else "")

    async def _take(self) -> Difference:
        in_thread = trio.to_thread.run_sync
        text = await in_thread(self._read, abandon_on_cancel=True)
        if text == self.text:
            return Difference()
        config, changes = await in_thread(self._parse, text, abandon_on_cancel=True)
        arguments = config.addresses(TLS), config.addresses(HTTP), self.target.listeners
        # Names may have to be looked up. Not abandoned, for somebody has to close them.
        listeners = await in_thread(open_listeners, *arguments)
        try:
            await trio.lowlevel.checkpoint_if_cancelled()  # a thread is not
            await self.target.take(config, listeners, text)
        finally:
            for each in besides(listeners, self.target.listeners):
                each.close()
        self.text = text
        self.source.settle(config)
        return changes

    def _read(self) -> str:
        self.state = look(self.path)  # before it is read: a later change is another
        try:
            return read(self.path, LARGEST).decode("utf-8")
        except UnicodeDecodeError:
            raise ConfigError([f"--config: {self.path}: not UTF-8, so not TOML"]) from None

    def _parse(self, text: str) -> tuple[Config, Difference]:
        before, after = self.target.config, self.source.file.parse(text)
        return in_effect(before, after), difference(before, after)

    def _say_problems(self, problems: Sequence[str]) -> None:
        for problem in problems[:_MOST_PROBLEMS]:
            self.log.write("error", "reload-failed", {"detail": problem})
        more = len(problems) - _MOST_PROBLEMS
        if more > 0:
            self.log.write("error", "reload-failed", {"detail": f"and {more} more"})

    def _say(
        self,
        changes: Difference,
        before: Mapping[socket.socket, tuple[str, str]],
        seconds: float,
    ) -> None:
        after = {x.socket: x for x in self.target.listeners}
        for key in changes.needs_restart:
            self.log.write("warning", "needs-restart", {"setting": key})
        say_listeners(
            self.log,
            [x for x in after.values() if before.get(x.socket, ("", ""))[1] != x.protocol],
        )
        for address, protocol in (before[x] for x in before if x not in after):
            where = {"address": address, "protocol": protocol}
            self.log.write("info", "listening-ended", where)
        opened, closed = len(after.keys() - before), len(before.keys() - after)
        is_nothing = replace(changes, needs_restart=()) == Difference() and not (opened or closed)
        fields: dict[str, Field] = {
            "detail": "nothing has changed" if is_nothing else None,
            "added": changes.added,
            "removed": changes.removed,
            "changed": changes.changed,
            "opened": opened,
            "closed": closed,
            "settings": ",".join(changes.settings) or None,
            "seconds": round(seconds, 3),
        }
        self.log.write("info", "reloaded", fields)


def say_listeners(log: Log, listeners: Iterable[Listener], **fields: Field) -> None:
    """Log where is listened from now on, and for what."""
    for listener in listeners:
        where = {"address": str(listener), "protocol": listener.protocol}
        log.write("info", "listening", {**where, **fields})


class NotFollowed(Exception):
    """A worker cannot do what its supervisor did; the message says why."""


class Follower:
    """A worker's side of a reload: it puts into effect what its supervisor sends, in order."""

    def __init__(self, source: Source, target: Target, supervisor: socket.socket) -> None:
        self.source = source
        self.target = target
        self.supervisor = supervisor
        self.orders, self.ordered = trio.open_memory_channel[Order](math.inf)

    def hear(self, order: Order) -> None:
        """Take an order: ``listener`` or ``reload``."""
        try:
            self.orders.send_nowait(order)
        except trio.BrokenResourceError:  # it has run
            self._decline(order)

    async def run(self) -> None:
        """Do what was ordered, until cancelled; from then on nothing is done, but answered.

        Raises:
            NotFollowed: it cannot be done.
        """
        new: list[Listener] = []
        try:
            async for order in self.ordered:
                if order.what == "listener":
                    sock = socket.socket(fileno=order.descriptors[0])
                    address = parse_listen(order.address)
                    new.append(Listener(sock, number=order.number, spec=address))
                else:
                    try:
                        with giving_way():
                            await self._take(order, new)
                    finally:
                        self._answer(order)
                    new = []
        except (ConfigError, OSError, LookupError, UnicodeError) as error:
            raise NotFollowed(str(error) or repr(error)) from None
        finally:
            for listener in besides(new, self.target.listeners):
                listener.close()
            with contextlib.suppress(trio.WouldBlock, trio.EndOfChannel):
                while True:
                    self._decline(self.ordered.receive_nowait())
            self.ordered.close()

    async def _take(self, order: Order, new: Sequence[Listener]) -> None:
        (file,) = order.descriptors
        try:
            text = await trio.to_thread.run_sync(content, file)
        finally:
            os.close(file)
        by_number = {x.number: x for x in (*self.target.listeners, *new)}
        listeners = [
            replace(by_number[x], protocol=protocol) for x, protocol in order.serve.items()
        ]
        parsed = await trio.to_thread.run_sync(self.source.file.parse, text, abandon_on_cancel=True)
        config = in_effect(self.target.config, parsed)
        await self.target.take(config, listeners, text)
        self.source.settle(config)

    def _decline(self, order: Order) -> None:
        """Keep nothing of an order: a listener would be open where nobody accepts."""
        for descriptor in order.descriptors:
            os.close(descriptor)
        if order.what == "reload":
            self._answer(order)

    def _answer(self, order: Order) -> None:
        """Say that a reload is done; or that nobody need wait for it, as this worker ends."""
        with contextlib.suppress(Gone):  # then nobody waits for it
            send(self.supervisor, Order("reloaded", order.number))


def content(descriptor: int) -> str:
    """Return the text of a configuration that a supervisor hands over.

    Raises:
        OSError: it cannot be read.
        UnicodeDecodeError: it is no text.
    """
    return read_shared(descriptor, LARGEST).decode("utf-8")
