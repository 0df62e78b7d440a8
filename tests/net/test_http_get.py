"""``net.http_get``: a body, or why there is none; what strange servers do is in ``test_admin``."""

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from snimux.net.http_get import BadAnswerError, FetchError, StatusError, fetch
from snimux.routing.address import DialAddress, TcpAddress, UnixAddress
from tests.support.caddy import closed_port, short_directory

NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nwords"


async def serve(
    answer: bytes, requests: list[bytes], nursery: trio.Nursery, path: Path | None = None
) -> DialAddress:
    """A server that answers one request so; where it listens."""
    if path is None:
        sock = trio.socket.socket()
        await sock.bind(("127.0.0.1", 0))
        address: DialAddress = TcpAddress("127.0.0.1", sock.getsockname()[1])
    else:
        sock = trio.socket.socket(trio.socket.AF_UNIX)
        await sock.bind(str(path))
        address = UnixAddress(str(path))
    sock.listen(1)

    async def handle() -> None:
        with sock:
            client, _ = await sock.accept()
        async with trio.SocketStream(client) as stream:
            requests.append(bytes(await stream.receive_some()))
            await stream.send_all(answer)

    nursery.start_soon(handle)
    return address


async def test_what_is_asked_and_what_comes_back(nursery: trio.Nursery) -> None:
    requests: list[bytes] = []
    address = await serve(b"HTTP/1.1 200 OK\r\n\r\nbody", requests, nursery)
    assert await fetch(address, "/a/b") == b"body"
    line, *headers = requests[0].decode().splitlines()
    assert line == "GET /a/b HTTP/1.1"
    assert f"Host: localhost:{str(address).rpartition(':')[2]}" in headers


async def test_on_a_unix_socket_the_host_is_empty(nursery: trio.Nursery) -> None:
    requests: list[bytes] = []
    with short_directory() as directory:
        address = await serve(
            b"HTTP/1.1 200 OK\r\n\r\nbody", requests, nursery, directory / "socket"
        )
        assert await fetch(address, "/") == b"body"
    assert b"Host: \r\n" in requests[0] or b"Host:\r\n" in requests[0]


async def test_a_refusal_has_its_status_and_body(nursery: trio.Nursery) -> None:
    address = await serve(NOT_FOUND, [], nursery)
    with pytest.raises(StatusError, match="it answers 404") as caught:
        await fetch(address, "/")
    assert (caught.value.status, caught.value.body) == (404, b"words")


async def test_an_answer_that_is_too_large(nursery: trio.Nursery) -> None:
    address = await serve(b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n", [], nursery)
    with pytest.raises(BadAnswerError, match="more than 8 MiB"):
        await fetch(address, "/")


@pytest.mark.parametrize(
    ("answer", "words"),
    [(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", "no answer in HTTP"),
     (b"SSH-2.0-x\r\n\r\n", "no answer in HTTP")],
)  # fmt: skip
async def test_no_answer(answer: bytes, words: str, nursery: trio.Nursery) -> None:
    address = await serve(answer, [], nursery)
    with pytest.raises(FetchError, match=words):
        await fetch(address, "/")


async def test_nobody_there() -> None:
    with pytest.raises(FetchError, match="Connection refused"):
        await fetch(TcpAddress("127.0.0.1", closed_port()), "/")


async def test_nobody_who_answers(autojump_clock: MockClock) -> None:
    listener = trio.socket.socket()
    with listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        with pytest.raises(FetchError, match="answer in 10 s"):
            await fetch(TcpAddress("127.0.0.1", listener.getsockname()[1]), "/")
