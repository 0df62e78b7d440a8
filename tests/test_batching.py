"""``snimux.batching``: lines are kept while there is something to do, and no longer."""

import io
import math

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from snimux.batching import batching
from snimux.log import Log


async def test_lines_are_written_when_the_loop_is_about_to_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("snimux.log._LONGEST_WAIT", math.inf)  # however slow this machine is
    stream = io.StringIO()
    log = Log(stream)
    with batching(log):
        log.write("info", "first", {})
        await trio.lowlevel.checkpoint()  # another has its turn at once: there is no wait
        log.write("info", "second", {})
        assert not stream.getvalue()
        await wait_all_tasks_blocked(0.01)
        assert stream.getvalue().count("\n") == 2
        log.write("info", "third", {})
    assert stream.getvalue().count("\n") == 3  # also where the loop has not waited since
    log.write("info", "fourth", {})
    assert stream.getvalue().count("\n") == 4  # at once


async def test_lines_are_not_kept_for_long_where_there_is_always_something_to_do() -> None:
    stream = io.StringIO()
    log = Log(stream)
    with batching(log):
        log.write("info", "first", {})
        with trio.fail_after(60):
            while not stream.getvalue():
                await trio.lowlevel.checkpoint()
    assert stream.getvalue().count("\n") == 1
