"""``status.web``: to whom pages are served, what is refused, and what hostile clients cost."""

import contextlib
import errno
import io
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial

import h11
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from snimux.log import Log
from snimux.net.listeners import Listener, open_listeners
from snimux.routing.address import ListenAddress, TcpAddress, UnixAddress
from snimux.status.web import Page, Pages, Stream, is_of_loopback, serve_pages
from tests.support.caddy import short_directory
from tests.support.sockets import open_descriptors, read_to_end, send_all

# Bytes: more than any kernel's buffers hold.
BIG = 10**8

ANYWHERE = TcpAddress("127.0.0.1", 0)


@dataclass
class Running:
    """Pages that are served in this process."""

    listener: Listener
    where: str
    stream: io.StringIO = field(default_factory=io.StringIO)
    asked: list[str] = field(default_factory=list)
    events: int = 0
    stopped: trio.Event = field(default_factory=trio.Event)

    async def connect(self) -> trio.socket.SocketType:
        sock = trio.socket.socket(self.listener.socket.family)
        await sock.connect(self.listener.socket.getsockname())
        return sock

    async def send(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the answer."""
        with await self.connect() as sock:
            await send_all(sock, request)
            answer, was_reset = await read_to_end(sock)
        assert not was_reset
        client = h11.Connection(h11.CLIENT)
        is_head = request.startswith(b"HEAD")
        method = "HEAD" if is_head else "GET"
        client.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
        client.send(h11.EndOfMessage())
        client.receive_data(answer)
        client.receive_data(b"")
        response, body = client.next_event(), b""
        assert isinstance(response, h11.Response)
        while isinstance(event := client.next_event(), h11.Data):
            body += event.data
        assert isinstance(event, h11.EndOfMessage)
        headers = {name.decode(): value.decode() for name, value in response.headers}
        return response.status_code, headers, body

    async def get(self, path: str, host: str = "localhost", more: str = "") -> tuple[int, bytes]:
        request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n"
        status, _, body = await self.send(request.encode())
        return status, body


@contextlib.asynccontextmanager
async def running(at: ListenAddress = ANYWHERE) -> AsyncIterator[Running]:
    (listener,) = open_listeners([at])
    run = Running(listener, str(listener))

    async def good(accept: str) -> Page:
        run.asked.append(accept)
        return Page(b'{"good": 1}')

    async def bad(accept: str) -> Page:
        raise RuntimeError("not expected")

    async def big(accept: str) -> Page:
        return Page(bytes(BIG))

    async def more() -> bytes:
        run.events += 1
        await trio.sleep(1)
        return b"x" * 2**20

    async def broken() -> bytes:
        raise RuntimeError("not expected")

    async def endless(accept: str) -> Stream:
        return Stream(more)

    async def breaking(accept: str) -> Stream:
        return Stream(broken)

    pages: Pages = {
        "/good": good, "/good?": good, "/bad": bad, "/big": big, "/endless": endless,
        "/breaking": breaking,
    }  # fmt: skip
    async with trio.open_nursery() as nursery:
        serve = partial(serve_pages, stopped=run.stopped)
        await nursery.start(serve, [listener], pages, Log(run.stream, form="json"))
        yield run
        nursery.cancel_scope.cancel()
    assert listener.socket.fileno() == -1


async def test_a_page_is_served_and_kept_by_nobody() -> None:
    async with running() as run:
        request = b"GET /good HTTP/1.1\r\nHost: localhost:1\r\nAccept: text/x\r\n\r\n"
        status, headers, body = await run.send(request)
        assert (status, body, run.asked) == (200, b'{"good": 1}', ["text/x"])
        assert headers == {
            "content-type": "application/json",
            "content-length": "11",
            "cache-control": "no-store",
            "x-content-type-options": "nosniff",
            "cross-origin-resource-policy": "same-origin",
            "connection": "close",
        }
        head = await run.send(request.replace(b"GET", b"HEAD"))
        assert head == (status, headers, b"")
        assert (await run.send(b"GET /good HTTP/1.0\r\nHost: localhost\r\n\r\n"))[0] == 200
    (line,) = map(json.loads, run.stream.getvalue().splitlines())
    assert (line["event"], line["address"]) == ("status", run.where)


async def test_what_is_not_there_is_told_with_what_is() -> None:
    async with running() as run:
        for path in ("/", "/good/", "/../good", "http://localhost/good", "//good", "*"):
            status, body = await run.get(path)
            assert (status, body) == (
                404,
                b"here are /good, /good?, /bad, /big, /endless, /breaking\n",
            ), path


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "get"])
async def test_it_is_only_to_be_read(method: str) -> None:
    async with running() as run:
        request = f"{method} /good HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx"
        status, headers, _ = await run.send(request.encode())
        assert (status, headers["allow"], run.asked) == (405, "GET, HEAD", [])


async def test_a_request_has_no_body() -> None:
    async with running() as run:
        assert (await run.get("/good", more="Content-Length: 5\r\n"))[0] == 400
        assert (await run.get("/good", more="Transfer-Encoding: chunked\r\n"))[0] == 400
        assert (await run.get("/good", more="Content-Length: 0\r\n"))[0] == 200


HOSTS = {
    "localhost": True, "localhost:9443": True, "LocalHost:1": True, "127.0.0.1": True,
    "127.0.0.1:9443": True, "127.8.9.1:1": True, "[::1]:9443": True, "[::1]": True,
    "": False, "evil.example": False, "evil.example:9443": False, "localhost.evil.example": False,
    "127.0.0.1.nip.io": False, "evil.example@localhost": False, "192.0.2.1": False,
    "0.0.0.0": False, "[::]": False, "[::1": True, "[localhost]": True, "2130706433": False,
    "127.1": False, "localhost.": False,
}  # fmt: skip


def test_only_what_nobody_else_can_have_as_a_name_is_of_loopback() -> None:
    assert {host: is_of_loopback(host) for host in HOSTS} == HOSTS


async def test_a_name_that_was_rebound_sees_nothing() -> None:
    async with running() as run:
        for host in ("evil.example", "evil.example:9443", "", "192.0.2.1"):
            status, body = await run.get("/good", host)
            assert status == 421
            assert b"good" not in body
        for request in (
            b"GET /good HTTP/1.0\r\n\r\n",
            b"GET http://localhost/good HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        ):
            assert (await run.send(request))[0] == 421
        two = b"GET /good HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n"
        assert (await run.send(two))[0] == 400
        assert (await run.send(b"GET /good HTTP/1.1\r\n\r\n"))[0] == 400
        assert run.asked == []


async def test_on_a_unix_socket_any_host_will_do() -> None:
    with short_directory() as directory:
        async with running(UnixAddress(str(directory / "s"))) as run:
            assert (await run.get("/good", "whatever"))[0] == 200
            assert (await run.send(b"GET /good HTTP/1.0\r\n\r\n"))[0] == 200
        assert not (directory / "s").exists()


async def test_a_page_that_cannot_be_made_ends_nothing() -> None:
    async with running() as run:
        for _ in range(2):
            status, body = await run.get("/bad")
            assert (status, b"not expected" in body) == (500, False)
        assert (await run.get("/good"))[0] == 200
    lines = [json.loads(line) for line in run.stream.getvalue().splitlines()]
    failed = [line for line in lines if line["event"] == "status-failed"]
    assert [line["detail"] for line in failed] == ["RuntimeError('not expected')"] * 2


GARBAGE = [b"\x16\x03\x01\x00\x05hello\r\n\r\n", b"GET\r\n\r\n", b"\0\r\n\r\n"]


@pytest.mark.parametrize("garbage", GARBAGE)
async def test_what_is_no_request_is_told_so(garbage: bytes) -> None:
    async with running() as run:
        assert (await run.send(garbage))[0] == 400
        assert (await run.get("/good"))[0] == 200


async def test_a_head_without_end_is_refused() -> None:
    async with running() as run:
        line = b"X-Long: " + b"x" * 1000 + b"\r\n"
        request = b"GET /good HTTP/1.1\r\nHost: localhost\r\n" + line * 60
        assert (await run.send(request))[0] == 431
        assert run.asked == []


async def test_the_silent_and_the_slow_have_their_time_and_others_wait(
    autojump_clock: MockClock,
) -> None:
    """A reader that stops, and more who say nothing than there are places."""
    autojump_clock.autojump_threshold = 0.05
    before = open_descriptors()
    async with running() as run, contextlib.AsyncExitStack() as stack:
        started = trio.current_time()
        reader = stack.enter_context(await run.connect())
        await send_all(reader, b"GET /big HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for _ in range(20):
            silent = stack.enter_context(await run.connect())
            await send_all(silent, b"GET /good HT")
        status, _ = await run.get("/good")
        assert status == 200
        # 15 places are the silent ones' for 5 seconds; then 5 more have theirs
        assert 5 <= trio.current_time() - started <= 5.1
        await trio.sleep(20)
        data, _ = await read_to_end(reader)
        assert 0 < len(data) < BIG
    await wait_all_tasks_blocked(0.01)
    assert open_descriptors() == before


async def test_a_client_may_go_at_any_time() -> None:
    async with running() as run:
        for sent in (b"", b"GET /good", b"GET /big HTTP/1.1\r\nHost: localhost\r\n\r\n"):
            with await run.connect() as sock:
                await send_all(sock, sent)
        for _ in range(20):
            assert (await run.get("/good"))[0] == 200


async def test_who_does_not_close_after_the_answer_is_closed(autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05
    async with running() as run:
        with await run.connect() as sock:
            await send_all(sock, b"GET /good HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3)
            answer, _ = await read_to_end(sock)
            assert answer.count(b"HTTP/1.1 200") == 1
            started = trio.current_time()
            while True:
                try:
                    await sock.send(b"x")
                except OSError:
                    break
                await trio.sleep(0.1)
            assert trio.current_time() - started < 2


async def test_where_a_path_takes_a_query_the_page_is_told_that() -> None:
    async with running() as run:
        assert (await run.get("/good?find=a%20b"))[0] == 200
        assert (await run.get("/good?"))[0] == 200
        assert run.asked == ["find=a%20b", ""]
        assert (await run.get("/bad?x", more="Accept: y\r\n"))[0] == 500


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_another_sites_page_has_nothing_done(site: str) -> None:
    async with running() as run:
        sent = f"Sec-Fetch-Site: {site}\r\nSec-Fetch-Dest: "
        for path in ("/good", "/good?", "/endless"):
            # a document without a click: a window that is opened, or a page fetched beforehand
            for what in ("empty", "image", "iframe", "object", "document"):
                assert (await run.get(path, more=f"{sent}{what}\r\n"))[0] == 403
            clicked = f"{sent}iframe\r\nSec-Fetch-User: ?1\r\n"
            assert (await run.get(path, more=clicked))[0] == 403
        assert run.asked == []
        # but a link may lead here
        clicked = f"{sent}document\r\nSec-Fetch-User: ?1\r\n"
        assert (await run.get("/good", more=clicked))[0] == 200
        for own in ("same-origin", "none"):
            assert (await run.get("/good", more=f"Sec-Fetch-Site: {own}\r\n"))[0] == 200


async def begun(run: Running, path: str = "/endless") -> trio.socket.SocketType:
    """A client of a stream that has its head; nothing else is read."""
    sock = await run.connect()
    await send_all(sock, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert b"200 OK" in await sock.recv(15)
    return sock


async def test_a_stream_goes_on_until_its_client_goes(autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05
    async with running() as run:
        with await begun(run) as sock:
            got = 0
            while got < 5 * 2**20:
                got += len(await sock.recv(2**20))
            assert run.events >= 5
        await wait_all_tasks_blocked(0.02)
        events = run.events
        await trio.sleep(60)
        assert run.events - events <= 1


async def test_a_stream_that_nobody_reads_is_ended(autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05
    before = open_descriptors()
    async with running() as run:
        with await begun(run) as sock:
            await trio.sleep(1000)  # until the kernel's buffers are full, and 10 seconds more
            events = run.events
            await trio.sleep(1000)
            assert run.events == events < 500
            data, _ = await read_to_end(sock)
            assert len(data) < events * 2**20
    assert open_descriptors() == before


async def test_streams_leave_places_to_others(autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05
    async with running() as run:
        with contextlib.ExitStack() as stack:
            for _ in range(8):
                stack.enter_context(await begun(run))
            request = b"GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n"
            status, headers, body = await run.send(request)
            assert (status, headers["retry-after"]) == (503, "2")
            assert body == b"8 watch already, and more may not\n"
            for _ in range(20):
                assert (await run.get("/good"))[0] == 200
        await wait_all_tasks_blocked(0.02)
        (await begun(run)).close()


async def test_who_is_gone_before_his_stream_begins_ends_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def einval(*_: object) -> None:
        raise OSError(errno.EINVAL, "as macOS says of a socket that was reset")

    async with running() as run:
        monkeypatch.setattr(trio.SocketStream, "setsockopt", einval)
        (await begun(run)).close()
        assert (await run.get("/good"))[0] == 200


async def test_of_a_stream_only_the_head_may_be_asked_for() -> None:
    async with running() as run:
        request = b"HEAD /endless HTTP/1.1\r\nHost: localhost\r\n\r\n"
        status, headers, body = await run.send(request)
        assert (status, headers["content-type"], body) == (200, "text/event-stream", b"")
        assert run.events == 0


async def test_a_stream_that_breaks_ends_nothing_else() -> None:
    async with running() as run:
        with await begun(run, "/breaking") as sock:
            await read_to_end(sock)
        assert (await run.get("/good"))[0] == 200
    assert "status-failed" in run.stream.getvalue()


# --- another process is to serve the pages


async def test_who_has_connected_is_answered_even_when_the_process_is_about_to_end() -> None:
    answers: list[bytes] = []

    async def ask(client: trio.socket.SocketType) -> None:
        await wait_all_tasks_blocked(0.02)  # the process is about to end by then
        await send_all(client, b"GET /good HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answers.append((await read_to_end(client))[0])
        client.close()

    async with trio.open_nursery() as nursery:
        async with running() as run:
            client = await run.connect()
            await wait_all_tasks_blocked(0.02)
            run.stopped.set()
            await wait_all_tasks_blocked(0.02)
            assert run.listener.socket.fileno() == -1
            nursery.start_soon(ask, client)
    assert answers[0].endswith(b'{"good": 1}')


async def test_a_stream_ends_with_what_comes_next_and_nobody_is_waited_for_without_end(
    autojump_clock: MockClock,
) -> None:
    autojump_clock.autojump_threshold = 0.05
    async with running() as run:
        with await begun(run) as stream, await run.connect() as idle:
            await wait_all_tasks_blocked(0.02)
            started = trio.current_time()
            run.stopped.set()
            await read_to_end(stream)
            assert trio.current_time() - started < 1
            assert await idle.recv(1) == b""
            assert trio.current_time() - started == 5
