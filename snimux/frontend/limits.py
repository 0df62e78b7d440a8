"""Limit connections, over all and by source; the counts of a process that is alone are here.

A connection takes a place of the whole before it is accepted, and is counted for its source after;
both are bounded, and a check and its count are one step.

Knows no sockets and no addresses: a source is some bytes.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Protocol

from snimux.frontend.rate import Pace

Leave = Callable[[], None]
"""Uncounts a connection; to be called once."""


class ConnectionLimits(Protocol):
    """The limits of all processes, as one of them sees them."""

    retry_after: float
    """When none is free: seconds after which others may have given one back."""

    @property
    def limit(self) -> int:
        """The number of places for all."""

    @property
    def acquired(self) -> int:
        """The number of places that this process has."""

    def acquire(self) -> bool:
        """Take a place, if there is one."""

    def release(self) -> None:
        """Give a place back."""

    def should_say_full(self) -> bool:
        """Return whether all are taken, and nobody said so since a tenth of them was free."""

    def count_source(self, source: bytes, limit: int) -> Leave | None:
        """Count one more of a source, if there are fewer than the limit; else None."""

    def allow(self, source: bytes, pace: Pace, now: int) -> bool:
        """Return whether one more of a source may come now, and count it then.

        Args:
            source: which.
            pace: how fast it may come.
            now: nanoseconds of the machine's monotonic clock.
        """

    def resize(self, limit: int) -> None:
        """Have so many from now on; if more are taken, none is until there are fewer."""

    def show_life(self, routes: int) -> None:
        """Let others see that this process serves, by so many routes."""


class LocalLimits:
    """The limits of a process that is the only one."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.retry_after = math.inf
        self.acquired = 0
        self._said_full = False
        self._by_source: dict[bytes, int] = {}
        self._expected: OrderedDict[bytes, int] = OrderedDict()

    def acquire(self) -> bool:
        """Take a place, if there is one."""
        if self.acquired >= self.limit:
            return False
        self.acquired += 1
        return True

    def release(self) -> None:
        """Give a place back."""
        self.acquired -= 1
        if self._said_full and has_a_tenth_free(self.acquired, self.limit):
            self._said_full = False

    def should_say_full(self) -> bool:
        """Return whether all are taken, and nobody said so since a tenth of them was free."""
        if self._said_full or self.acquired < self.limit:
            return False
        self._said_full = True
        return True

    def count_source(self, source: bytes, limit: int) -> Leave | None:
        """Count one more of a source, if there are fewer than the limit; else None."""
        count = self._by_source.get(source, 0)
        if count >= limit:
            return None
        self._by_source[source] = count + 1
        return partial(self._leave, source)

    def allow(self, source: bytes, pace: Pace, now: int) -> bool:
        """Return whether one more of a source may come now, and count it then."""
        expected = self._expected
        while expected and next(iter(expected.values())) <= now:
            expected.popitem(last=False)
        if expected:  # who is expected long after the others is not to keep them here
            expected.move_to_end(next(iter(expected)))
        if source not in expected and len(expected) >= MOST_PACED:
            return True  # as in ``SharedLimits.count_source``
        following = pace.arrive(expected.get(source, 0), now)
        if following is None:
            return False
        expected[source] = following
        return True

    def resize(self, limit: int) -> None:
        """Have so many from now on; if more are taken, none is until there are fewer."""
        self.limit = limit
        self._said_full = False

    def show_life(self, routes: int) -> None:
        """Do nothing: there are no others."""

    def _leave(self, source: bytes) -> None:
        left = self._by_source[source] - 1
        if left:
            self._by_source[source] = left
        else:
            del self._by_source[source]


def has_a_tenth_free(taken: int, limit: int) -> bool:
    """Return whether a tenth of the places is free, so that it is news when none is."""
    return limit - taken > limit // 10


# As many that came lately are: 4 MiB, if all are in use. A scan from a whole network finds no more.
MOST_PACED = 2**16
