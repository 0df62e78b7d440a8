"""Let the clients that wait for an address go to it as fast as it answers them.

A backend that has just come back is slow, and its listen queue is short. Who overfills that queue
loses connections for good: the kernel drops SYNs, and the last ACKs of connections that this side
takes for established, and tries again later and later. Of 5,000 clients that were let go at once
to a backend with a backlog of 128 that takes 1 ms for each, 1,151 had no byte after 40 s; by turns
all are answered within 7 s, which is what it can do. So a few go first, and more as they are
answered, as TCP's slow start does.

Source: TCP's slow start (RFC 5681, section 3.1); HAProxy's ``slowstart``.
"""

import itertools
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Literal, Protocol

import trio

from snimux.net.dial import Dialled, NotDialled
from snimux.relay.interface import Tally

# The least and the first; a queue of an even smaller backlog than this takes them too, if in turns.
_FEWEST = 10

# Seconds of work in the backend's queue above which answers are late: enough to keep it busy. Twice
# as much may be there, for what opens the window is an answer to what it was before.
_QUEUE = 0.05

# Who is connected, and hears nothing in this time (seconds), holds up nobody else.
_SILENT = 1.0

# How often it is looked whether a client that waits is still there (seconds): its place is wanted.
_LOOK = 1.0

# How often it is looked what became of those whose turn has come (seconds), while there is news and
# at least: for the first byte of an answer there is no event, which all others would pay for.
_GLANCE, _SELDOM = 0.01, 0.1
# A backend of which nobody heard anything in this time (seconds) cannot be kept pace with: some
# protocols have it say nothing until the client has said more.
_MUTE = 5.0


@dataclass(frozen=True, slots=True)
class Window:
    """So many at a time; and the quickest answer until now, in seconds."""

    size: int = _FEWEST
    quickest: float = inf

    def after(self, took: float) -> "Window":
        """Return the window after one more answer.

        Args:
            took: seconds until the first byte of the answer came; infinite if none did.
        """
        quickest = min(self.quickest, took)
        # what is far away, or slow with all of them, is not so for a queue
        is_soon = took < inf and took <= quickest + max(quickest, _QUEUE)
        return Window(max(self.size + (1 if is_soon else -1), _FEWEST), quickest)


class Queued(Protocol):
    """An address that clients wait for."""

    silent_since: float | None
    """None: it answers."""
    waiters: dict["Waiter", None]
    """The clients, in their order."""


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

    async def wait(
        self, client: socket.socket, places: Sequence[Queued], until: float, dial_timeout: float
    ) -> Literal["go", "late", "left"]:
        """Wait for the turn at any of some places.

        Args:
            client: looked at meanwhile: one that was reset no longer waits.
            places: where it stands in the queue.
            until: when to give up while none of them answers.
            dial_timeout: seconds more that it has where one does.

        Returns:
            What to do: dial, or give up, since none answered in time or the client has left.
        """
        while not self.turn.is_set():
            now = trio.current_time()
            # A turn is part of the way there, and not refused to whom it comes late.
            answers = any(place.silent_since is None for place in places)
            last = until + dial_timeout if answers else until
            if now >= last:
                return "go" if answers else "late"
            with trio.move_on_at(min(now + _LOOK, last)):
                await self.turn.wait()
            # A reset shows; a client that has sent its FIN may want an answer still.
            if client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                return "left"
        return "go"

    def take_turn(self) -> None:
        """Let it go, if another address has not done so before."""
        self.since = self.since or trio.current_time()
        self.turn.set()

    def took(self) -> float | None:
        """Return the seconds from its turn to its answer, infinite for never; None: not yet."""
        if isinstance(self.dialled, NotDialled):
            return inf
        if self.dialled is None:
            return None
        answered = self.connected if self.tally is None else self.tally.answered
        if answered:
            return answered - self.since
        is_over = self.dialled.socket.fileno() < 0
        return inf if is_over or trio.current_time() - self.connected > _SILENT else None


async def deal(place: Queued) -> None:
    """Give the clients that wait for an address their turns, while it answers and any wait."""
    window, under_way = Window(), list[Waiter]()
    heard = trio.current_time()
    pause = _GLANCE
    while place.waiters and place.silent_since is None:
        took = [waiter.took() for waiter in under_way]
        under_way = [x for x, seconds in zip(under_way, took, strict=True) if seconds is None]
        news = [seconds for seconds in took if seconds is not None]
        for seconds in news:
            window = window.after(seconds)
            heard = heard if seconds == inf else trio.current_time()
        is_mute = trio.current_time() - heard > _MUTE
        room = len(place.waiters) if is_mute else max(window.size - len(under_way), 0)
        turns = list(itertools.islice(place.waiters, room))
        for waiter in turns:
            del place.waiters[waiter]
            waiter.take_turn()
        under_way += turns
        pause = _GLANCE if turns or news else min(2 * pause, _SELDOM)
        await trio.sleep(pause)
