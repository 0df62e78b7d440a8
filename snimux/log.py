"""Write one line for each thing that happens, on one stream; of many at once, in one go.

Knows nothing of what happens. A line is lost rather than waited for: the stream may be a pipe that
nobody reads.
"""

import contextlib
import json
import os
import re
import select
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, TextIO

import trio

Level = Literal["debug", "info", "warning", "error"]
LEVELS: tuple[Level, ...] = ("debug", "info", "warning", "error")

Field = str | int | float | None

# Characters of a value: so few that a line stays below PIPE_BUF (4,096 bytes on Linux), escaped as
# it may be, and is written whole or not at all.
_LONGEST = 300

# Lines are kept for so long at the most (seconds), and so many of them, where they are batched:
# what a server that is killed takes with it.
_LONGEST_WAIT = 0.1
_MOST_PENDING = 100

# Printable ASCII less space, quotes, equals and backslash.
_PLAIN = re.compile(r"[!#-&(-<>-\[\]-~]+")


class Log:
    """Writes lines of a level or above to a stream."""

    def __init__(
        self,
        stream: TextIO,
        *,
        form: str = "logfmt",
        level: str = "info",
        worker: int | None = None,
    ) -> None:
        """Form "logfmt" or "json"; see ``LEVELS`` for the levels; all lines have the worker."""
        self._always: Mapping[str, Field] = {} if worker is None else {"worker": worker}
        self.batches = False
        """Whether lines are kept until ``flush``, which somebody calls then, and often."""
        self._stream = stream
        self.change(form=form, level=level)
        self._descriptor = _descriptor(stream)
        self._may_wait = self._descriptor is not None and not _is_file(self._descriptor)
        self._rest = b""  # of a line that was written in part
        self._pending: list[str] = []
        self._oldest = 0.0  # when the first of these was written
        self._lost = 0
        self._second = -1  # of the last line, and how it is spelled
        self._spelled = ""

    def change(self, *, form: str, level: str) -> None:
        """Write the lines from here on in another form, and of another level or above."""
        self._render = json_line if form == "json" else logfmt
        self._enabled = frozenset(LEVELS[LEVELS.index(level) :])

    def write(self, level: Level, event: str, fields: Mapping[str, Field]) -> None:
        """Write one line: time (UTC), level, event, then the fields that have a value."""
        if level not in self._enabled:
            return
        if not self._pending:
            self._oldest = time.monotonic()
        self._pending.append(self._line(level, event, fields))
        if not self.batches or len(self._pending) >= _MOST_PENDING:
            self.flush()

    @contextlib.contextmanager
    def batching(self) -> Iterator[None]:
        """Write lines when the event loop is about to wait, many in one go under load."""
        flusher = _Flusher(self)
        trio.lowlevel.add_instrument(flusher)
        self.batches = True
        try:
            yield
        finally:
            self.batches = False
            trio.lowlevel.remove_instrument(flusher)
            self.flush()

    def flush(self) -> None:
        """Write the lines that are kept; those that cannot be written at once are lost."""
        pending, self._pending = self._pending, []
        if self._lost and pending:
            lost = self._line("error", "lines-lost", {"lines": self._lost})
            if self._put([lost]):
                self._lost = 0
        while pending:
            count = _fitting(pending) if self._may_wait else len(pending)
            self._lost += count - self._put(pending[:count])
            del pending[:count]

    def flush_if_due(self) -> None:
        """Write the lines that are kept if one of them has waited for ``_LONGEST_WAIT``."""
        if self._pending and time.monotonic() - self._oldest > _LONGEST_WAIT:
            self.flush()

    def _line(self, level: Level, event: str, fields: Mapping[str, Field]) -> str:
        common = {"time": self._now(), "level": level, "event": event}
        return self._render({**common, **fields, **self._always}) + "\n"

    def _put(self, lines: Sequence[str]) -> int:
        """Write some lines if that can be done at once; how many of them, from the first, are."""
        try:
            descriptor = self._descriptor
            if descriptor is None:
                self._stream.write("".join(lines))
                self._stream.flush()
                return len(lines)
            # Not by the stream: what a full disk did not take would be left in its buffer.
            if self._rest and self._is_writable(descriptor):
                self._rest = self._rest[os.write(descriptor, self._rest) :]
            if self._rest or not self._is_writable(descriptor):
                return 0
            data = "".join(lines).encode("ascii")
            written = os.write(descriptor, data)
        except (OSError, ValueError):  # full disk, reader gone; ValueError: stream closed
            return 0
        if written < len(data) and data[written - 1 : written] != b"\n":
            # The last room took the beginning of a line. The rest is written as soon as it can be.
            self._rest = data[written : data.index(b"\n", written) + 1]
        return (data[:written] + self._rest).count(b"\n")

    def _now(self) -> str:
        """Return the time as in RFC 3339, in UTC, to the millisecond."""
        seconds, thousandths = divmod(time.time_ns() // 1_000_000, 1000)
        if seconds != self._second:
            self._second = seconds
            self._spelled = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        return f"{self._spelled}.{thousandths:03d}Z"

    def _is_writable(self, descriptor: int) -> bool:
        """Return whether a line can be written without waiting for a reader that reads no more.

        A pipe is writable while it has room for PIPE_BUF bytes, which no line exceeds on Linux.
        Making it non-blocking would change it for everyone who shares it.
        """
        return not self._may_wait or bool(select.select([], [descriptor], [], 0)[1])


def _fitting(lines: Sequence[str]) -> int:
    """Return how many of the lines a pipe takes in one piece; at least one."""
    room = select.PIPE_BUF
    for count, line in enumerate(lines):
        room -= len(line)
        if room < 0:
            return max(count, 1)
    return len(lines)


def _descriptor(stream: TextIO) -> int | None:
    """Return the descriptor of a stream; memory has none."""
    try:
        return stream.fileno()
    except (OSError, ValueError):  # io.UnsupportedOperation is both
        return None


def _is_file(descriptor: int) -> bool:
    """Return whether it is a regular file, which never has to be waited for."""
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def logfmt(fields: Mapping[str, Field]) -> str:
    """Return ``key=value`` pairs on one line; fields that are None are left out."""
    pairs = []
    for key, value in fields.items():
        if isinstance(value, str):
            text = _cut(value)
            pairs.append(f"{key}={text if _PLAIN.fullmatch(text) else json.dumps(text)}")
        elif value is not None:
            pairs.append(f"{key}={value}")
    return " ".join(pairs)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def json_line(fields: Mapping[str, Field]) -> str:
    """Return one JSON object on one line; fields that are None are left out."""
    return json.dumps(
        {
            key: _cut(value) if isinstance(value, str) else value
            for key, value in fields.items()
            if value is not None
        }
    )


class _Flusher(trio.abc.Instrument):
    """Writes the lines of a batched log when there is nothing else to do."""

    def __init__(self, log: Log) -> None:
        self.log = log

    def before_io_wait(self, timeout: float) -> None:
        """Called by trio, which waits for so many seconds next."""
        if timeout > 0:
            self.log.flush()
        else:
            self.log.flush_if_due()
