"""``explain.refusal``: what farewells mean, and what real clients make of them."""

from http import HTTPStatus
from pathlib import Path

import pytest
import trio
import trustme

from snimux.explain.refusal import read
from snimux.proto import client_hello, http_head
from snimux.proto.reason import Reason
from snimux.proto.verdict import Hello, Request
from tests.support import clients

ALERTS = [10, 22, 49, 50, 80, 112]


def client(name: str) -> clients.Client:
    return next(each for each in clients.CLIENTS if each.name == name)


@pytest.mark.parametrize("reason", Reason)
def test_every_farewell_is_understood(reason: Reason) -> None:
    for protocol in (client_hello.TLS, http_head.HTTP):
        farewell = protocol.farewell(reason, None)
        said = read(farewell)
        assert said.content == farewell
        assert said.kind == ("nothing" if not farewell else
                             "alert" if protocol is client_hello.TLS else "response")  # fmt: skip
        assert bool(said.shown) == (said.kind != "nothing")
        assert "None" not in str(said)


def test_an_alert_has_its_name_and_what_is_shown() -> None:
    said = read(client_hello.farewell(Reason.NO_ROUTE))
    assert str(said) == "the TLS alert unrecognized_name (112)"
    assert said.shown == {
        "Chrome": "ERR_SSL_UNRECOGNIZED_NAME_ALERT",
        "Firefox": "SSL_ERROR_UNRECOGNIZED_NAME_ALERT",
        "curl": "(35) ... unrecognized name",
    }


def test_an_alert_that_nobody_here_sends_has_its_number() -> None:
    assert str(read(client_hello.alert(40))) == "the TLS alert of no name (40)"


def test_a_response_has_its_status_and_words() -> None:
    said = read(http_head.farewell(Reason.NO_HTTP))
    assert str(said) == "the response 404 Not Found"
    assert said.shown["browsers, curl"].startswith("No server answers this by plain HTTP")
    head = Hello("a.example", (), False, 1, Request("HEAD", "a.example", "/"))
    assert read(http_head.farewell(Reason.NO_HTTP, head)).shown == {}


def test_http_2_is_told_by_goaway() -> None:
    hello = Hello(None, (), False, 1, Request("PRI", None, ""))
    assert str(read(http_head.farewell(Reason.NO_ROUTE, hello))) == "HTTP/2's GOAWAY"


def test_silence() -> None:
    assert str(read(b"")) == "no word: the connection is closed"


def test_every_status_has_a_name() -> None:
    for status in HTTPStatus:
        if status >= HTTPStatus.OK:
            said = read(b"HTTP/1.1 %d X\r\n\r\n" % status)
            assert (said.number, said.name) == (status.value, status.phrase)


async def say(farewell: bytes, listener: trio.SocketListener) -> None:
    """Farewell all connections by a farewell."""

    async def handle(stream: trio.SocketStream) -> None:
        await stream.receive_some(65536)
        await stream.send_all(farewell)
        await stream.send_eof()
        async for _ in stream:
            pass

    await trio.serve_listeners(handle, [listener])


def shows(name: str, number: int) -> object:
    """A case of the test below, which the client must be there for."""
    missing = clients.available(client(name))
    mark = pytest.mark.needs(lambda: missing is not None, str(missing))
    return pytest.param(name, number, marks=mark, id=f"{name}-{number}")


@pytest.mark.parametrize(
    ("program", "number"),
    # A browser takes its second: one alert that it has a word of its own for, and one that not.
    [*(shows("curl", number) for number in ALERTS), *(shows("chromium", x) for x in (80, 112))],
)
async def test_a_real_client_shows_what_is_said(
    program: str, number: int, tmp_path: Path, nursery: trio.Nursery
) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(say, client_hello.alert(number), listener)
    port = listener.socket.getsockname()[1]
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with trio.fail_after(60):
        ended = await clients.run(
            client(program), "dao.ciso.com", port, tmp_path / "ca.pem", tmp_path
        )
    printed = (ended.stdout + ended.stderr).decode()
    shown = read(client_hello.alert(number)).shown
    for words in shown["curl"].split(" ... ") if program == "curl" else [shown["Chrome"]]:
        assert words in printed
    nursery.cancel_scope.cancel()
