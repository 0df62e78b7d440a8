"""Each source's share: how many connections it may have, and how fast they may come.

What is refused for that is counted, too, so that a refusal is no way to have more. The counts
themselves are in ``places``, where all workers share them. Knows nothing of what is served.
"""

import socket
import time

from snimux.config.model import Limits
from snimux.frontend.connection import Entry
from snimux.frontend.limits import Places
from snimux.frontend.rate import Pace
from snimux.proto.proxy_header import Endpoint
from snimux.proto.reason import Reason


class Shares:
    """What the connections of each source may take of the places."""

    def __init__(self, places: Places, limits: Limits) -> None:
        self.places = places
        self.limits = limits
        """Those in effect; may be exchanged."""

    def enter(self, source: Endpoint | None, refused: Reason | None) -> Entry | None:
        """Count a client among those of its source, or among those of it that are refused.

        Who is refused uses up no share of the source's, but a place while the refusal is said: a
        source that has as many of those as well is closed without a word.
        """
        if source is None:
            return Entry(lambda: None, refused)
        key = _source_key(source)
        if refused is None:
            entry = self.enter_of(key)
            if isinstance(entry, Entry):
                return entry
            refused = entry
        limits = self.limits
        most = limits.max_connections_per_source or limits.max_burst_per_source
        leave = self.places.enter(b"refused " + key, most)
        return None if leave is None else Entry(leave, refused)

    def enter_of(self, key: bytes) -> Entry | Reason:
        """Count one more of a source, or say why there may not be one more."""
        limits = self.limits
        if limits.max_rate_per_source is not None:
            pace = Pace(limits.max_rate_per_source, limits.max_burst_per_source)
            if not self.places.arrive(key, pace, time.monotonic_ns()):
                return Reason.RATE_LIMITED
        if limits.max_connections_per_source is None:
            return Entry(lambda: None)
        leave = self.places.enter(key, limits.max_connections_per_source)
        return Reason.TOO_MANY_FROM_SOURCE if leave is None else Entry(leave)


def _source_key(source: Endpoint) -> bytes:
    """What counts as one source: an IPv4 address, or an IPv6 /64, which is one household."""
    host = source[0]
    return socket.inet_pton(socket.AF_INET6, host)[:8] if ":" in host else host.encode()
