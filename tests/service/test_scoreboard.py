"""``service.scoreboard``: one count, in a process or over several; both against one model."""

import contextlib
import fcntl
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from typing import IO, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from snimux.frontend.limits import ConnectionLimits, Leave, LocalLimits
from snimux.frontend.rate import Pace
from snimux.service.scoreboard import Heartbeat, SharedLimits, clear, heartbeat, lay_out, resize

PACE = Pace(per_second=0.5, burst=2)
SOURCES = [bytes([number]) * 4 for number in range(5)]


class _Machine(RuleBasedStateMachine):
    """Workers take and give, enter and leave, die and are replaced, beside a model of it."""

    workers: ClassVar[int]

    def make(self, worker: int) -> ConnectionLimits:
        raise NotImplementedError

    @initialize(limit=st.integers(1, 30), most=st.integers(1, 30))
    def begin(self, limit: int, most: int) -> None:
        self.limit, self.most = limit, most if self.workers > 1 else 99
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 (until the teardown)
        lay_out(self.file.fileno(), workers=self.workers, limit=limit, most=30)
        self.places = [self.make(worker) for worker in range(self.workers)]
        self.taken: Counter[int] = Counter()
        self.entered: list[tuple[int, bytes, Leave]] = []
        self.said_full = False
        self.now = 10**9
        self.expected: dict[bytes, int] = {}

    def teardown(self) -> None:
        self.file.close()

    def of(self, worker: int) -> tuple[int, ConnectionLimits]:
        return worker % self.workers, self.places[worker % self.workers]

    @rule(worker=st.integers(0, 9))
    def take(self, worker: int) -> None:
        worker, places = self.of(worker)
        may = self.taken.total() < self.limit and self.taken[worker] < self.most
        assert places.acquire() is may
        self.taken[worker] += may

    @rule(worker=st.integers(0, 9))
    def give(self, worker: int) -> None:
        worker, places = self.of(worker)
        if self.taken[worker]:
            places.release()
            self.taken[worker] -= 1
            if self.limit - self.taken.total() > self.limit // 10:
                self.said_full = False

    @rule(worker=st.integers(0, 9))
    def look_whether_full(self, worker: int) -> None:
        news = self.taken.total() >= self.limit and not self.said_full
        assert self.of(worker)[1].should_say_full() is news
        self.said_full |= news

    @rule(worker=st.integers(0, 9), source=st.sampled_from(SOURCES), limit=st.integers(1, 4))
    def enter(self, worker: int, source: bytes, limit: int) -> None:
        worker, places = self.of(worker)
        count = sum(source == other for _, other, _ in self.entered)
        leave = places.count_source(source, limit)
        assert (leave is not None) is (count < limit)
        if leave is not None:
            self.entered.append((worker, source, leave))

    @precondition(lambda self: self.entered)
    @rule(which=st.integers(0, 99))
    def leave(self, which: int) -> None:
        _, _, leave = self.entered.pop(which % len(self.entered))
        leave()

    @rule(
        worker=st.integers(0, 9),
        source=st.sampled_from(SOURCES),
        pause=st.sampled_from([0, 1, 10**9, 10**10]),
    )
    def arrive(self, worker: int, source: bytes, pause: int) -> None:
        self.now += pause
        following = PACE.arrive(self.expected.get(source, 0), self.now)
        assert self.of(worker)[1].allow(source, PACE, self.now) is (following is not None)
        self.expected[source] = following or self.expected[source]

    @precondition(lambda self: self.workers > 1)
    @rule(worker=st.integers(0, 9))
    def die(self, worker: int) -> None:
        worker, _ = self.of(worker)
        clear(self.file.fileno(), worker + 1)
        self.places[worker] = self.make(worker)
        self.taken[worker] = 0
        self.said_full = False
        self.entered = [entry for entry in self.entered if entry[0] != worker]

    @rule(limit=st.integers(1, 30))
    def resize(self, limit: int) -> None:
        if self.workers == 1:
            self.places[0].resize(limit)
        else:
            resize(self.file.fileno(), limit)
            self.places[0].resize(99)  # is not for a worker to say
        self.limit, self.said_full = limit, False

    @invariant()
    def counts_are_those_of_the_model(self) -> None:
        for worker, places in enumerate(self.places):
            assert places.limit == self.limit
            assert places.acquired == self.taken[worker]


class _Local(_Machine):
    workers = 1

    def make(self, worker: int) -> ConnectionLimits:
        return LocalLimits(self.limit)


class _Shared(_Machine):
    workers = 3

    def make(self, worker: int) -> ConnectionLimits:
        return SharedLimits(self.file.fileno(), worker + 1, most=self.most)


_Local.TestCase.settings = _Shared.TestCase.settings = settings(deadline=None, max_examples=50)
TestLocal = _Local.TestCase
TestShared = _Shared.TestCase


@contextlib.contextmanager
def shared(workers: int, limit: int) -> Iterator[IO[bytes]]:
    with tempfile.TemporaryFile() as file:
        lay_out(file.fileno(), workers=workers, limit=limit, most=limit)
        yield file


def test_as_many_sources_as_there_are_places_are_told_apart() -> None:
    with shared(2, 5000) as file:
        workers = [SharedLimits(file.fileno(), number, most=5000) for number in (1, 2)]
        sources = [number.to_bytes(4) for number in range(5000)]
        for number, source in enumerate(sources):
            assert workers[number % 2].count_source(source, 1)
        for number, source in enumerate(sources):
            assert workers[number % 2].count_source(source, 1) is None


def test_slots_are_used_again() -> None:
    with shared(1, 1) as file:
        places = SharedLimits(file.fileno(), 1, most=1)
        for number in range(1000):
            leave = places.count_source(number.to_bytes(4), 1)
            assert leave
            assert places.count_source(number.to_bytes(4), 1) is None
            leave()


def test_more_sources_than_can_be_told_apart_are_let_in() -> None:
    with shared(1, 1) as file:
        places = SharedLimits(file.fileno(), 1, most=1)
        assert all(places.count_source(number.to_bytes(4), 1) for number in range(1000))


def test_the_file_is_bounded() -> None:
    with shared(4, 10**9) as file:
        assert file.seek(0, 2) < 29 * 2**20
        assert SharedLimits(file.fileno(), 4, most=1).acquire()


@pytest.mark.skipif(sys.platform != "linux", reason="counts the blocks of a file in memory")
def test_what_is_not_used_takes_no_memory_after_a_death_either() -> None:
    with open(os.memfd_create("places"), "wb") as file:  # noqa: PTH123 (a descriptor)
        lay_out(file.fileno(), workers=2, limit=10**9, most=10**9)
        places = SharedLimits(file.fileno(), 2, most=1)
        assert places.acquire()
        assert places.count_source(b"x", 1)
        clear(file.fileno(), 2)
        assert (places.acquired, places.count_source(b"x", 1) is None) == (0, False)
        assert os.fstat(file.fileno()).st_blocks * 512 < 2**19


def test_sources_are_told_apart_up_to_what_the_limit_may_become() -> None:
    with tempfile.TemporaryFile() as file:
        lay_out(file.fileno(), workers=1, limit=1, most=1000)
        resize(file.fileno(), 1000)
        places = SharedLimits(file.fileno(), 1, most=1000)
        for number in range(1000):
            assert places.count_source(number.to_bytes(4), 1)
            assert places.count_source(number.to_bytes(4), 1) is None


def test_the_hash_is_keyed() -> None:
    with shared(1, 1) as one, shared(1, 1) as other:
        assert one.read(64) != other.read(64)


def test_a_file_of_another_version_is_told() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(bytes(4096))
        file.flush()
        with pytest.raises(ValueError, match="another version of snimux"):
            SharedLimits(file.fileno(), 1, most=1)
    with shared(2, 1) as file, pytest.raises(ValueError, match="another version of snimux"):
        SharedLimits(file.fileno(), 3, most=1)


def scan(places: ConnectionLimits, count: int, now: int) -> list[bool]:
    return [places.allow(number.to_bytes(4), Pace(1, 1), now) for number in range(count)]


def test_a_scan_from_many_sources_takes_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snimux.frontend.limits.MOST_PACED", 100)
    places = LocalLimits(1)
    assert scan(places, 1000, now=1) == [True] * 1000
    assert len(places._expected) == 100
    # those that are known are held to their pace, and so are new ones once there is room
    assert scan(places, 101, now=2) == [False] * 100 + [True]
    later = 2 * 10**9
    assert scan(places, 100, now=later) == [True] * 100
    assert places.allow(b"another", Pace(1, 1), 2 * later)
    assert list(places._expected) == [b"another"]


def test_who_is_expected_much_later_keeps_no_others_in_memory() -> None:
    places, pace = LocalLimits(1), Pace(1, 1000)
    assert all(places.allow(b"hasty", pace, 1) for _ in range(1000))
    for number in range(1, 500):
        assert places.allow(number.to_bytes(4), pace, number * 2 * 10**9)
        assert len(places._expected) <= 3
    assert b"hasty" in places._expected


def test_in_memory_that_is_shared_the_bound_is_the_file_s() -> None:
    with shared(2, 1) as file:
        workers = [SharedLimits(file.fileno(), number, most=1) for number in (1, 2)]
        size = file.seek(0, 2)
        count = 20_000
        assert scan(workers[0], count, now=1) == [True] * count
        assert scan(workers[1], count, now=2) == [False] * count
        assert scan(workers[1], count, now=2 * 10**9) == [True] * count
        assert file.seek(0, 2) == size


def test_more_sources_than_can_be_paced_are_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snimux.service.scoreboard._PACED_SLOTS", 64)
    with shared(1, 1) as file:
        places = SharedLimits(file.fileno(), 1, most=1)
        assert scan(places, 1000, now=1) == [True] * 1000
        assert scan(places, 1000, now=2).count(False) > 32
        assert places.count_source(b"192.0.2.1", 1)


# --- in several processes

TAKE_AND_GIVE = """
import os, sys
from snimux.frontend.rate import Pace
from snimux.service.scoreboard import SharedLimits
number, mark = int(sys.argv[1]), sys.argv[2]
places = SharedLimits(0, number, most=9)
had = arrived = 0
while had < 500:
    if places.acquire():
        # whoever has the only place makes the file that nobody else may find there
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
        os.unlink(mark)
        places.release()
    if places.allow(b"192.0.2.1", Pace(0.001, 700), 1):
        arrived += 1
    leave = places.count_source(b"192.0.2.1", 1)
    if leave:
        os.close(os.open(mark + "-source", os.O_CREAT | os.O_EXCL))
        os.unlink(mark + "-source")
        leave()
        had += 1
print(arrived)
"""

HOLD = """
import signal
from snimux.service.scoreboard import SharedLimits
places = SharedLimits(0, 1, most=9)
assert places.acquire()
with places._locked():
    print("locked", flush=True)
    signal.pause()
"""


def test_processes_exclude_each_other(tmp_path_factory: pytest.TempPathFactory) -> None:
    mark = str(tmp_path_factory.mktemp("places") / "mark")
    with shared(3, 1) as file:
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", TAKE_AND_GIVE, str(number), mark],
                stdin=file.fileno(),
                stdout=subprocess.PIPE,
            )
            for number in (1, 2, 3)
        ]
        arrived = [int(process.communicate()[0]) for process in processes]
        assert [process.wait() for process in processes] == [0, 0, 0]
        assert sum(arrived) == 700
        last = SharedLimits(file.fileno(), 1, most=9)
        assert last.acquire()
        assert last.count_source(b"192.0.2.1", 1)


def test_a_dead_worker_leaves_no_lock_and_its_places_are_given_back() -> None:
    with shared(2, 1) as file:
        command = [sys.executable, "-c", HOLD]
        with subprocess.Popen(command, stdin=file.fileno(), stdout=subprocess.PIPE) as holder:
            try:
                assert holder.stdout is not None
                assert holder.stdout.readline() == b"locked\n"
                with pytest.raises(BlockingIOError):
                    fcntl.lockf(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            finally:
                holder.kill()
        places = SharedLimits(file.fileno(), 2, most=9)
        assert not places.acquire()
        clear(file.fileno(), 1)
        assert places.acquire()


# --- signs of life


def test_a_worker_can_be_looked_at() -> None:
    with shared(2, 9) as file:
        first, second = (SharedLimits(file.fileno(), number, most=9) for number in (1, 2))
        assert heartbeat(file.fileno(), 1) == Heartbeat(0, 0, 0)
        assert first.acquire()
        first.show_life(7)
        first.show_life(8)
        second.show_life(9)
        assert heartbeat(file.fileno(), 1) == Heartbeat(routes=8, beats=2, taken=1)
        assert heartbeat(file.fileno(), 2) == Heartbeat(routes=9, beats=1, taken=0)
        assert first.acquired == 1
        clear(file.fileno(), 1)
        assert heartbeat(file.fileno(), 1) == Heartbeat()
        assert heartbeat(file.fileno(), 2).beats == 1


def test_signs_never_run_out() -> None:
    with shared(1, 1) as file:
        places = SharedLimits(file.fileno(), 1, most=1)
        places._own[-2] = 2**31
        seen = []
        for _ in range(2):
            places.show_life(0)
            seen.append(heartbeat(file.fileno(), 1).beats)
        assert seen == [1, 2]
    LocalLimits(1).show_life(1)
