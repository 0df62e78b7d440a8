"""``snimux.relay.pipes``: a bounded number of large pipes, and none rather than a small one."""

import ast
import errno
import fcntl
import os
import resource
import sys
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("pipes of a chosen size are Linux's", allow_module_level=True)

from snimux.relay import pipes
from snimux.relay.pipes import SIZE, Pipes
from tests.support.sockets import open_descriptors


def test_a_pipe_is_large_and_does_not_block() -> None:
    pool = Pipes()
    pipe = pool.take()
    assert pipe is not None
    assert fcntl.fcntl(pipe.reader, fcntl.F_GETPIPE_SZ) == SIZE
    with pytest.raises(BlockingIOError):
        os.read(pipe.reader, 1)
    pool.drop(pipe)


def test_an_empty_pipe_is_kept_for_the_next() -> None:
    before = open_descriptors()
    pool = Pipes()
    first = pool.take()
    assert first is not None
    pool.give_back(first)
    assert pool.take() == first
    pool.drop(first)
    assert open_descriptors() == before
    second = pool.take()
    assert second is not None
    pool.give_back(second)
    pool.close()
    assert open_descriptors() == before


def test_there_are_no_more_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipes, "MOST", 3)
    pool = Pipes()
    taken = [pool.take() for _ in range(5)]
    assert [pipe is not None for pipe in taken] == [True] * 3 + [False] * 2
    for pipe in taken:
        if pipe is not None:
            pool.drop(pipe)
    again = pool.take()
    assert again is not None
    pool.drop(again)


def test_the_reserve_is_bounded() -> None:
    before = open_descriptors()
    pool = Pipes()
    taken = [pool.take() for _ in range(20)]
    for pipe in taken:
        assert pipe is not None
        pool.give_back(pipe)
    assert open_descriptors() == before + 2 * 16
    pool.close()
    assert open_descriptors() == before


@pytest.mark.parametrize(
    ("module", "function", "number"),
    [(fcntl, "fcntl", errno.EPERM), (os, "pipe2", errno.EMFILE)],
    ids=["past pipe-user-pages-soft", "out of descriptors"],
)
def test_where_no_large_pipe_is_to_be_had_there_is_none(
    monkeypatch: pytest.MonkeyPatch, module: object, function: str, number: int
) -> None:
    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    before = open_descriptors()
    pool = Pipes()
    first = pool.take()
    assert first is not None
    with monkeypatch.context() as patched:
        patched.setattr(module, function, refused)
        assert pool.take() is None
        pool.give_back(first)
        assert pool.take() == first
        assert pool.take() is None
    # It is not asked for again and again, but when one has been closed.
    assert pool.take() is None
    pool.drop(first)
    pipe = pool.take()
    assert pipe is not None
    pool.drop(pipe)
    assert open_descriptors() == before


# An ordinary user who has no pipes of his own yet; any number will do.
_SOMEBODY = 61_234


def _pipes_of_an_ordinary_user() -> tuple[int, bool]:
    """How many there are to be had, and whether closing one makes room for one."""
    if os.geteuid() == 0:
        os.setuid(_SOMEBODY)
    pool = Pipes()
    taken = []
    while (pipe := pool.take()) is not None:
        taken.append(pipe)
    pool.drop(taken.pop())
    return len(taken) + 1, pool.take() is not None and pool.take() is None


def test_an_ordinary_user_gets_the_quota_of_the_system_and_then_none() -> None:
    soft = int(Path("/proc/sys/fs/pipe-user-pages-soft").read_text("ascii"))
    quota = soft * resource.getpagesize() // SIZE
    if not 0 < quota < pipes.MOST:
        pytest.skip(f"pipe-user-pages-soft is {soft} pages here, more than is asked for")
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writer, repr(_pipes_of_an_ordinary_user()).encode("ascii"))
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        count, has_room_again = ast.literal_eval(answer.read().decode("ascii"))
    os.waitpid(child, 0)
    # The tests' own user may have pipes already.
    assert count == quota if os.geteuid() == 0 else 0 < count <= quota
    assert has_room_again
