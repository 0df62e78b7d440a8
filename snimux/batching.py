"""Write the lines of a log when there is nothing else to do: many in one go under load.

Knows trio's loop, which the log does not, and nothing of what the lines say.
"""

import contextlib
from collections.abc import Iterator

import trio

from snimux.log import Log


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


@contextlib.contextmanager
def batching(log: Log) -> Iterator[None]:
    """Write the log's lines when the event loop is about to wait, many in one go under load."""
    flusher = _Flusher(log)
    trio.lowlevel.add_instrument(flusher)
    log.batches = True
    try:
        yield
    finally:
        log.batches = False
        trio.lowlevel.remove_instrument(flusher)
        log.flush()
