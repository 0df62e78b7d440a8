"""``snimux explain`` beside a snimux that serves: it says what a client gets and the log has."""

import json
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner

from snimux.cli.command import main
from snimux.net.http_get import fetch
from snimux.routing.address import parse_dial
from tests.conftest import Sites
from tests.hellos import HERE
from tests.support import caddy, muxes
from tests.support.caddy import closed_port, free_port

HELLO = (HERE / "curl.bin").read_bytes()  # for secure.ciso.com
NAMELESS = (HERE / "openssl-no-name.bin").read_bytes()

# What the log has for a reason that counts as a scanner's, it has at the level debug.
BYTES = {
    "no-route": HELLO,
    "nameless": NAMELESS,
    "cut": HELLO[:-1],
    "behind": NAMELESS + b"early data",
    "empty record": b"\x16\3\1\0\0" + HELLO,
    "other handshake message": HELLO[:5] + b"\2" + HELLO[6:],
    "long record": b"\x16\3\1\xff\xff",
    "large": b"\x16\3\1\0\4\1\xff\xff\xff",
    "bad name": HELLO.replace(b"secure.ciso.com", b"secure ciso com"),
    "ssh": b"SSH-2.0-x\r\n",
    "noise": b"\0\0\0\0",
    "http": b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
    "http elsewhere": b"GET /x HTTP/1.1\r\nHost: b.example\r\n\r\n",
    "http folded": b"GET / HTTP/1.1\r\nHost: a.example\r\n x\r\n\r\n",
    "http cut": b"GET / HTTP/1.1\r\n",
}


async def explain(*args: str, stdin: bytes = b"") -> tuple[int, dict[str, Any]]:
    """Run it; exit status, and what it says."""
    done = await trio.run_process(
        [sys.executable, "-m", "snimux", "explain", "--json", *args],
        stdin=stdin,
        check=False,
        capture_stdout=True,
        stderr=subprocess.STDOUT,
    )
    return done.returncode, json.loads(done.stdout)


def exchange(port: int, data: bytes) -> tuple[str, bytes]:
    """Send bytes, and no more; the client's address, and the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        host, own_port = client.getsockname()
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        answer = b""
        while some := client.recv(65536):
            answer += some
        return f"{host}:{own_port}", answer


def explained(data: bytes, *args: str) -> tuple[int, dict[str, Any]]:
    """The same as ``explain``, in this process, which is faster."""
    result = CliRunner().invoke(main, ["explain", "--json", "--hello", "-", *args], input=data)
    return result.exit_code, json.loads(result.stdout)


async def test_bytes_get_the_answer_and_the_log_line_that_are_explained(tmp_path: Path) -> None:
    http_port = free_port()
    flags = ["--http", f"127.0.0.1:{http_port}", "--route", "a.example=127.0.0.1:1"]
    async with muxes.running(tmp_path, *flags, "--log-level", "debug") as mux:
        for what, data in BYTES.items():
            status, said = await trio.to_thread.run_sync(
                partial(explained, data, *flags, "--listen", f":{mux.port}")
            )
            port = http_port if said["protocol"] == "http" else mux.port
            client, told = await trio.to_thread.run_sync(exchange, port, data)
            line = await mux.log_line(event="connection", client=client)
            assert said["told"]["bytes"] == told.hex(), what
            assert said["reason"] == line.get("reason"), what
            assert said["end"] == line["ended"], what
            assert said["name"] == line.get("name"), what
            assert status == (0 if what == "http" else 1), what
            if line["ended"] == "redirected":
                assert line["detail"] == said["location"]
            else:
                assert line.get("detail", "") == said["detail"], what


async def test_what_real_caddys_serve_is_explained_by_what_they_say(sites: Sites) -> None:
    caddys = [f"--caddy=unix/{each.admin}" for each in (sites.secure, sites.others)]
    status, said = await explain("https://Traefik.ciso.com", *caddys)
    assert status == 0
    assert said["route"] == "traefik.ciso.com"
    assert said["origin"] == f"the Caddy at unix/{sites.others.admin}"
    (dial,) = said["dial"]
    assert dial["address"] == f"127.0.0.1:{sites.others.port}"
    # Asked by a probe; it has no wrapper.
    assert (dial["proxy"], dial["header"]) == ("auto", "none")
    again = [*caddys, f"--route=traefik.ciso.com=127.0.0.1:{sites.secure.port}"]
    _, other = await explain("traefik.ciso.com", *again)
    assert (other["origin"], other["also"]) == ("--route", [f"unix/{sites.others.admin}"])


@pytest.mark.needs(lambda: caddy.missing() is not None, str(caddy.missing()))
async def test_a_caddy_that_is_down_is_a_hint_and_the_rest_holds(tmp_path: Path) -> None:
    status, said = await explain("a.example", "--caddy", f"unix/{tmp_path}/none")
    assert status == 1
    assert said["hints"][-1].endswith("/none: No such file or directory")


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_one_that_was_refused_is_explained_again(workers: str, tmp_path: Path) -> None:
    status_at = f"127.0.0.1:{free_port()}"
    route = ["--route", "a.example=127.0.0.1:1"]
    flags = [*route, "--status", status_at, "--workers", workers]
    async with muxes.running(tmp_path, *flags) as mux:
        for data in (NAMELESS, HELLO, HELLO[:-1]):
            client, _ = await trio.to_thread.run_sync(exchange, mux.port, data)
            await mux.log_line(event="connection", client=client)
        rows: list[dict[str, Any]] = []
        with trio.fail_after(20):
            while len(rows) < 3:  # one that is busy is left out
                rows = (await shown(status_at))["refused"]
        assert [row["reason"] for row in rows] == ["no-route", "no-route", "hello-cut-short"]
        assert not any("hello" in row for row in rows)
        for row, name in zip(rows, (None, "secure.ciso.com", None), strict=True):
            number = f"{row['worker']}.{row['number']}"
            again = ["--refused", number, "--status", status_at]
            status, said = await explain(*again, *route)
            assert status == 1
            assert (said["reason"], said["name"]) == (row["reason"], name)
            assert said["source"] == "127.0.0.1"
            assert row["reason"] in said["notes"][0]
            assert said["running"]["same"]
            # by what runs alone
            assert (await explain(*again))[1]["reason"] == row["reason"]
            # what mends it
            _, mended = await explain(*again, *route, "--default", "127.0.0.1:2")
            assert mended["end"] == ("refused" if "cut" in row["reason"] else "relayed")


async def shown(status_at: str) -> Any:
    """The page of the refused."""
    return json.loads(await fetch(parse_dial(status_at), "/refused"))


@pytest.mark.parametrize("plain", [False, True])
async def test_what_was_sent_is_not_kept_where_it_is_not_to_be(plain: bool, tmp_path: Path) -> None:
    """With --keep-refused 0; and ever of plain HTTP, which may have passwords."""
    status_at, http_at = (f"127.0.0.1:{free_port()}" for _ in range(2))
    flags = ["--route", "a.example=127.0.0.1:1", "--status", status_at, "--http", http_at]
    flags += [] if plain else ["--keep-refused", "0"]
    async with muxes.running(tmp_path, *flags) as mux:
        port = int(http_at.rpartition(":")[2]) if plain else mux.port
        data = BYTES["http elsewhere"] if plain else HELLO
        client, _ = await trio.to_thread.run_sync(exchange, port, data)
        await mux.log_line(event="connection", client=client)
        (row,) = (await shown(status_at))["refused"]
        done = await trio.run_process(
            [sys.executable, "-m", "snimux", "explain", "--refused", "1", "--status", status_at],
            check=False,
            capture_stderr=True,
        )
    assert row["reason"] == "no-route"
    assert done.returncode == 1
    assert b"nothing is kept but that it was refused: no-route" in done.stderr


async def test_a_file_that_says_something_else_than_what_runs(tmp_path: Path) -> None:
    status_at = f"127.0.0.1:{free_port()}"
    file = tmp_path / "snimux.toml"
    text = 'default = "127.0.0.1:1"\nstatus = "STATUS"\n'.replace("STATUS", status_at)
    file.write_text(text, "utf-8")
    async with muxes.running(tmp_path, "--config", str(file), "--watch=off"):
        _, same = await explain("a.example", "--config", str(file))
        file.write_text(text.replace('"127.0.0.1:1"', '"127.0.0.1:2"'), "utf-8")
        _, other = await explain("a.example", "--config", str(file))
        _, alone = await explain("a.example", "--status", status_at)
    assert (same["running"]["same"], same["running"]["at"]) == (True, status_at)
    assert same["running"]["facts"]["connections"] == 0
    assert other["dial"][0]["address"] == "127.0.0.1:2"
    assert other["running"]["difference"] == "relayed by * to 127.0.0.1:1"
    assert alone["dial"][0]["address"] == "127.0.0.1:1"
    assert alone["origin"] == f"the snimux at {status_at}, its configuration"
    # It has ended: what the file says holds, and a hint says what is not known.
    status, ended = await explain("a.example", "--config", str(file))
    assert (status, ended["running"]) == (0, None)
    assert ended["hints"] == [f"--status: {status_at}: Connection refused"]


async def test_whom_a_route_lets_in_is_known_of_what_runs(tmp_path: Path) -> None:
    status_at = f"127.0.0.1:{free_port()}"
    file = tmp_path / "snimux.toml"
    file.write_text(
        f'status = "{status_at}"\n[[route]]\nhosts = "a.example"\nto = "127.0.0.1:1"\n'
        'deny = ["192.0.2.0/24"]\n',
        "utf-8",
    )
    async with muxes.running(tmp_path, "--config", str(file)):
        for source, words in (
            ("192.0.2.7", ("refused", "access-denied")),
            ("::1", ("relayed", None)),
        ):
            asked = ("a.example", "--from", source)
            _, both = await explain(*asked, "--config", str(file))
            _, alone = await explain(*asked, "--status", status_at)
            assert (both["end"], both["reason"]) == (alone["end"], alone["reason"]) == words
            assert both["running"]["same"]
            assert alone["running"]["same"]
            unknown = f"--status: {status_at}: it does not show whom listeners let in"
            assert unknown in alone["hints"]
            assert unknown not in both["hints"]


async def test_whether_an_address_answers_is_asked_of_what_runs(tmp_path: Path) -> None:
    status_at, down = f"127.0.0.1:{free_port()}", f"127.0.0.1:{closed_port()}"
    flags = ["--route", f"secure.ciso.com={down}", "--status", status_at, "--wait", "off"]
    async with muxes.running(tmp_path, *flags) as mux:
        _, unknown = await explain("secure.ciso.com", *flags)
        client, _ = await trio.to_thread.run_sync(exchange, mux.port, HELLO)
        await mux.log_line(event="connection", client=client, reason="backend-down")
        _, known = await explain("secure.ciso.com", *flags)
    assert unknown["running"]["facts"]["not_answering"] == []
    assert known["running"]["facts"]["not_answering"] == [down]
    assert known["end"] == "relayed"
