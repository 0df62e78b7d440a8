"""``backend.probe``: what real servers answer, and that nothing else passes for an answer."""

import contextlib
import shutil
import socket
import ssl
import struct
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio
import trustme
from hypothesis import example, given
from hypothesis import strategies as st
from trio.testing import MockClock

from snimux.backend.probe import (
    LOCAL_HEADER,
    Alert,
    Answer,
    Http,
    HungUp,
    Other,
    ProbeResult,
    Question,
    ServerHello,
    Silent,
    Unreached,
    ask,
    ask_both,
    by_http,
    by_tls,
    is_understood,
)
from snimux.proto import client_hello, hostname
from snimux.proto.verdict import Hello
from snimux.routing.address import DialAddress, TcpAddress, UnixAddress
from tests.conftest import need
from tests.support import caddy
from tests.support.caddy import Caddy
from tests.support.sockets import open_descriptors

HELLO = by_tls("a.test")
ALERT = bytes([21, 3, 3, 0, 2, 2])  # one that is fatal, up to its description
SERVER_HELLO = bytes([22, 3, 3, 0, 100, 2, 0, 0, 96])

# What the wrapper is told, or None where there is none; whether a header is understood, and
# whether a connection without it is served.
POLICIES: dict[str, tuple[str | None, bool, bool]] = {
    "no wrapper": (None, False, True),
    "allow": ("allow 127.0.0.1/32", True, True),
    "no allow": ("", True, True),
    "allow others": ("allow 192.0.2.0/24", True, True),
    "deny": ("deny 127.0.0.1/32", False, True),
    "ignore": ("fallback_policy ignore", True, True),
    "use": ("fallback_policy use", True, True),
    "reject": ("fallback_policy reject", False, True),
    "require": ("fallback_policy require", True, False),
    "skip": ("fallback_policy skip", False, True),
}


def wrapper(words: str) -> str:
    return f"listener_wrappers {{\nproxy_protocol {{\n{words}\n}}\ntls\n}}"


@pytest.fixture(scope="module")
def caddys() -> Iterator[dict[str, DialAddress]]:
    """One Caddy that serves a.test with each of the policies, and with two on UNIX sockets."""
    need(caddy.missing())
    with caddy.short_directory() as directory:
        where: dict[str, DialAddress] = {
            name: TcpAddress("127.0.0.1", caddy.free_port()) for name in POLICIES
        }
        policies = {name: words for name, (words, _, _) in POLICIES.items()}
        for name, words in (("unix", ""), ("unix no wrapper", None)):
            where[name], policies[name] = (
                UnixAddress(f"{directory}/{name.replace(' ', '-')}"),
                words,
            )
        options = [
            f"servers {address} {{\n{wrapper(words)}\n}}"
            for name, address in where.items()
            if (words := policies[name]) is not None
        ]
        sites = [
            f"https://a.test {{\nbind {address}\ntls internal\n}}"
            if isinstance(address, UnixAddress)
            else f"https://a.test:{address.port} {{\ntls internal\n}}"
            for address in where.values()
        ]
        running = caddy.start(directory, "\n".join(sites), options="\n".join(options))
        try:
            address = where["no wrapper"]
            assert isinstance(address, TcpAddress)
            at = Caddy(running.process, running.directory, address.port, running.admin)
            trio.run(caddy.answering, at, ["a.test"])
            yield where
        finally:
            running.stop()


@contextlib.asynccontextmanager
async def server(reply: bytes, *, dribble: bool = False) -> AsyncIterator[TcpAddress]:
    """A server that hears a first byte, and sends this, whatever it heard; then stays."""

    async def serve(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.receive_some()
            for piece in [bytes([x]) for x in reply] if dribble else [reply]:
                await stream.send_all(piece)
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        port = listeners[0].socket.getsockname()[1]
        yield TcpAddress("127.0.0.1", port)
        nursery.cancel_scope.cancel()


async def answer(reply: bytes, question: Question = HELLO, *, dribble: bool = False) -> Answer:
    async with server(reply, dribble=dribble) as address:
        return await ask(address, question, LOCAL_HEADER, answer_timeout=5)


@given(st.from_regex(r"([a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?\.){1,3}[a-z]{2,10}", fullmatch=True))
@example("xn--bcher-kva.example")
@example(".".join(["a" * 63] * 3 + ["a" * 61]))
def test_a_hello_is_read_by_our_own_parser(name: str) -> None:
    verdict = client_hello.peek(by_tls(hostname.from_user(name)).data)
    assert isinstance(verdict, Hello)
    assert (verdict.name, verdict.alpn) == (name, ())


def test_a_hello_without_a_name_has_none() -> None:
    verdict = client_hello.peek(by_tls(None).data)
    assert isinstance(verdict, Hello)
    assert verdict.name is None


def test_a_hello_is_made_once() -> None:
    assert by_tls("once.test").data == by_tls("once.test").data != by_tls("other.test").data


@pytest.mark.parametrize("policy", POLICIES)
async def test_a_caddy_by_the_policy_of_its_wrapper(
    caddys: dict[str, DialAddress], policy: str
) -> None:
    _, understood, served = POLICIES[policy]
    found = await ask_both(caddys[policy], HELLO, answer_timeout=20)
    assert found.with_header == (ServerHello() if understood else HungUp())
    assert found.without == (ServerHello() if served else HungUp())
    assert found.understands is understood
    assert found.requires is (understood and not served)
    assert found.refuses is not understood


@pytest.mark.parametrize("name", [None, "other.test"])
async def test_an_alert_says_the_same_for_a_name_that_is_not_served(
    caddys: dict[str, DialAddress], name: str | None
) -> None:
    alert = Alert(80)
    understands = await ask_both(caddys["allow"], by_tls(name), answer_timeout=20)
    assert understands == ProbeResult(with_header=alert, without=alert)
    refuses = await ask_both(caddys["no wrapper"], by_tls(name), answer_timeout=20)
    assert refuses == ProbeResult(with_header=HungUp(), without=alert)
    assert understands.understands
    assert refuses.refuses


async def test_a_caddy_on_a_unix_socket(caddys: dict[str, DialAddress]) -> None:
    found = await ask_both(caddys["unix"], HELLO, answer_timeout=20)
    assert found == ProbeResult(ServerHello(), ServerHello())
    found = await ask_both(caddys["unix no wrapper"], HELLO, answer_timeout=20)
    assert found == ProbeResult(HungUp(), ServerHello())


async def test_plain_http() -> None:
    need(caddy.missing())
    with caddy.short_directory() as directory:
        log = directory / "access"
        ports = {words: caddy.free_port() for words in (None, "", "fallback_policy require")}
        options = [
            f"servers :{port} {{\n{wrapper(words)}\n}}"
            for words, port in ports.items()
            if words is not None
        ]
        sites = [
            f"http://a.test:{port} {{\nlog {{\noutput file {log}\n}}\nrespond no 404\n}}"
            for port in ports.values()
        ]
        options += ["default_bind"]
        running = caddy.start(directory, "\n".join(sites), options="\n".join(options))
        try:
            found = {}
            for words, port in ports.items():
                address = TcpAddress("127.0.0.1", port)
                await caddy.until(lambda port=port: _listens(port), "Caddy listens")  # type: ignore[misc]
                found[words] = await ask_both(address, by_http("a.test"), answer_timeout=20)
        finally:
            running.stop()
        assert found[None] == ProbeResult(Http(400), Http(200))
        assert found[""] == ProbeResult(Http(200), Http(200))
        assert found["fallback_policy require"] == ProbeResult(Http(200), HungUp())
        assert "OPTIONS" not in log.read_text("utf-8")


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def openssl() -> Iterator[TcpAddress]:
    """`openssl s_server`, which serves one connection at a time."""
    with tempfile.TemporaryDirectory(prefix="snimux-") as directory:
        pem = Path(directory) / "a.pem"
        trustme.CA().issue_cert("a.test").private_key_and_cert_chain_pem.write_to_path(str(pem))
        address = TcpAddress("127.0.0.1", caddy.free_port())
        command = ["openssl", "s_server", "-quiet", "-accept", str(address), "-cert", str(pem)]
        quiet = subprocess.DEVNULL
        # it ends with its standard input
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet
        ) as process:
            yield address
            process.kill()


@pytest.mark.needs(lambda: not shutil.which("openssl"), "needs openssl: apt-get install openssl")
async def test_openssl() -> None:
    with openssl() as address:
        await caddy.until(lambda: _listens(address.port), "openssl listens")
        found = await ask_both(address, HELLO, answer_timeout=20)
    assert found == ProbeResult(with_header=HungUp(), without=ServerHello())


async def test_a_server_that_dribbles() -> None:
    assert await answer(SERVER_HELLO, dribble=True) == ServerHello()
    assert await answer(ALERT + b"\x50", dribble=True) == Alert(80)
    assert await answer(b"HTTP/1.0 204 No", by_http("a.test"), dribble=True) == Http(204)


@pytest.mark.parametrize(
    ("reply", "first"),
    [
        (b"SSH-2.0-OpenSSH_9.2p1 Debian", b"SSH-2.0-OpenSSH_"),
        (b"\x16\x03\x03\x00\x7a\x0e\x00", None),  # ServerHelloDone
        (b"\x16\x02\x03\x00\x7a\x02\x00", None),
        (b"\x15\x03\x03\x00\x1a\x02\x50", None),  # encrypted
        (b"\x15\x03\x03\x01\x02\x02\x50", None),
        (b"\x17\x03\x03\x00\x7a\x02\x00", None),
        (b"HTTP/1.1 400 Bad Request\r\n", b"HTTP/1.1 400 Bad"),
        (b"\0", None),
    ],
)
async def test_garbage_is_no_answer(reply: bytes, first: bytes | None) -> None:
    found = await answer(reply)
    assert found == Other(first or reply)
    assert not is_understood(found)


@given(st.binary(max_size=40))
@example(SERVER_HELLO)
@example(ALERT)
def test_no_bytes_are_read_otherwise_when_they_come_one_by_one(received: bytes) -> None:
    for question in (HELLO, by_http("a.test")):
        found = None
        for end in range(1, len(received) + 1):
            found = question.read(received[:end])
            if found is not None:
                break
        whole = question.read(received) if received else None
        assert type(whole) is type(found)
        assert is_understood(whole) == is_understood(found) if whole and found else True


def test_what_follows_from_both_answers() -> None:
    yes, no, silent = ServerHello(), HungUp(), Silent()
    assert ProbeResult(yes, no).requires
    # there may have been no time for the other answer
    assert not ProbeResult(yes, silent).requires
    assert ProbeResult(no, yes).refuses
    assert not ProbeResult(no, no).refuses
    exhausted = Unreached("Too many open files", exhausted=True)
    assert ProbeResult(silent, exhausted).is_nothing
    assert not ProbeResult(silent, no).is_nothing
    assert not ProbeResult(Unreached("Connection refused"), silent).is_nothing


def test_which_alerts_say_that_a_hello_was_read() -> None:
    assert all(is_understood(Alert(x)) for x in (40, 49, 80, 112, 120))
    assert not any(is_understood(Alert(x)) for x in (0, 10, 22, 47, 50, 70))
    assert is_understood(Http(200))
    assert not any(is_understood(Http(x)) for x in (301, 400, 404, 501))


async def test_a_server_that_hangs_up_or_resets() -> None:
    for how in ("hang up", "reset"):

        async def serve(stream: trio.SocketStream, how: str = how) -> None:
            await stream.receive_some()
            if how == "reset":
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await stream.aclose()

        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, serve, 0)
            address = TcpAddress("127.0.0.1", listeners[0].socket.getsockname()[1])
            found = await ask_both(address, HELLO, answer_timeout=5)
            assert found == ProbeResult(HungUp(), HungUp())
            nursery.cancel_scope.cancel()


async def test_a_server_that_breaks_off_within_an_answer() -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(SERVER_HELLO[:6])
        await stream.send_eof()
        while await stream.receive_some():
            pass

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        address = TcpAddress("127.0.0.1", listeners[0].socket.getsockname()[1])
        assert await ask(address, HELLO, b"", answer_timeout=5) == Other(SERVER_HELLO[:6])
        nursery.cancel_scope.cancel()


async def test_a_silent_server_has_one_deadline(autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.2
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = TcpAddress("127.0.0.1", listener.getsockname()[1])
        started = trio.current_time()
        assert await ask_both(address, HELLO, answer_timeout=3) == ProbeResult(Silent(), Silent())
        assert trio.current_time() - started == 3
    async with server(SERVER_HELLO[:5]) as address:
        assert await ask(address, HELLO, b"", answer_timeout=3) == Other(SERVER_HELLO[:5])


async def test_where_nobody_listens() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = TcpAddress("127.0.0.1", bound.getsockname()[1])
        before = open_descriptors()
        found = await ask_both(address, HELLO)
        assert found.with_header == found.without == Unreached("Connection refused")
        assert open_descriptors() == before


async def test_a_cancelled_question_leaves_no_descriptor() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = TcpAddress("127.0.0.1", listener.getsockname()[1])
        await ask(address, HELLO, b"", answer_timeout=0)
        before = open_descriptors()
        with trio.move_on_after(0.05):
            await ask_both(address, HELLO, answer_timeout=60)
        assert open_descriptors() == before


async def test_a_real_handshake_is_answered_by_a_server_hello() -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("a.test").configure_cert(context)
    async with trio.open_nursery() as nursery:

        async def serve(stream: trio.SSLStream[trio.SocketStream]) -> None:
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.do_handshake()

        listeners = await nursery.start(trio.serve_ssl_over_tcp, serve, 0, context)
        port = listeners[0].transport_listener.socket.getsockname()[1]
        found = await ask(TcpAddress("127.0.0.1", port), HELLO, b"", answer_timeout=20)
        assert found == ServerHello()
        nursery.cancel_scope.cancel()


def test_every_answer_has_its_words() -> None:
    answers: list[Answer] = [
        ServerHello(), Alert(80), Http(400), HungUp(), Silent(), Unreached("why"), Other(b"SSH")
    ]  # fmt: skip
    assert len({str(found) for found in answers}) == len(answers)
    assert all("(" not in str(found) for found in answers)
