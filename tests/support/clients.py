"""Real TLS clients that a test can point at a server on 127.0.0.1.

`CLIENTS` is the one table of them. Each entry knows the command line with which its program fetches
`https://host:port/` from 127.0.0.1, whatever the host name is, without changes to the resolver of
the system; `available` says what has to be installed for it, and `run` runs it and collects what it
prints. Nothing here depends on snimux, so a test against these clients tests the wire and no shared
assumption.
"""

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trio

Command = Callable[[str, int, Path, Path], list[str]]

# Old protocol versions and their signatures are below the security level of every current OpenSSL.
_OLD_CIPHERS = ("-cipher", "ALL:@SECLEVEL=0")

_PYTHON_SSL = """\
import socket, ssl, sys
host, port, ca_file = sys.argv[1:]
context = ssl.create_default_context(cafile=ca_file)
with socket.create_connection(("127.0.0.1", int(port))) as plain:
    with context.wrap_socket(plain, server_hostname=host) as tls:
        request = f"GET / HTTP/1.1\\r\\nHost: {host}:{port}\\r\\nConnection: close\\r\\n\\r\\n"
        tls.sendall(request.encode())
        while chunk := tls.recv(65536):
            sys.stdout.buffer.write(chunk)
"""

_NODE = """\
const [host, port, ca] = process.argv.slice(1);
require('https').get({
  host: '127.0.0.1', port, servername: host, agent: false,
  ca: require('fs').readFileSync(ca),
  headers: {host: `${host}:${port}`, connection: 'close'},
}, (response) => response.pipe(process.stdout)).on('error', (problem) => {
  console.error(problem.message);
  process.exitCode = 1;
});
"""

_CURL_CFFI = """\
import sys
from curl_cffi import CurlOpt, requests
profile, host, port, ca_file = sys.argv[1:]
options = {CurlOpt.RESOLVE: [f"{host}:{port}:127.0.0.1"]}
with requests.Session(impersonate=profile, verify=ca_file, curl_options=options) as session:
    sys.stdout.write(session.get(f"https://{host}:{port}/").text)
"""

_CURL_CFFI_VERSION = """\
import sys, curl_cffi
from curl_cffi.requests import impersonate
real = getattr(impersonate, "REAL_TARGET_MAP", {}).get(sys.argv[1], sys.argv[1])
print(f"curl_cffi {curl_cffi.__version__}, profile {real}")
"""


@dataclass(frozen=True, slots=True)
class Client:
    """One real TLS client, and how to make it fetch a page from 127.0.0.1."""

    name: str
    needs: str
    """The Debian package with its program, or the Python package if `module` is given."""
    program: str
    command: Command
    """`command(host, port, ca_file, work_dir)` is the argv that fetches the page and prints it."""
    version: tuple[str, ...]
    """The argv that prints which version it is, on its first line."""
    stdin: Callable[[str], bytes] | None = None
    """`stdin(host)` is what to send to its standard input, which then stays open until it ends."""
    module: str | None = None
    verifies: bool = True
    """Whether it checks the server's certificate against `ca_file`."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a client ended, and what it printed.

    Whether the page is in `stdout` is what counts: openssl and gnutls-cli print the response with
    its headers, and end with 1 if the server closed without a close_notify.
    """

    returncode: int
    stdout: bytes
    stderr: bytes


def available(client: Client) -> str | None:
    """Say what is missing for this client to run here, or None if nothing is."""
    if shutil.which(client.program) is None:
        return f"needs {client.program}: apt-get install {client.needs}"
    if client.module is not None and importlib.util.find_spec(client.module) is None:
        return f"needs {client.module}: pip install {client.needs}"
    return None


def environment(work_dir: Path) -> dict[str, str]:
    """Give an environment without the proxies, settings and certificates of who runs the tests."""
    return {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(work_dir), "LANG": "C.UTF-8"}


async def run(client: Client, host: str, port: int, ca_file: Path, work_dir: Path) -> Outcome:
    """Run the client to its end; whoever calls bounds the time, and cancelling kills the client.

    Args:
        client: which one.
        host: the name to ask for.
        port: where the server listens on 127.0.0.1.
        ca_file: the certificate authority to trust, in PEM.
        work_dir: a directory of its own for the client's profile, history and the like.
    """
    process = await trio.lowlevel.open_process(
        client.command(host, port, ca_file, work_dir),
        stdin=subprocess.DEVNULL if client.stdin is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=work_dir,
        env=environment(work_dir),
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    stdout, stderr = bytearray(), bytearray()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_collect, process.stdout, stdout)
            nursery.start_soon(_collect, process.stderr, stderr)
            if client.stdin is not None and process.stdin is not None:
                # a client that refuses the server's certificate is gone before it reads
                with contextlib.suppress(trio.BrokenResourceError):
                    await process.stdin.send_all(client.stdin(host))
            await process.wait()
            # a browser's helpers may outlive it and would hold the pipes open
            _kill_group(process.pid)
    finally:
        await _end(process)
    assert process.returncode is not None
    return Outcome(process.returncode, bytes(stdout), bytes(stderr))


async def _collect(stream: trio.abc.ReceiveStream, into: bytearray) -> None:
    async for chunk in stream:
        into += chunk


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


async def _end(process: trio.Process) -> None:
    """Kill what is left of the process and its children, reap it, close its pipes."""
    _kill_group(process.pid)
    with trio.CancelScope(shield=True):
        await process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                await stream.aclose()


def _request(host: str) -> bytes:
    return f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()


def _curl(*options: str) -> Command:
    def command(host: str, port: int, ca_file: Path, work_dir: Path) -> list[str]:
        resolve = f"{host}:{port}:127.0.0.1"
        url = f"https://{host}:{port}/"
        # --disable: no ~/.curlrc; it has to come first
        quiet = ["curl", "--disable", "--silent", "--show-error", *options]
        return [*quiet, "--cacert", str(ca_file), "--resolve", resolve, url]

    return command


def _openssl(*options: str) -> Command:
    def command(host: str, port: int, ca_file: Path, work_dir: Path) -> list[str]:
        connect = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-servername", host]
        verify = ["-CAfile", str(ca_file), "-verify_hostname", host, "-verify_return_error"]
        # -quiet: only the response on standard output, and the end of the server is its own end
        return [*connect, *verify, "-quiet", *options]

    return command


def _gnutls_cli(host: str, port: int, ca_file: Path, work_dir: Path) -> list[str]:
    names = [f"--sni-hostname={host}", f"--verify-hostname={host}"]
    return ["gnutls-cli", *names, f"--x509cafile={ca_file}", f"--port={port}", "127.0.0.1"]


def _python_ssl(host: str, port: int, ca_file: Path, work_dir: Path) -> list[str]:
    return [sys.executable, "-c", _PYTHON_SSL, host, str(port), str(ca_file)]


def _node(host: str, port: int, ca_file: Path, work_dir: Path) -> list[str]:
    return ["node", "-e", _NODE, host, str(port), str(ca_file)]


def _chromium(host: str, port: int, ca_file: Path, work_dir: Path) -> list[str]:
    return [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        # a small /dev/shm, as in many containers, would crash it
        "--disable-dev-shm-usage",
        f"--user-data-dir={work_dir}",
        "--host-resolver-rules=MAP * 127.0.0.1",
        # its own roots come from a database in the home directory: more than a test should set up
        "--ignore-certificate-errors",
        "--dump-dom",
        f"https://{host}:{port}/",
    ]


def _curl_cffi(profile: str) -> Client:
    def command(host: str, port: int, ca_file: Path, work_dir: Path) -> list[str]:
        return [sys.executable, "-c", _CURL_CFFI, profile, host, str(port), str(ca_file)]

    return Client(
        name=f"curl_cffi-{profile}",
        needs="curl_cffi",
        program=sys.executable,
        command=command,
        version=(sys.executable, "-c", _CURL_CFFI_VERSION, profile),
        module="curl_cffi",
    )


def _openssl_client(version: str, *options: str) -> Client:
    return Client(
        name=f"openssl-{version}",
        needs="openssl",
        program="openssl",
        command=_openssl(*options),
        version=("openssl", "version"),
        stdin=_request,
    )


CLIENTS: tuple[Client, ...] = (
    Client("curl", "curl", "curl", _curl(), ("curl", "--version")),
    Client("curl-http1.1", "curl", "curl", _curl("--http1.1"), ("curl", "--version")),
    _openssl_client("tls1.0", "-tls1", *_OLD_CIPHERS),
    _openssl_client("tls1.1", "-tls1_1", *_OLD_CIPHERS),
    _openssl_client("tls1.2", "-tls1_2"),
    _openssl_client("tls1.3", "-tls1_3"),
    Client(
        name="gnutls-cli",
        needs="gnutls-bin",
        program="gnutls-cli",
        command=_gnutls_cli,
        version=("gnutls-cli", "--version"),
        stdin=_request,
    ),
    Client(
        name="python-ssl",
        needs="python3",
        program=sys.executable,
        command=_python_ssl,
        version=(
            sys.executable,
            "-c",
            "import platform, ssl; print('Python', platform.python_version(), ssl.OPENSSL_VERSION)",
        ),
    ),
    Client(
        name="node",
        needs="nodejs",
        program="node",
        command=_node,
        version=(
            "node",
            "-p",
            "`node ${process.versions.node}, OpenSSL ${process.versions.openssl}`",
        ),
    ),
    Client(
        name="chromium",
        needs="chromium",
        program="chromium",
        command=_chromium,
        version=("chromium", "--version"),
        verifies=False,
    ),
    # a bare name is the newest profile of that browser which the installed curl_cffi has
    _curl_cffi("chrome"),
    _curl_cffi("firefox"),
    _curl_cffi("safari"),
)
