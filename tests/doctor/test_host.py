"""``doctor.host``: real processes and sockets; and where a Caddyfile says that it is asked."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from snimux.doctor import host as module
from snimux.doctor.facts import Port, Process
from snimux.doctor.host import Survey, _written_admin, survey
from snimux.routing.address import FileAddress, TcpAddress, UnixAddress
from tests.support import caddy
from tests.support.caddy import until
from tests.support.sockets import open_descriptors

with_caddy = pytest.mark.needs(lambda: caddy.missing() is not None, str(caddy.missing()))

LISTEN = """\
import socket, sys
sock = socket.create_server(("127.0.0.1", {port}), reuse_port=True)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("127.0.0.1", {port}))
print("listening", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def _listening(port: int) -> Iterator[int]:
    """A process that shares a TCP port; its id."""
    script = LISTEN.format(port=port).replace("udp.bind", "udp.setsockopt(1, 15, 1) or udp.bind")
    if sys.platform != "linux":
        script = script.replace("setsockopt(1, 15, 1)", "setsockopt(0xffff, 0x200, 1)")
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"listening\n"
        yield process.pid
        process.stdin.close()


def _ports(seen: Survey, kind: str, port: int) -> list[Port]:
    address = TcpAddress("127.0.0.1", port)
    return [found for found in seen.ports if (found.kind, found.address) == (kind, address)]


def _pids(port: Port) -> list[int]:
    return [holder.pid for holder in port.holders if holder]


def test_who_listens_where() -> None:
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(type=2) as udp:
        udp.bind(("127.0.0.1", 0))
        seen = survey()
        for sock, kind in ((tcp, "tcp"), (udp, "udp")):
            (port,) = _ports(seen, kind, sock.getsockname()[1])
            assert _pids(port) == [os.getpid()]


def test_a_unix_socket_and_its_holder() -> None:
    with caddy.short_directory() as directory, socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(directory / "s"))
        sock.listen()
        found = [x for x in survey().ports if x.address == UnixAddress(str(directory / "s"))]
        assert [_pids(x) for x in found] == [[os.getpid()]]


def test_two_processes_that_share_a_port() -> None:
    number = caddy.free_port()
    with _listening(number) as one, _listening(number) as other:
        (port,) = _ports(survey(), "tcp", number)
        assert sorted(_pids(port)) == sorted([one, other])


FORK = """\
import os, socket, sys
sock = socket.create_server(("127.0.0.1", 0))
if os.fork():
    print(sock.getsockname()[1], flush=True)
sys.stdin.read()
"""


def test_a_worker_that_was_forked_is_its_parent() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FORK], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        number = int(process.stdout.readline())
        (port,) = _ports(survey(), "tcp", number)
        assert _pids(port) == [process.pid]
        process.communicate()


def _entry(ip: str, port: int, pid: int | None) -> tuple[int | None, SimpleNamespace]:
    laddr = SimpleNamespace(ip=ip, port=port)
    inet, stream = socket.AF_INET, socket.SOCK_STREAM
    return pid, SimpleNamespace(
        family=inet, type=stream, laddr=laddr, raddr=(), status=psutil.CONN_LISTEN
    )


def test_sockets_of_processes_that_cannot_be_seen_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address = TcpAddress("0.0.0.0", 443)
    monkeypatch.setattr(module, "_kernel_counts", lambda: {address: 2})
    (port,) = module._ports([_entry("0.0.0.0", 443, None)], {}, int)
    assert port == Port("tcp", address, (None, None))
    monkeypatch.setattr(module, "_kernel_counts", dict)
    (port,) = module._ports([_entry("0.0.0.0", 443, None)], {}, int)
    assert port == Port("tcp", address, (None,))


@pytest.mark.skipif(sys.platform != "linux", reason="proc(5)")
def test_the_kernel_counts_sockets_of_both_families() -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as one:
        number = one.getsockname()[1]
        with socket.create_server(("127.0.0.1", number), reuse_port=True):
            assert module._kernel_counts()[TcpAddress("127.0.0.1", number)] == 2
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as six:
        assert module._kernel_counts()[TcpAddress("::1", six.getsockname()[1])] == 1


def test_where_the_system_shows_own_processes_only_that_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(kind: str) -> None:
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "net_connections", refuse)
    with socket.create_server(("127.0.0.1", 0)) as tcp:
        seen = survey()
        (port,) = _ports(seen, "tcp", tcp.getsockname()[1])
    assert _pids(port) == [os.getpid()]
    assert seen.unseen == ("the sockets of other users' processes: sudo snimux doctor",)


@with_caddy
async def test_a_caddy_its_caddyfile_and_where_to_ask_it() -> None:
    with caddy.short_directory() as directory:
        running = caddy.start(directory, "a.example {\n\ttls internal\n}\n")
        try:
            await until(running.admin.exists, "Caddy listens")
            (found,) = [x for x in survey().caddys if x.process.pid == running.process.pid]
        finally:
            running.stop()
        assert found.process.is_caddy
        assert found.process.config == str(directory / "Caddyfile")
        assert found.process.has_proxy_protocol
        assert found.admins[0] == UnixAddress(str(running.admin))


def test_a_program_is_looked_through_up_to_a_limit(tmp_path: Path) -> None:
    wrapper = b"caddy.listeners.proxy_protocol"
    program = tmp_path / "caddy"
    process = psutil.Process()

    def has_wrapper(path: Path) -> bool | None:
        process.exe = lambda: str(path)  # type: ignore[method-assign]
        module._has_wrapper.cache_clear()
        return module._has_proxy_protocol(process)

    for at in (0, 2**20 - 7, 2**20, 3 * 2**20 - len(wrapper), 3 * 2**20 - 1):
        with program.open("wb") as file:
            file.seek(at)
            file.write(wrapper)
        assert has_wrapper(program)
    program.write_bytes(b"another program")
    assert has_wrapper(program) is False
    program.write_bytes(b"")
    assert has_wrapper(program) is False
    with program.open("wb") as file:
        file.truncate(20 * 2**30)
    os.mkfifo(tmp_path / "fifo")
    for path in (program, tmp_path / "fifo", Path("/dev/zero"), tmp_path, tmp_path / "none"):
        before = open_descriptors()
        assert has_wrapper(path) is None
        assert open_descriptors() == before


def test_what_is_called_caddy_and_listens_nowhere_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with caddy.short_directory() as directory:
        program = directory / "caddy-sleep"
        program.symlink_to(shutil.which("cat") or "cat")
        with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"it runs\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"it runs\n"
            assert process.pid not in [x.process.pid for x in survey().caddys]

            def refuse(process: psutil.Process) -> None:
                raise psutil.AccessDenied

            monkeypatch.setattr(psutil.Process, "num_fds", refuse)
            assert process.pid in [x.process.pid for x in survey().caddys]
            process.stdin.close()


@with_caddy
async def test_a_caddy_without_a_file_is_asked_where_it_listens_and_keeps_its_autosave() -> None:
    program = caddy.binary()
    assert program is not None
    with caddy.short_directory() as directory:
        admin, autosave = caddy.free_port(), directory / ".config/caddy/autosave.json"
        config = f'{{"admin": {{"listen": "localhost:{admin}"}}}}'
        with subprocess.Popen(  # noqa: ASYNC220 (it is there at once)
            [program, "run", "--config", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=directory,
            env={"HOME": str(directory)},
        ) as process:
            assert process.stdin is not None
            process.stdin.write(config.encode())
            process.stdin.close()
            try:
                await until(autosave.exists, "Caddy keeps its configuration")
                await until(lambda: _answers(admin), "Caddy listens")
                (found,) = [x for x in survey().caddys if x.process.pid == process.pid]
            finally:
                process.terminate()
        assert found.admins[0] in (TcpAddress("localhost", admin), TcpAddress("::1", admin))
        if sys.platform == "linux":
            assert found.admins[-1] == FileAddress(str(autosave))


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize(
    ("text", "admin"),
    [
        ("{\n\tadmin localhost:2020\n}\n", TcpAddress("localhost", 2020)),
        ("{\n  admin unix//run/a.sock|0220\n}\n", UnixAddress("/run/a.sock")),
        ('{\n\tadmin "unix/{$HERE:/var}/a.sock"\n}\n', UnixAddress("/here/a.sock")),
        ('{\n\tadmin "unix/{$GONE:/var}/a.sock"\n}\n', UnixAddress("/var/a.sock")),
        ("{\n\tadmin :{$PORT}\n}\n", None),
        ("{\n\tadmin localhost:2020 {\n\t\tenforce_origin\n\t}\n}", TcpAddress("localhost", 2020)),
        ("{\n\tadmin off\n}\n", None),
        ("{\n\tadmin\n}\n", None),
        ("# admin localhost:1\na.example\n", None),
        ("", None),
        ("\n" * 2**20 + "{\n\tadmin localhost:2020\n}\n", TcpAddress("localhost", 2020)),
        ("admin {$\n" * 2**17, None),
        ("admin " + "{$}a" * 2**17, None),
        ("admin " + " " * 2**20 + "x" * 2**20 + " {$", None),
        ("\n" * 2**23 + "admin localhost:2020", None),
        ("\udc80".encode("utf-8", "surrogateescape").decode("latin-1"), None),
    ],
)
def test_the_admin_address_of_a_caddyfile(text: str, admin: object, tmp_path: Path) -> None:
    file = tmp_path / "Caddyfile"
    file.write_text(text, "utf-8")
    assert _written_admin(str(file), {"HERE": "/here"}) == admin


def test_a_caddyfile_that_cannot_be_read_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    os.mkfifo(tmp_path / "fifo")
    for path in (
        str(tmp_path / "fifo"),
        "/dev/zero",
        None,
        str(tmp_path / "none"),
        str(tmp_path),
        str(tmp_path / "binary"),
        "a\0b",
    ):
        assert _written_admin(path, {}) is None


def test_a_process_prints_as_people_want_to_read_it() -> None:
    assert str(Process(7, "caddy", config="/etc/Caddyfile")) == "caddy (pid 7, /etc/Caddyfile)"
    assert str(Process(7, "nginx")) == "nginx (pid 7)"
