"""Plain HTTP through the snimux command: between real clients and real Caddys' HTTP sites.

What a module promises is tested with the module. Here is what only the whole can show: the right
site for each Host, byte for byte, and a word for whoever is sent away.
"""

import contextlib
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import trio

from snimux.proto.http_head import peek
from snimux.proto.verdict import Hello
from tests.conftest import Sites, need
from tests.support import caddy, muxes
from tests.support.caddy import free_port, listens, short_directory, until
from tests.support.clients import environment
from tests.support.muxes import Mux

NEEDS_CURL = pytest.mark.needs(lambda: not shutil.which("curl"), "needs curl: apt-get install curl")

_ECHO = """\
	handle /echo {
		respond "{http.request.body}"
	}
	respond "{http.request.host} {http.request.method} {http.request.orig_uri}"
"""
_FIRST = """\
http://secure.ciso.com:{port} {{
	handle /up {{
		reverse_proxy unix/{directory}/up
	}}
{echo}}}
"""
_SECOND = """\
http://dao.ciso.com:{port} {{
{echo}}}
http://traefik.ciso.com {{
	bind unix/{directory}/http
{echo}}}
http://who.test:{proxied} {{
	respond "{{http.request.remote.host}} {{http.request.remote.port}}"
}}
http://:{any} {{
	respond "{{http.request.host}} {{http.request.proto}}"
}}
"""
_SECOND_OPTIONS = """\
servers 127.0.0.1:{any} {{
		protocols h1 h2c
	}}
	servers 127.0.0.1:{proxied} {{
		listener_wrappers {{
			proxy_protocol {{
				allow 127.0.0.1/32
			}}
		}}
	}}
"""


@dataclass(frozen=True, slots=True)
class World:
    """Two Caddys that serve plain HTTP, and a snimux in front of them."""

    mux: Mux
    port: int
    """Where the snimux listens for plain HTTP."""
    any_host: int
    """Where a Caddy answers any Host, and HTTP/2 with prior knowledge too."""
    raw: tuple[str, int]
    """Where the HTTP side of raw.test is; nobody listens unless a test does."""
    directory: Path


def http_port(mux: Mux) -> int:
    (line,) = mux.lines(event="listening", protocol="http")
    return int(line["address"].rpartition(":")[2])


async def listening(mux: Mux) -> None:
    await mux.log_line(event="listening", protocol="http")


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    need(caddy.missing())
    with contextlib.ExitStack() as stack:
        one, two = (stack.enter_context(short_directory()) for _ in range(2))
        ports = {name: free_port() for name in ("one", "two", "proxied", "any", "raw", "down")}
        first = _FIRST.format(port=ports["one"], directory=one, echo=_ECHO)
        second = _SECOND.format(port=ports["two"], directory=two, echo=_ECHO, **ports)
        for directory, sites, options in (
            (one, first, ""),
            (two, second, _SECOND_OPTIONS.format(**ports)),
        ):
            started = caddy.start(directory, sites, options=options)
            stack.callback(started.stop)
        for name in ("one", "two", "proxied", "any"):
            trio.run(until, lambda port=ports[name]: listens(port), f"Caddy listens for {name}")
        config = one / "snimux.toml"
        config.write_text(routes(ports, two))
        flags = f"--config={config}", "--http=127.0.0.1:0", "--wait=0.5"
        mux = muxes.start(one / "snimux.log", *flags)
        stack.callback(mux.end)
        trio.run(listening, mux)
        yield World(mux, http_port(mux), ports["any"], ("127.0.0.1", ports["raw"]), one)


def routes(ports: dict[str, int], directory: Path) -> str:
    sides = {
        "secure.ciso.com": f"127.0.0.1:{ports['one']}",
        "dao.ciso.com": f"127.0.0.1:{ports['two']}",
        "traefik.ciso.com": f"unix/{directory}/http",
        "raw.test": f"127.0.0.1:{ports['raw']}",
        "down.test": f"127.0.0.1:{ports['down']}",
    }
    to = f"to = '127.0.0.1:{ports['down']}'"
    tables = [f"[[route]]\nhosts = '{name}'\n{to}\nhttp = '{http}'" for name, http in sides.items()]
    tables.append(f"[[route]]\nhosts = 'who.test'\n{to}\nhttp_proxy = 'v2'\n"
                  f"http = '127.0.0.1:{ports['proxied']}'")  # fmt: skip
    tables.append(f"[[route]]\nhosts = 'https-only.test'\n{to}")
    return "\n".join(tables)


@contextlib.asynccontextmanager
async def own_mux(directory: Path, toml: str, *flags: str) -> AsyncIterator[Mux]:
    """A snimux of the test's own; one a directory."""
    config = directory / "own.toml"
    config.write_text(toml)
    async with muxes.running(directory, f"--config={config}", "--http=127.0.0.1:0", *flags) as mux:
        await listening(mux)
        yield mux


@pytest.fixture
def here() -> Iterator[Path]:
    with short_directory() as directory:
        yield directory


async def said_to(port: int, data: bytes) -> tuple[str, str]:
    """What is answered to some bytes up to the end: head and body; and the client's address."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(data)
        answer = b"".join([bytes(piece) async for piece in stream]).decode()
    head, _, body = answer.partition("\r\n\r\n")
    return head, body


async def line_of(mux: Mux, **fields: str) -> muxes.Line:
    return await mux.log_line(within=10, event="connection", protocol="http", **fields)


def client_of(world: World) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{world.port}", trust_env=False)


# --- the right site


@pytest.mark.parametrize("name", ["secure.ciso.com", "dao.ciso.com", "traefik.ciso.com"])
async def test_each_host_has_its_own_site(world: World, name: str) -> None:
    for host in (name, name.upper(), f"{name}:80", f"{name}."):
        async with client_of(world) as client:  # anew: a connection stays where it went first
            response = await client.get("/x?y=z", headers={"Host": host})
            assert response.status_code == 200
            if not host.endswith("."):  # that is no site's name to Caddy
                assert response.text.lower() == f"{name} get /x?y=z"


async def test_requests_on_one_connection_go_where_the_first_went(world: World) -> None:
    async with client_of(world) as client:
        for number in range(3):
            response = await client.get(f"/one-of-{number}", headers={"Host": "secure.ciso.com"})
            assert response.text == f"secure.ciso.com GET /one-of-{number}"
        # Caddy's own answer where it has no such site: nothing
        response = await client.get("/", headers={"Host": "dao.ciso.com"})
        assert response.text == ""
        stream = response.extensions["network_stream"]
        host, port = stream.get_extra_info("client_addr")[:2]
    line = await line_of(world.mux, client=f"{host}:{port}")
    assert (line["name"], line["route"], line["ended"]) == ("secure.ciso.com",) * 2 + ("eof",)
    assert line["up"] > 300
    assert len(world.mux.lines(client=f"{host}:{port}")) == 1


async def test_a_body_goes_with_its_request(world: World) -> None:
    body = bytes(range(32, 127)) * 1000
    async with client_of(world) as client:
        for _ in range(2):
            host = {"Host": "secure.ciso.com"}
            response = await client.post("/echo", headers=host, content=body)
            assert response.content == body
        head = await client.head("/", headers={"Host": "secure.ciso.com"})
        assert (head.status_code, head.content) == (200, b"")


async def curl(*args: str) -> str:
    """What curl prints; of its long options the values are arguments of their own."""
    command = ["curl", "--disable", "--silent", "--show-error", *args]
    env = environment(Path("/"))
    with trio.fail_after(30):
        done = await trio.run_process(
            command, capture_stdout=True, stdin=subprocess.DEVNULL, env=env
        )
    return bytes(done.stdout).decode()


@NEEDS_CURL
async def test_curl_waits_for_100_continue_and_gets_it(world: World, here: Path) -> None:
    body = here / "body"
    body.write_bytes(b"0123456789" * 20_000)
    printed = await curl(
        "--connect-to", f"dao.ciso.com:80:127.0.0.1:{world.port}", "--include",
        "--header", "Expect: 100-continue", "--expect100-timeout", "30",
        "--data-binary", f"@{body}", "http://dao.ciso.com/echo",
    )  # fmt: skip
    assert printed.startswith("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
    assert printed.endswith(body.read_text())


@NEEDS_CURL
async def test_curl_uses_it_as_a_proxy(world: World) -> None:
    """Then the target is a URL."""
    printed = await curl("--proxy", f"http://127.0.0.1:{world.port}", "http://dao.ciso.com/a%20b")
    assert printed == "dao.ciso.com GET http://dao.ciso.com/a%20b"


async def test_a_protocol_that_is_upgraded_to_goes_through(world: World) -> None:
    path = world.directory / "up"
    with socket.create_server(str(path), family=socket.AF_UNIX) as listening_socket:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening_socket))
        async with await trio.open_tcp_stream("127.0.0.1", world.port) as client:
            await client.send_all(b"GET /up HTTP/1.1\r\nHost: secure.ciso.com\r\n"
                                  b"Connection: Upgrade\r\nUpgrade: x-test\r\n\r\n")  # fmt: skip
            async with await listener.accept() as backend:
                received = b""
                while b"\r\n\r\n" not in received:
                    received += await backend.receive_some(65536)
                await backend.send_all(b"HTTP/1.1 101 Switching Protocols\r\n"
                                       b"Connection: Upgrade\r\n"
                                       b"Upgrade: x-test\r\n\r\n")  # fmt: skip
                answer = b""
                while b"\r\n\r\n" not in answer:
                    answer += await client.receive_some(65536)
                assert answer.startswith(b"HTTP/1.1 101 ")
                for speaker, hearer in ((client, backend), (backend, client)):
                    await speaker.send_all(b"\0\1\2anything\xff")
                    heard = b""
                    while len(heard) < 12:
                        heard += await hearer.receive_some(65536)
                    assert heard == b"\0\1\2anything\xff"


async def test_bytes_are_passed_on_as_they_are(world: World) -> None:
    data = (b"GeT /b\xc3\xbccher?%zz#x HTTP/1.1\r\nhOST:\t Raw.Test.:080 \r\nX: \xff  y \r\n"
            b"X:\r\nContent-Length: 3\r\n\r\nabc"
            b"GET / HTTP/1.1\r\nHost: dao.ciso.com\r\n\r\n\0\r\n")  # fmt: skip
    async with (
        trio.SocketListener(
            trio.socket.from_stdlib_socket(socket.create_server(world.raw))
        ) as listener,
        await trio.open_tcp_stream("127.0.0.1", world.port) as client,
    ):
        for at in range(0, len(data), 7):
            await client.send_all(data[at : at + 7])
        await client.send_eof()
        async with await listener.accept() as backend:
            assert b"".join([bytes(piece) async for piece in backend]) == data
            await backend.send_all(b"any answer")
        assert b"".join([bytes(piece) async for piece in client]) == b"any answer"


async def test_the_http_side_is_told_who_the_client_is(world: World) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", world.port) as client:
        await client.send_all(b"GET / HTTP/1.0\r\nHost: who.test\r\n\r\n")
        answer = b"".join([bytes(piece) async for piece in client]).decode()
        port = client.socket.getsockname()[1]
    assert answer.endswith(f"\r\n\r\n127.0.0.1 {port}")


@pytest.mark.parametrize(
    "head",
    ["GET / HTTP/1.1\r\nHost: {}", "GET http://{}/ HTTP/1.1\r\nHost: b.test",
     "GET http://{}?x HTTP/1.1\r\nHost: b.test", "OPTIONS /* HTTP/1.1\r\nhost:  {} ",
     "GET //c.test/ HTTP/1.1\r\nX: y\r\nHOST:{}", "GET http:///c.test/ HTTP/1.1\r\nHost: {}",
     "GET / HTTP/1.0\r\nHost: {}\r\nX-Forwarded-Host: c.test",
     "GET / HTTP/1.1\r\nHost: x\r\nhost:{}",
     "GET /\xff HTTP/1.1\r\nX: \r\nHost: {}\r\nForwarded: host=c.test"],
)  # fmt: skip
@pytest.mark.parametrize(
    "host", ["a.test", "A.Test.", "a.test:8080", "a.test:", "_a.test", "b.test, a.test", "x@a.test",
             "a.test/", "a.test#", "[::1]:80", "192.0.2.1", "", "a%2etest", "a.test:x"]
)  # fmt: skip
async def test_caddy_reads_the_host_that_is_routed_by(world: World, head: str, host: str) -> None:
    data = f"{head.format(host)}\r\nConnection: close\r\n\r\n".encode("latin-1")
    verdict = peek(data)
    if isinstance(verdict, Hello):
        answer, body = await said_to(world.any_host, data)
        assert re.match(r"HTTP/1\.. 200 ", answer)
        assert verdict.request is not None
        read = body.partition(" ")[0].lower().removesuffix(".")
        assert read.strip("[]") == str(verdict.request.host).strip("[]")


# --- HTTP/2 with prior knowledge


@NEEDS_CURL
async def test_http_2_with_prior_knowledge_goes_to_the_default(world: World, here: Path) -> None:
    toml = f"[[route]]\nhosts = '*'\nto = '127.0.0.1:9'\nhttp = '127.0.0.1:{world.any_host}'"
    async with own_mux(here, toml) as mux:
        connect = f"any.test:80:127.0.0.1:{http_port(mux)}"
        printed = await curl("--connect-to", connect, "--http2-prior-knowledge", "http://any.test/")
        assert printed == "any.test HTTP/2.0"
        assert "name" not in await line_of(mux, route="*")


@NEEDS_CURL
async def test_http_2_with_prior_knowledge_is_refused_where_there_is_none(world: World) -> None:
    connect = f"dao.ciso.com:80:127.0.0.1:{world.port}"
    with pytest.raises(subprocess.CalledProcessError) as caught:
        await curl("--connect-to", connect, "--http2-prior-knowledge", "http://dao.ciso.com/")
    assert caught.value.returncode


# --- redirects


@NEEDS_CURL
async def test_curl_follows_a_redirect_to_the_site_itself(sites: Sites, here: Path) -> None:
    async with muxes.running(here, *sites.routes, "--http=127.0.0.1:0") as mux:
        await listening(mux)
        printed = await curl(
            "--connect-to", f"secure.ciso.com:80:127.0.0.1:{http_port(mux)}",
            "--resolve", f"secure.ciso.com:{mux.port}:127.0.0.1",
            "--cacert", str(sites.secure.root), "--location", "--write-out", " %{url_effective}",
            "http://secure.ciso.com/a//b?c=%20&d",
        )  # fmt: skip
        url = f"https://secure.ciso.com:{mux.port}/a//b?c=%20&d"
        assert printed == f"secure.ciso.com HTTP/2.0 {url}"
        line = await line_of(mux, name="secure.ciso.com")
        assert (line["ended"], line["detail"]) == ("redirected", url.partition("?")[0])


async def test_a_redirect_keeps_the_method_and_closes(world: World) -> None:
    async with client_of(world) as client:
        for method in ("GET", "HEAD", "POST", "PROPFIND"):
            response = await client.request(
                method, "/x?y", headers={"Host": "HTTPS-only.test"}, content=b"x" * 100_000
            )
            assert response.status_code == 308
            assert response.headers["location"] == f"https://https-only.test:{world.mux.port}/x?y"
            assert response.headers["connection"] == "close"
            assert bool(response.content) is (method != "HEAD")


@pytest.mark.parametrize("path", ["acme-challenge/token", "pki-validation/fileauth.txt"])
async def test_validation_is_never_redirected(world: World, path: str) -> None:
    async with client_of(world) as client:
        path = f"/.well-known/{path}"
        response = await client.get(path, headers={"Host": "https-only.test"})
        assert response.status_code == 404
        assert "https" in response.text
        passed_on = await client.get(path, headers={"Host": "dao.ciso.com"})
        assert passed_on.text == f"dao.ciso.com GET {path}"


# --- refusals


@pytest.mark.parametrize(
    ("data", "status", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: unknown.test\r\n\r\n", 404, "no-route"),
        (b"GET / HTTP/1.1\r\nHost: x.dao.ciso.com\r\n\r\n", 404, "no-route"),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 404, "no-route"),
        (b"GET / HTTP/1.0\r\n\r\n", 400, "no-route"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "malformed-hello"),
        (b"GET / HTTP/1.1\r\nHost: dao..com\r\n\r\n", 400, "bad-server-name"),
        (b"GET / HTTP/1.1\r\nHost: dao.ciso.com\r\nHost: x\r\n\r\n", 400, "malformed-hello"),
        (b"GET / HTTP/1.1\r\nHost: dao.ciso.com\r\nX: " + b"x" * 20_000, 431, "hello-too-large"),
        (b"GET / HTTP/1.1\r\nHost: down.test\r\n\r\n", 502, "backend-down"),
        (b"CONNECT dao.ciso.com:443 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "malformed-hello"),
    ],
)  # fmt: skip
async def test_who_is_refused_is_told_so(
    world: World, data: bytes, status: int, reason: str
) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", world.port) as stream:
        host, port = stream.socket.getsockname()
        await stream.send_all(data)
        answer = b"".join([bytes(piece) async for piece in stream]).decode()
    assert answer.startswith(f"HTTP/1.1 {status} ")
    assert answer.endswith(".\n")
    line = await line_of(world.mux, client=f"{host}:{port}")
    assert (line["ended"], line["reason"]) == ("refused", reason)


async def test_who_is_late_is_told(here: Path) -> None:
    async with own_mux(here, "default = '127.0.0.1:9'", "--hello-timeout=2") as mux:
        head, _ = await said_to(http_port(mux), b"GET / HTTP/1.1\r\n")
        assert head.startswith("HTTP/1.1 408 ")
        await line_of(mux, reason="hello-timeout")


async def test_one_source_has_no_more_than_its_share(world: World, here: Path) -> None:
    toml = f"[[route]]\nhosts = '*'\nto = '127.0.0.1:9'\nhttp = '127.0.0.1:{world.any_host}'"
    async with own_mux(here, toml, "--max-connections-per-source=1") as mux:
        async with await trio.open_tcp_stream("127.0.0.1", http_port(mux)) as first:
            await first.send_all(b"GET / HTTP/1.1\r\nHost: any.test\r\n\r\n")
            assert await first.receive_some(65536)
            head, body = await said_to(http_port(mux), b"")
            assert head.startswith("HTTP/1.1 429 ")
            assert body


async def test_tls_at_the_http_port_is_closed_without_a_word(world: World) -> None:
    hello = b"\x16\x03\x01\x00\x05hello"
    assert await said_to(world.port, hello) == ("", "")
