"""Show how a running snimux is, until another process does.

Which process does it while one hands over to another, and what one that has no workers answers;
for several see ``supervisor``. Knows nothing of what is on the pages.
"""

import os
import time
from collections.abc import Sequence

import trio

from snimux.log import Log
from snimux.net.listeners import Listener
from snimux.service.reload import Reloader
from snimux.service.upgrade import Succession
from snimux.status.api import Answers, Figures, Processes, Uptime
from snimux.status.checkup import Checkup
from snimux.status.events import all_pages
from snimux.status.local import Local, Server
from snimux.status.metrics import snapshot
from snimux.status.web import serve_pages


class StatusServer:
    """Shows how a running snimux is, as long as that is for this process to do."""

    def __init__(self, listeners: Sequence[Listener], log: Log, succession: Succession) -> None:
        """Have it shown there, but not yet.

        Args:
            listeners: where.
            log: gets a line for each address, and for pages that cannot be made.
            succession: who does it before, and after.
        """
        self.listeners = listeners
        self._log = log
        self._succession = succession

    async def run(
        self, source: Processes, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve the pages until a successor does, or until cancelled.

        Two at once, of which each has but its own figures, would be asked by turns; so one that
        comes after another begins when that has handed over.

        Args:
            source: what is on the pages.
            task_status: told once it is done, or is left to another.

        Resource handling: closes the listeners.
        """
        # As this process was started, so that the doctor has the same configuration.
        command = self._succession.command
        checkup = Checkup([*command, "doctor", "--json"] if command else [])
        succession, pages = self._succession, all_pages(source, checkup)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(checkup.run)
            if succession.has_predecessor:
                task_status.started()
                task_status = trio.TASK_STATUS_IGNORED
                await succession.taken_over.wait()
            await serve_pages(
                self.listeners,
                pages,
                self._log,
                close=succession.close,
                stopped=succession.handed_over,
                task_status=task_status,
            )
            nursery.cancel_scope.cancel()


class Alone:
    """Answers for a process without others."""

    def __init__(self, server: Server, reloader: Reloader | None = None) -> None:
        self._local = Local(server)
        self._started = time.monotonic()
        self._reloader = reloader

    async def ask(self, what: str) -> Answers:
        """Return its own answer, under the number 1."""
        pieces = []
        for piece in self._local.tell(what):
            pieces.append(piece)
            await trio.lowlevel.checkpoint()
        return {1: pieces}

    async def figures(self) -> Figures:
        """Return its figures."""
        answers = await self.ask("figures")
        figures = snapshot([piece for pieces in answers.values() for piece in pieces or ()])
        return Figures(figures, answers, processes={"": os.getpid()})

    def why_not_serving(self) -> str | None:
        """Return what keeps connections from being accepted; None if nothing does."""
        return "draining" if self._local.draining else None

    def uptime(self) -> Uptime:
        """Return since when it runs, and how the last reload went."""
        return Uptime(self._started, self._reloader.last if self._reloader else None)
