"""What the last refused clients sent, by number: so many of them, and so many bytes of all.

Knows nothing of what the bytes mean.
"""

from collections import OrderedDict

LONGEST = 16 * 1024
"""Bytes of one: a hello of the largest size that is let in by default, and its framing mostly."""

# Bytes of all: browsers' hellos have 2 KB. Who sends long ones on purpose loses the older ones, and
# takes no more memory.
_MOST_BYTES = 512 * 1024


class Kept:
    """The last that were added, as far as there is room."""

    def __init__(self, most: int, *, most_bytes: int = _MOST_BYTES) -> None:
        """Room for so many, and for so many bytes of all together."""
        self._most = most
        self._most_bytes = most_bytes
        self._by_number: OrderedDict[int, bytes] = OrderedDict()
        self._size = 0

    def add(self, number: int, received: bytes) -> None:
        """Keep what a client sent, ``LONGEST`` bytes at the most, instead of the oldest."""
        received = received[:LONGEST]
        self._by_number[number] = received
        self._size += len(received)
        while len(self._by_number) > self._most or self._size > self._most_bytes:
            _, oldest = self._by_number.popitem(last=False)
            self._size -= len(oldest)

    def get(self, number: int) -> bytes | None:
        """What a client sent; None if it is not kept, or not any more."""
        return self._by_number.get(number)
