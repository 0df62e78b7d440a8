"""Who is let in, through the snimux command: real clients, real Caddys, real balancers."""

import atexit
import contextlib
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from snimux.proto.client_hello import alert
from tests.conftest import Sites, need
from tests.support import caddy, muxes
from tests.support.caddy import Caddy, free_port, listens, short_directory, until
from tests.support.clients import environment
from tests.support.muxes import Mux
from tests.support.sockets import read_to_end, send_all

NEEDS_CURL = pytest.mark.needs(lambda: not shutil.which("curl"), "needs curl: apt-get install curl")
# elsewhere 127.0.0.1 is the only address of loopback
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs 127.0.0.2")


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory of the test's own, short enough for UNIX sockets."""
    with short_directory() as short:
        yield short


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    """What is left when the test is over."""
    with contextlib.ExitStack() as own:
        yield own


async def curl(directory: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """How curl ended, and what it printed."""
    command = ["curl", "--disable", "--silent", "--show-error", "--max-time", "10", *args]
    done = await trio.run_process(
        command, check=False, capture_stdout=True, capture_stderr=True, env=environment(directory)
    )
    return subprocess.CompletedProcess(
        command, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


async def page(directory: Path, root: Path, port: int, *args: str, name: str) -> str:
    """The page of a name by TLS, or what curl has to say of the failure."""
    url = f"https://{name}:{port}/"
    there = ["--cacert", str(root), "--resolve", f"{name}:{port}:127.0.0.1"]
    done = await curl(directory, *there, *args, url)
    return done.stdout if done.returncode == 0 else done.stderr


async def refusals(mux: Mux, count: int, **fields: object) -> list[muxes.Line]:
    """So many lines of refused connections, once they are there."""
    lines: list[muxes.Line] = []
    while len(lines) < count:
        await mux.log_line(**fields)  # type: ignore[arg-type]
        lines = mux.lines(**fields)
        await trio.sleep(0.01)
    return lines


@LINUX
@NEEDS_CURL
@pytest.mark.parametrize("workers", [1, 2])
async def test_lists_of_listeners_and_routes_hold_for_tls_and_plain_http(
    sites: Sites, directory: Path, workers: int
) -> None:
    first, second, plain = free_port(), free_port(), free_port()
    (directory / "snimux.toml").write_text(f"""
        workers = {workers}
        listen = ["127.0.0.1:{first}", {{address = "127.0.0.1:{second}", deny = "127.0.0.2"}}]
        [[http]]
        address = "127.0.0.1:{plain}"
        allow = ["127.0.0.1", "::1"]
        [[route]]
        hosts = "secure.ciso.com"
        to = "127.0.0.1:{sites.secure.port}"
        [[route]]
        hosts = "dao.ciso.com"
        to = "127.0.0.1:{sites.others.port}"
        allow = "127.0.0.2"
        acme_exempt = true
        """)
    by, denied = {1: ["--interface", "127.0.0.1"], 2: ["--interface", "127.0.0.2"]}, "access denied"
    async with muxes.running(
        directory, "--config", str(directory / "snimux.toml"), listen=None
    ) as mux:
        for port, who, name, told in (
            (first, 1, "secure.ciso.com", "secure.ciso.com HTTP/2.0"),
            (first, 2, "secure.ciso.com", "secure.ciso.com HTTP/2.0"),
            (second, 1, "secure.ciso.com", "secure.ciso.com HTTP/2.0"),
            (second, 2, "secure.ciso.com", denied),
            (first, 1, "dao.ciso.com", denied),
            (first, 2, "dao.ciso.com", "dao.ciso.com HTTP/2.0"),
        ):
            root = sites.of(name).root
            assert told in await page(directory, root, port, *by[who], name=name), (port, who)
        for who, status in ((1, "308"), (2, "403")):
            done = await curl(
                directory, "--head", *by[who], "--write-out", "%{http_code}",
                "--header", "Host: secure.ciso.com", f"http://127.0.0.1:{plain}/",
            )  # fmt: skip
            assert done.stdout.endswith(status)
        lines = await refusals(mux, 3, reason="access-denied")
        # Of two workers one may write its line before the other, whoever came first.
        assert Counter(line.get("route") for line in lines) == {None: 2, "dao.ciso.com": 1}


@LINUX
@NEEDS_CURL
async def test_what_a_caddy_is_found_to_serve_is_as_closed_as_what_is_written_above_it(
    sites: Sites, directory: Path
) -> None:
    (directory / "snimux.toml").write_text(f"""
        [[caddy]]
        admin = "unix/{sites.others.admin}"
        [[route]]
        hosts = "*.ciso.com"
        to = "127.0.0.1:{sites.secure.port}"
        allow = "127.0.0.2"
        [[route]]
        hosts = "traefik.ciso.com"
        to = "127.0.0.1:{sites.others.port}"
        """)
    flags = ("--config", str(directory / "snimux.toml"), "--http", "off")
    async with muxes.running(directory, *flags) as mux:
        for source, name, told in (
            (1, "dao.ciso.com", "access denied"),
            (2, "dao.ciso.com", "dao.ciso.com HTTP/2.0"),
            (1, "traefik.ciso.com", "traefik.ciso.com HTTP/2.0"),
        ):
            root, where = sites.of(name).root, f"127.0.0.{source}"
            assert told in await page(directory, root, mux.port, "--interface", where, name=name)
        (line,) = await refusals(mux, 1, reason="access-denied")
        assert line.get("route") == "dao.ciso.com"


# Behind a balancer.

NEEDS_HAPROXY = pytest.mark.needs(
    lambda: not shutil.which("haproxy", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"),
    "needs haproxy: apt-get install haproxy",
)

# It says who it is told that its client is.
_TELLS = """\
who.test {
	tls internal
	respond "{remote_host}"
}
"""
_READS_HEADERS = """servers {
		listener_wrappers {
			proxy_protocol {
				allow 127.0.0.0/8
			}
			tls
		}
	}"""
_HAPROXY = """\
global
    maxconn 100
defaults
    mode tcp
    timeout connect 10s
    timeout client 10s
    timeout server 10s
    timeout check 10s
{listens}
"""
_LISTEN = """\
listen {name}
    bind 127.0.0.1:{port}
    server snimux {to} {version} check inter 50ms
"""


@pytest.fixture(scope="module")
def who() -> Iterator[Caddy]:
    """A Caddy that reads PROXY protocol headers, and tells its client who that is."""
    need(caddy.missing())
    with short_directory() as directory:
        found = caddy.start(directory, _TELLS, options=_READS_HEADERS)
        try:
            trio.run(caddy.answering, found, ["who.test"])
            yield found
        finally:
            found.stop()


@contextlib.contextmanager
def haproxy(directory: Path, *fronts: tuple[str, int, str]) -> Iterator[None]:
    """HAProxy in front of a snimux: with which option, on which port, and where that is."""
    sections = [
        _LISTEN.format(name=f"front{number}", port=port, to=to, version=version)
        for number, (version, port, to) in enumerate(fronts)
    ]
    file = directory / "haproxy.cfg"
    file.write_text(_HAPROXY.format(listens="".join(sections)))
    program = shutil.which("haproxy", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    assert program is not None
    with (directory / "haproxy.log").open("wb") as log:
        process = subprocess.Popen([program, "-db", "-f", str(file)], stdout=log, stderr=log)
    atexit.register(process.kill)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def clients(mux: Mux, via: str) -> set[str]:
    """The addresses of the clients that had a route, by the log."""
    lines = mux.lines(event="connection", route="who.test")
    mine = [line for line in lines if str(line.get("via", "")).startswith(via)]
    return {str(line["client"]).rpartition(":")[0] for line in mine}


@NEEDS_CURL
@NEEDS_HAPROXY
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_behind_haproxy_everyone_learns_who_the_client_is(
    who: Caddy, directory: Path, stack: contextlib.ExitStack, workers: str
) -> None:
    name, ports, port = "who.test", [free_port() for _ in range(3)], free_port()
    unix = directory / "s"
    (directory / "snimux.toml").write_text(f"""
        workers = {workers}
        proxy_from = "127.0.0.1"
        listen = ["127.0.0.1:{port}", {{address = "unix/{unix}", proxy_from = "unix"}}]
        [[route]]
        hosts = "{name}"
        to = "127.0.0.1:{who.port}"
        proxy = "v2"
        deny = "127.0.0.3"
        """)
    fronts = [("send-proxy", f"127.0.0.1:{port}"), ("send-proxy-v2", f"127.0.0.1:{port}"),
              ("send-proxy-v2-ssl", f"unix@{unix}")]  # fmt: skip
    others = ["127.0.0.2", "127.0.0.3"] if sys.platform == "linux" else []
    wanted = {"127.0.0.1", *others}
    flags = ["--config", str(directory / "snimux.toml"), "--log-level", "debug"]
    async with muxes.running(directory, *flags, listen=None) as mux:
        stack.enter_context(
            haproxy(directory, *((how, ports[x], to) for x, (how, to) in enumerate(fronts)))
        )
        for front in ports:
            await until(lambda front=front: listens(front), "HAProxy listens")  # type: ignore[misc]
        for front, (_, to) in zip(ports, fronts, strict=True):
            for client in ["127.0.0.1", *others]:
                said = await page(directory, who.root, front, "--interface", client, name=name)
                if client == "127.0.0.3":
                    assert "access denied" in said
                else:
                    assert said == client
            by = "unix" if "unix" in to else "127.0.0.1:"
            await until(lambda by=by: clients(mux, by) == wanted, "all are logged")  # type: ignore[misc]
        # its checks connect, say so by a header, and close
        await refusals(mux, 6, reason="no-bytes", level="debug")
        reasons = {x.get("reason") for x in mux.lines(event="connection")}
        assert reasons <= {None, "no-bytes", "access-denied"}


@NEEDS_CURL
async def test_curl_says_who_it_is_and_is_believed_only_where_it_is_trusted(
    who: Caddy, directory: Path
) -> None:
    routes = [f"--route=who.test=127.0.0.1:{who.port}", "--proxy-protocol=v2"]
    async with (
        muxes.running(directory, *routes, "--proxy-from", "127.0.0.0/8") as trusting,
        muxes.running(directory, *routes) as other,
    ):
        says = ("--haproxy-protocol",)
        assert await page(directory, who.root, trusting.port, *says, name="who.test") == "127.0.0.1"
        line = await trusting.log_line(event="connection", name="who.test")
        assert line["via"] == line["client"]
        await page(directory, who.root, trusting.port, name="who.test")
        line = await trusting.log_line(reason="bad-proxy-header")
        assert line["detail"] == "no PROXY protocol header"
        assert await page(directory, who.root, other.port, name="who.test") == "127.0.0.1"
        await page(directory, who.root, other.port, *says, name="who.test")
        await other.log_line(reason="proxy-protocol")


async def test_a_rate_is_for_all_workers_together(directory: Path) -> None:
    flags = ["--workers=2", "--max-rate-per-source=0.001", "--max-burst-per-source=6"]
    async with muxes.running(directory, *flags, "--default=127.0.0.1:1") as mux:
        told = []
        for _ in range(40):
            with trio.socket.socket() as client:
                await client.connect(("127.0.0.1", mux.port))
                await send_all(client, b"\x15\x03")  # no hello
                told.append((await read_to_end(client))[0])
        # some of the others may come before the refusals of those before have ended
        assert told.count(alert(10)) == 6
        assert set(told) <= {alert(10), alert(49), b""}
        await refusals(mux, 6, reason="rate-limited")


# Binds, and is then the command that it is given, with the socket as systemd would hand it over.
_ACTIVATES = """
import os, socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
os.execv(sys.argv[2], sys.argv[2:])
"""


@LINUX
@pytest.mark.parametrize("workers", [1, 2])
async def test_the_lists_of_an_address_hold_for_the_socket_that_is_handed_over(
    directory: Path, workers: int
) -> None:
    port = free_port()
    (directory / "snimux.toml").write_text(f"""
        workers = {workers}
        default = "127.0.0.1:1"
        [[listen]]
        address = "127.0.0.1:{port}"
        deny = "127.0.0.2"
        """)
    flags = ["--config", str(directory / "snimux.toml")]
    wrapper = [sys.executable, "-c", _ACTIVATES, str(port)]
    async with muxes.running(directory, *flags, listen=None, wrapper=wrapper) as mux:
        assert mux.port == port
        for source, told in (("127.0.0.1", alert(10)), ("127.0.0.2", alert(49))):
            with trio.socket.socket() as client:
                await client.bind((source, 0))
                await client.connect(("127.0.0.1", port))
                await send_all(client, b"\x15\x03")  # no hello
                assert (await read_to_end(client))[0] == told
