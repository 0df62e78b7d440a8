"""One line on a stream for each thing that happens, as logfmt (``key=value``) or JSON.

Whatever a client sent cannot break out of its value: spaces, quotes and control characters are
quoted. A stream that cannot be written to loses lines, never the server.

Source: brandur.org/logfmt for the form; a quoted value is a JSON string.
"""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal, TextIO

Level = Literal["debug", "info", "warning", "error"]
LEVELS: tuple[Level, ...] = ("debug", "info", "warning", "error")
FORMATS = ("logfmt", "json")

Field = str | int | float | None

# Printable ASCII less space, quotes, equals and backslash.
_PLAIN = re.compile(r"[!#-&(-<>-\[\]-~]+")


class Log:
    """Writes lines of a level or above to a stream."""

    def __init__(self, stream: TextIO, *, form: str = "logfmt", level: str = "info") -> None:
        """See ``FORMATS`` for the forms and ``LEVELS`` for the levels."""
        self._stream = stream
        self._render = json_line if form == "json" else logfmt
        self._wanted = frozenset(LEVELS[LEVELS.index(level) :])

    def write(self, level: Level, event: str, fields: Mapping[str, Field]) -> None:
        """Write one line: time (UTC), level, event, then the fields that have a value."""
        if level not in self._wanted:
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = self._render({"time": now, "level": level, "event": event, **fields})
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # full disk, reader gone; ValueError: stream closed
            return


def logfmt(fields: Mapping[str, Field]) -> str:
    """``key=value`` pairs on one line; fields that are None are left out."""
    return " ".join(f"{key}={_quoted(value)}" for key, value in fields.items() if value is not None)


def _quoted(value: Field) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def json_line(fields: Mapping[str, Field]) -> str:
    """One JSON object on one line; fields that are None are left out."""
    return json.dumps({key: value for key, value in fields.items() if value is not None})
