"""A clock that stands while the process does not run: nobody is late who could not be heard.

A process is stopped by SIGSTOP, by a frozen cgroup, with its machine, or by too much other work. By
any other clock all its deadlines have then passed at once, before it has read what came meanwhile.

Knows no deadline's purpose. What others wait for must not go by this clock alone: see ``watchdog``.
"""

from collections.abc import Callable
from time import perf_counter

import trio

# Seconds. A sleep is at most so long, and nobody needs longer between two looks at the clock, or
# else the process did not run.
_LONGEST = 1.0
# A sleep that lasts so much longer than it was to is late by the kernel's timers alone.
_SLACK = 0.01


# The clock is read at each turn of the event loop, so its methods are short rather than alike.
_TOO_LATE = _LONGEST + _SLACK


class RunningClock(trio.abc.Clock):
    """The seconds for which the process ran, or slept by its own will."""

    __slots__ = ("_asleep", "_late", "_planned", "_read", "_stood")

    def __init__(self, read: Callable[[], float] = perf_counter) -> None:
        """Begin with what a clock says that does not stand.

        Args:
            read: gives its time, in seconds.
        """
        self._read = read
        self._stood = 0.0
        self._planned = 0.0  # the last sleep
        self._asleep = 0.0  # what ``_late`` was then
        self._late = read() + _TOO_LATE  # who looks at the clock later than that was stopped

    def start_clock(self) -> None:
        """Do nothing: it runs already."""

    def current_time(self) -> float:
        """Return the time that has passed while the process ran, in seconds since any moment."""
        now = self._read() - self._stood
        if now > self._late:
            now = self._stand(now)
        self._late = now + _TOO_LATE
        return now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Return how long to sleep (seconds): until the deadline, or until another look."""
        now = self._read() - self._stood
        if now > self._late:
            now = self.current_time()
        seconds = deadline - now
        if seconds > _LONGEST:
            seconds = _LONGEST
        elif seconds < 0:
            return 0.0
        self._planned = seconds
        self._late = self._asleep = now + seconds + _SLACK
        return seconds

    def _stand(self, now: float) -> float:
        """Leave out what the process missed, and give it as much time to catch up, within bounds.

        At least half of the time that was to pass does: or a process that is late each time would
        never come to a deadline.
        """
        due = self._late - _SLACK
        planned = self._planned if self._late == self._asleep else _LONGEST
        time = due - min(now - due, planned / 2)
        self._stood += now - time
        return time
