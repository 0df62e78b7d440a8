"""Do a few things at a time, so that those that take long hold up only each other.

Who is asked and says nothing has a place until its time is over: some dozens of them would have all
others wait. So what takes long is left off, and done again among those that took long last time.

Knows not what is done.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import trio

T = TypeVar("T")

# That something takes long is known after so many seconds.
_LONG = 1.0


class Lanes:
    """Room for so many things at a time, and for as many of those that take long."""

    def __init__(self, at_a_time: int) -> None:
        """Begin with nothing under way; each thing may take descriptors."""
        self.quick = trio.CapacityLimiter(at_a_time)
        self.slow = trio.CapacityLimiter(at_a_time)


@dataclass(slots=True, eq=False)
class Lane:
    """The one of the two for something that is done again and again."""

    lanes: Lanes
    takes_long: bool = field(default=False, init=False)
    """It did the last time."""

    async def do(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do it when there is room.

        Args:
            work: what to do; it is cancelled, and called again, when it is found to take long.
        """
        if not self.takes_long:
            async with self.lanes.quick:
                with trio.move_on_after(_LONG):
                    return await work()
            self.takes_long = True
        async with self.lanes.slow:
            began = trio.current_time()
            done = await work()
            self.takes_long = trio.current_time() - began >= _LONG
            return done
