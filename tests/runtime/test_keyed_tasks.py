"""``runtime.keyed_tasks``: one task for each key, and what is ended does nothing more."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from snimux.runtime.keyed_tasks import KeyedTasks


class Recorder:
    """Tasks that say when they begin, are cancelled and end; each ends when it is released."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.released: dict[str, trio.Event] = {}
        self.tasks = KeyedTasks(self.work)

    async def work(self, key: str) -> None:
        self.said.append(f"{key} begins")
        released = self.released[key] = trio.Event()
        try:
            await released.wait()
        except trio.Cancelled:
            self.said.append(f"{key} is cancelled")
            raise
        self.said.append(f"{key} ends")

    async def news(self) -> list[str]:
        """Return what was said since the last time."""
        await wait_all_tasks_blocked()
        said, self.said = self.said, []
        return sorted(said)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.tasks.run)
            yield
            nursery.cancel_scope.cancel()


async def test_there_is_one_task_for_each_key_and_no_other() -> None:
    recorder = Recorder()
    async with recorder.running():
        recorder.tasks.reconcile("ab")
        assert await recorder.news() == ["a begins", "b begins"]
        recorder.tasks.reconcile("bc")
        assert await recorder.news() == ["a is cancelled", "c begins"]
        recorder.tasks.reconcile("bc", anew="c")
        assert await recorder.news() == ["c begins", "c is cancelled"]
        recorder.tasks.continue_or_begin("b")
        recorder.tasks.continue_or_begin("d")
        assert await recorder.news() == ["d begins"]
        recorder.tasks.begin("d")
        assert await recorder.news() == ["d begins", "d is cancelled"]
        recorder.tasks.end("d")
        recorder.tasks.end("d")
        assert await recorder.news() == ["d is cancelled"]
        assert [*recorder.tasks.scopes] == ["b", "c"]
    assert await recorder.news() == ["b is cancelled", "c is cancelled"]


async def test_what_is_begun_before_they_run_waits_for_that() -> None:
    recorder = Recorder()
    recorder.tasks.reconcile("abc")
    recorder.tasks.end("b")
    assert not recorder.tasks.is_running
    assert await recorder.news() == []
    async with recorder.running():
        assert recorder.tasks.is_running
        assert await recorder.news() == ["a begins", "c begins"]
    assert not recorder.tasks.is_running


async def test_a_task_that_is_ended_in_the_moment_it_was_begun_does_nothing() -> None:
    recorder = Recorder()
    async with recorder.running():
        recorder.tasks.begin("a")
        recorder.tasks.end("a")
        recorder.tasks.begin("b")
        recorder.tasks.begin("b")
        assert await recorder.news() == ["b begins"]


async def test_a_task_that_ended_by_itself_can_be_begun_again() -> None:
    recorder = Recorder()
    async with recorder.running():
        recorder.tasks.begin("a")
        assert await recorder.news() == ["a begins"]
        recorder.released["a"].set()
        assert await recorder.news() == ["a ends"]
        assert not recorder.tasks.scopes
        recorder.tasks.continue_or_begin("a")
        assert await recorder.news() == ["a begins"]


async def test_the_end_of_an_old_task_leaves_the_new_one_of_its_key() -> None:
    """A task that is slow to end, as one that closes something, ends after the next began."""
    slow, begun = trio.Event(), 0

    async def work(key: str) -> None:
        nonlocal begun
        begun += 1
        if begun == 1:
            with trio.CancelScope(shield=True):
                await slow.wait()
        await trio.sleep_forever()

    tasks = KeyedTasks(work)
    async with trio.open_nursery() as nursery:
        await nursery.start(tasks.run)
        tasks.begin("a")
        await wait_all_tasks_blocked()
        tasks.begin("a")
        slow.set()
        await wait_all_tasks_blocked()
        assert begun == 2
        assert [*tasks.scopes] == ["a"]
        tasks.end("a")
        assert not tasks.scopes
        nursery.cancel_scope.cancel()


async def test_what_a_task_begins_while_all_end_is_not_begun() -> None:
    async def work(key: str) -> None:
        try:
            await trio.sleep_forever()
        finally:
            tasks.begin(key + key)

    tasks = KeyedTasks(work)
    async with trio.open_nursery() as nursery:
        await nursery.start(tasks.run)
        tasks.begin("a")
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert not tasks.is_running
    assert [*tasks.scopes] == ["a", "aa"]


async def test_an_error_of_a_task_is_the_errors_of_who_runs_them() -> None:
    async def work(key: str) -> None:
        raise LookupError(key)

    tasks = KeyedTasks(work)
    tasks.begin("a")
    with pytest.raises(ExceptionGroup) as caught:
        await tasks.run()
    assert caught.group_contains(LookupError, match="a")
