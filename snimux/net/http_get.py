"""A small GET by HTTP/1.1, over TCP or a UNIX socket: an address and a path -> the answer's body.

What answers may be anything: it is bounded in size and time, and every fault is one line. Knows
nothing of what is asked.

Source: RFC 9112 (HTTP/1.1), which h11 reads.
"""

import contextlib
import ipaddress
import socket

import h11
import trio

from snimux.net.dial import NotDialled, dial
from snimux.routing.address import DialAddress, TcpAddress
from snimux.text import brief

LARGEST = 8 * 1024 * 1024
"""Bytes of an answer: twice what Caddy says of 10,000 sites. It may be anything, and 1 MiB of
JSON is up to 60 when it is read."""
# Seconds for an answer, from dialling to its end: Caddy is silent while it loads a configuration.
_TIME = 10.0
# What is not content, beside a quarter of it: h11 takes its time for each line and each chunk.
_MOST_FRAMING = 64 * 1024
# So few that nobody waits for more than a few milliseconds while they are taken apart.
_READ_SIZE = 4 * 1024


class FetchError(Exception):
    """No answer can be had there; the message says why."""


class BadAnswerError(FetchError):
    """An answer, but none that anybody means to give."""


class StatusError(FetchError):
    """An answer that is a refusal, with a status other than 200, and a body that may say why."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"it answers {status}")
        self.status = status
        self.body = body


async def fetch(address: DialAddress, target: str) -> bytes:
    """Return the body of the answer to a GET.

    Args:
        address: where to ask.
        target: for what, a path.

    Raises:
        FetchError: there is none, within the time and the size.
    """
    with trio.move_on_after(_TIME):
        dialled = await dial(address, dial_timeout=_TIME)
        if isinstance(dialled, NotDialled):
            raise FetchError(dialled.detail.removeprefix(f"{address}: "))
        async with _stream(dialled.socket) as stream:
            try:
                return await _ask(stream, _host(address), target)
            except trio.BrokenResourceError:
                raise FetchError("the connection broke before the answer was whole") from None
            except h11.RemoteProtocolError as error:
                raise FetchError(f"no answer in HTTP: {brief(str(error))}") from None
    raise FetchError(f"no whole answer in {_TIME:g} s")


def _stream(sock: socket.socket) -> trio.SocketStream:
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


def _host(address: DialAddress) -> str:
    """Return the Host that Caddy wants to hear, against DNS rebinding.

    On loopback any of its names, whichever it listens on; else its address. On a UNIX socket 2.6
    wants an empty one, and later versions want none in particular.
    """
    if not isinstance(address, TcpAddress):
        return ""
    is_loopback = address.host == "localhost"
    with contextlib.suppress(ValueError):
        is_loopback = ipaddress.ip_address(address.host).is_loopback
    return str(TcpAddress("localhost", address.port) if is_loopback else address)


async def _ask(stream: trio.SocketStream, host: str, target: str) -> bytes:
    connection = h11.Connection(h11.CLIENT)
    headers = [("Host", host), ("Accept", "application/json"), ("Connection", "close")]
    request = connection.send(h11.Request(method="GET", target=target, headers=headers))
    assert request is not None
    await stream.send_all(request)
    connection.send(h11.EndOfMessage())
    status, body, received, too_large = 0, bytearray(), 0, False
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            if received - len(body) > _MOST_FRAMING + len(body) // 4:
                raise BadAnswerError("an answer with hardly any content")
            data = await stream.receive_some(_READ_SIZE)
            connection.receive_data(data)
            received += len(data)
        elif isinstance(event, h11.Response):
            status = event.status_code
            too_large = int(dict(event.headers).get(b"content-length", b"0")) > LARGEST
        elif isinstance(event, h11.Data):
            body += event.data
            too_large = len(body) > LARGEST
        elif isinstance(event, h11.EndOfMessage):
            if status != 200:
                raise StatusError(status, bytes(body))
            return bytes(body)
        if too_large:
            raise BadAnswerError(f"an answer of more than {LARGEST >> 20} MiB")
