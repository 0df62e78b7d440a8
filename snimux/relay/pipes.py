"""Pipes for ``splice``: a few, large, and kept for the next who needs one.

Source: pipe(7), "Pipe capacity" and "/proc files": an ordinary user's pipes may have
pipe-user-pages-soft pages together (64 MiB by default); past that a pipe cannot be enlarged.
"""

import fcntl
import os
import sys
from dataclasses import dataclass

# The most that an ordinary user may ask for by default (pipe-max-size).
SIZE = 1024 * 1024

# In use and in reserve together: 128 MiB if all were full. Two descriptors each.
MOST = 128

# Kept for the next who needs one; an ordinary user's quota is for others, too.
_RESERVE = 16


@dataclass(frozen=True, slots=True)
class Pipe:
    """A non-blocking pipe of ``SIZE`` bytes: the descriptors of its two ends."""

    reader: int
    writer: int

    def close(self) -> None:
        """Close both ends, and lose what is within."""
        os.close(self.reader)
        os.close(self.writer)


class Pipes:
    """The pipes of a process. Whoever takes one gives it back, empty, or closes it by ``drop``."""

    def __init__(self) -> None:
        self._reserve: list[Pipe] = []
        self._count = 0
        self._most = MOST

    def take(self) -> Pipe | None:
        """Return a pipe; None where no more are to be had, so that bytes must be copied."""
        if self._reserve:
            return self._reserve.pop()
        if self._count >= self._most:
            return None
        pipe = _large_pipe()
        if pipe is None:
            self._most = self._count  # until one is closed: to ask each time would cost
        else:
            self._count += 1
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        """Take an empty pipe into the reserve, if there is room."""
        if len(self._reserve) < _RESERVE:
            self._reserve.append(pipe)
        else:
            self.drop(pipe)

    def drop(self, pipe: Pipe) -> None:
        """Close a pipe, with what is in it."""
        self._count -= 1
        self._most = MOST
        pipe.close()

    def close(self) -> None:
        """Close the reserve."""
        while self._reserve:
            self.drop(self._reserve.pop())


if sys.platform == "linux":

    def _large_pipe() -> Pipe | None:
        try:
            pipe = Pipe(*os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError:  # out of descriptors
            return None
        try:
            fcntl.fcntl(pipe.writer, fcntl.F_SETPIPE_SZ, SIZE)
        except OSError:  # past pipe-user-pages-soft: through a page or so, copying is the faster
            pipe.close()
            return None
        return pipe

else:

    def _large_pipe() -> Pipe | None:
        return None
