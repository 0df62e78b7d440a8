"""``net.transparent``: in a network of the test's own, by the rules that docs/ has."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import trio
import trustme

from snimux.backend.pool import Backends
from snimux.net.dial import Dialled, NotDialled, dial
from snimux.net.transparent import bind_as, missing
from snimux.routing.address import TcpAddress
from snimux.routing.routes import Backend, Route, parse_pattern, targets
from tests.support import muxes
from tests.support.caddy import short_directory
from tests.support.clients import environment
from tests.support.sockets import tcp_pair

DOCUMENT = (Path(__file__).parents[2] / "docs/configuration.rst").read_text("utf-8")
NAME, PORT, LISTEN = "secure.ciso.com", 8443, 4443
WITHOUT = "-net_raw,-net_admin"

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone can do that")


@cache
def _has_spaces() -> bool:
    """Whether there can be networks, joined by pairs of interfaces, and rules for their ports."""
    programs = ("unshare", "nsenter", "setpriv", "ip", "curl")
    if sys.platform != "linux" or os.geteuid() != 0 or not all(map(shutil.which, programs)):
        return False
    tries = (
        "ip link add a0 type veth peer name b0 && ip rule add iif a0 ipproto tcp sport 1 lookup 9"
    )
    return not subprocess.run(
        ["unshare", "--net", "sh", "-c", tries], capture_output=True
    ).returncode


NEEDS_SPACES = pytest.mark.needs(
    lambda: not _has_spaces(), "needs root, veth and apt-get install util-linux iproute2 curl"
)

# The three machines, each with an address of both families on either side.
_LINKS = """\
{snimux} ip link add front0 type veth peer name c0 netns {client_pid}
{snimux} ip link add back0 type veth peer name b0 netns {backend_pid}
{client} ip address add 192.0.2.7/24 dev c0
{client} ip address add 2001:db8:1::7/64 dev c0 nodad
{snimux} ip address add 192.0.2.1/24 dev front0
{snimux} ip address add 2001:db8:1::1/64 dev front0 nodad
{snimux} ip address add 198.51.100.1/24 dev back0
{snimux} ip address add 2001:db8:2::1/64 dev back0 nodad
{backend} ip address add 198.51.100.2/24 dev b0
{backend} ip address add 2001:db8:2::2/64 dev b0 nodad
{client} ip link set c0 up
{snimux} ip link set front0 up
{snimux} ip link set back0 up
{snimux} ip link set lo up
{backend} ip link set b0 up
{backend} ip route add default via 198.51.100.1
{backend} ip -6 route add default via 2001:db8:2::1
"""

# A TLS server that tells its client who that is.
_TELLS = """
import socket, ssl, sys
host, port, pem = sys.argv[1:]
family = socket.AF_INET6 if ":" in host else socket.AF_INET
context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
context.load_cert_chain(pem)
with socket.create_server((host, int(port)), family=family) as listener:
    print("listening", flush=True)
    while True:
        plain, peer = listener.accept()
        try:
            with context.wrap_socket(plain, server_side=True) as client:
                client.recv(65536)
                body = peer[0].encode()
                head = b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\nContent-Length: %d\\r\\n\\r\\n"
                client.sendall(head % len(body) + body)
        except OSError:
            pass
"""


@dataclass(frozen=True, slots=True)
class Spaces:
    """Three machines in a row, by the process that holds the network of each."""

    client: int
    snimux: int
    backend: int

    @staticmethod
    def within(pid: int) -> list[str]:
        """A command in front of one that is to run there."""
        return ["nsenter", "--target", str(pid), "--net"]


def held(stack: contextlib.ExitStack, command: list[str]) -> subprocess.Popen[bytes]:
    """A process that has said something, ended with the stack, or with this process."""
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *command], stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    stack.callback(process.wait)
    stack.callback(process.kill)
    assert process.stdout is not None
    stack.callback(process.stdout.close)
    assert process.stdout.readline()
    return process


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    """What is left when the test is over."""
    with contextlib.ExitStack() as own:
        yield own


@pytest.fixture
def spaces(stack: contextlib.ExitStack) -> Spaces:
    """The machines, joined; nothing of them is left when the test is over."""
    hold = ["unshare", "--net", "sh", "-c", "echo; exec sleep 1000"]
    pids = [held(stack, hold).pid for _ in range(3)]
    found = Spaces(*pids)
    names = {name: getattr(found, name) for name in ("client", "snimux", "backend")}
    prefixes = {name: " ".join(found.within(pid)) for name, pid in names.items()}
    for line in _LINKS.format(**prefixes, client_pid=pids[0], backend_pid=pids[2]).splitlines():
        subprocess.run(line.split(), check=True)
    return found


def rules(*, loopback: bool, v6: bool) -> list[str]:
    """The commands that the document has, for one case."""
    section = DOCUMENT.partition("The client's own address\n---")[2].partition("\n\n\n")[0]
    blocks = re.findall(r"(?:^    ip .*\n)+", section, re.MULTILINE)
    (block,) = (x for x in blocks if ("iif lo" in x) is loopback)
    lines = [line.strip() for line in block.splitlines()]
    assert len(lines) == 2
    if v6:
        lines = [x.replace("ip ", "ip -6 ", 1).replace("127.0.0.1", "::1") for x in lines]
    return lines


@LINUX
@NEEDS_SPACES
@pytest.mark.parametrize("loopback", [False, True])
@pytest.mark.parametrize("v6", [False, True])
async def test_the_backend_sees_the_client_s_own_address(
    spaces: Spaces, stack: contextlib.ExitStack, loopback: bool, v6: bool
) -> None:
    directory = stack.enter_context(short_directory())
    authority = trustme.CA()
    authority.cert_pem.write_to_path(directory / "root.pem")
    authority.issue_cert(NAME).private_key_and_cert_chain_pem.write_to_path(directory / "own.pem")
    if loopback:
        host, where = "::1" if v6 else "127.0.0.1", spaces.snimux
    else:
        host, where = "2001:db8:2::2" if v6 else "198.51.100.2", spaces.backend
    serve = [sys.executable, "-c", _TELLS, host, str(PORT), str(directory / "own.pem")]
    held(stack, [*spaces.within(where), *serve])
    front, client = ("[2001:db8:1::1]", "2001:db8:1::7") if v6 else ("192.0.2.1", "192.0.2.7")
    to = f"[{host}]:{PORT}" if v6 else f"{host}:{PORT}"
    other = "127.0.0.1:1" if v6 else "[::1]:1"
    (directory / "snimux.toml").write_text(f"""
        [[route]]
        hosts = "{NAME}"
        to = "{to}"
        transparent = true
        [[route]]
        hosts = "other.ciso.com"
        to = "{other}"
        transparent = true
        """)

    async def fetched(name: str) -> subprocess.CompletedProcess[bytes]:
        resolve = f"{name}:{LISTEN}:{front.strip('[]')}"
        command = ["curl", "--disable", "--silent", "--show-error", "--max-time", "10",
                   "--cacert", str(directory / "root.pem"), "--resolve", resolve]  # fmt: skip
        return await trio.run_process(
            [*spaces.within(spaces.client), *command, f"https://{name}:{LISTEN}/"],
            check=False, capture_stdout=True, capture_stderr=True, env=environment(directory),
        )  # fmt: skip

    for line in rules(loopback=loopback, v6=v6):
        await trio.run_process([*spaces.within(spaces.snimux), *line.split()])
    # all that root may do otherwise, but for reading what is its owner's, is taken from it
    least = ["setpriv", "--bounding-set=-all,+net_raw,+dac_override"]
    flags = ["--config", str(directory / "snimux.toml")]
    async with muxes.running(
        directory, *flags, listen=f"{front}:{LISTEN}",
        wrapper=[*spaces.within(spaces.snimux), *least],
    ) as mux:  # fmt: skip
        for _ in range(3):
            done = await fetched(NAME)
            assert (done.stdout.decode(), done.stderr) == (client, b"")
        assert b"internal error" in (await fetched("other.ciso.com")).stderr
        refused = await mux.log_line(reason="no-source")
        assert refused["name"] == "other.ciso.com"


@LINUX
@pytest.mark.needs(lambda: not shutil.which("setpriv"), "needs setpriv: apt-get install util-linux")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_without_the_capability_it_does_not_start_and_says_what_to_do(
    tmp_path: Path, workers: str
) -> None:
    file = tmp_path / "snimux.toml"
    file.write_text('[[route]]\nhosts = "a.example"\nhttp = "127.0.0.1:1"\ntransparent = true\n')
    flags = ["--config", str(file), "--listen", "127.0.0.1:0", "--workers", workers]
    # who is not root has none to lose
    less = ["setpriv", f"--bounding-set={WITHOUT}"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*less, sys.executable, "-m", "snimux", *flags], capture_output=True, check=False
    )
    assert done.returncode == 1
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith(
        "snimux: the route of a.example is transparent, which needs the capability CAP_NET_RAW. "
        "In the service unit: AmbientCapabilities=CAP_NET_RAW"
    )
    assert subprocess.run(
        [*less, sys.executable, "-m", "snimux", "check", *flags], capture_output=True, check=False
    ).stdout.endswith(b"ok\n")


def test_it_is_for_linux_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Route(parse_pattern("a.example"), targets(tls=Backend((TcpAddress("127.0.0.1", 1),))))
    transparent = Route(
        parse_pattern("b.example"),
        targets(tls=Backend((TcpAddress("127.0.0.1", 1),), transparent=True)),
    )
    monkeypatch.setattr(sys, "platform", "darwin")
    assert missing([plain]) is None
    assert missing([plain, transparent]) == (
        "the route of b.example is transparent, which Linux alone can be"
    )


@LINUX
@NEEDS_SPACES
@pytest.mark.parametrize("own", ["127.0.0.9", "::1"])
async def test_a_backend_is_dialled_from_there_only_if_it_is_transparent(own: str) -> None:
    is_v6 = ":" in own
    with (
        socket.create_server(("127.0.0.1", 0)) as v4,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as v6,
    ):
        addresses = [TcpAddress(*x.getsockname()[:2]) for x in (v4, v6)]
        for transparent, listener in ((True, v6 if is_v6 else v4), (False, v4)):
            backend = Backend(tuple(addresses), transparent=transparent)
            near, client = await tcp_pair()
            with near, client:
                found = await Backends().reach(backend, near, (own, 5), dial_timeout=5)
            assert isinstance(found, Dialled)
            with found.socket, listener.accept()[0] as accepted:
                seen = accepted.getpeername()
            assert seen[0] == (own if transparent else "127.0.0.1")
            assert seen[1] != 5


@LINUX
@NEEDS_SPACES
async def test_an_address_that_cannot_be_dialled_from_is_no_fault_of_the_backend() -> None:
    found = await dial(TcpAddress("::1", 1), dial_timeout=5, source=("fe80::1", 5))
    assert isinstance(found, NotDialled)
    assert found.exhausted


@LINUX
@NEEDS_SPACES
def test_ports_do_not_run_out_before_it_is_known_where_to() -> None:
    with socket.socket() as sock:
        bind_as(sock, ("192.0.2.7", 5))
        assert sock.getsockname() == ("192.0.2.7", 0)
