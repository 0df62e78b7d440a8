"""``runtime.background``: long work stops nobody, and leaves the interpreter as it was."""

import gc
import sys
import threading
from functools import partial

import pytest
import trio

from snimux.runtime.background import ProcessError, giving_way, in_process, in_thread


def how() -> tuple[float, bool]:
    return round(sys.getswitchinterval(), 6), gc.isenabled()


def test_the_interpreter_is_as_before_in_whatever_order_works_end() -> None:
    usual = how()
    for order in ((0, 1), (1, 0)):
        works = giving_way(), giving_way()
        for work in works:
            work.__enter__()
            assert how() == (round(usual[0] / 10, 6), False)
        works[order[0]].__exit__(None, None, None)
        assert how() == (round(usual[0] / 10, 6), False)
        works[order[1]].__exit__(None, None, None)
        assert how() == usual


def test_what_was_made_meanwhile_is_not_looked_through_at_once() -> None:
    gc.unfreeze()
    with giving_way():
        made = [[number] for number in range(50_000)]
    try:
        assert gc.get_freeze_count() > len(made)
    finally:
        gc.unfreeze()


async def test_work_in_a_thread_returns_and_raises() -> None:
    assert await in_thread(threading.get_ident) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        await in_thread(partial(divmod, 1, 0))


async def test_work_that_does_not_end_is_not_waited_for() -> None:
    free = threading.Event()
    with trio.move_on_after(0.01) as waited:
        await in_thread(partial(free.wait, 60))
    free.set()
    assert waited.cancelled_caught
    assert gc.isenabled()


async def test_a_process_that_fails_is_said() -> None:
    with pytest.raises(ProcessError, match=r"^its process ended with status 1$"):
        await in_process("snimux.no_such_module", b"")
