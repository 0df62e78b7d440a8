"""How many of those who waited for a backend it is sent at a time, when it is back.

All at once are more than its queue holds: the kernel then drops SYNs, and the ACKs of connections
that this side holds for established, and tries them again later and later. So it is done as TCP
opens its window: some first, one more for each that was answered soon, one fewer for each that was
not. Where answers are late because others are before them in a queue, that keeps the queue short,
and the backend busy.

Pure: what each took comes in; no clock and no socket.

Source: RFC 6928 (how many first), RFC 9293 section 3.8.2 and Brakmo and Peterson, "TCP Vegas"
(1995), which measures the queue by the time that an answer takes more than the quickest.
"""

from dataclasses import dataclass
from math import inf

# The least and the first; a queue of an even smaller backlog than this takes them too, if in turns.
_FEWEST = 10

# Seconds of work in the backend's queue above which answers are late: enough to keep it busy. Twice
# as much may be there, for what opens the window is an answer to what it was before.
_QUEUE = 0.05


@dataclass(frozen=True, slots=True)
class Window:
    """So many at a time; and the quickest answer until now, in seconds."""

    size: int = _FEWEST
    quickest: float = inf

    def after(self, took: float) -> "Window":
        """What it is after one more.

        Args:
            took: seconds until the first byte of the answer came; infinite if none did.
        """
        quickest = min(self.quickest, took)
        # what is far away, or slow with all of them, is not so for a queue
        is_soon = took < inf and took <= quickest + max(quickest, _QUEUE)
        return Window(max(self.size + (1 if is_soon else -1), _FEWEST), quickest)
