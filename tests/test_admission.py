"""Who is let in, through the snimux command: real clients, real Caddys, real balancers."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests import muxes
from tests.caddy import free_port, short_directory
from tests.clients import environment
from tests.conftest import Sites
from tests.muxes import Mux

NEEDS_CURL = pytest.mark.needs(lambda: not shutil.which("curl"), "needs curl: apt-get install curl")
# elsewhere 127.0.0.1 is the only address of loopback
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs 127.0.0.2")


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory of the test's own, short enough for UNIX sockets."""
    with short_directory() as short:
        yield short


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
        assert [line.get("route") for line in lines] == [None, "dao.ciso.com", None]
