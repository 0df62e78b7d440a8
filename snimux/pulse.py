"""See now and then that connections are served: that bytes still come through the relay.

That the event loop turns is not enough: a relay that is stuck would be missed. So a byte goes
through it, on a connection of this process with itself. A client's way in, the listeners, is left
out: where all places are taken, that is as it should be.

Knows nothing of who wants to know.
"""

import math
import socket
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import trio

from snimux.relay import Relay, Tally


async def pulse(relay: Relay, felt: Callable[[], None], *, every: float) -> None:
    """Pass a byte through the relay, again and again, until cancelled.

    Args:
        relay: to see at work.
        felt: called each time a byte has arrived.
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
                felt()
                await trio.sleep(every)
