"""Record the last clients that were refused, and what they sent, for people to look at.

No scanners: they would soon be all that there is. Of plain HTTP nothing that was sent is kept: it
may be cookies and passwords.
"""

import time
from collections import OrderedDict, deque

from snimux.frontend.events import Observer
from snimux.frontend.outcome import Outcome
from snimux.status.metrics import Piece, brief

# What a person looks through at the most.
_MOST_REFUSED = 100

LONGEST = 16 * 1024
"""Bytes of one: a hello of the largest size that is let in by default, and its framing mostly."""

# Bytes of all: browsers' hellos have 2 KB. Who sends long ones on purpose loses the older ones, and
# takes no more memory.
_MOST_BYTES = 512 * 1024


class Kept:
    """Keeps the last that were added, as far as there is room."""

    def __init__(self, most: int, *, most_bytes: int = _MOST_BYTES) -> None:
        """Have room for so many, and for so many bytes of all together."""
        self._most = most
        self._most_bytes = most_bytes
        self._by_number: OrderedDict[int, bytes] = OrderedDict()
        self._size = 0

    def add(self, number: int, received: bytes | bytearray) -> None:
        """Keep what a client sent, ``LONGEST`` bytes at the most, instead of the oldest."""
        received = bytes(received[:LONGEST])
        self._by_number[number] = received
        self._size += len(received)
        while len(self._by_number) > self._most or self._size > self._most_bytes:
            _, oldest = self._by_number.popitem(last=False)
            self._size -= len(oldest)

    def get(self, number: int) -> bytes | None:
        """Return what a client sent, or None if it is not kept, or not any more."""
        return self._by_number.get(number)


class Refusals(Observer):
    """Keeps the last refused connections, each with a number."""

    def __init__(self, most_hellos: int = 0) -> None:
        """Keep what was sent of so many of them."""
        self.last: deque[Piece] = deque(maxlen=_MOST_REFUSED)
        self.hellos = Kept(most_hellos)
        self._count = 0

    def ended(self, outcome: Outcome) -> None:
        """Record a connection, if it was refused and is no scanner's."""
        if outcome.reason is None or outcome.reason.is_scanner:
            return
        self._count += 1
        words = ("client", "via", "protocol", "name", "alpn", "ech", "reason", "detail")
        fields = {**brief(outcome, *words), "seconds": outcome.seconds}
        self.last.append({"number": self._count, "time": time.time(), **fields})
        if outcome.received and outcome.protocol is None:
            self.hellos.add(self._count, outcome.received)
