"""Run one task for each of some keys: begin it, begin it anew, end it.

Knows nothing of what the tasks do, and does not begin again what ends by itself.
"""

from collections.abc import Awaitable, Callable, Collection, Container, Hashable
from typing import Generic, TypeVar

import trio

Key = TypeVar("Key", bound=Hashable)


class KeyedTasks(Generic[Key]):
    """Tasks by key, at most one that counts for each.

    What is begun before ``run`` waits for it. After a task was ended, it does nothing beyond its
    next checkpoint; where an ``await`` may have succeeded in the same moment, it asks by
    ``trio.lowlevel.checkpoint_if_cancelled``.
    """

    def __init__(self, work: Callable[[Key], Awaitable[object]]) -> None:
        """Take what the task of a key does."""
        self.work = work
        self.scopes: dict[Key, trio.CancelScope] = {}
        self.nursery: trio.Nursery | None = None

    @property
    def is_running(self) -> bool:
        """Return whether a task that is begun now starts at once."""
        return self.nursery is not None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the tasks until cancelled.

        Args:
            task_status: started when those do that were begun by now.
        """
        async with trio.open_nursery() as nursery:
            self.nursery = nursery
            try:
                for key, scope in self.scopes.items():
                    nursery.start_soon(self._do, key, scope)
                task_status.started()
                await trio.sleep_forever()
            finally:
                self.nursery = None  # what its tasks still begin would find it closed

    def begin(self, key: Key) -> None:
        """Begin the task of a key, anew if there is one."""
        self.end(key)
        scope = self.scopes[key] = trio.CancelScope()
        if self.nursery is not None:
            self.nursery.start_soon(self._do, key, scope)

    def continue_or_begin(self, key: Key) -> None:
        """Begin the task of a key, unless it has one that has not ended."""
        if key not in self.scopes:
            self.begin(key)

    def end(self, key: Key) -> None:
        """End the task of a key, if there is one."""
        scope = self.scopes.pop(key, None)
        if scope is not None:
            scope.cancel()

    def reconcile(self, keys: Collection[Key], anew: Container[Key] = ()) -> None:
        """Begin and end tasks until there is one for each of these keys, and no other.

        Args:
            keys: in the order in which tasks that are new begin.
            anew: those of the keys whose tasks are begun anew; the others' go on.
        """
        for key in [key for key in self.scopes if key not in keys]:
            self.end(key)
        for key in keys:
            (self.begin if key in anew else self.continue_or_begin)(key)

    async def _do(self, key: Key, scope: trio.CancelScope) -> None:
        with scope:
            await trio.lowlevel.checkpoint_if_cancelled()  # it may have been ended by now
            await self.work(key)
        if self.scopes.get(key) is scope:
            del self.scopes[key]
