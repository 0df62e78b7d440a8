"""A clock that stands while the process does not run: nobody is late who could not be heard.

A process is stopped by SIGSTOP, by a frozen cgroup, with its machine, or by too much other work. By
any other clock all its deadlines have then passed at once, before it has read what came meanwhile.

Knows no deadline's purpose. What others wait for must not go by this clock alone: see ``pulse``.
"""

from collections.abc import Callable
from time import perf_counter

import trio

# Seconds. A sleep is at most so long, and nobody needs longer between two looks at the clock, or
# else the process did not run.
_LONGEST = 1.0
# A sleep that lasts so much longer than it was to is late by the kernel's timers alone.
_SLACK = 0.01


class RunningClock(trio.abc.Clock):
    """The seconds for which the process ran, or slept by its own will."""

    def __init__(self, read: Callable[[], float] = perf_counter) -> None:
        """Begin with what a clock says that does not stand.

        Args:
            read: gives its time, in seconds.
        """
        self._read = read
        self._stood = 0.0
        self._last = read()
        self._next = self._last + _LONGEST
        """When the clock was to be looked at again."""

    def start_clock(self) -> None:
        """Do nothing: it runs already."""

    def current_time(self) -> float:
        """Return the time that has passed while the process ran, in seconds since any moment."""
        now = self._read() - self._stood
        if now > self._next + _SLACK:
            now = self._stand(now)
        self._last, self._next = now, now + _LONGEST
        return now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Return how long to sleep (seconds): until the deadline, or until another look."""
        now = self.current_time()
        seconds = min(max(deadline - now, 0.0), _LONGEST)
        if seconds:
            self._next = now + seconds
        return seconds

    def _stand(self, now: float) -> float:
        """Leave out what the process missed, and give it as much time to catch up, within bounds.

        At least half of the time that was to pass does: or a process that is late each time would
        never come to a deadline.
        """
        late = now - self._next
        time = self._next - min(late, (self._next - self._last) / 2)
        self._stood += now - time
        return time
