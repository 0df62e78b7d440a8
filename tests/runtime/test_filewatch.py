"""``runtime.filewatch``: real files; the seconds are the test's."""

import contextlib
import os
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from snimux.runtime.filewatch import State, look, watch


@dataclass
class Watched:
    """A file, and what was told of it."""

    path: Path
    clock: MockClock
    known: State | None = None
    changes: int = 0
    missing: list[str] = field(default_factory=list)

    def change(self) -> None:
        self.changes += 1
        self.known = look(str(self.path))

    async def second(self) -> int:
        """Let a second pass; how many changes were told by then."""
        self.clock.jump(1)
        await wait_all_tasks_blocked()
        while trio.to_thread.current_default_thread_limiter().borrowed_tokens:
            await trio.lowlevel.checkpoint()
        await wait_all_tasks_blocked()
        return self.changes


@contextlib.asynccontextmanager
async def watched(path: Path, clock: MockClock) -> AsyncIterator[Watched]:
    begin(path)
    seen = Watched(path, clock, look(str(path)))
    async with trio.open_nursery() as nursery:
        told = seen.change, seen.missing.append
        nursery.start_soon(partial(watch, str(path), lambda: seen.known, *told))
        await wait_all_tasks_blocked()
        assert [await seen.second() for _ in range(3)] == [0, 0, 0]
        yield seen
        nursery.cancel_scope.cancel()


def begin(path: Path) -> None:
    path.write_text("one")


def replace(path: Path, text: str) -> None:
    new = path.with_name("new")
    new.write_text(text)
    new.rename(path)


@pytest.mark.parametrize("how", [Path.write_text, replace])
async def test_a_change_is_told_once_when_it_has_lasted_for_a_second(
    tmp_path: Path, mock_clock: MockClock, how: object
) -> None:
    assert callable(how)
    async with watched(tmp_path / "f", mock_clock) as seen:
        how(seen.path, "three")
        assert [await seen.second() for _ in range(4)] == [0, 1, 1, 1]


async def test_what_is_still_being_written_is_not_told(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with watched(tmp_path / "f", mock_clock) as seen:
        with seen.path.open("a") as file:
            for _ in range(5):
                print("more", file=file, flush=True)
                assert await seen.second() == 0
        assert await seen.second() == 1


async def test_it_is_told_until_it_was_read(tmp_path: Path, mock_clock: MockClock) -> None:
    async with watched(tmp_path / "f", mock_clock) as seen:
        seen.known = None
        assert [await seen.second() for _ in range(2)] == [1, 1]


async def test_a_file_that_is_gone_is_said_once_and_read_when_it_is_back(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with watched(tmp_path / "f", mock_clock) as seen:
        for count in (1, 2):
            away = seen.path.rename(tmp_path / "away")
            assert [await seen.second() for _ in range(3)] == [count - 1] * 3
            assert seen.missing == ["No such file or directory"] * count
            away.rename(seen.path)
            assert [await seen.second() for _ in range(3)] == [count - 1, count, count]


async def test_a_directory_in_its_place_is_said(tmp_path: Path, mock_clock: MockClock) -> None:
    async with watched(tmp_path / "f", mock_clock) as seen:
        away = seen.path.rename(tmp_path / "away")
        (tmp_path / "f").mkdir()
        assert [await seen.second() for _ in range(3)] == [0, 0, 0]
        assert seen.missing == ["not a regular file"]
        (tmp_path / "f").rmdir()
        away.rename(seen.path)
        assert [await seen.second() for _ in range(3)] == [0, 1, 1]


async def test_the_file_is_what_links_lead_to(tmp_path: Path, mock_clock: MockClock) -> None:
    # as Kubernetes does: f -> data/f, data -> 1, then data -> 2 in one step
    for number in ("1", "2"):
        (tmp_path / number).mkdir()
        (tmp_path / number / "f").write_text("same size")
    (tmp_path / "data").symlink_to("1")
    (tmp_path / "f").symlink_to("data/f")
    async with watched(tmp_path / "f", mock_clock) as seen:
        (tmp_path / "new").symlink_to("2")
        (tmp_path / "new").rename(tmp_path / "data")
        assert [await seen.second() for _ in range(3)] == [0, 1, 1]


async def test_other_permissions_and_a_kept_time_are_seen(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with watched(tmp_path / "f", mock_clock) as seen:
        seen.path.chmod(0o600)
        assert [await seen.second() for _ in range(2)] == [0, 1]
        times = seen.path.stat()
        seen.path.write_text("two")
        os.utime(seen.path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert [await seen.second() for _ in range(2)] == [1, 2]


def test_a_pipe_is_no_file_to_be_read_again(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "f")
    assert look(str(tmp_path / "f")) is None


async def test_a_file_that_nobody_can_look_at_holds_up_nobody(
    tmp_path: Path, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(tmp_path / "f")
    threads: list[int] = []

    def recording(path: str) -> State | None:
        threads.append(threading.get_ident())
        return look(path)

    async with watched(tmp_path / "f", mock_clock) as seen:
        monkeypatch.setattr("snimux.runtime.filewatch.look", recording)
        await seen.second()
    assert threads
    assert threading.get_ident() not in threads
