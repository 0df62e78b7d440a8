"""Serve pages to programs and people on this machine: by HTTP/1.1, to read, and nothing else.

What is served shows who is connected. So it is for loopback and UNIX sockets alone, where TCP's
other danger is a browser on the machine: a page from anywhere may have its own name resolve to
127.0.0.1 (DNS rebinding), but then the Host has that name, and is refused.

Bounded, whoever asks: connections at a time, a request's size, the time for it and for its answer.
One request a connection. A stream has no end, so there are fewer at a time, and one that is not
read is ended.

Other sites' pages may send a browser here, but cannot have it ask for more: Sec-Fetch-Site tells.

Knows nothing of what is on the pages.

Source: RFC 9110; h11 reads and writes it. W3C Fetch Metadata.
"""

import ipaddress
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from http import HTTPStatus

import h11
import trio

from snimux.log import Log
from snimux.net.listeners import Listener

AT_A_TIME = 16
"""Connections: a scraper, a few browsers' tabs, and room; others wait to be accepted."""
_STREAMS = 8
"""Of these that last: half, so that a scraper and a health check have theirs whoever watches."""

# Seconds for the whole request, and for the answer: then a slow client is none any more.
_REQUEST_TIME = 5.0
_ANSWER_TIME = 10.0
# And after the answer until the client closes: closing at once would answer what it still sends
# with a reset, and the reset overtakes the answer.
_LINGER = 1.0
_LINGER_BYTES = 256 * 1024
# Seconds that answers under way have to be finished, where another process is to serve the pages.
_FINISH = 5.0
# Seconds until whoever finds no place for a stream may ask again.
_ASK_AGAIN = 2
# Bytes that the kernel keeps of a stream which is not read: it may be 4 MB, and hours of it.
_UNREAD = 128 * 1024

# Bytes of a request's head: what nginx and Apache take, or so.
_LARGEST_REQUEST = 16 * 1024
_READ_SIZE = 16 * 1024

# Seconds until accepting is tried again when it failed, as for want of descriptors.
_BACK_OFF = 0.1

_METHODS = (b"GET", b"HEAD")

_HEADERS = (
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Connection", "close"),
)


@dataclass(frozen=True, slots=True)
class Page:
    """The answer to a request."""

    body: bytes
    type: str = "application/json"
    status: int = 200
    headers: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer that is sent bit by bit, until the client has gone.

    ``more`` is asked for the next bytes once the last ones are sent, and so waits until there are
    some; whoever reads slowly is asked for seldom, and nothing is kept for him.
    """

    more: Callable[[], Awaitable[bytes]]
    type: str = "text/event-stream"


Pages = Mapping[str, Callable[[str], Awaitable[Page | Stream]]]
"""For each path what makes the page, by the request's ``Accept``.

Where the path ends in a question mark, by the request's query.
"""


@dataclass(frozen=True, slots=True)
class _Served:
    """The pages, and the limits that all connections share."""

    pages: Pages
    log: Log
    places: trio.Semaphore
    streams: trio.Semaphore
    stopped: trio.Event
    """Set when no more are to be accepted, and streams are to end."""


async def serve_pages(
    listeners: Sequence[Listener],
    pages: Pages,
    log: Log,
    *,
    close: Callable[[Listener], None] = Listener.close,
    stopped: trio.Event | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve pages until cancelled, or until it is to stop; then finish what is under way.

    Who has connected by then is answered, even if this is cancelled meanwhile, but for no longer
    than 5 seconds; and a stream, which has no end, is ended.

    Args:
        listeners: where; of loopback, or UNIX sockets.
        pages: what.
        log: told where, and of pages that cannot be made.
        close: closes a listener.
        stopped: set when another process is to serve the pages.
        task_status: told once connections are accepted.

    Resource handling: closes the listeners.
    """
    stopped = trio.Event() if stopped is None else stopped
    served = _Served(pages, log, trio.Semaphore(AT_A_TIME), trio.Semaphore(_STREAMS), stopped)
    async with trio.open_nursery() as answering:
        with ExitStack() as closing:
            async with trio.open_nursery() as accepting:
                for listener in listeners:
                    closing.callback(close, listener)
                    log.write("info", "status", {"address": str(listener)})
                    accepting.start_soon(_accept, listener, served, answering)
                task_status.started()
                await stopped.wait()
                answering.cancel_scope.deadline = trio.current_time() + _FINISH
                answering.cancel_scope.shield = True
                accepting.cancel_scope.cancel()


async def _accept(listener: Listener, served: _Served, nursery: trio.Nursery) -> None:
    while True:
        await trio.lowlevel.wait_readable(listener.socket)
        await served.places.acquire()
        try:
            client, _ = listener.socket.accept()
        except OSError:
            served.places.release()
            await trio.sleep(_BACK_OFF)
            continue
        nursery.start_soon(_serve, client, served)


async def _serve(client: socket.socket, served: _Served) -> None:
    try:
        async with trio.SocketStream(trio.socket.from_stdlib_socket(client)) as stream:
            with suppress(trio.BrokenResourceError):
                await _converse(stream, served)
    finally:
        served.places.release()


async def _converse(stream: trio.SocketStream, served: _Served) -> None:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_LARGEST_REQUEST)
    request: h11.Request | None = None
    page: Page | Stream | None = None
    with trio.move_on_after(_REQUEST_TIME) as reading:
        try:
            request = await _request(stream, connection)
            if request is None:
                return
        except h11.RemoteProtocolError as error:
            page = _refusal(error.error_status_hint, str(error))
    if reading.cancelled_caught:
        return
    with trio.move_on_after(_ANSWER_TIME):
        if request is not None:
            page = await _page(request, stream.socket.family == socket.AF_UNIX, served)
            if isinstance(page, Stream) and request.method == b"HEAD":
                page = Page(b"", page.type)
        if isinstance(page, Page):
            with suppress(h11.LocalProtocolError):  # what it sent is past answering
                await stream.send_all(_answer(connection, page, request))
                await _linger(stream)
            return
    if isinstance(page, Stream):
        await _send_stream(stream, connection, page, served)


async def _request(stream: trio.SocketStream, connection: h11.Connection) -> h11.Request | None:
    """The request; None if the client has gone instead."""
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            return event
        if event is not h11.NEED_DATA:
            return None
        connection.receive_data(await stream.receive_some(_READ_SIZE))


async def _page(request: h11.Request, is_unix: bool, served: _Served) -> Page | Stream:
    headers = {name: value.decode("latin-1") for name, value in request.headers}
    if not (is_unix or is_of_loopback(headers.get(b"host", ""))):
        return _refusal(421, "the Host is not localhost, and no address of it")
    if _is_of_another_site(headers):
        return _refusal(403, "another site's page asks for it")
    if request.method not in _METHODS:
        return _refusal(405, "only GET and HEAD")
    if headers.get(b"content-length", "0") != "0" or b"transfer-encoding" in headers:
        return _refusal(400, "a request has no body here")
    path, mark, query = request.target.decode("latin-1").partition("?")
    make, argument = served.pages.get(path + mark), query if mark else headers.get(b"accept", "")
    if make is None:
        make, argument = served.pages.get(path), headers.get(b"accept", "")
    if make is None:
        return _refusal(404, f"here are {', '.join(served.pages)}")
    try:
        return await make(argument)
    except Exception as error:  # not expected; but whoever looks must not end what he looks at
        served.log.write("error", "status-failed", {"detail": repr(error)})
        return _refusal(500, "the page could not be made; the log has more")


def _is_of_another_site(headers: Mapping[bytes, str]) -> bool:
    """Return whether a browser asks for another page than this one, other than by a link to here.

    The page could not read the answer; but it could have things done, and hold all places. One on
    another port of this machine is of the same site, and no less another's. A frame in a page is
    no link, nor is what a page opens, or has fetched beforehand: nobody has clicked on it.
    """
    is_link = headers.get(b"sec-fetch-dest") == "document" and b"sec-fetch-user" in headers
    return headers.get(b"sec-fetch-site") in ("cross-site", "same-site") and not is_link


async def _send_stream(
    stream: trio.SocketStream, connection: h11.Connection, page: Stream, served: _Served
) -> None:
    """Send until the client has gone, or does not read."""
    try:
        served.streams.acquire_nowait()
    except trio.WouldBlock:
        words = f"{_STREAMS} watch already, and more may not"
        full = _refusal(503, words, ("Retry-After", str(_ASK_AGAIN)))
        with trio.move_on_after(_ANSWER_TIME):
            await stream.send_all(_answer(connection, full, None))
            await _linger(stream)
        return
    try:
        with suppress(OSError):  # on macOS, where the client has reset it
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNREAD)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_until_gone, stream, nursery.cancel_scope)
            nursery.start_soon(_until_stopped, served.stopped, nursery.cancel_scope)
            with suppress(trio.BrokenResourceError):
                await _send_on(stream, connection, page, served.log)
            nursery.cancel_scope.cancel()
    finally:
        served.streams.release()


async def _send_on(
    stream: trio.SocketStream, connection: h11.Connection, page: Stream, log: Log
) -> None:
    headers = [("Content-Type", page.type), *_HEADERS]
    data = connection.send(h11.Response(status_code=200, headers=headers, reason="OK")) or b""
    while True:
        with trio.move_on_after(_ANSWER_TIME) as sending:
            await stream.send_all(data)
        if sending.cancelled_caught:
            return
        try:
            data = connection.send(h11.Data(data=await page.more())) or b""
        except Exception as error:  # as where a page is made
            log.write("error", "status-failed", {"detail": repr(error)})
            return


async def _until_gone(stream: trio.SocketStream, scope: trio.CancelScope) -> None:
    """Read what nobody has asked for, and that is not much, until the client ends."""
    with suppress(trio.BrokenResourceError):
        await stream.receive_some(1)
    scope.cancel()


async def _until_stopped(stopped: trio.Event, scope: trio.CancelScope) -> None:
    await stopped.wait()
    scope.cancel()


def is_of_loopback(host: str) -> bool:
    """Return whether a Host is a name of this machine that nobody else can have.

    With whatever port: a tunnel may end at another one, and who rebinds a name has the name there.
    """
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name.lower() == "localhost"


def _refusal(status: int, words: str, *headers: tuple[str, str]) -> Page:
    return Page(f"{words}\n".encode(), "text/plain; charset=utf-8", status, headers)


def _answer(connection: h11.Connection, page: Page, request: h11.Request | None) -> bytes:
    size = str(len(page.body))
    headers = [("Content-Type", page.type), ("Content-Length", size), *page.headers, *_HEADERS]
    if page.status == 405:
        headers.append(("Allow", b", ".join(_METHODS).decode()))
    is_head = request is not None and request.method == b"HEAD"
    events = [
        h11.Response(
            status_code=page.status, headers=headers, reason=HTTPStatus(page.status).phrase
        ),
        h11.Data(data=b"" if is_head else page.body),
        h11.EndOfMessage(),
    ]
    return b"".join(connection.send(event) or b"" for event in events)


async def _linger(stream: trio.SocketStream) -> None:
    """Send FIN, and wait for the client's; but neither for long nor for much."""
    await stream.send_eof()
    left = _LINGER_BYTES
    with trio.move_on_after(_LINGER):
        while left > 0 and (data := await stream.receive_some(_READ_SIZE)):
            left -= len(data)
