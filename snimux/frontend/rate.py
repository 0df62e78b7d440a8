"""Limit how fast one source may come: a rate, with a burst, kept by one number for each source.

Knows no clock: times are whole nanoseconds of any clock that does not go back, so that processes
can share them, and nothing is lost by rounding.

Source: ITU-T I.371, the Generic Cell Rate Algorithm by virtual scheduling: what a bucket of tokens
does, and nginx's ``limit_req``.
"""

from dataclasses import dataclass

_SECOND = 10**9


@dataclass(frozen=True, slots=True)
class Pace:
    """So many a second on average, and so many at once."""

    per_second: float
    burst: int

    def arrive(self, expected: int, now: int) -> int | None:
        """Return when the next one is expected if one arrives now; None if it arrives too early.

        Args:
            expected: as returned for the last one; of the first any time that is past. What only
                another pace can have said, which was in effect before, is nobody's fault: it is as
                if none had come.
            now: when it arrives. From ``expected`` on it is as if none had come before.
        """
        interval = round(_SECOND / self.per_second)
        most = self.burst * interval
        following = (expected if now < expected <= now + most else now) + interval
        return following if following - now <= most else None
