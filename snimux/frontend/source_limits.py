"""Limit each source: how many connections it may have, and how fast they may come.

What is refused for that is counted, too, so that a refusal is no way to have more. The counts
themselves are in ``limits``, where all workers share them. Knows nothing of what is served.
"""

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from snimux.config.model import Limits
from snimux.frontend.events import Current
from snimux.frontend.limits import ConnectionLimits
from snimux.frontend.rate import Pace
from snimux.proto.proxy_header import Endpoint
from snimux.proto.reason import Reason


@dataclass(frozen=True, slots=True)
class Entry:
    """A client that is counted until ``leave``; and why it is refused, if it is."""

    leave: Callable[[], None] = lambda: None
    refused: Reason | None = None


UNCOUNTED = Entry()
"""Of a client that nothing is counted for."""


class SourceLimits:
    """Counts connections by their source, within the limits that are in effect."""

    def __init__(self, limits: ConnectionLimits, current: Current) -> None:
        self._limits = limits
        self._current = current

    def count(self, source: Endpoint | None, refused: Reason | None) -> Entry | None:
        """Count a client among those of its source, or among those of it that are refused.

        Who is refused uses up no share of the source's, but a place while the refusal is said: a
        source that has as many of those as well is closed without a word.
        """
        limits = self._current.value.config.limits
        if source is None or not limits.by_source:
            return Entry(refused=refused) if refused else UNCOUNTED
        key = _source_key(source)
        if refused is None:
            entry = self._admit(key, limits)
            if isinstance(entry, Entry):
                return entry
            refused = entry
        most = limits.max_connections_per_source or limits.max_burst_per_source
        leave = self._limits.count_source(b"refused " + key, most)
        return None if leave is None else Entry(leave, refused)

    def _admit(self, key: bytes, limits: Limits) -> Entry | Reason:
        """Count one more of a source, or say why there may not be one more."""
        if limits.max_rate_per_source is not None:
            pace = Pace(limits.max_rate_per_source, limits.max_burst_per_source)
            if not self._limits.allow(key, pace, time.monotonic_ns()):
                return Reason.RATE_LIMITED
        if limits.max_connections_per_source is None:
            return UNCOUNTED
        leave = self._limits.count_source(key, limits.max_connections_per_source)
        return Reason.TOO_MANY_FROM_SOURCE if leave is None else Entry(leave)


def _source_key(source: Endpoint) -> bytes:
    """Return what counts as one source: an IPv4 address, or an IPv6 /64, which is one household."""
    host = source[0]
    return socket.inet_pton(socket.AF_INET6, host)[:8] if ":" in host else host.encode()
