"""Reset a connection, but not over the heads of the bytes that were sent before.

Source: RFC 9293 section 3.10.7.4: who receives a reset discards what it has not read; tcp(7) and
unix(7): SIOCOUTQ.
"""

import contextlib
import socket
import struct
import sys

import trio

# A peer may read nothing for two seconds. What it had no room for is then sent again by the kernel,
# after pauses that double, so that the first of it may be acknowledged after more than twice that.
# How much is acknowledged is looked at this often, and more seldom if it takes long. Seconds.
_PATIENCE = 6.0
_OFTEN, _SELDOM = 0.01, 0.1


async def prepare_reset(sock: socket.socket) -> None:
    """Make the next close a reset, and wait until the peer has acknowledged all that was sent.

    The wait is over when nothing was acknowledged for six seconds: a peer that does not read must
    not keep its place for ever. Cancelled, it leaves a socket whose close is a reset all the same.
    A UNIX socket has no reset. What was sent stays readable when it is closed; then its peer gets
    ECONNRESET if it had sent what was not read here, and else the end of the stream.
    """
    with contextlib.suppress(OSError):  # lost as well: there is nobody to reset
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        left, pause = _unacknowledged(sock), _OFTEN
        until = trio.current_time() + _PATIENCE
        while left and trio.current_time() < until:
            await trio.sleep(pause)
            pause = min(2 * pause, _SELDOM)
            before, left = left, _unacknowledged(sock)
            if left < before:
                until = trio.current_time() + _PATIENCE


if sys.platform == "darwin":
    _SO_NWRITE = 0x1024  # sys/socket.h; not in the socket module

    def _unacknowledged(sock: socket.socket) -> int:
        """Return how many bytes were sent that the peer has not acknowledged."""
        return sock.getsockopt(socket.SOL_SOCKET, _SO_NWRITE)

else:
    import fcntl
    import termios

    def _unacknowledged(sock: socket.socket) -> int:
        """Return how many bytes were sent that the peer has not acknowledged."""
        answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
        return int.from_bytes(answer, sys.byteorder)
