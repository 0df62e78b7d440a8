"""``service.spawn``: real programs, small ones, and descriptors from one process to another."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

from snimux.service.spawn import Apart, start, start_apart
from snimux.service.systemd import Named
from tests.support.caddy import until
from tests.support.sockets import open_descriptors

# Says what it was handed, on the descriptor that is called "out".
CHILD = """
import json, os, signal
from snimux.service.systemd import receive
PID = int(os.environ["LISTEN_PID"])
named = receive(os.environ, os.getpid())
said = {
    "names": [name for name, _ in named],
    "numbers": [number for _, number in named],
    "inodes": [os.fstat(number).st_ino for _, number in named],
    "inheritable": [os.get_inheritable(number) for _, number in named],
    "left": [name for name in os.environ if name.startswith("LISTEN_")],
    "kept": os.environ.get("KEPT"),
    "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
    "listen_pid": PID == os.getpid(),
    "is_leader": os.getsid(0) == os.getpid(),
}
os.write(dict(named)["out"], json.dumps(said).encode())
"""

# Has its descriptors where they are to be, but in the reverse order, and the pipe of `start`
# among them: 3 is free, so it gets that.
PARENT = """
import os, sys
from snimux.service.spawn import start
out = int(sys.argv[1])
files = [os.open("/dev/null", 0), os.open("/", 0)]
os.dup2(files[0], 40); os.dup2(files[1], 41); os.dup2(out, 42)
os.closerange(3, 40)
os.dup2(40, 6); os.dup2(41, 5); os.dup2(42, 4)
os.closerange(40, 43)
wanted = [("null", 6), ("root", 5), ("out", 4)]
assert start([sys.executable, "-c", sys.argv[2]], wanted, environment=os.environ).wait() == 0
"""


def said_by_child(descriptors: Sequence[Named] = (), **more: Any) -> dict[str, Any]:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as reading:
        handed = [*descriptors, ("out", writer)]
        environment = {**os.environ, "KEPT": "yes"}
        process = start([sys.executable, "-c", CHILD], handed, environment=environment, **more)
        os.close(writer)
        said = json.loads(reading.read())
    assert process.wait() == 0
    assert isinstance(said, dict)
    return said


def test_descriptors_arrive_in_order_under_their_names() -> None:
    before = open_descriptors()
    pipe = os.pipe()
    said = said_by_child([("tls", pipe[1]), ("http", pipe[0]), ("tls", pipe[1])])
    assert said["names"] == ["tls", "http", "tls", "out"]
    assert said["numbers"] == [3, 4, 5, 6]
    inodes = [os.fstat(pipe[number]).st_ino for number in (1, 0, 1)]
    assert said["inodes"][:3] == inodes
    assert said["kept"] == "yes"
    # the child's own children get nothing of it
    assert said["inheritable"] == [False] * 4
    assert said["left"] == []
    assert said["listen_pid"]
    for descriptor in pipe:
        os.close(descriptor)
    assert open_descriptors() == before


def test_one_may_have_the_number_that_another_gets() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as reading:
        command = [sys.executable, "-c", PARENT, str(writer), CHILD]
        subprocess.run(command, pass_fds=[writer], check=True)
        os.close(writer)
        said = json.loads(reading.read())
    assert said["names"] == ["null", "root", "out"]
    assert said["inodes"][:2] == [os.stat("/dev/null").st_ino, os.stat("/").st_ino]  # noqa: PTH116


def test_blocked_signals_stay_blocked_and_the_session_is_new_where_wanted() -> None:
    assert said_by_child()["is_leader"] is False
    said = said_by_child(new_session=True, blocked=[signal.SIGTERM])
    assert said["is_leader"] is True
    assert signal.SIGTERM in said["blocked"]
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_what_cannot_be_started_is_an_error_here() -> None:
    before = open_descriptors()
    with pytest.raises(FileNotFoundError) as caught:
        start(["/nonexistent"], [("in", 0)], environment={})
    assert caught.value.errno == errno.ENOENT
    assert caught.value.filename == "/nonexistent"
    assert open_descriptors() == before


# --- apart

WAITS = [sys.executable, "-c", "import signal; signal.pause()"]


def prepared(command: Sequence[str], handed: Sequence[Named] = ()) -> Apart:
    """One that is not known yet, and has not begun."""
    return start_apart(
        command,
        handed,
        environment=os.environ,
        blocked=(signal.SIGTERM, signal.SIGUSR2),
        ignored=signal.SIGUSR2,
    )


async def started(command: Sequence[str], handed: Sequence[Named] = ()) -> Apart:
    program = prepared(command, handed)
    assert await program.identify()
    program.begin()
    return program


async def ended(program: Apart) -> int:
    codes: list[int] = []

    def has_ended() -> bool:
        code = program.exit_code()
        codes.extend([] if code is None else [code])
        return bool(codes)

    await until(has_ended, "it has ended", seconds=60)
    return codes[0]


def has_gone(process: psutil.Process) -> bool:
    """Whether it has ended; an orphan may have nobody who asks how."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@asynccontextmanager
async def ending(pid: int) -> AsyncIterator[psutil.Process]:
    """A process that has ended when this is left, or is killed, which is a failure."""
    process = psutil.Process(pid)
    try:
        yield process
        await until(lambda: has_gone(process), "it has ended", seconds=60)
    finally:
        with suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.mark.parametrize(
    ("code", "expected"),
    [("", 0), ("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL)],
)
async def test_its_end_is_seen(code: str, expected: int) -> None:
    before = open_descriptors()
    program = await started([sys.executable, "-c", code])
    assert await ended(program) == expected
    assert open_descriptors() == before


async def test_it_is_told_what_it_is_sent_and_nothing_once_it_has_ended() -> None:
    program = await started([sys.executable, "-c", UNBLOCKS])
    program.send(signal.SIGTERM)
    assert await ended(program) == -signal.SIGTERM
    program.send(signal.SIGTERM)


# What was sent to it before is not lost, nor what is sent now.
UNBLOCKS = """
import signal
assert signal.getsignal(signal.SIGUSR2) == signal.SIG_IGN
assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
signal.pause()
"""


async def test_it_is_killed() -> None:
    before = open_descriptors()
    program = await started(WAITS)
    assert program.exit_code() is None
    process = psutil.Process(program.pid)
    assert process.ppid() == program.keeper.pid
    await program.kill()
    assert program.exit_code() == -signal.SIGKILL
    assert has_gone(process)
    assert open_descriptors() == before


async def test_let_go_it_lives_on_and_is_nobodys_child_here() -> None:
    before = open_descriptors()
    program = await started(WAITS)
    await program.let_go()
    assert open_descriptors() == before
    async with ending(program.pid) as process:
        assert process.ppid() not in (program.keeper.pid, os.getpid())
        program.send(signal.SIGKILL)


async def test_it_does_not_outlive_the_child_in_between_unless_let_go() -> None:
    program = await started(WAITS)
    async with ending(program.pid):
        program.keeper.kill()
        assert await ended(program) == -signal.SIGKILL


async def test_one_that_has_not_begun_ends_with_its_keeper_though_nobody_knows_it() -> None:
    before = open_descriptors()
    program = prepared(WAITS)
    keeper = psutil.Process(program.keeper.pid)
    await until(keeper.children, "there is a program", seconds=60)
    async with ending(keeper.children()[0].pid):
        program.keeper.kill()
        assert await ended(program) == -signal.SIGKILL
        assert not await program.identify()
        program.begin()
    assert open_descriptors() == before


async def test_there_is_none_if_the_keeper_is_killed_before() -> None:
    program = prepared(WAITS)
    program.keeper.kill()  # at once: mostly it has not even begun
    pid = await program.identify() and program.pid
    assert await ended(program) == -signal.SIGKILL
    await until(lambda: not pid or not psutil.pid_exists(pid), "there is none", seconds=60)


async def test_one_that_is_known_and_does_not_begin_ends_when_it_is_killed() -> None:
    before = open_descriptors()
    program = prepared(WAITS)
    assert await program.identify()
    async with ending(program.pid):
        await program.kill()
        assert program.exit_code() == -signal.SIGKILL
    assert open_descriptors() == before


# As who upgrades: says who the keeper and the program are, and ends before that begins.
ENDS = """
import os, signal, sys, trio
from snimux.service.spawn import start_apart
async def main():
    program = start_apart(
        [sys.executable, "-c", "import signal; signal.pause()"], [], environment=os.environ,
        blocked=(), ignored=signal.SIGUSR2,
    )
    assert await program.identify()
    print(program.keeper.pid, program.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
trio.run(main)
"""


async def test_neither_it_nor_its_keeper_is_left_if_nobody_is_there_to_let_it_begin() -> None:
    done = await trio.run_process([sys.executable, "-c", ENDS], capture_stdout=True, check=False)
    assert done.returncode == -signal.SIGKILL
    for pid in map(int, done.stdout.split()):
        with suppress(psutil.NoSuchProcess):
            async with ending(pid):
                pass


async def test_a_keeper_that_is_stopped_holds_nobody_up_when_it_is_to_let_go() -> None:
    before = open_descriptors()
    program = await started(WAITS)
    program.keeper.send_signal(signal.SIGSTOP)
    await program.let_go()
    assert open_descriptors() == before
    async with ending(program.pid) as process:
        assert process.ppid() != program.keeper.pid
        program.send(signal.SIGKILL)


async def test_a_keeper_that_is_stopped_holds_nobody_up_for_long_when_all_is_to_end(
    mock_clock: trio.testing.MockClock,
) -> None:
    mock_clock.rate = 100
    program = await started(WAITS)
    async with ending(program.pid):
        program.keeper.send_signal(signal.SIGSTOP)
        await program.kill()
        assert program.exit_code() == -signal.SIGKILL


@pytest.fixture
def no_fork(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process with a thread, in which Python is not to fork, nor to close by counting."""

    def forbidden(*_: object) -> None:
        raise AssertionError("not in a process that has threads")

    monkeypatch.setattr(os, "fork", forbidden)
    monkeypatch.setattr(os, "closerange", forbidden)
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    yield
    over.set()
    thread.join()


@pytest.mark.usefixtures("no_fork")
async def test_no_python_of_this_process_runs_in_another() -> None:
    assert said_by_child()["names"] == ["out"]
    program = await started([sys.executable, "-c", "raise SystemExit(3)"])
    assert await ended(program) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="looks at the process in /proc")
async def test_the_keeper_holds_nothing_that_the_program_was_handed() -> None:
    before = open_descriptors()
    pipe = os.pipe()
    program = await started(WAITS, [("tls", pipe[0]), ("tls", pipe[1]), ("tls", pipe[0])])
    inherited = [f"/dev/fd/{number}" for number in range(3)]
    streams = {os.stat(name).st_ino for name in inherited}  # noqa: PTH116

    def of(pid: int) -> list[int]:
        found = (path.stat().st_ino for path in Path(f"/proc/{pid}/fd").iterdir())
        return [inode for inode in found if inode not in streams]

    inodes = [os.fstat(pipe[number]).st_ino for number in (0, 1, 0)]
    await until(lambda: len(of(program.keeper.pid)) == 1, "it has one pipe", seconds=60)
    assert not set(of(program.keeper.pid)) & set(inodes)
    await until(lambda: sorted(of(program.pid)) == sorted(inodes), "it has those", seconds=60)
    await program.kill()
    assert program.exit_code() == -signal.SIGKILL
    for descriptor in pipe:
        os.close(descriptor)
    assert open_descriptors() == before


async def test_one_that_cannot_be_started_is_an_error_here() -> None:
    before = open_descriptors()
    with pytest.raises(FileNotFoundError, match="/nonexistent"):
        prepared(["/nonexistent"])
    assert open_descriptors() == before
