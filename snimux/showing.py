"""Show how a running snimux is, until another process does.

Which process does it while one hands over to another, and what one that has no workers answers;
for several see ``supervisor``. Knows nothing of what is on the pages.
"""

import os
from collections.abc import Sequence

import trio

from snimux.figures import snapshot
from snimux.listeners import Listener
from snimux.log import Log
from snimux.pages import Pages, serve_pages
from snimux.status import Answers, Whole
from snimux.upgrade import Succession
from snimux.view import View


async def show(
    listeners: Sequence[Listener],
    shown: Pages,
    log: Log,
    succession: Succession,
    showing: trio.CancelScope,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve pages until another process is to do that, or until cancelled.

    Two at once, of which each has but its own figures, would be asked by turns; so one that comes
    after another begins when that has handed over.

    Args:
        listeners: where.
        shown: the pages.
        log: told where, and of pages that cannot be made.
        succession: who does it before, and after.
        showing: cancelled when another process is to do it.
        task_status: told once it is done, or is left to another.

    Resource handling: closes the listeners.
    """
    with showing:
        if succession.relieves:
            task_status.started()
            await succession.relieved()
            await serve_pages(listeners, shown, log, close=succession.close)
        else:
            await serve_pages(
                listeners, shown, log, close=succession.close, task_status=task_status
            )


class Alone:
    """A process without others, as the pages see it."""

    def __init__(self, view: View) -> None:
        self.view = view

    async def ask(self, what: str) -> Answers:
        """What it tells itself."""
        pieces = []
        for piece in self.view.tell(what):
            pieces.append(piece)
            await trio.lowlevel.checkpoint()
        return {1: pieces}

    async def whole(self) -> Whole:
        """The figures."""
        answers = await self.ask("figures")
        figures = snapshot([piece for pieces in answers.values() for piece in pieces or ()])
        return Whole(figures, answers, processes={"": os.getpid()})

    def why_not_serving(self) -> str | None:
        """What keeps connections from being accepted."""
        return "draining" if self.view.draining else None
