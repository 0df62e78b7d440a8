"""The counts of all workers in one file that all of them have in memory, and their heartbeats.

A column for each worker, which nobody but the worker writes, so that giving back needs no lock, and
a dead worker's column can be cleared. Taking needs one: a POSIX record lock, which the kernel
releases if its holder dies. There each worker also shows that it is alive, and how many routes it
has. When each source may come again is in one column for all, as nothing of it is given back: what
is past is free.

Source: Apache's scoreboard.
"""

import fcntl
import hashlib
import mmap
import os
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from snimux.frontend.limits import MOST_PACED, Leave, has_a_tenth_free
from snimux.frontend.rate import Pace

# The file: a header of 64 bytes (what it is, columns, slots, limit, the key of the hash; in the
# last word whether it was said that all are taken), then the sources' hashes, one a slot, then
# the columns: for each slot how many the worker has, and behind them its routes, how often it has
# shown life, and how many places it has in all; then the hashes of those who came lately, one a
# slot, and when each is expected again. In the machine's own byte order: no other will read it.
_HEADER = struct.Struct("=8sIIQ16s")
_HEADER_SIZE = 64
_MAGIC = b"snimux 3"
_LIMIT = 2  # as which of the header's words of 8 bytes
_SAID_FULL = 15
_HASH, _COUNT = 8, 4  # bytes
_ROUTES, _BEATS, _TAKEN = -3, -2, -1  # from the end of a column
_TAIL = struct.Struct("=III")  # these three

# A source is in one of so many slots from where its hash points. Hashes are keyed, so that nobody
# can choose where his addresses go; and with four slots for each source that there may be, the
# chance that all of them are in use by others is less than 1 in 10^9.
_WINDOW = 32
_SLOTS_PER_SOURCE = 4
# As many sources at a time are told apart: 24 MiB for four workers, if all were in use.
_MOST_SOURCES = 2**18
_PACED_SLOTS = _SLOTS_PER_SOURCE * MOST_PACED + _WINDOW

# Bytes that are looked at in one go for what is to be cleared.
_PIECE = 64 * 1024

# Seconds. Nobody is woken by what another process gives back: a pause that nobody notices, and a
# hundredth of the processor's time at most.
_LOOK_AGAIN = 0.02


def lay_out(descriptor: int, *, workers: int, limit: int, most: int) -> None:
    """Make an empty file the places of some workers.

    Args:
        descriptor: of the file.
        workers: how many; their numbers are from 1 up.
        limit: how many places there are for all.
        most: as many as there may ever be.
    """
    slots = _SLOTS_PER_SOURCE * min(most, _MOST_SOURCES) + _WINDOW
    paces = 2 * _HASH * _PACED_SLOTS
    os.ftruncate(descriptor, _column(workers + 1, slots) + paces)  # zeros: they take no memory yet
    os.pwrite(descriptor, _HEADER.pack(_MAGIC, workers, slots, limit, os.urandom(16)), 0)


def clear(descriptor: int, number: int) -> None:
    """Give back what a worker that has ended had taken."""
    slots = _slots(descriptor)
    start, end = _column(number, slots), _column(number + 1, slots)
    for place in range(start, end, _PIECE):
        size = min(_PIECE, end - place)
        if any(os.pread(descriptor, size, place)):  # else there may be no memory for it yet
            os.pwrite(descriptor, bytes(size), place)
    os.pwrite(descriptor, bytes(_COUNT), _COUNT * _SAID_FULL)  # there may be room now


def resize(descriptor: int, limit: int) -> None:
    """Have so many places for all from now on; all workers see it at once."""
    os.pwrite(descriptor, limit.to_bytes(_HASH, sys.byteorder), _HASH * _LIMIT)
    os.pwrite(descriptor, bytes(_COUNT), _COUNT * _SAID_FULL)


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The sign of life of a worker, with what it serves."""

    routes: int = 0
    beats: int = 0
    """How often it has shown life; another number than before means that it is alive."""
    taken: int = 0
    """How many places it has."""


def heartbeat(descriptor: int, number: int) -> Heartbeat:
    """Return the last heartbeat of a worker; it is all zeros before the first one."""
    end = _column(number + 1, _slots(descriptor))
    return Heartbeat(*_TAIL.unpack(os.pread(descriptor, _TAIL.size, end - _TAIL.size)))


def _slots(descriptor: int) -> int:
    slots: int = _HEADER.unpack(os.pread(descriptor, _HEADER.size, 0))[2]
    return slots


def _column(number: int, slots: int) -> int:
    """Return where in the file a worker's column begins."""
    return _HEADER_SIZE + _HASH * slots + (_COUNT * slots + _TAIL.size) * (number - 1)


class SharedLimits:
    """The places of all workers, as one of them sees them.

    Resource handling: the descriptor must stay open as long as this is used, and no other of the
    same file may be closed by this process: with it the kernel would release the lock.
    """

    def __init__(self, descriptor: int, number: int, *, most: int) -> None:
        """Use a file that was laid out.

        Args:
            descriptor: of the file.
            number: this worker's.
            most: how many places this worker may take by itself.

        Raises:
            ValueError: the file is of another version of snimux.
        """
        self._memory = memoryview(mmap.mmap(descriptor, 0))
        magic, workers, slots, _, self._key = _HEADER.unpack_from(self._memory)
        if magic != _MAGIC or number > workers:
            raise ValueError("the supervisor is of another version of snimux: restart it")
        self.retry_after = _LOOK_AGAIN
        self._descriptor = descriptor
        self._most = most
        self._header = self._memory[:_HEADER_SIZE].cast("I")
        self._limits = self._memory[:_HEADER_SIZE].cast("Q")
        self._hashes = self._memory[_HEADER_SIZE : _column(1, slots)].cast("Q")
        self._columns = [
            self._memory[_column(each, slots) : _column(each + 1, slots)].cast("I")
            for each in range(1, workers + 1)
        ]
        self._own = self._columns[number - 1]
        paces = self._memory[_column(workers + 1, slots) :].cast("Q")
        self._paced, self._expected = paces[: len(paces) // 2], paces[len(paces) // 2 :]

    @property
    def limit(self) -> int:
        """The number of places for all."""
        return self._limits[_LIMIT]

    @property
    def acquired(self) -> int:
        """The number of places that this process has taken."""
        return self._own[_TAKEN]

    def acquire(self) -> bool:
        """Take a place, if there is one, for all and for this worker."""
        if self._own[_TAKEN] >= self._most:
            return False
        with self._locked():
            if self._count(_TAKEN) >= self.limit:
                return False
            self._own[_TAKEN] += 1
        return True

    def release(self) -> None:
        """Give a place back."""
        self._own[_TAKEN] -= 1
        if self._header[_SAID_FULL] and has_a_tenth_free(self._count(_TAKEN), self.limit):
            self._header[_SAID_FULL] = 0

    def should_say_full(self) -> bool:
        """Return whether all are taken, and no worker said so since a tenth of them was free."""
        with self._locked():
            if self._header[_SAID_FULL] or self._count(_TAKEN) < self.limit:
                return False
            self._header[_SAID_FULL] = 1
        return True

    def count_source(self, source: bytes, limit: int) -> Leave | None:
        """Count one more of a source, if there are fewer than the limit; else None."""
        hashed = self._hash(source)
        with self._locked():
            slot = self._find(hashed)
            if slot is None:
                # More sources than are told apart: who has so many needs no second connection
                # from one of them, so a limit on each would stop nobody.
                return _do_nothing
            if self._count(slot) >= limit:
                return None
            self._hashes[slot] = hashed
            self._own[slot] += 1
        return partial(self._leave, slot)

    def allow(self, source: bytes, pace: Pace, now: int) -> bool:
        """Return whether one more of a source may come now, and count it then."""
        hashed = self._hash(source)
        with self._locked():
            slot = self._find_paced(hashed, now)
            if slot is None:
                return True  # as in ``count_source``
            expected = self._expected[slot] if self._paced[slot] == hashed else 0
            following = pace.arrive(expected, now)
            if following is None:
                return False
            self._paced[slot], self._expected[slot] = hashed, following
        return True

    def resize(self, limit: int) -> None:
        """Do nothing: the supervisor does."""

    def show_life(self, routes: int) -> None:
        """Let the supervisor see that this worker serves, by so many routes."""
        self._own[_ROUTES] = routes
        self._own[_BEATS] = self._own[_BEATS] % 2**31 + 1  # never 0, which is not yet

    def _leave(self, slot: int) -> None:
        self._own[slot] -= 1

    def _hash(self, source: bytes) -> int:
        digest = hashlib.blake2b(source, digest_size=_HASH, key=self._key).digest()
        return int.from_bytes(digest) or 1  # 0 is a slot that was never used

    def _find(self, hashed: int) -> int | None:
        """The slot of a source, or one that is free for it."""
        return _find(self._hashes, hashed, lambda slot: not self._count(slot))

    def _find_paced(self, hashed: int, now: int) -> int | None:
        """The slot of a source that came lately, or one that is free for it."""
        return _find(self._paced, hashed, lambda slot: self._expected[slot] <= now)

    def _count(self, slot: int) -> int:
        return sum([column[slot] for column in self._columns])

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # Not flock: that belongs to the open file, which all workers inherited and so share.
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN)


def _find(hashes: memoryview, hashed: int, is_free: Callable[[int], bool]) -> int | None:
    """The slot of a hash, or one that is free for it; None if there is none where it points."""
    start = hashed % (len(hashes) - _WINDOW + 1)
    window = hashes[start : start + _WINDOW].tolist()
    if hashed in window:
        return start + window.index(hashed)
    for slot, other in enumerate(window, start):
        if not other or is_free(slot):
            return slot
    return None


def _do_nothing() -> None:
    pass
