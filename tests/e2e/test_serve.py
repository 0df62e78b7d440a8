"""The snimux command, as a process, between real TLS clients and real Caddys.

What a module promises is tested with the module. Here is what only the whole can show: the right
site for each name, byte for byte, whatever the network, the backends or the clients do.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import random
import re
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
import trio

from tests.conftest import BIG, Shared, Sites, need
from tests.support import caddy, muxes
from tests.support.caddy import closed_port, free_port, short_directory, until
from tests.support.muxes import Mux


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


NEEDS_CURL = pytest.mark.needs(lambda: not shutil.which("curl"), "needs curl: apt-get install curl")
NEEDS_IPV6 = pytest.mark.needs(lambda: not has_ipv6(), "needs IPv6 on loopback")

NAMES = ("secure.ciso.com", "dao.ciso.com", "traefik.ciso.com")
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="looks at the process in /proc")

# What Python's ssl calls the alerts that it is sent.
ALERTS = {
    49: "TLSV1_ALERT_ACCESS_DENIED",
    50: "TLSV1_ALERT_DECODE_ERROR",
    80: "TLSV1_ALERT_INTERNAL_ERROR",
    112: "TLSV1_UNRECOGNIZED_NAME",
}

# Linger 0: close sends RST, not FIN.
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@pytest.fixture
def here() -> Iterator[Path]:
    """A directory whose path leaves room for a UNIX socket."""
    with short_directory() as directory:
        yield directory


# --- clients


def trusting(ca_file: Path) -> ssl.SSLContext:
    """A TLS client that trusts this one authority only."""
    return ssl.create_default_context(cafile=ca_file)


async def connect(port: int) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", port)


def own_address(stream: trio.SocketStream) -> str:
    host, port = stream.socket.getsockname()[:2]
    return f"{host}:{port}"


async def secured(
    plain: trio.abc.HalfCloseableStream, name: str | None, context: ssl.SSLContext
) -> trio.SSLStream[trio.abc.HalfCloseableStream]:
    """A connection on which the handshake is done; closed if that fails."""
    tls = trio.SSLStream(plain, context, server_hostname=name, https_compatible=True)
    try:
        await tls.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(plain)
        raise
    return tls


async def ask(tls: trio.abc.Stream, name: str, path: str = "/") -> bytes:
    """The body of the answer to one GET; the connection stays open."""
    await tls.send_all(f"GET {path} HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
    length, body = await answer_head(tls)
    while len(body) < length:
        body += await some(tls)
    return bytes(body)


async def answer_head(tls: trio.abc.Stream) -> tuple[int, bytearray]:
    """The length of the body that is coming, and what of it came with the head."""
    received = bytearray()
    while b"\r\n\r\n" not in received:
        received += await some(tls)
    head, _, body = received.partition(b"\r\n\r\n")
    found = re.search(rb"(?i)^content-length: (\d+)", head, re.MULTILINE)
    assert found, head
    return int(found[1]), body


async def some(stream: trio.abc.Stream) -> bytes:
    data = await stream.receive_some(2**18)
    assert data, "the connection ended before the answer"
    return bytes(data)


async def exactly(stream: trio.abc.Stream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = await stream.receive_some(count - len(data))
        assert more, f"ended after {len(data)} of {count} bytes"
        data += more
    return data


async def everything(stream: trio.abc.Stream) -> bytes:
    """All bytes up to the FIN."""
    return b"".join([bytes(data) async for data in stream])


async def get(port: int, name: str, ca_file: Path, path: str = "/") -> bytes:
    """Ask for a page on a connection of its own."""
    async with await secured(await connect(port), name, trusting(ca_file)) as tls:
        return await ask(tls, name, path)


async def alert_of(
    plain: trio.abc.HalfCloseableStream, name: str | None, context: ssl.SSLContext | None = None
) -> str | None:
    """What Python's ssl calls the alert with which the handshake is refused."""
    if context is None:
        context = ssl.create_default_context()
    if name is None:
        context.check_hostname = False
    async with plain:
        with pytest.raises(trio.BrokenResourceError) as caught:
            await secured(plain, name, context)
    cause = caught.value.__cause__
    assert isinstance(cause, ssl.SSLError), cause
    return cause.reason


def client_hello(name: str, alpn: tuple[str, ...] = ()) -> bytes:
    """The first flight of Python's ssl."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(alpn)
    outgoing = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


# --- backends of the tests' own


def listen(address: tuple[str, int] | str) -> trio.SocketListener:
    if isinstance(address, str):
        Path(address).unlink(missing_ok=True)
        sock = socket.create_server(address, family=socket.AF_UNIX)
    else:
        sock = socket.create_server(address)
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


def backend_of(shared: Shared, kind: str) -> tuple[str, int] | str:
    return shared.tcp if kind == "tcp" else shared.unix


@dataclass(frozen=True, slots=True)
class Pair:
    """The two ends of one connection through the shared snimux, the hello delivered."""

    client: trio.SocketStream
    backend: trio.SocketStream
    address: str
    """The client's, as the log has it."""
    hello: bytes


@contextlib.asynccontextmanager
async def relayed(shared: Shared, kind: str) -> AsyncIterator[Pair]:
    async with (
        listen(backend_of(shared, kind)) as listener,
        await connect(shared.mux.port) as client,
    ):
        hello = client_hello(f"{kind}.test")
        await client.send_all(hello)
        async with await listener.accept() as backend:
            assert await exactly(backend, len(hello)) == hello
            yield Pair(client, backend, own_address(client), hello)


async def line_of(mux: Mux, client: str) -> muxes.Line:
    return await mux.log_line(event="connection", client=client)


EACH_BACKEND = pytest.mark.parametrize("kind", ["tcp", "unix"])


# --- the right site


@pytest.mark.parametrize("http", ["HTTP/1.1", "HTTP/2"])
@pytest.mark.parametrize("name", NAMES)
async def test_each_name_has_its_own_body_and_certificate(
    sites: Sites, shared: Shared, name: str, http: str
) -> None:
    async with httpx.AsyncClient(
        verify=trusting(sites.of(name).root), http2=http == "HTTP/2", trust_env=False
    ) as client:
        response = await client.get(
            f"https://127.0.0.1:{shared.mux.port}/",
            headers={"Host": name},
            extensions={"sni_hostname": name},
        )
        stream = response.extensions["network_stream"]
        certificate = stream.get_extra_info("ssl_object").getpeercert()
    assert response.http_version == http
    assert response.text == f"{name} {http if http == 'HTTP/1.1' else 'HTTP/2.0'}"
    assert certificate["subjectAltName"] == (("DNS", name),)


@pytest.mark.parametrize("name", NAMES)
async def test_the_certificate_is_not_the_other_caddys(
    sites: Sites, shared: Shared, name: str
) -> None:
    other = sites.others if sites.of(name) is sites.secure else sites.secure
    plain = await connect(shared.mux.port)
    assert await alert_of(plain, name, trusting(other.root)) == "CERTIFICATE_VERIFY_FAILED"


async def test_the_log_line_says_all(sites: Sites, shared: Shared) -> None:
    plain = await connect(shared.mux.port)
    client = own_address(plain)
    context = trusting(sites.others.root)
    context.set_alpn_protocols(["http/1.1"])
    async with await secured(plain, "DAO.ciso.com", context) as tls:
        await ask(tls, "dao.ciso.com")
    line = await line_of(shared.mux, client)
    assert line["name"] == line["route"] == "dao.ciso.com"
    assert line["alpn"] == "http/1.1"
    assert line["backend"] == f"127.0.0.1:{sites.others.port}"
    # Caddy answers the close_notify with its own, to a client that has gone.
    assert line["ended"] in ("eof", "client-reset")
    assert line["up"] > 300
    assert line["down"] > 300
    assert line["level"] == "info"
    assert 0 <= line["seconds"] < 60
    assert len(shared.mux.lines(client=client)) == 1


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("name", ["unknown.example", "x.secure.ciso.com", None])
async def test_an_unknown_name_and_none_are_refused_with_unrecognized_name(
    shared: Shared, name: str | None, version: ssl.TLSVersion
) -> None:
    context = ssl.create_default_context()
    context.minimum_version = context.maximum_version = version
    plain = await connect(shared.mux.port)
    client = own_address(plain)
    assert await alert_of(plain, name, context) == ALERTS[112]
    line = await line_of(shared.mux, client)
    assert (line["ended"], line["reason"]) == ("refused", "no-route")
    assert line.get("name") == name


async def test_unknown_names_and_none_go_to_the_default(sites: Sites, here: Path) -> None:
    secure, others = f"127.0.0.1:{sites.secure.port}", f"127.0.0.1:{sites.others.port}"
    async with (
        muxes.running(here, f"--route=secure.ciso.com={secure}", f"--default={others}") as one,
        muxes.running(here, f"--route=dao.ciso.com={others}", f"--default={secure}") as two,
    ):
        body = await get(one.port, "traefik.ciso.com", sites.others.root)
        assert body == b"traefik.ciso.com HTTP/1.1"
        context = trusting(sites.secure.root)
        context.check_hostname = False
        async with await secured(await connect(two.port), None, context) as tls:
            assert await ask(tls, "secure.ciso.com") == b"secure.ciso.com HTTP/1.1"
        line = await two.log_line(event="connection")
        assert "name" not in line
        assert line["route"] == "*"


async def test_caddy_behind_a_unix_socket(sites: Sites, here: Path) -> None:
    async with muxes.running(here, f"--route=secure.ciso.com=unix/{sites.socket}") as mux:
        body = await get(mux.port, "secure.ciso.com", sites.secure.root)
        assert body == b"secure.ciso.com HTTP/1.1"
        assert (await mux.log_line(event="connection"))["backend"] == f"unix/{sites.socket}"


async def test_listening_on_a_unix_socket(sites: Sites, here: Path) -> None:
    path = here / "listen"
    async with muxes.running(here, *sites.routes, listen=f"unix/{path}") as mux:
        plain = await trio.open_unix_socket(path)
        async with await secured(plain, "dao.ciso.com", trusting(sites.others.root)) as tls:
            assert await ask(tls, "dao.ciso.com") == b"dao.ciso.com HTTP/1.1"
        assert (await mux.log_line(event="connection"))["client"] == "unix"
        mux.send_signal()
        assert await mux.exit_status() == 0
        assert not path.exists()


# --- hellos, however they come


def records_of_one_byte(flight: bytes) -> bytes:
    return b"".join(b"\x16\3\1\0\1" + flight[at : at + 1] for at in range(5, len(flight)))


@pytest.mark.parametrize(
    ("recut", "segment"),
    [(bytes, 1), (records_of_one_byte, 2**16), (records_of_one_byte, 7)],
    ids=["one-byte segments", "one-byte records", "both cut small"],
)
async def test_a_hello_in_many_pieces_reaches_its_caddy(
    sites: Sites, shared: Shared, recut: Callable[[bytes], bytes], segment: int
) -> None:
    async with await connect(shared.mux.port) as plain:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = trusting(sites.others.root).wrap_bio(
            incoming, outgoing, server_hostname="dao.ciso.com"
        )
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        flight = recut(outgoing.read())
        for at in range(0, len(flight), segment):
            await plain.send_all(flight[at : at + segment])
            await trio.lowlevel.checkpoint()
        while not tls.version() or not tls.getpeercert():
            incoming.write(await some(plain))
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.do_handshake()
        assert tls.getpeercert()["subjectAltName"] == (("DNS", "dao.ciso.com"),)  # type: ignore[index]


async def test_bytes_behind_the_hello_arrive_at_once_and_in_order(shared: Shared) -> None:
    hello, behind = client_hello("tcp.test"), random.Random(1).randbytes(100_000)
    async with (
        listen(shared.tcp) as listener,
        await connect(shared.mux.port) as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(client.send_all, hello + behind)
        async with await listener.accept() as backend:
            assert await exactly(backend, len(hello) + len(behind)) == hello + behind


async def test_a_large_hello_is_refused_unless_allowed(sites: Sites, here: Path) -> None:
    context = trusting(sites.others.root)
    context.set_alpn_protocols([f"{number:0200}" for number in range(100)] + ["http/1.1"])
    async with muxes.running(here, *sites.routes, "--max-hello=65536") as allowed:
        plain = await connect(allowed.port)
        async with await secured(plain, "dao.ciso.com", context) as tls:
            assert await ask(tls, "dao.ciso.com") == b"dao.ciso.com HTTP/1.1"
    async with muxes.running(here, *sites.routes) as mux:
        assert await alert_of(await connect(mux.port), "dao.ciso.com", context) == ALERTS[50]
        line = await mux.log_line(event="connection")
        assert line["reason"] == "hello-too-large"
        assert (line["up"], line["down"]) == (0, 0)


# --- the relay


async def curl(
    port: int, sites: Sites, into: Callable[[bytes | bytearray], object], *args: str
) -> None:
    """Run curl, which is to succeed; what it prints goes `into` bit by bit."""
    resolve = ["--cacert", str(sites.secure.root), "--resolve", f"*:{port}:127.0.0.1"]
    process = await trio.lowlevel.open_process(
        ["curl", "--disable", "--silent", "--show-error", "--noproxy", "*", *resolve, *args],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        async with process.stdout:
            async for data in process.stdout:
                into(data)
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@NEEDS_CURL
async def test_200_megabytes_down(sites: Sites, shared: Shared) -> None:
    found = hashlib.sha256()
    url = f"https://secure.ciso.com:{shared.mux.port}/files/big"
    await curl(shared.mux.port, sites, found.update, url)
    assert found.hexdigest() == file_hash(sites.big)


@NEEDS_CURL
async def test_200_megabytes_up(sites: Sites, shared: Shared) -> None:
    printed = bytearray()
    upload = ["--http1.1", "--header", "Expect:", "--upload-file", str(sites.big)]
    url = f"https://secure.ciso.com:{shared.mux.port}/up"
    async with listen(str(sites.up)) as listener, trio.open_nursery() as nursery:
        nursery.start_soon(answer_with_hash, listener)
        await curl(shared.mux.port, sites, printed.extend, *upload, url)
    assert printed.decode() == file_hash(sites.big)


async def answer_with_hash(listener: trio.SocketListener) -> None:
    """An HTTP server for one request, which it answers with the hash of the body."""
    async with await listener.accept() as stream:
        length, body = await answer_head(stream)
        found, rest = hashlib.sha256(body), length - len(body)
        while rest:
            data = await some(stream)
            found.update(data)
            rest -= len(data)
        text = found.hexdigest()
        await stream.send_all(
            f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()
        )


async def test_the_whole_answer_arrives_after_the_clients_half_close(
    sites: Sites, shared: Shared
) -> None:
    plain = await connect(shared.mux.port)
    context = trusting(sites.secure.root)
    async with await secured(plain, "secure.ciso.com", context) as tls:
        request = (
            b"GET /files/big HTTP/1.1\r\nHost: secure.ciso.com\r\nRange: bytes=0-19999999\r\n\r\n"
        )
        await tls.send_all(request)
        await plain.send_eof()
        length, body = await answer_head(tls)
        while len(body) < length:
            body += await some(tls)
    with sites.big.open("rb") as file:
        assert body == file.read(20_000_000)


@EACH_BACKEND
async def test_after_the_clients_fin_the_backend_goes_on(shared: Shared, kind: str) -> None:
    request, answer = b"the request", random.Random(2).randbytes(3_000_000)
    async with relayed(shared, kind) as pair, trio.open_nursery() as nursery:
        nursery.start_soon(send_and_finish, pair.client, request)
        assert await everything(pair.backend) == request
        nursery.start_soon(send_and_finish, pair.backend, answer)
        assert await everything(pair.client) == answer
    line = await line_of(shared.mux, pair.address)
    assert line["ended"] == "eof"
    assert (line["up"], line["down"]) == (len(pair.hello) + len(request), len(answer))


@EACH_BACKEND
async def test_after_the_backends_fin_the_client_goes_on(shared: Shared, kind: str) -> None:
    request, answer = random.Random(3).randbytes(3_000_000), b"the answer"
    async with relayed(shared, kind) as pair, trio.open_nursery() as nursery:
        nursery.start_soon(send_and_finish, pair.backend, answer)
        assert await everything(pair.client) == answer
        nursery.start_soon(send_and_finish, pair.client, request)
        assert await everything(pair.backend) == request
    line = await line_of(shared.mux, pair.address)
    assert line["ended"] == "eof"
    assert (line["up"], line["down"]) == (len(pair.hello) + len(request), len(answer))


async def send_and_finish(stream: trio.SocketStream, data: bytes) -> None:
    await stream.send_all(data)
    await stream.send_eof()


@pytest.mark.parametrize("resetting", ["client", "backend"])
async def test_a_reset_is_passed_on_behind_what_was_sent_before(
    shared: Shared, resetting: str
) -> None:
    data = random.Random(4).randbytes(200_000)
    async with relayed(shared, "tcp") as pair:
        here, there = pair.client, pair.backend
        if resetting == "backend":
            here, there = there, here
        await here.send_all(data)
        # a reset drops what its sender's own kernel still has; from there on it is snimux's
        await until(lambda: not unsent(here), "snimux has it all")
        here.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        await here.aclose()
        assert await exactly(there, len(data)) == data
        with pytest.raises(trio.BrokenResourceError) as caught:
            await there.receive_some()
        assert isinstance(caught.value.__cause__, ConnectionResetError)
    line = await line_of(shared.mux, pair.address)
    assert line["ended"] == f"{resetting}-reset"


def unsent(stream: trio.SocketStream) -> int:
    """Bytes that the peer's kernel has not acknowledged."""
    answer = fcntl.ioctl(stream.socket.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
    return int.from_bytes(answer, sys.byteorder)


@ON_LINUX
@EACH_BACKEND
async def test_a_slow_reader_costs_a_bounded_amount_of_memory(shared: Shared, kind: str) -> None:
    async with relayed(shared, kind) as pair:
        before, sent, chunk = shared.mux.resident, 0, bytes(2**20)
        # nobody reads: it has to come to a halt, long before this is all sent
        with trio.move_on_after(1) as stuck:
            while sent < 200 * 2**20:
                await pair.backend.send_all(chunk)
                sent += len(chunk)
                stuck.deadline = trio.current_time() + 1
        assert stuck.cancelled_caught
        assert shared.mux.resident - before < 4 * 2**20


async def test_an_idle_connection_is_ended(sites: Sites, here: Path) -> None:
    async with muxes.running(here, *sites.routes, "--idle-timeout=0.3") as mux:
        context = trusting(sites.others.root)
        async with await secured(await connect(mux.port), "dao.ciso.com", context) as tls:
            assert await ask(tls, "dao.ciso.com") == b"dao.ciso.com HTTP/1.1"
            assert await tls.receive_some() == b""
        assert (await mux.log_line(event="connection"))["ended"] == "idle"


# --- backends that fail


async def test_a_backend_that_is_down_costs_an_alert(shared: Shared) -> None:
    plain = await connect(shared.mux.port)
    client = own_address(plain)
    with trio.fail_after(3):  # less than the deadline for dialling: it was refused
        assert await alert_of(plain, "down.test") == ALERTS[80]
    line = await line_of(shared.mux, client)
    assert (line["ended"], line["reason"]) == ("refused", "backend-down")
    assert line["level"] == "warning"
    assert "refused" in line["detail"]


async def test_a_backend_that_does_not_answer_costs_an_alert(here: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as stack:
        # Linux drops the SYN once the queue is full; elsewhere this fails by being refused
        address = full.getsockname()
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(address)
        flags = f"--route=full.test=127.0.0.1:{address[1]}", "--dial-timeout=0.5", "--wait=0.5"
        async with muxes.running(here, *flags) as mux:
            assert await alert_of(await connect(mux.port), "full.test") == ALERTS[80]
            line = await mux.log_line(event="connection")
            assert line["reason"] == "backend-down"


async def test_the_second_address_answers_when_the_first_is_down(sites: Sites, here: Path) -> None:
    down, good = f"127.0.0.1:{closed_port()}", f"127.0.0.1:{sites.others.port}"
    async with muxes.running(here, f"--route=dao.ciso.com={down},{good}") as mux:
        body = await get(mux.port, "dao.ciso.com", sites.others.root)
        assert body == b"dao.ciso.com HTTP/1.1"
        assert (await mux.log_line(event="connection"))["backend"] == good


@pytest.mark.parametrize("address", ["localhost", "127.0.0.1"])
async def test_a_backend_may_have_a_name(sites: Sites, here: Path, address: str) -> None:
    to = f"{address}:{sites.others.port}"
    async with muxes.running(here, f"--route=dao.ciso.com={to}") as mux:
        body = await get(mux.port, "dao.ciso.com", sites.others.root)
        assert body == b"dao.ciso.com HTTP/1.1"
        assert (await mux.log_line(event="connection"))["backend"] == to


async def test_a_backend_killed_midway_ends_its_connections_only(sites: Sites, here: Path) -> None:
    site = f"killed.test {{\n tls internal\n root {sites.big.parent}\n file_server\n}}"
    killed = caddy.start(here, site)
    try:
        await caddy.answering(killed, ["killed.test"])
        flag = f"--route=killed.test=127.0.0.1:{killed.port}"
        async with muxes.running(here, *sites.routes, flag, "--wait=0.5") as mux:
            await kill_midway(sites, mux, killed)
    finally:
        killed.kill()


async def kill_midway(sites: Sites, mux: Mux, killed: caddy.Caddy) -> None:
    plain, other = await connect(mux.port), await connect(mux.port)
    client = own_address(plain)
    async with (
        await secured(other, "dao.ciso.com", trusting(sites.others.root)) as unaffected,
        await secured(plain, "killed.test", trusting(killed.root)) as tls,
    ):
        await tls.send_all(b"GET /big HTTP/1.1\r\nHost: killed.test\r\n\r\n")
        length, body = await answer_head(tls)
        received = len(body)
        killed.kill()
        with contextlib.suppress(trio.BrokenResourceError):
            while data := await tls.receive_some(2**18):
                received += len(data)
        assert received < length == BIG
        assert await ask(unaffected, "dao.ciso.com") == b"dao.ciso.com HTTP/1.1"
    line = await line_of(mux, client)
    assert line["ended"] in ("backend-reset", "eof")
    assert line["down"] < BIG
    assert await alert_of(await connect(mux.port), "killed.test") == ALERTS[80]


@ON_LINUX
async def test_clients_that_vanish_anywhere_leave_nothing_behind(sites: Sites, here: Path) -> None:
    hello = client_hello("dao.ciso.com")
    ends = (b"", hello[:3], hello[:100], hello, hello + b"\x16", client_hello("unknown.example"))
    async with muxes.running(here, *sites.routes) as mux:
        await get(mux.port, "dao.ciso.com", sites.others.root)
        await mux.log_line(event="connection")
        before = mux.descriptors
        for sent in ends * 20:
            stream = await connect(mux.port)
            await stream.send_all(sent)
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            await stream.aclose()
        body = await get(mux.port, "dao.ciso.com", sites.others.root)
        assert body == b"dao.ciso.com HTTP/1.1"
        await until(lambda: mux.descriptors == before, "nothing is left open")


# --- the PROXY protocol


@pytest.fixture
def caddy_is_there() -> None:
    need(caddy.missing())


@pytest.fixture
async def telling(caddy_is_there: None, here: Path) -> AsyncIterator[caddy.Caddy]:
    """A Caddy that understands the PROXY protocol, and says who its client is."""
    options = (
        "servers {\n listener_wrappers {\n"
        "proxy_protocol {\n allow 127.0.0.1/32\n timeout 5s\n}\n tls\n}\n}"
    )
    answer = 'respond "{http.request.remote.host} {http.request.remote.port}"'
    site = f"who.test {{\n bind 127.0.0.1 unix/{here}/https\n tls internal\n {answer}\n}}"
    started = caddy.start(here, site, options=options)
    try:
        await caddy.answering(started, ["who.test"])
        yield started
    finally:
        started.stop()


@pytest.mark.parametrize("backend", ["tcp", "unix"])
@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=NEEDS_IPV6)])
@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_caddy_is_told_who_the_client_is(
    telling: caddy.Caddy, here: Path, version: str, host: str, backend: str
) -> None:
    to = f"127.0.0.1:{telling.port}" if backend == "tcp" else f"unix/{here}/https"
    flags = f"--route=who.test={to}", f"--proxy-protocol={version}"
    numeric = f"[{host}]:0" if ":" in host else f"{host}:0"
    async with muxes.running(here, *flags, listen=numeric) as mux:
        plain = await trio.open_tcp_stream(host, mux.port)
        own_host, own_port = plain.socket.getsockname()[:2]
        async with await secured(plain, "who.test", trusting(telling.root)) as tls:
            answer = await ask(tls, "who.test")
    assert answer.decode() == f"{own_host} {own_port}"


@pytest.mark.parametrize("backend", ["tcp", "unix"])
@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_a_client_without_an_address_is_served_too(
    telling: caddy.Caddy, here: Path, version: str, backend: str
) -> None:
    to = f"127.0.0.1:{telling.port}" if backend == "tcp" else f"unix/{here}/https"
    flags = f"--route=who.test={to}", f"--proxy-protocol={version}"
    async with muxes.running(here, *flags, listen=f"unix/{here}/listen"):
        plain = await trio.open_unix_socket(here / "listen")
        async with await secured(plain, "who.test", trusting(telling.root)) as tls:
            answer = (await ask(tls, "who.test")).decode()
    # what Caddy knows itself: snimux
    assert answer.startswith("127.0.0.1 ") if backend == "tcp" else "." not in answer


# --- many, and hostile


async def test_500_connections_at_once(sites: Sites, shared: Shared) -> None:
    ready, go = 0, trio.Event()
    answers: list[tuple[str, bytes]] = []
    contexts = {name: trusting(sites.of(name).root) for name in NAMES}

    async def one(name: str) -> None:
        nonlocal ready
        plain = await connect(shared.mux.port)
        async with await secured(plain, name, contexts[name]) as tls:
            ready += 1
            await go.wait()
            answers.append((name, await ask(tls, name)))

    async with trio.open_nursery() as nursery:
        for number in range(500):
            nursery.start_soon(one, NAMES[number % 3])
        await until(lambda: ready == 500, "500 connections are open", seconds=60)
        go.set()
    assert len(answers) == 500
    assert all(body == f"{name} HTTP/1.1".encode() for name, body in answers)


@ON_LINUX
async def test_1000_stalled_hellos_hinder_nobody_and_are_ended(sites: Sites, here: Path) -> None:
    async with muxes.running(here, *sites.routes, "--hello-timeout=4") as mux:
        await get(mux.port, "dao.ciso.com", sites.others.root)
        await mux.log_line(event="connection", name="dao.ciso.com")
        before = mux.descriptors
        async with contextlib.AsyncExitStack() as stack:
            await stall(mux, stack, 1000)
            await until(lambda: mux.descriptors == before + 1000, "1000 are open")
            for _ in range(50):
                body = await get(mux.port, "dao.ciso.com", sites.others.root)
                assert body == b"dao.ciso.com HTTP/1.1"
            assert mux.descriptors >= before + 1000
            # they do not close by themselves
            await until(lambda: mux.descriptors == before, "all are closed", seconds=20)
        assert len(mux.lines(reason="hello-timeout")) == 1000


def with_name(name: bytes) -> bytes:
    """A hello with a server name that no TLS library would send."""
    usual = b"a" * len(name)
    hello = client_hello(usual.decode())
    assert hello.count(usual) == 1
    return hello.replace(usual, name)


HOSTILE = {
    "nothing": (b"", b"", "no-bytes"),
    "HTTP": (b"GET / HTTP/1.1\r\nHost: dao.ciso.com\r\n\r\n", b"", "http"),
    "SSH": (b"SSH-2.0-OpenSSH_9.2\r\n", b"", "ssh"),
    "SSLv2": (b"\x80\x2e\1\0\2\0\x15\0\0\0\x10" + bytes(37), b"", "sslv2"),
    "PROXY": (b"PROXY TCP4 1.2.3.4 5.6.7.8 9 443\r\n", b"", "proxy-protocol"),
    "zeros": (bytes(100), b"", "noise"),
    "alert": (b"\x15\3\1\0\2\2\x28", 10, "unexpected-message"),
    "server hello": (b"\x16\3\3\0\4\2\0\0\0", 10, "unexpected-message"),
    "huge message": (b"\x16\3\1\x40\0\1\xff\xff\xff", 50, "hello-too-large"),
    "huge record": (b"\x16\3\1\xff\xff", 22, "record-overflow"),
    "record of a byte too many": (b"\x16\3\1\x40\x01", 22, "record-overflow"),
    "empty record": (b"\x16\3\1\0\0", 50, "malformed-hello"),
    "half a hello": (client_hello("dao.ciso.com")[:100], 50, "hello-cut-short"),
    "NUL in the name": (with_name(b"dao\0iso.com"), 50, "bad-server-name"),
    "address as name": (with_name(b"127.0.0.1"), 50, "bad-server-name"),
}


async def test_hostile_bytes_get_their_refusal(sites: Sites, here: Path) -> None:
    async with muxes.running(here, *sites.routes, "--log-level=debug") as mux:
        for what, (data, alert, reason) in HOSTILE.items():
            client, farewell = await farewell_to(mux, data)
            wanted = bytes([21, 3, 1, 0, 2, 2, alert]) if isinstance(alert, int) else b""
            assert farewell == wanted, what
            line = await line_of(mux, client)
            assert (line["ended"], line["reason"]) == ("refused", reason), what
        randomness = random.Random(5)
        for size in range(100):
            client, farewell = await farewell_to(mux, randomness.randbytes(size * 10))
            assert farewell == b"" or farewell[:6] == b"\x15\3\1\0\2\2"
            assert (await line_of(mux, client))["ended"] == "refused"
        body = await get(mux.port, "dao.ciso.com", sites.others.root)
        assert body == b"dao.ciso.com HTTP/1.1"
        mux.send_signal()
        assert await mux.exit_status() == 0
        summary = mux.lines(event="scanners")[0]
        assert summary["http"] >= 1
        assert summary["noise"] >= 1


async def farewell_to(mux: Mux, data: bytes) -> tuple[str, bytes]:
    """Who sent the bytes and then FIN, and all that came back until snimux's FIN."""
    async with await connect(mux.port) as stream:
        await stream.send_all(data)
        await stream.send_eof()
        return own_address(stream), await everything(stream)


async def test_an_alert_is_not_lost_to_a_reset(shared: Shared) -> None:
    # a client that goes on sending while it is refused, more than the kernel's buffers need hold,
    # and reads only then
    async with await connect(shared.mux.port) as stream:
        await stream.send_all(client_hello("unknown.example") + bytes(1_000_000))
        assert await everything(stream) == bytes([21, 3, 1, 0, 2, 2, 112])


async def test_scanners_are_quiet_at_the_default_level(shared: Shared) -> None:
    client, _ = await farewell_to(shared.mux, b"GET / HTTP/1.0\r\n\r\n")
    later, _ = await farewell_to(shared.mux, client_hello("unknown.example"))
    await line_of(shared.mux, later)
    assert not shared.mux.lines(client=client)


async def test_a_log_that_nobody_reads_any_more_stops_nobody(sites: Sites) -> None:
    flags = ["--listen=127.0.0.1:0", "--log-level=debug", *sites.routes]
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "snimux", *flags], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        async with process.stderr:
            # a supervisor's pipe, not closed but full: it has 64 KiB, and a line 130 bytes
            found, printed = None, b""
            while found is None:
                printed += await process.stderr.receive_some()
                found = re.search(rb"address=127.0.0.1:(\d+)", printed)
            with trio.fail_after(10):
                for _ in range(700):
                    async with await connect(int(found[1])) as stream:
                        await stream.send_all(b"SSH-2.0-probe\r\n")
                        assert await everything(stream) == b""
                body = await get(int(found[1]), "dao.ciso.com", sites.others.root)
            assert body == b"dao.ciso.com HTTP/1.1"
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


# --- limits


async def test_at_the_limit_the_next_client_waits_for_room(sites: Sites, here: Path) -> None:
    context = trusting(sites.others.root)
    async with (
        muxes.running(here, *sites.routes, "--max-connections=3") as mux,
        contextlib.AsyncExitStack() as stack,
    ):
        idle = [
            await stack.enter_async_context(
                await secured(await connect(mux.port), "dao.ciso.com", context)
            )
            for _ in range(3)
        ]
        answers: list[bytes] = []

        async def wait_for_room() -> None:
            answers.append(await get(mux.port, "traefik.ciso.com", sites.others.root))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_for_room)
            await mux.log_line(event="full", max_connections=3)
            # those that are open go on
            for tls in idle:
                assert await ask(tls, "dao.ciso.com") == b"dao.ciso.com HTTP/1.1"
            assert not answers
            await idle[0].aclose()
        assert answers == [b"traefik.ciso.com HTTP/1.1"]


async def test_at_the_limit_it_stops_when_told_to(sites: Sites, here: Path) -> None:
    flags = "--max-connections=1", "--drain=off"
    async with muxes.running(here, *sites.routes, *flags) as mux:
        tls, body = await start_download(sites, mux)
        async with tls, await connect(mux.port) as waiting:
            await mux.log_line(event="full")
            mux.send_signal()
            await mux.log_line(event="draining", connections=1)
            while len(body) < PART:
                body += await some(tls)
            # it was never accepted
            with pytest.raises(trio.BrokenResourceError):
                await waiting.receive_some()
        assert await mux.exit_status() == 0


async def test_one_source_has_no_more_than_its_share(sites: Sites, here: Path) -> None:
    context = trusting(sites.others.root)
    flag = "--max-connections-per-source=2"
    async with muxes.running(here, *sites.routes, flag, listen="127.0.0.1:0") as mux:
        plain = await connect(mux.port)
        gone = own_address(plain)
        async with (
            await secured(plain, "dao.ciso.com", context) as first,
            await secured(await connect(mux.port), "dao.ciso.com", context) as second,
        ):
            refused = await connect(mux.port)
            client = own_address(refused)
            assert await alert_of(refused, "dao.ciso.com") == ALERTS[49]
            assert (await line_of(mux, client))["reason"] == "too-many-from-source"
            await first.aclose()
            await line_of(mux, gone)
            body = await get(mux.port, "dao.ciso.com", sites.others.root)
            assert body == b"dao.ciso.com HTTP/1.1"
            assert await ask(second, "dao.ciso.com") == b"dao.ciso.com HTTP/1.1"


async def test_who_was_refused_does_not_use_up_the_share(sites: Sites, here: Path) -> None:
    flag = "--max-connections-per-source=1"
    async with muxes.running(here, *sites.routes, flag) as mux:
        async with await connect(mux.port) as first:
            gone = own_address(first)
            await first.send_all(client_hello("dao.ciso.com"))
            refused = await connect(mux.port)
            # and it does not close, although it was told
            assert await everything(refused) == bytes([21, 3, 1, 0, 2, 2, 49])
        async with refused:
            await line_of(mux, gone)
            body = await get(mux.port, "dao.ciso.com", sites.others.root)
            assert body == b"dao.ciso.com HTTP/1.1"


FEW_DESCRIPTORS = (
    "import os, resource, sys; "
    "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)


@ON_LINUX
async def test_out_of_descriptors_it_backs_off_and_recovers(sites: Sites, here: Path) -> None:
    flags = "--max-connections=1000", "--hello-timeout=60"
    wrapper = [sys.executable, "-c", FEW_DESCRIPTORS]
    async with muxes.running(here, *sites.routes, *flags, wrapper=wrapper) as mux:
        assert mux.lines(event="few-descriptors", level="warning", max_connections=1000)
        async with contextlib.AsyncExitStack() as stack:
            await stall(mux, stack, 100)
            line = await mux.log_line(event="accept-failed")
            assert line["detail"] == os.strerror(errno.EMFILE)
            used = mux.cpu_seconds
            await trio.sleep(1)
            assert mux.cpu_seconds - used < 0.5
            assert len(mux.lines(event="accept-failed")) == 1
        body = await get(mux.port, "dao.ciso.com", sites.others.root)
        assert body == b"dao.ciso.com HTTP/1.1"


@ON_LINUX
async def test_out_of_descriptors_is_said_once_while_it_lasts(sites: Sites, here: Path) -> None:
    flags = "--max-connections=1000", "--hello-timeout=60"
    wrapper = [sys.executable, "-c", FEW_DESCRIPTORS]
    async with (
        muxes.running(here, *sites.routes, *flags, wrapper=wrapper) as mux,
        contextlib.AsyncExitStack() as stack,
    ):
        stalled = await stall(mux, stack, 100)
        await mux.log_line(event="accept-failed")
        # one goes, the next in the queue is accepted, and it is as it was: that is no news
        for stream in stalled[:5]:
            client = own_address(stream)
            await stream.aclose()
            await line_of(mux, client)
            await trio.sleep(0.2)
        assert len(mux.lines(event="accept-failed")) == 1


@ON_LINUX
@pytest.mark.parametrize("address", ["127.0.0.1", "localhost"])
async def test_out_of_descriptors_to_dial_with_is_no_fault_of_the_backend(
    sites: Sites, here: Path, address: str
) -> None:
    flags = f"--route=dao.ciso.com={address}:{sites.others.port}", "--max-connections=1000"
    wrapper = [sys.executable, "-c", FEW_DESCRIPTORS]
    async with (
        muxes.running(here, *flags, wrapper=wrapper) as mux,
        contextlib.AsyncExitStack() as stack,
    ):
        first = (await stall(mux, stack, 100))[0]
        await mux.log_line(event="accept-failed")
        client = own_address(first)
        await first.send_all(client_hello("dao.ciso.com")[10:])
        assert await everything(first) == bytes([21, 3, 1, 0, 2, 2, 80])
        await first.aclose()
        line = await line_of(mux, client)
        assert (line["reason"], line["level"]) == ("out-of-resources", "warning")


async def stall(mux: Mux, stack: contextlib.AsyncExitStack, count: int) -> list[trio.SocketStream]:
    """Connections on which no more than the start of a hello has come, until the stack ends."""
    start = client_hello("dao.ciso.com")[:10]
    stalled = [await stack.enter_async_context(await connect(mux.port)) for _ in range(count)]
    for stream in stalled:
        await stream.send_all(start)
    return stalled


# --- life


BOTH_SIGNALS = pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"]
)
PART = 20_000_000  # bytes: more than all buffers on the way can hold


@BOTH_SIGNALS
async def test_downloads_finish_in_the_drain(sites: Sites, here: Path, number: int) -> None:
    with sites.big.open("rb") as file:
        wanted = hashlib.sha256(file.read(PART)).digest()
    async with muxes.running(here, *sites.routes) as mux:
        started, stopping, whole = 0, trio.Event(), 0

        async def download() -> None:
            nonlocal started, whole
            tls, body = await start_download(sites, mux)
            async with tls:
                started += 1
                await stopping.wait()
                while len(body) < PART:
                    body += await some(tls)
            assert hashlib.sha256(body).digest() == wanted
            whole += 1

        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(download)
            await until(lambda: started == 6, "downloads run")
            mux.send_signal(number)
            assert (await mux.log_line(event="draining"))["connections"] == 6
            with trio.socket.socket() as late, pytest.raises(ConnectionRefusedError):
                await late.connect(("127.0.0.1", mux.port))
            stopping.set()
        assert whole == 6
        assert await mux.exit_status() == 0
        ends = [line["ended"] for line in mux.lines(event="connection")]
        assert len(ends) == 6
        assert set(ends) <= {"eof", "client-reset"}
        assert mux.lines(event="stopped")


async def start_download(
    sites: Sites, mux: Mux
) -> tuple[trio.SSLStream[trio.abc.HalfCloseableStream], bytearray]:
    """A connection on which the answer has begun, and what of the body has come."""
    tls = await secured(await connect(mux.port), "secure.ciso.com", trusting(sites.secure.root))
    await tls.send_all(
        b"GET /files/big HTTP/1.1\r\nHost: secure.ciso.com\r\n"
        b"Range: bytes=0-%d\r\n\r\n" % (PART - 1)
    )
    length, body = await answer_head(tls)
    assert length == PART
    return tls, body


@BOTH_SIGNALS
async def test_a_second_signal_closes_at_once(sites: Sites, here: Path, number: int) -> None:
    async with muxes.running(here, *sites.routes, "--drain=off") as mux:
        tls, body = await start_download(sites, mux)
        async with tls:
            mux.send_signal(number)
            await mux.log_line(event="draining", seconds="off")
            mux.send_signal(number)
            assert await mux.exit_status() == 0
            assert await received_until_the_end(tls, body) < PART
        assert len(mux.lines(event="connection", ended="shutdown")) == 1


async def received_until_the_end(tls: trio.abc.Stream, body: bytearray) -> int:
    received = len(body)
    with contextlib.suppress(trio.BrokenResourceError):
        while data := await tls.receive_some(2**18):
            received += len(data)
    return received


@pytest.mark.parametrize("gap", [0, 0.001, 0.005, 0.02, 0.05])
async def test_signals_in_a_row_are_a_good_end_whenever_they_come(
    sites: Sites, here: Path, gap: float
) -> None:
    """A terminal's Ctrl-C comes twice where a parent passes it on: the second one near the end."""
    async with muxes.running(here, *sites.routes) as mux:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(ProcessLookupError):
                mux.send_signal(number)
            await trio.sleep(gap)
        assert await mux.exit_status() == 0
        assert mux.lines(event="stopped")


async def test_without_standard_error_it_serves_all_the_same(sites: Sites, here: Path) -> None:
    path = here / "no-stderr"
    closed = ["sh", "-c", 'exec "$@" 2>&-', "sh"]
    mux = muxes.start(here / "log", *sites.routes, listen=f"unix/{path}", wrapper=closed)
    with trio.fail_after(10):
        while not path.exists():
            await trio.sleep(0.01)
    with trio.socket.socket(socket.AF_UNIX) as client:
        await client.connect(str(path))
        await client.send(b"\x16\x03\x01\0\0")
        assert await client.recv(100) == bytes.fromhex("15030100020232")
    mux.send_signal()
    assert await mux.exit_status() == 0
    assert not path.exists()


async def test_the_drain_has_a_deadline(sites: Sites, here: Path) -> None:
    async with muxes.running(here, *sites.routes, "--drain=0.3") as mux:
        tls, body = await start_download(sites, mux)
        async with tls:
            mux.send_signal()
            assert await mux.exit_status() == 0
            assert await received_until_the_end(tls, body) < PART
        assert len(mux.lines(event="connection", ended="shutdown")) == 1


async def test_who_had_connected_before_the_signal_is_served(sites: Sites, here: Path) -> None:
    async with muxes.running(here, *sites.routes) as mux, trio.open_nursery() as nursery:
        # held up, so that the connections are in the listener's queue when the signal comes
        mux.send_signal(signal.SIGSTOP)
        queued = [await connect(mux.port) for _ in range(20)]
        mux.send_signal(signal.SIGTERM)
        mux.send_signal(signal.SIGCONT)
        for plain in queued:
            nursery.start_soon(ask_dao, sites, plain)
        assert await mux.exit_status() == 0
        ends = [line["ended"] for line in mux.lines(event="connection")]
        # Caddy's last words may find the client's socket closed already: then it ends in a reset.
        assert len(ends) == 20
        assert set(ends) <= {"eof", "client-reset"}


async def ask_dao(sites: Sites, plain: trio.SocketStream) -> None:
    async with await secured(plain, "dao.ciso.com", trusting(sites.others.root)) as tls:
        assert await ask(tls, "dao.ciso.com") == b"dao.ciso.com HTTP/1.1"


async def test_with_nothing_open_it_stops_at_once(here: Path) -> None:
    async with muxes.running(here, "--route=a.test=127.0.0.1:9", "--drain=off") as mux:
        mux.send_signal()
        assert await mux.exit_status() == 0
        assert mux.lines(event="stopped")


async def test_a_port_in_use_names_the_process_that_has_it(here: Path) -> None:
    route = "--route=a.test=127.0.0.1:9"
    async with muxes.running(here, route) as first:
        second = muxes.start(here / "second.log", route, listen=f"127.0.0.1:{first.port}")
        # it looks through the descriptors of all processes
        assert await second.exit_status(seconds=60) == 1
        second.end()
        name = psutil.Process(first.pid).name()
        assert second.stderr.count("\n") == 1
        assert f": the port is held by {name} (pid {first.pid})\n" in second.stderr


@ON_LINUX
async def test_a_port_in_use_names_nobody_else(here: Path) -> None:
    route = "--route=a.test=127.0.0.1:9"
    async with muxes.running(here, route) as first:
        # the same port of another address
        with socket.create_server(("127.0.0.2", first.port)):
            second = muxes.start(here / "second.log", route, listen=f"127.0.0.1:{first.port}")
            # it looks through the descriptors of all processes
            assert await second.exit_status(seconds=60) == 1
        second.end()
        assert f"(pid {first.pid})" in second.stderr
        assert f"(pid {os.getpid()})" not in second.stderr


@ON_LINUX
@pytest.mark.needs(
    lambda: os.geteuid() == 0 and not shutil.which("setpriv"),
    "needs setpriv: apt-get install util-linux",
)
async def test_a_port_kept_for_root_names_the_ways_out(here: Path) -> None:
    lowest = trio.Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
    if int(await lowest.read_text("ascii")) <= 443:
        pytest.skip("port 443 is for everyone here")
    wrapper = []
    if os.geteuid() == 0:
        # root, but not for ports
        without = "-net_bind_service"
        wrapper = ["setpriv", f"--bounding-set={without}", f"--inh-caps={without}", "--"]
    mux = muxes.start(
        here / "mux.log", "--route=a.test=127.0.0.1:9", listen="127.0.0.1:443", wrapper=wrapper
    )
    assert await mux.exit_status() == 1
    mux.end()
    assert mux.stderr.count("\n") == 1
    for way_out in ("systemd", "CAP_NET_BIND_SERVICE", "ip_unprivileged_port_start"):
        assert way_out in mux.stderr


# --- workers

TWO = "--workers=2"


async def workers_of(mux: Mux) -> dict[int, int]:
    """The process ids of two workers that serve, by number."""

    def serving() -> dict[int, int]:
        started = {line["worker"]: line["pid"] for line in mux.lines(event="worker-started")}
        ends = [*mux.lines(event="worker-died"), *mux.lines(event="worker-ended")]
        died = {line["pid"] for line in ends}
        ready = mux.lines(event="relay")
        return {
            number: pid
            for number, pid in started.items()
            if pid not in died
            and sum(line["worker"] == number for line in ready)
            == len(mux.lines(event="worker-started", worker=number))
        }

    await until(lambda: len(serving()) == 2, "two workers serve")
    return serving()


@contextlib.asynccontextmanager
async def held_up(pid: int) -> AsyncIterator[None]:
    """A process that does nothing for now."""
    process = psutil.Process(pid)
    if sys.platform == "linux":  # elsewhere they are said to run when they sleep
        # not in the middle of something: it might hold the lock on the places
        await until(lambda: process.status() == psutil.STATUS_SLEEPING, "it rests")
    process.send_signal(signal.SIGSTOP)
    try:
        await until(lambda: process.status() == psutil.STATUS_STOPPED, "it is held up")
        yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGCONT)


@contextlib.asynccontextmanager
async def only(mux: Mux, number: int) -> AsyncIterator[int]:
    """Hold the other worker up, so that this one does the work; its process id."""
    pids = await workers_of(mux)
    async with held_up(pids[3 - number]):
        yield pids[number]


async def opened(mux: Mux, sites: Sites) -> trio.SSLStream[trio.abc.HalfCloseableStream]:
    """A connection to dao.ciso.com on which the handshake is done."""
    context = trusting(sites.others.root)
    return await secured(await connect(mux.port), "dao.ciso.com", context)


async def test_workers_share_the_listener_and_the_log_tells_them_apart(
    sites: Sites, here: Path
) -> None:
    async with muxes.running(here, *sites.routes, TWO) as mux:
        for number in (1, 2):
            async with only(mux, number):
                body = await get(mux.port, "dao.ciso.com", sites.others.root)
                assert body == b"dao.ciso.com HTTP/1.1"
                await mux.log_line(event="connection", worker=number)
        # and with both at it
        async with trio.open_nursery() as nursery:
            for _ in range(40):
                nursery.start_soon(ask_dao, sites, await connect(mux.port))
        mux.send_signal()
        assert await mux.exit_status() == 0
        assert len(mux.lines(event="connection")) == 42
        (listening,) = mux.lines(event="listening")
        assert listening["workers"] == 2
        assert "worker" not in listening
        for event in ("relay", "draining", "stopped"):
            told = [line.get("worker") for line in mux.lines(event=event)]
            assert sorted(told, key=str) == [1, 2, *([None] if event == "stopped" else [])]


async def test_when_a_worker_is_killed_none_in_the_queue_is_lost(sites: Sites, here: Path) -> None:
    async with muxes.running(here, *sites.routes, TWO) as mux:
        async with only(mux, 1) as working, trio.open_nursery() as nursery:
            # both are held up, so that all are in the queue when the one is killed
            async with held_up(working):
                queued = [await connect(mux.port) for _ in range(20)]
                os.kill(working, signal.SIGKILL)
            for plain in queued:
                nursery.start_soon(ask_dao, sites, plain)
        died = await mux.log_line(event="worker-died")
        assert (died["worker"], died["signal"], died["again_in"]) == (1, "SIGKILL", 0)
        # it is replaced, and the one in its place serves
        async with only(mux, 1) as replaced:
            assert replaced != working
            body = await get(mux.port, "dao.ciso.com", sites.others.root)
            assert body == b"dao.ciso.com HTTP/1.1"
        mux.send_signal()
        assert await mux.exit_status() == 0


async def test_workers_are_killed_under_load(sites: Sites, here: Path) -> None:
    async with muxes.running(here, *sites.routes, TWO, "--max-connections=4") as mux:
        port, asked, answered = mux.port, 0, 0
        enough = trio.Event()

        async def ask_again_and_again() -> None:
            nonlocal asked, answered
            while not enough.is_set():
                asked += 1
                # What a killed worker had accepted is lost with it; the others must go on.
                with contextlib.suppress(trio.BrokenResourceError, OSError, AssertionError):
                    assert await get(port, "dao.ciso.com", sites.others.root)
                    answered += 1

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(ask_again_and_again)
            for count in range(1, 4):
                pids = await workers_of(mux)
                so_far = answered
                await until(lambda: answered > so_far + 10, "answers come")  # noqa: B023
                os.kill(pids[1 + count % 2], signal.SIGKILL)
                await until(lambda: len(mux.lines(event="worker-died")) == count, "said")  # noqa: B023
            await workers_of(mux)
            so_far = answered
            await until(lambda: answered > so_far + 10, "answers come")
            enough.set()
        assert asked - answered <= 3 * 4  # as many as there were places at each death
        # every place was given back, for all four are there
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(4):
                await stack.enter_async_context(await opened(mux, sites))
        mux.send_signal()
        assert await mux.exit_status() == 0


async def test_the_limit_is_of_the_whole_and_the_dead_give_back(sites: Sites, here: Path) -> None:
    async with muxes.running(here, *sites.routes, TWO, "--max-connections=3") as mux:
        answers: list[bytes] = []

        async def wait_for_room() -> None:
            answers.append(await get(mux.port, "traefik.ciso.com", sites.others.root))

        async with contextlib.AsyncExitStack() as stack:
            async with only(mux, 1) as first:
                lost = [await opened(mux, sites) for _ in range(2)]
            async with only(mux, 2):
                kept = await stack.enter_async_context(await opened(mux, sites))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait_for_room)
                await mux.log_line(event="full", max_connections=3)
                assert await ask(kept, "dao.ciso.com") == b"dao.ciso.com HTTP/1.1"
                assert not answers
                os.kill(first, signal.SIGKILL)
            assert answers == [b"traefik.ciso.com HTTP/1.1"]
            for tls in lost:
                await trio.aclose_forcefully(tls)
            await mux.log_line(event="worker-died", pid=first)
            # full by what one has; a place that another gives back is seen
            async with only(mux, 2):
                more = [await opened(mux, sites) for _ in range(2)]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait_for_room)
                await more.pop().aclose()
            assert len(answers) == 2
            await more.pop().aclose()


async def test_the_limit_of_a_source_is_over_all_workers(sites: Sites, here: Path) -> None:
    flag = "--max-connections-per-source=2"
    async with muxes.running(here, *sites.routes, TWO, flag) as mux:
        async with contextlib.AsyncExitStack() as stack:
            for number in (1, 2):
                async with only(mux, number):
                    await stack.enter_async_context(await opened(mux, sites))
            for number in (1, 2):
                async with only(mux, number):
                    assert await alert_of(await connect(mux.port), "dao.ciso.com") == ALERTS[49]
        await until(lambda: len(mux.lines(event="connection")) == 4, "all have ended")
        async with only(mux, 1):
            body = await get(mux.port, "dao.ciso.com", sites.others.root)
            assert body == b"dao.ciso.com HTTP/1.1"


async def is_refused(port: int) -> bool:
    """Whether nobody listens there."""
    try:
        await (await connect(port)).aclose()
    except OSError:
        return True
    return False


def group_of_its_own() -> list[str]:
    code = "import os, sys; os.setpgid(0, 0); os.execv(sys.argv[1], sys.argv[1:])"
    return [sys.executable, "-c", code]


@pytest.mark.parametrize("to", ["supervisor", "group", "all"])
async def test_downloads_from_workers_finish_in_the_drain(
    sites: Sites, here: Path, to: str
) -> None:
    """Told alone; by Ctrl-C, which is for the process group; or with all others, as by systemd."""
    wrapper = group_of_its_own()
    async with muxes.running(here, *sites.routes, TWO, wrapper=wrapper) as mux:
        pids = await workers_of(mux)
        downloads = []
        for number in pids:
            async with only(mux, number):
                downloads.append(await start_download(sites, mux))
        match to:
            case "supervisor":
                mux.send_signal()
            case "group":
                os.killpg(mux.pid, signal.SIGINT)
            case "all":
                for pid in (*pids.values(), mux.pid):
                    os.kill(pid, signal.SIGTERM)
        await until(lambda: len(mux.lines(event="draining")) == 2, "both drain")
        with trio.fail_after(10):  # where all are told, the supervisor may be the last to close
            while not await is_refused(mux.port):
                await trio.sleep(0.01)
        for tls, body in downloads:
            while len(body) < PART:
                body += await some(tls)
            await tls.aclose()
        assert await mux.exit_status() == 0
        assert len(mux.lines(event="stopped")) == 3
        ends = [line["ended"] for line in mux.lines(event="connection")]
        assert set(ends) <= {"eof", "client-reset"}


@BOTH_SIGNALS
async def test_a_second_signal_closes_what_workers_have(
    sites: Sites, here: Path, number: int
) -> None:
    async with muxes.running(here, *sites.routes, TWO, "--drain=off") as mux:
        tls, body = await start_download(sites, mux)
        async with tls:
            mux.send_signal(number)
            await until(lambda: len(mux.lines(event="draining", seconds="off")) == 2, "both drain")
            mux.send_signal(number)
            assert await mux.exit_status() == 0
            assert await received_until_the_end(tls, body) < PART
        assert len(mux.lines(event="connection", ended="shutdown")) == 1
        assert not mux.lines(event="worker-died")


@pytest.mark.parametrize("gap", [0, 0.05, 0.2])
async def test_signals_while_workers_start_are_a_good_end(
    sites: Sites, here: Path, gap: float
) -> None:
    async with muxes.running(here, *sites.routes, TWO) as mux:
        await trio.sleep(gap)
        mux.send_signal()
        assert await mux.exit_status() == 0
        assert mux.lines(event="stopped")
        assert not mux.lines(event="worker-died")


async def test_a_worker_that_is_told_alone_drains_and_is_replaced(sites: Sites, here: Path) -> None:
    async with muxes.running(here, *sites.routes, TWO) as mux:
        async with only(mux, 1) as told:
            tls = await opened(mux, sites)
        os.kill(told, signal.SIGTERM)
        await mux.log_line(event="draining", worker=1, connections=1)
        body = await get(mux.port, "dao.ciso.com", sites.others.root)
        assert body == b"dao.ciso.com HTTP/1.1"
        assert await ask(tls, "dao.ciso.com") == b"dao.ciso.com HTTP/1.1"
        await tls.aclose()
        assert (await mux.log_line(event="worker-ended"))["status"] == 0
        assert (await workers_of(mux))[1] != told


async def test_without_their_supervisor_workers_drain_and_end(sites: Sites, here: Path) -> None:
    path = here / "listen"
    port = free_port()
    own = f"127.0.0.1:{port}"
    async with muxes.running(here, *sites.routes, TWO, f"--listen=unix/{path}", listen=own) as mux:
        pids = await workers_of(mux)
        tls, body = await start_download(sites, mux)
        async with tls:
            mux.send_signal(signal.SIGKILL)
            for event in ("supervisor-gone", "draining"):
                await until(lambda: len(mux.lines(event=event)) == 2, event)  # noqa: B023
            # the port is free at once
            async with muxes.running(here, *sites.routes, f"--listen=unix/{path}", listen=own):
                while len(body) < PART:
                    body += await some(tls)
        await until(lambda: not any(map(is_running, pids.values())), "both have ended")
        assert len(mux.lines(event="stopped")) == 2


def is_running(pid: int) -> bool:
    """Whether it has not ended; an orphan may have nobody who asks how."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_a_worker_has_the_configuration_that_was_checked(sites: Sites, here: Path) -> None:
    file = here / "snimux.toml"
    to = f'to = "127.0.0.1:{sites.others.port}"'
    file.write_text(f'workers = 2\n[[route]]\nhosts = "dao.ciso.com"\n{to}\n')
    async with muxes.running(here, "--config", str(file)) as mux:
        async with only(mux, 1) as first:
            file.write_text("workers = [")
            os.kill(first, signal.SIGKILL)
            await mux.log_line(event="worker-died", pid=first)
        async with only(mux, 1):
            body = await get(mux.port, "dao.ciso.com", sites.others.root)
            assert body == b"dao.ciso.com HTTP/1.1"
        file.unlink()
        mux.send_signal()
        assert await mux.exit_status() == 0
        assert len(mux.lines(event="worker-died")) == 1


async def test_the_supervisor_alone_removes_a_unix_socket(sites: Sites, here: Path) -> None:
    path = here / "listen"
    async with muxes.running(here, *sites.routes, TWO, listen=f"unix/{path}") as mux:
        pids = await workers_of(mux)
        for kill, event in ((signal.SIGKILL, "worker-died"), (signal.SIGTERM, "worker-ended")):
            os.kill(pids[2], kill)
            await mux.log_line(event=event, pid=pids[2])
            assert path.is_socket()
            pids = await workers_of(mux)
        plain = await trio.open_unix_socket(path)
        async with await secured(plain, "dao.ciso.com", trusting(sites.others.root)) as tls:
            assert await ask(tls, "dao.ciso.com") == b"dao.ciso.com HTTP/1.1"
        mux.send_signal()
        assert await mux.exit_status() == 0
        assert not path.exists()


@ON_LINUX
async def test_a_listener_that_was_handed_over_is_no_longer_held_in_the_drain(
    sites: Sites, here: Path
) -> None:
    code = (
        "import os, socket, sys; sock = socket.create_server(('127.0.0.1', 0));"
        "os.dup2(sock.fileno(), 20); os.execv(sys.argv[1], sys.argv[1:])"
    )
    wrapper = [sys.executable, "-c", code]
    async with muxes.running(here, *sites.routes, TWO, listen="fd/20", wrapper=wrapper) as mux:
        async with only(mux, 1):
            tls = await opened(mux, sites)
        mux.send_signal()
        await until(lambda: len(mux.lines(event="draining")) == 2, "both drain")
        assert await is_refused(mux.port)
        await tls.aclose()
        assert await mux.exit_status() == 0


# --- started by systemd, or what is like it


NEEDS_ACTIVATE = pytest.mark.needs(
    lambda: sys.platform == "linux" and not shutil.which("systemd-socket-activate"),
    "needs systemd-socket-activate: apt-get install systemd",
)


@dataclass(frozen=True, slots=True)
class Activated:
    """A snimux that is started by the first connection, and whom it tells how it is."""

    mux: Mux
    told: trio.socket.SocketType
    port: int
    http: int
    path: Path

    async def said(self, words: str) -> list[str]:
        """The next message that has these words."""
        with trio.fail_after(30):
            while True:
                message = (await self.told.recv(4096)).decode()
                if words in message:
                    return message.split("\n")


@contextlib.asynccontextmanager
async def activated(sites: Sites, here: Path, *args: str) -> AsyncIterator[Activated]:
    port, http, path = free_port(), free_port(), here / "tls"
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        await told.bind(str(here / "notify"))
        environment = [f"NOTIFY_SOCKET={here / 'notify'}", "WATCHDOG_USEC=2000000"]
        listen = [f"127.0.0.1:{port}", f"127.0.0.1:{http}", str(path)]
        wrapper = [
            *("env", *environment, "systemd-socket-activate", "--fdname=snimux.socket:http:tls"),
            *(f"--listen={where}" for where in listen),
            *(f"--setenv={variable.partition('=')[0]}" for variable in environment),
        ]
        # Where it listens already, by what it is handed.
        flags = [*sites.routes, *args, f"--http=127.0.0.1:{http}"]
        mux = muxes.start(here / "snimux.log", *flags, listen=f"127.0.0.1:{port}", wrapper=wrapper)
        try:
            await until(lambda: mux.stderr.count("Listening on") == 3, "it is listened")
            yield Activated(mux, told, port, http, path)
        except BaseException:
            mux.process.kill()
            mux.process.wait()
            raise
        mux.end()


@ON_LINUX
@NEEDS_ACTIVATE
@pytest.mark.parametrize("workers", [1, 2])
async def test_it_serves_what_it_is_handed_and_says_how_it_is(
    workers: int, sites: Sites, here: Path
) -> None:
    async with activated(sites, here, f"--workers={workers}") as run:
        context = trusting(sites.others.root)
        # it is started by this connection, which waits
        plain = await connect(run.port)
        async with await secured(plain, "dao.ciso.com", context) as tls:
            assert await ask(tls, "dao.ciso.com") == b"dao.ciso.com HTTP/1.1"
            ready = await run.said("READY=1")
            assert ready[1] == f"MAINPID={run.mux.pid}"
            of_all = ", 2 workers" if workers == 2 else ""
            status = await run.said("STATUS=1 connection, ") if "1 conn" not in ready[2] else ready
            assert status[-1] == f"STATUS=1 connection, 3 routes{of_all}"
            await run.said("WATCHDOG=1")
            addresses = {(line["address"], line["protocol"])
                         for line in run.mux.lines(event="listening")}  # fmt: skip
            assert addresses == {(f"127.0.0.1:{run.port}", "tls"), (f"unix/{run.path}", "tls"),
                                 (f"127.0.0.1:{run.http}", "http")}  # fmt: skip
            on_unix = await secured(await trio.open_unix_socket(run.path), "dao.ciso.com", context)
            async with on_unix:
                assert await ask(on_unix, "dao.ciso.com") == b"dao.ciso.com HTTP/1.1"
            with trio.fail_after(30):
                async with httpx.AsyncClient() as client:
                    url = f"http://127.0.0.1:{run.http}/"
                    answer = await client.get(url, headers={"Host": "dao.ciso.com"})
            # clients find it where they find what was handed over
            assert answer.headers["location"] == "https://dao.ciso.com/"
            run.mux.send_signal()
            assert (await run.said("STOPPING=1"))[2] == "EXTEND_TIMEOUT_USEC=35000000"
            assert await ask(tls, "dao.ciso.com") == b"dao.ciso.com HTTP/1.1"
        assert await run.mux.exit_status() == 0
        assert run.path.is_socket()  # it is not snimux's to remove


@ON_LINUX
@NEEDS_ACTIVATE
async def test_workers_tell_nobody_but_their_supervisor(sites: Sites, here: Path) -> None:
    async with activated(sites, here, TWO) as run:
        assert await get(run.port, "dao.ciso.com", sites.others.root) == b"dao.ciso.com HTTP/1.1"
        for pid in (await workers_of(run.mux)).values():
            variables = psutil.Process(pid).environ()
            assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC"} & set(variables)


# --- resets


@pytest.mark.parametrize("relay", ["auto", "portable"])
@pytest.mark.parametrize("sender", ["client", "backend"])
async def test_a_bulk_transfer_that_is_reset_is_never_taken_for_whole(
    here: Path, relay: str, sender: str
) -> None:
    hello, ends = client_hello("cut.test"), dict.fromkeys([False, True], 0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        route = f"--route=cut.test=127.0.0.1:{listener.getsockname()[1]}"
        async with muxes.running(here, route, f"--relay={relay}") as mux:
            for size in (221_454, 1_000_000) * 40:
                with socket.create_connection(("127.0.0.1", mux.port)) as client:
                    client.sendall(hello)
                    backend, _ = await trio.to_thread.run_sync(listener.accept)
                    with backend:
                        pair = (client, backend) if sender == "client" else (backend, client)
                        ends[await cut(*pair, size)] += 1
    assert ends == {False: 0, True: 80}


async def cut(sender: socket.socket, reader: socket.socket, size: int) -> bool:
    """Send so much, and reset; whether the reader is told of that, when it has read the rest."""

    def send() -> None:
        sender.sendall(bytes(size))
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        sender.close()

    def read() -> bool:
        reader.settimeout(30)
        try:
            while reader.recv(2**16):
                pass
        except ConnectionResetError:
            return True
        return False

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, send)
        return await trio.to_thread.run_sync(read)
