"""Tell how each connection ended: in the log, a line each; but scanners are summed up.

Knows nothing of connections that go on, nor who else is told.
"""

from collections import Counter
from collections.abc import Callable

import trio

from snimux.frontend.outcome import Outcome
from snimux.log import Level, Log, notify
from snimux.proto.reason import Reason
from snimux.routing.routes import Backend

_SUM_UP_EVERY = 600.0  # seconds

# Bytes: an answer that is none, or a refusal of a PROXY protocol header (an alert; nginx's and
# Caddy's HTTP 400), is shorter, and the first flight of a TLS handshake is longer.
_SHORT = 512


class Ends:
    """How many scanners came since they were summed up, and who else is told of other ends."""

    def __init__(
        self,
        log: Log,
        *,
        doubt: Callable[[Backend], None],
        keep: Callable[[Outcome], None] | None = None,
    ) -> None:
        """Begin with none.

        Args:
            log: told of each connection, once.
            doubt: told of each backend that has answered so little that it may be a refusal of a
                PROXY protocol header.
            keep: told of each connection that was refused, but of no scanner's.
        """
        self.log = log
        self.doubt = doubt
        self.keep = keep
        self.scanners: Counter[Reason] = Counter()
        self.summed_up = trio.current_time()

    def report(self, outcome: Outcome) -> None:
        """Log and count how a connection ended; then tell others, whatever one of them raises."""
        reason = outcome.reason
        level: Level = "error" if outcome.ended == "failed" else "info"
        if reason is not None:
            level = reason.level
            if reason.is_scanner:
                self.scanners[reason] += 1
        self.log.write(level, "connection", outcome.fields())
        if outcome.to is not None and outcome.tally.down < _SHORT:
            notify(self.log, self.doubt, outcome.to)
        if self.keep is not None and reason is not None and not reason.is_scanner:
            notify(self.log, self.keep, outcome)

    async def sum_up_now_and_then(self) -> None:
        """Sum the scanners up every ``_SUM_UP_EVERY`` seconds."""
        while True:
            await trio.sleep(_SUM_UP_EVERY)
            self.sum_up()

    def sum_up(self) -> None:
        """Log how many scanners came since the last time, by reason, if any."""
        now = trio.current_time()
        if self.scanners:
            counts = {str(reason): count for reason, count in sorted(self.scanners.items())}
            self.log.write("info", "scanners", {"seconds": round(now - self.summed_up), **counts})
        self.scanners.clear()
        self.summed_up = now
