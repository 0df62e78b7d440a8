"""``snimux.apart``: real programs, small ones."""

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

import psutil
import pytest
import trio

from snimux.apart import Apart, start
from tests.caddy import until
from tests.sockets import open_descriptors

# The threads are those of other tests, and the child does nothing but execute.
pytestmark = pytest.mark.filterwarnings("ignore:.* is multi-threaded:DeprecationWarning")

WAITS = [sys.executable, "-c", "import signal; signal.pause()"]


def started(command: Sequence[str]) -> Apart:
    return start(command, [], environment=os.environ, ignored=signal.SIGUSR2)


async def ended(program: Apart) -> int:
    codes: list[int] = []

    def has_ended() -> bool:
        code = program.exit_code()
        codes.extend([] if code is None else [code])
        return bool(codes)

    await until(has_ended, "it has ended", seconds=30)
    return codes[0]


def has_gone(process: psutil.Process) -> bool:
    """Whether it has ended; an orphan may have nobody who asks how."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize(
    ("code", "expected"),
    [("", 0), ("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL)],
)
async def test_its_end_is_seen(code: str, expected: int) -> None:
    before = open_descriptors()
    program = started([sys.executable, "-c", code])
    assert await ended(program) == expected
    assert open_descriptors() == before


async def test_it_is_told_what_it_is_sent_and_nothing_once_it_has_ended() -> None:
    program = started(WAITS)
    program.send(signal.SIGTERM)
    assert await ended(program) == -signal.SIGTERM
    program.send(signal.SIGTERM)


def test_it_is_killed() -> None:
    before = open_descriptors()
    program = started(WAITS)
    assert program.exit_code() is None
    assert psutil.Process(program.pid).ppid() == program.keeper
    assert program.kill() == -signal.SIGKILL
    assert open_descriptors() == before


async def test_let_go_it_lives_on_and_is_nobodys_child_here() -> None:
    before = open_descriptors()
    program = started(WAITS)
    program.let_go()
    assert open_descriptors() == before
    found = psutil.Process(program.pid)
    assert found.ppid() not in (program.keeper, os.getpid())
    program.send(signal.SIGKILL)
    with trio.fail_after(30):
        while found.is_running() and found.status() != psutil.STATUS_ZOMBIE:
            await trio.sleep(0.01)


async def test_it_does_not_outlive_the_child_in_between_unless_let_go() -> None:
    program = started(WAITS)
    found = psutil.Process(program.pid)
    os.kill(program.keeper, signal.SIGKILL)
    try:
        assert await ended(program) == -signal.SIGKILL
        await until(lambda: has_gone(found), "the program has ended", seconds=30)
    finally:
        with suppress(psutil.NoSuchProcess):
            found.kill()


def test_one_that_cannot_be_started_is_an_error_here() -> None:
    before = open_descriptors()
    with pytest.raises(FileNotFoundError, match="/nonexistent"):
        started(["/nonexistent"])
    assert open_descriptors() == before
