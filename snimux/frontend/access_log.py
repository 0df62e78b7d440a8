"""Log how each connection ended, a line each, and sum up scanners; log backends that change."""

from collections import Counter

import trio

from snimux.frontend.events import InEffect, Observer
from snimux.frontend.outcome import Outcome
from snimux.log import Level, Log
from snimux.proto.reason import Reason
from snimux.routing.address import DialAddress

_SUM_UP_EVERY = 600.0  # seconds


class AccessLog(Observer):
    """Writes the lines, and counts the scanners since they were summed up."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._scanners: Counter[Reason] = Counter()
        self._summed_up = trio.current_time()

    def ended(self, outcome: Outcome) -> None:
        """Write the line of a connection, unless it was closed without a word."""
        if outcome.is_silent:
            return
        reason = outcome.reason
        level: Level = "error" if outcome.ended == "failed" else "info"
        if reason is not None:
            level = reason.level
            if reason.is_scanner:
                self._scanners[reason] += 1
        self._log.write(level, "connection", outcome.fields())

    def backend_changed(self, address: DialAddress, is_up: bool, why: str) -> None:
        """Write the line of an address that went down, or is up again."""
        fields = {"backend": str(address), "state": "up" if is_up else "down", "detail": why}
        self._log.write("info" if is_up else "warning", "backend", fields)

    def in_effect(self, generation: InEffect) -> None:
        """Write the lines from here on as the configuration has it."""
        self._log.change(form=generation.config.log_format, level=generation.config.log_level)

    async def sum_up_now_and_then(self) -> None:
        """Sum the scanners up every ``_SUM_UP_EVERY`` seconds."""
        while True:
            await trio.sleep(_SUM_UP_EVERY)
            self.sum_up()

    def sum_up(self) -> None:
        """Log how many scanners came since the last time, by reason, if any."""
        now = trio.current_time()
        if self._scanners:
            counts = {str(reason): count for reason, count in sorted(self._scanners.items())}
            seconds = round(now - self._summed_up)
            self._log.write("info", "scanners", {"seconds": seconds, **counts})
        self._scanners.clear()
        self._summed_up = now
