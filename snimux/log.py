"""One line on a stream for each thing that happens, as logfmt (``key=value``) or JSON.

Whatever a client sent cannot break out of its value: spaces, quotes and control characters are
quoted, and what is long is cut. A stream that cannot be written to, or not now, loses lines, never
the server; how many were lost is said when it can be.

Source: brandur.org/logfmt for the form; a quoted value is a JSON string.
"""

import json
import os
import re
import select
import stat
import time
from collections.abc import Mapping
from typing import Literal, TextIO

Level = Literal["debug", "info", "warning", "error"]
LEVELS: tuple[Level, ...] = ("debug", "info", "warning", "error")

Field = str | int | float | None

# Characters of a value: so few that a line stays below PIPE_BUF (4,096 bytes on Linux), escaped as
# it may be, and is written whole or not at all.
_LONGEST = 300

# Printable ASCII less space, quotes, equals and backslash.
_PLAIN = re.compile(r"[!#-&(-<>-\[\]-~]+")


class Log:
    """Writes lines of a level or above to a stream."""

    def __init__(self, stream: TextIO, *, form: str = "logfmt", level: str = "info") -> None:
        """Form "logfmt" or "json"; see ``LEVELS`` for the levels."""
        self._stream = stream
        self._render = json_line if form == "json" else logfmt
        self._wanted = frozenset(LEVELS[LEVELS.index(level) :])
        self._descriptor = _descriptor(stream)
        self._lost = 0
        self._second = -1  # of the last line, and how it is spelled
        self._spelled = ""

    def write(self, level: Level, event: str, fields: Mapping[str, Field]) -> None:
        """Write one line: time (UTC), level, event, then the fields that have a value."""
        if level not in self._wanted:
            return
        if self._lost and self._try("error", "lines-lost", {"lines": self._lost}):
            self._lost = 0
        if not self._try(level, event, fields):
            self._lost += 1

    def _try(self, level: Level, event: str, fields: Mapping[str, Field]) -> bool:
        """Write a line if that can be done at once."""
        line = self._render({"time": self._now(), "level": level, "event": event, **fields})
        try:
            if self._is_writable():
                self._stream.write(line + "\n")
                self._stream.flush()
                return True
        except (OSError, ValueError):  # full disk, reader gone; ValueError: stream closed
            pass
        return False

    def _now(self) -> str:
        """The time as in RFC 3339, in UTC, to the millisecond."""
        seconds, thousandths = divmod(time.time_ns() // 1_000_000, 1000)
        if seconds != self._second:
            self._second = seconds
            self._spelled = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        return f"{self._spelled}.{thousandths:03d}Z"

    def _is_writable(self) -> bool:
        """Whether a line can be written without waiting for a reader that has stopped reading.

        A pipe is writable while it has room for PIPE_BUF bytes, which no line exceeds on Linux.
        Making it non-blocking would change it for everyone who shares it.
        """
        return self._descriptor is None or bool(select.select([], [self._descriptor], [], 0)[1])


def _descriptor(stream: TextIO) -> int | None:
    """The descriptor of a stream that may have to be waited for; a file or memory never has."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):  # io.UnsupportedOperation is both
        return None
    return None if stat.S_ISREG(os.fstat(descriptor).st_mode) else descriptor


def logfmt(fields: Mapping[str, Field]) -> str:
    """``key=value`` pairs on one line; fields that are None are left out."""
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
    """One JSON object on one line; fields that are None are left out."""
    return json.dumps(
        {
            key: _cut(value) if isinstance(value, str) else value
            for key, value in fields.items()
            if value is not None
        }
    )
