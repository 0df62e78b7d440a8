"""How many of the clients that wait for an address are let go at once, and what became of them.

A backend that has just come back is slow, and its queue is short: who overfills it loses
connections. So a few go first, and more as they are answered, as TCP's slow start does.

Source: TCP's slow start (RFC 5681, section 3.1); HAProxy's ``slowstart``.
"""

from dataclasses import dataclass, field
from math import inf

import trio

from snimux.net.dial import Dialled, NotDialled
from snimux.relay.interface import Tally

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


# Who is connected, and hears nothing in this time (seconds), holds up nobody else.
_SILENT = 1.0


@dataclass(slots=True, eq=False)
class Waiter:
    """A connection that waits for its turn, and what became of it."""

    tally: Tally | None
    """Tells when it was answered; None: to be connected is an answer."""
    turn: trio.Event = field(default_factory=trio.Event)
    since: float = 0.0
    """When its turn came."""
    connected: float = 0.0
    dialled: Dialled | NotDialled | None = None

    def take_turn(self) -> None:
        """It need wait no more, if another address has not said so before."""
        self.since = self.since or trio.current_time()
        self.turn.set()

    def took(self) -> float | None:
        """Seconds from its turn until it was answered, infinite for never; None: not yet."""
        if isinstance(self.dialled, NotDialled):
            return inf
        if self.dialled is None:
            return None
        answered = self.connected if self.tally is None else self.tally.answered
        if answered:
            return answered - self.since
        is_over = self.dialled.socket.fileno() < 0
        return inf if is_over or trio.current_time() - self.connected > _SILENT else None
