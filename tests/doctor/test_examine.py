"""``snimux doctor`` and ``snimux init``, on real Caddys: the story from red to green."""

import contextlib
import json
import os
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme

from snimux.config.load import load
from snimux.doctor.examine import examine
from snimux.doctor.facts import Process
from snimux.doctor.host import Running, Survey
from snimux.doctor.judge import diagnose
from snimux.proto.client_hello import TLS
from snimux.proto.http_head import HTTP
from snimux.routing.address import TcpAddress, UnixAddress
from tests.support import caddy, muxes
from tests.support.caddy import Caddy, short_directory, until

pytestmark = pytest.mark.needs(lambda: caddy.missing() is not None, str(caddy.missing()))

NAMES = {"secure": ["secure.ciso.com"], "dao": ["dao.ciso.com", "traefik.ciso.com"]}

# As two people write them who do not know of one another, but for the ports: 443, 80 and 2019 may
# be taken on the machine of the tests.
CADDYFILE = """\
{{
	admin localhost:{admin}
	http_port {http}
	https_port {https}
	storage file_system {storage}
	persist_config off
	skip_install_trust
}}
{sites}
"""


@dataclass(frozen=True, slots=True)
class Ports:
    """What both Caddys want."""

    admin: int
    http: int
    https: int


@dataclass(frozen=True, slots=True)
class Story:
    """The two Caddys, each in a directory."""

    directories: dict[str, Path]
    caddys: list[Caddy]

    def caddyfile(self, who: str) -> Path:
        return self.directories[who] / "Caddyfile"

    def start(self) -> None:
        """Start each with its Caddyfile as it is now."""
        for who, directory in self.directories.items():
            self.caddys.append(caddy.run(directory, self.caddyfile(who).read_text("utf-8"), port=0))

    def stop(self) -> None:
        for each in self.caddys:
            each.stop()
        self.caddys.clear()

    def is_serving(self) -> bool:
        """Whether all are, admin API and UDP included."""
        return all("serving initial configuration" in each.log for each in self.caddys)


@contextlib.contextmanager
def story(ports: Ports) -> Iterator[Story]:
    with short_directory() as first, short_directory() as second:
        told = Story({"secure": first, "dao": second}, [])
        for who, directory in told.directories.items():
            sites = "".join(f'{name} {{\n\ttls internal\n\trespond "{who} {name}"\n}}\n'
                            for name in NAMES[who])  # fmt: skip
            text = CADDYFILE.format(
                admin=ports.admin,
                http=ports.http,
                https=ports.https,
                storage=directory / "storage",
                sites=sites,
            )
            told.caddyfile(who).write_text(text, "utf-8")
        try:
            yield told
        finally:
            told.stop()


def _ports() -> Ports:
    return Ports(caddy.free_port(), caddy.free_port(), caddy.free_port())


async def snimux(*args: str) -> tuple[int, str]:
    """Run it; exit status and standard output."""
    done = await trio.run_process(
        [sys.executable, "-m", "snimux", *args],
        check=False,
        capture_stdout=True,
        capture_stderr=True,
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    assert not done.stderr, done.stderr.decode()
    return done.returncode, done.stdout.decode()


async def findings(*args: str) -> list[dict[str, Any]]:
    status, text = await snimux("doctor", "--json", "--no-search", *args)
    said = json.loads(text)
    assert said["status"] == status
    found: list[dict[str, Any]] = said["findings"]
    return found


def colours(found: Sequence[dict[str, Any]]) -> dict[str, str]:
    return {each["check"]: each["colour"] for each in found}


def _blocks(advice: str) -> dict[str, tuple[list[str], str]]:
    """From the printed advice, by the path of a Caddyfile: global options, and what goes behind."""
    found = {}
    for path, block, rest in re.findall(r"^# (/\S+):\n(?:# [^\n]*\n)*\{\n(.*?)^\}\n(.*?\n)\n",
                                        advice, re.MULTILINE | re.DOTALL):  # fmt: skip
        found[path] = (block.splitlines(), rest)
    return found


def _merge(caddyfile: Path, options: Sequence[str], behind: str) -> None:
    """Do as the advice says: the options in place of those of the same names."""
    head, _, sites = caddyfile.read_text("utf-8").partition("\n}\n")
    keys = {line.split()[0] for line in options if re.match(r" {4}\S", line)}
    own = re.findall(r"^\t\w.*(?:\n\t[\t}].*)*", head, re.MULTILINE)
    kept = [option for option in own if option.split()[0] not in keys]
    caddyfile.write_text("\n".join(["{", *kept, *options, "}", behind, sites]), "utf-8")


def _body(port: int, name: str) -> str:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=name) as tls,
    ):
        tls.sendall(f"GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
        return b"".join(iter(lambda: tls.recv(65536), b"")).decode()


async def test_following_the_advice_turns_every_line_green(tmp_path: Path) -> None:
    ports = _ports()
    flags = ["--listen", f"127.0.0.1:{ports.https}", "--http", f"127.0.0.1:{ports.http}"]
    with story(ports) as told:
        told.start()
        await until(told.is_serving, "both Caddys serve", seconds=20)

        found = await findings(*flags, "--caddy", f"localhost:{ports.admin}")
        assert {x["check"] for x in found if x["colour"] == "red"} == {
            "admin-shared",
            "port-shared",
        }
        paths = [str(told.caddyfile(who)) for who in NAMES]
        assert all(path in x["title"] for x in found for path in paths)
        assert [x["remedy"] for x in found if x["check"] == "port-shared"]

        config = tmp_path / "snimux.toml"
        init = ["init", "--no-search", *flags, "--caddy", f"localhost:{ports.admin}"]
        status, advice = await snimux(*init, "--output", str(config))
        assert status == 0
        told.stop()
        blocks = _blocks(advice)
        assert sorted(blocks) == sorted(paths), advice
        for path, (options, behind) in blocks.items():
            _merge(Path(path), options, behind)
        told.start()

        listen = f"127.0.0.1:{ports.https}"
        async with muxes.running(tmp_path, "--config", str(config), listen=listen):
            found = await _all_green("--config", str(config))
            assert [x["check"] for x in found].count("certificate") == 3
            assert [x["check"] for x in found].count("own-port") == 2
            assert [x["check"] for x in found].count("proxy") == 2
            for who, names in NAMES.items():
                for name in names:
                    body = await trio.to_thread.run_sync(_body, ports.https, name)
                    assert body.endswith(f"{who} {name}")
            again = ["--force", "--output", str(config)]
            status, advice = await snimux("init", "--no-search", "--config", str(config), *again)
            assert (status, advice.count("needs nothing")) == (0, 2), advice


async def _all_green(*args: str) -> list[dict[str, Any]]:
    """The findings once all are green: certificates take a moment to be there."""
    found: list[dict[str, Any]] = []
    with trio.move_on_after(30):
        while not found or any(each["colour"] != "green" for each in found):
            found = await findings(*args)
    bad = [each for each in found if each["colour"] != "green"]
    assert not bad, bad
    return found


async def test_it_finds_a_caddy_by_itself() -> None:
    ports = _ports()
    with story(ports) as told:
        told.directories.pop("dao")
        told.start()
        await until(told.is_serving, "Caddy serves", seconds=20)
        # Other Caddys may run on this machine.
        status, text = await snimux(
            "doctor", "--json", "--listen", f"127.0.0.1:{caddy.free_port()}"
        )
        mine = [
            x for x in json.loads(text)["findings"] if str(told.caddyfile("secure")) in x["about"]
        ]
    assert {"caddy": "green", "http3": "yellow", "port-open": "yellow"}.items() <= colours(
        mine
    ).items()
    assert status in (1, 2)


async def test_a_caddy_that_was_not_named_is_left_alone() -> None:
    ports = _ports()
    with story(ports) as told:
        told.directories.pop("dao")
        told.start()
        await until(told.is_serving, "Caddy serves", seconds=20)
        listen = f"127.0.0.1:{caddy.free_port()}"
        found = await findings("--listen", listen, "--route", "a.example=127.0.0.1:1")
    assert colours(found) == {"backend-down": "red", "own-port": "green"}


async def test_a_caddy_that_has_the_public_port_and_one_that_is_no_caddy() -> None:
    ports = _ports()
    with story(ports) as told:
        told.directories.pop("dao")
        told.start()
        await until(told.is_serving, "Caddy serves", seconds=20)
        found = await findings(
            "--listen", f"127.0.0.1:{ports.https}", "--caddy", f"localhost:{ports.http}"
        )
    assert colours(found) == {
        "admin-down": "red",
        "caddy-on-public-port": "red",
        "port-open": "yellow",
        "udp-port": "yellow",
    }
    (line,) = [x["title"] for x in found if x["check"] == "admin-down"]
    assert "not a Caddy's admin API" in line
    (remedy,) = [x["remedy"] for x in found if x["check"] == "admin-down"]
    assert remedy == [f"snimux --caddy localhost:{ports.admin}  # not localhost:{ports.http}"]


async def test_a_server_that_is_no_caddy_is_looked_at_by_its_route() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("a.example").configure_cert(context)
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_ssl_over_tcp, _shake_hands, 0, context, host="127.0.0.1")
        (listener,) = await nursery.start(serve)
        port = listener.transport_listener.socket.getsockname()[1]
        listen = f"127.0.0.1:{caddy.free_port()}"
        routes = [f"--route=a.example=127.0.0.1:{port}", f"--route=b.example=127.0.0.1:{port}"]
        found = await findings("--listen", listen, *routes)
        unread = await findings("--listen", listen, *routes, "--proxy-protocol", "v2")
        nursery.cancel_scope.cancel()
    assert colours(unread) == {"proxy-not-parsed": "red", "own-port": "green"}
    assert colours(found) == {
        "certificate": "green",
        "certificate-wrong-name": "red",
        "own-port": "green",
    }


async def test_a_site_at_what_only_snimux_may_reach_is_red_by_whatever_way() -> None:
    async def administer(stream: trio.SocketStream) -> None:
        async with stream:
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.receive_some()
                await stream.send_all(b"HTTP/1.0 200 OK\r\n\r\nnull")

    with short_directory() as here:
        sock = trio.socket.socket(trio.socket.AF_UNIX)
        await sock.bind(str(here / "admin"))
        sock.listen()
        (here / "link").symlink_to(here / "admin")
        where = {"a": "127.0.0.1:1", "b": f"unix/{here}/link", "c": f"unix/{here}//admin"}
        servers = {
            name: {"listen": [at], "routes": [{"match": [{"host": [f"{name}.example"]}]}],
                   "automatic_https": {"disable": True}}
            for name, at in where.items()
        }  # fmt: skip
        (here / "file").write_text(json.dumps({"apps": {"http": {"servers": servers}}}))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, administer, [trio.SocketListener(sock)])
            flags = f"--caddy=file/{here}/file", f"--caddy=unix/{here}/admin"
            found = await findings("--listen", f"127.0.0.1:{caddy.free_port()}", *flags)
            nursery.cancel_scope.cancel()
    red = [x for x in found if x["check"] == "reserved-address"]
    assert {x["colour"] for x in red} == {"red"}
    assert sorted(x["about"] for x in red) == ["c.example", f"unix/{here}/link"]


async def _shake_hands(stream: trio.SSLStream[trio.SocketStream]) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        await stream.do_handshake()


async def test_on_demand_sites_are_not_asked_for_a_certificate() -> None:
    with short_directory() as directory:
        running = caddy.start(
            directory, "a.example {\n\ttls internal {\n\t\ton_demand\n\t}\n}\n",
            options="on_demand_tls {\n\t\task http://127.0.0.1:1/\n\t}",
        )  # fmt: skip
        try:
            await until(running.admin.exists, "Caddy listens")
            admin = ["--listen", "127.0.0.1:1", "--caddy", f"unix/{running.admin}"]
            _, text = await snimux("doctor", "--no-search", *admin)
            log = running.log
        finally:
            running.stop()
    assert "not seen  the certificates of the Caddy of" in text
    assert "on-demand" in text
    assert "obtaining" not in log


async def _answer_plain(stream: trio.SocketStream) -> None:
    """Know no PROXY protocol: whatever does not begin as a request does is a bad one."""
    with contextlib.suppress(trio.BrokenResourceError):
        is_good = (await stream.receive_some()).startswith(b"OPTIONS ")
        status = "200 OK" if is_good else "400 Bad Request"
        await stream.send_all(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())


@pytest.mark.parametrize(
    ("to", "expected"),
    [
        ('http = "127.0.0.1:1"', {"backend-down": "red"}),
        ('http = ["127.0.0.1:1", "{up}"]', {"backend-down": "yellow", "backend": "green"}),
        ('http = "{up}"', {"backend": "green"}),
        ('http = "{up}"\nhttp_proxy = "v1"', {"proxy-not-parsed": "red"}),
        ('http = "{up}"\nhttp_proxy = "v2"', {"proxy-not-parsed": "red"}),
        ('http = "{up}"\nhttp_proxy = "auto"', {"backend": "green"}),
        ('to = "127.0.0.1:1"', {"backend-down": "red"}),
        ('to = "{up}"', {"backend": "green"}),
    ],
)
async def test_every_address_of_every_route_is_asked(
    to: str, expected: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "snimux.toml"
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, _answer_plain, 0, host="127.0.0.1")
        (listener,) = await nursery.start(serve)
        up = f"127.0.0.1:{listener.socket.getsockname()[1]}"
        text = f'listen = "127.0.0.1:{caddy.free_port()}"\n[[route]]\nhosts = "*.a.example"\n'
        file.write_text(text + to.replace("{up}", up), "utf-8")
        _, said = await snimux("doctor", "--json", "--no-search", "--config", str(file))
        nursery.cancel_scope.cancel()
    assert colours(json.loads(said)["findings"]) == {"own-port": "green"} | expected
    is_by_tls = to.startswith("to")
    assert ("the certificates for *.a.example" in said) is is_by_tls


async def _serve_nothing(stream: trio.SocketStream) -> None:
    """Answer as a Caddy's admin API does that serves nothing."""
    await stream.receive_some()
    head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n"
    await stream.send_all(f"{head}{{}}".encode())


async def test_two_that_differ_by_the_family_alone_are_two(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As Caddys on localhost:2019 and on [::1]:2019, which cannot be said by flags."""
    port = caddy.free_port()
    found = (
        Running(Process(1, "caddy", is_caddy=True), (TcpAddress("localhost", port),)),
        Running(Process(2, "caddy", is_caddy=True), (TcpAddress("::1", port),)),
    )
    monkeypatch.setattr("snimux.doctor.examine.survey", lambda: Survey((), found, ()))
    async with trio.open_nursery() as nursery:
        for host in ("127.0.0.1", "::1"):
            await nursery.start(partial(trio.serve_tcp, _serve_nothing, port, host=host))
        facts = await examine(load({}, needs_routes=False))
        nursery.cancel_scope.cancel()
    assert [x.admin for x in facts.caddys if x.is_listed] == [
        TcpAddress("localhost", port),
        TcpAddress("::1", port),
    ]
    assert facts.http == (TcpAddress("", 80),)


async def test_sockets_that_are_no_admin_api_are_not_taken_for_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As of a Caddy with `admin off`, of which its sites' ports are all that is seen."""
    process = Process(1, "caddy", is_caddy=True)
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, _answer_plain, 0, host="127.0.0.1")
        (listener,) = await nursery.start(serve)
        admin = TcpAddress("localhost", listener.socket.getsockname()[1])
        found = (Running(process, (admin,), is_guess=True),)
        monkeypatch.setattr("snimux.doctor.examine.survey", lambda: Survey((), found, ()))
        facts = await examine(load({}, needs_routes=False))
        nursery.cancel_scope.cancel()
    (finding,) = [x for x in diagnose(facts) if x.check == "admin-down"]
    assert "no admin API was found" in finding.title


async def test_an_admin_socket_that_no_file_can_name_is_a_finding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = f"/run/{'a' * 100}"
    process = Process(1, "caddy", is_caddy=True)
    found = (Running(process, (UnixAddress(path),)),)
    monkeypatch.setattr("snimux.doctor.examine.survey", lambda: Survey((), found, ()))
    facts = await examine(load({}, needs_routes=False))
    (finding,) = [x for x in diagnose(facts) if x.check == "admin-down"]
    assert f"unix/{path}: the path of a UNIX socket has at most 103 bytes" in finding.title


# --- init


async def test_init_replaces_no_file_unless_told_to(tmp_path: Path) -> None:
    file = tmp_path / "snimux.toml"
    file.write_text("precious")
    with short_directory() as directory:
        running = caddy.start(directory, "a.example {\n\ttls internal\n}\n")
        try:
            await until(running.admin.exists, "Caddy listens")
            args = ["--no-search", "--caddy", f"unix/{running.admin}", "--output", str(file)]
            refused = await _init(*args)
            assert (refused.returncode, file.read_text()) == (1, "precious")
            assert refused.stderr.decode() == (
                f"snimux: --output: {file}: there is a file already; --force replaces it\n"
            )
            assert (await _init(*args, "--force")).returncode == 0
            assert load({}, "f", file.read_text()).caddys == (UnixAddress(str(running.admin)),)
        finally:
            running.stop()
    assert os.listdir(tmp_path) == [file.name]  # noqa: PTH208


async def _init(*args: str) -> subprocess.CompletedProcess[bytes]:
    return await trio.run_process(
        [sys.executable, "-m", "snimux", "init", *args],
        check=False,
        capture_stdout=True,
        capture_stderr=True,
    )


@pytest.mark.parametrize("said", ["--http=off", "--config"])
async def test_init_keeps_what_is_said_of_port_80(said: str, tmp_path: Path) -> None:
    file = tmp_path / "told.toml"
    file.write_text('listen = ":443"\nhttp = "off"\n', "utf-8")
    args = [said, str(file)] if said == "--config" else [said]
    done = await _init("--no-search", "--caddy", "localhost:1", *args)
    assert b'\nhttp = "off"\n' in done.stdout
    assert (
        load({}, "f", done.stdout.decode()).addresses(HTTP) == ()
    )  # the file alone, for `init > FILE`
    assert b"# Then restart each Caddy" in done.stderr


MINE = """\
# precious
listen = [":443", ":8443"]
[[route]]
hosts = "a.example"  # mine
to = "127.0.0.1:1"
[[caddy]]
admin = "127.0.0.1:1"
"""


async def test_init_keeps_all_that_a_file_has_and_adds_what_it_has_not(tmp_path: Path) -> None:
    file = tmp_path / "snimux.toml"
    file.write_text(MINE, "utf-8")
    file.chmod(0o640)
    args = ["--no-search", "--config", str(file), "--output", str(file)]
    assert (await _init(*args)).returncode == 1
    assert file.read_text("utf-8") == MINE
    done = await _init(*args, "--force", "--caddy", f"unix/{tmp_path}/new", "--http", "off")
    assert (done.returncode, done.stderr) == (0, b"")
    text = file.read_text("utf-8")
    assert text.startswith(f'http = "off"\n{MINE}\n')
    assert text.count("[[caddy]]") == 2
    assert file.stat().st_mode & 0o777 == 0o640
    config = load({}, "f", text)
    assert (len(config.routes), len(config.addresses(TLS)), config.addresses(HTTP)) == (1, 2, ())


async def test_init_says_what_it_would_have_to_change_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "snimux.toml"
    file.write_text(MINE, "utf-8")
    done = await _init("--no-search", "--config", str(file), "--listen", ":444")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode() == (
        f"snimux: --listen: {file} has listen already: change it there\n"
    )


async def test_init_writes_no_file_that_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "snimux.toml"
    ports = ["--listen", ":443", "--listen", ":80", "--http", ":80"]
    done = await _init("--no-search", *ports, "--output", str(file))
    assert done.returncode == 2
    assert done.stderr == (
        b"snimux: http: :80 is covered by :80 already, where TLS is listened for\n"
    )
    inline = tmp_path / "inline.toml"
    inline.write_text('caddy = [{ admin = "localhost:1" }]', "utf-8")
    args = ["--config", str(inline), "--caddy", "localhost:2", "--output", str(file)]
    done = await _init("--no-search", *args)
    assert done.returncode == 1
    assert done.stderr.endswith(b"\nsnimux: so it is not written\n")
    assert not file.exists()


async def test_init_without_a_caddy_says_what_to_do() -> None:
    done = await _init("--no-search")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"snimux: no Caddy is running here that can be seen; ")


async def test_init_says_where_it_cannot_write(tmp_path: Path) -> None:
    where = tmp_path / "none/snimux.toml"
    done = await _init("--no-search", "--caddy", "localhost:1", "--output", str(where))
    assert done.returncode == 1
    assert done.stderr.decode() == f"snimux: --output: {where}: No such file or directory\n"


@pytest.mark.parametrize("command", ["doctor", "init"])
async def test_wrong_flags_are_told_with_status_2(command: str) -> None:
    done = await trio.run_process(
        [sys.executable, "-m", "snimux", command, "--listen", "443"],
        check=False,
        capture_stderr=True,
    )
    assert done.returncode == 2
    assert done.stderr == b"snimux: --listen: '443': no port; perhaps :443\n"
