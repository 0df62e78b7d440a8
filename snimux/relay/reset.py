"""Reset a connection, but not over the heads of the bytes that were sent before.

Source: RFC 9293 section 3.10.7.4: who receives a reset discards what it has not read; tcp(7) and
unix(7): SIOCOUTQ.
"""

import contextlib
import socket
import struct
import sys

import trio

# Bytes that were handed to the kernel get this long to arrive (seconds), looked at this often.
_DELIVERY_TIMEOUT = 2.0
_DELIVERY_POLL = 0.01


async def prepare_reset(sock: socket.socket) -> None:
    """Wait until the peer has acknowledged all that was sent, and make the next close a reset.

    Waits for two seconds at most: a peer that does not read must not keep its place for ever.
    """
    with contextlib.suppress(OSError):  # lost as well: there is nobody to reset
        with trio.move_on_after(_DELIVERY_TIMEOUT):
            while _unacknowledged(sock):  # noqa: ASYNC110
                await trio.sleep(_DELIVERY_POLL)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


if sys.platform == "darwin":
    _SO_NWRITE = 0x1024  # sys/socket.h; not in the socket module

    def _unacknowledged(sock: socket.socket) -> int:
        """Bytes sent that the peer has not acknowledged."""
        return sock.getsockopt(socket.SOL_SOCKET, _SO_NWRITE)

else:
    import fcntl
    import termios

    def _unacknowledged(sock: socket.socket) -> int:
        """Bytes sent that the peer has not acknowledged."""
        answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
        return int.from_bytes(answer, sys.byteorder)
