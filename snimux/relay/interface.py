"""Two connected sockets until both are done: what every relay owes, whichever does it.

``Relay`` is the interface. Each implementation has a file of its own here, and passes the one
conformance suite, ``tests/relay/test_relay.py``.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from socket import socket
from typing import Protocol


class End(StrEnum):
    """An end that a relay can come to; the value is the word in the log."""

    EOF = "eof"
    CLIENT_RESET = "client-reset"
    BACKEND_RESET = "backend-reset"
    IDLE = "idle"


@dataclass(slots=True)
class Tally:
    """Bytes handed to the backend's socket (``up``) and to the client's (``down``) so far.

    Right at every moment, also when the relay is cancelled. The head counts as ``up``.
    """

    up: int = 0
    down: int = 0
    answered: float = field(default=0.0, compare=False)
    """When the first byte went down, by trio's clock; 0 until then."""


class Relay(Protocol):
    """Move bytes both ways until both directions have ended.

    A direction ends with its source's FIN, which is passed on; the other goes on for as long as
    it wants. If a side is lost (reset, or unreachable), what it had sent is delivered first, as
    fast as the other takes it, and then the other side is reset; never is it shown a FIN. It may
    read nothing for two seconds meanwhile. A UNIX socket knows no reset: see ``reset``.

    A slow reader costs a bounded amount of memory; a connection on which nothing moves holds no
    buffer.
    """

    async def __call__(
        self,
        client: socket,
        backend: socket,
        tally: Tally,
        *,
        head: bytearray,
        idle_timeout: float,
    ) -> End:
        """Relay until the end.

        Args:
            client: connected, non-blocking stream socket.
            backend: the same.
            tally: counts what is relayed.
            head: bytes to send to the backend before what comes from the client; emptied once
                they are sent, so that nobody holds them for as long as the connection lasts.
            idle_timeout: seconds without a byte moved, either way, after which to give up;
                ``math.inf`` for never.

        Returns:
            How it ended.

        Resource handling: closes neither socket. The caller closes both at once after, which
        sends the reset where one is due. May be cancelled at any point.
        """
