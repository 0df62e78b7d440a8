"""Check now and then that connections are served: that bytes still come through the relay.

That the event loop turns is not enough: a relay that is stuck would be missed. So a byte goes
through it, on a connection of this process with itself. A client's way in, the listeners, is left
out: where all places are taken, that is as it should be.

Knows nothing of who wants to know.
"""

import math
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import trio

from snimux.relay.interface import Relay, Tally

# A process that was stopped shows life this soon after (seconds): the clock of who waits for it
# went on.
_SOON = 1.0


async def check_relay(relay: Relay, passed: Callable[[], None], *, every: float) -> None:
    """Pass a byte through the relay, again and again, until cancelled.

    Args:
        relay: checked at its work.
        passed: called each time a byte has arrived.
        every: seconds from then to the next byte.

    Resource handling: holds four sockets.
    """
    with ExitStack() as sockets:
        pairs = [*socket.socketpair(), *socket.socketpair()]
        for sock in pairs:
            sockets.enter_context(sock).setblocking(False)
        near, client, backend, far = pairs
        relayed = partial(relay, head=bytearray(), idle_timeout=math.inf)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relayed, client, backend, Tally())
            while True:
                near.send(b".")
                await trio.lowlevel.wait_readable(far)
                far.recv(1)
                passed()
                await _sleep(every)


async def _sleep(seconds: float) -> None:
    """Sleep, but no longer than until just after so much time has passed for others, too."""
    until, at_the_latest = trio.current_time() + seconds, time.monotonic() + seconds
    while (left := until - trio.current_time()) > 0:
        await trio.sleep(min(left, _SOON))
        if time.monotonic() > at_the_latest:
            break
