"""``--routes-dir``: a real snimux follows files that come, change, break and go."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from snimux.proto.client_hello import alert
from tests.hellos import load
from tests.support import muxes
from tests.support.caddy import short_directory
from tests.support.muxes import Mux
from tests.support.sockets import read

HELLO = next(hello.data for hello in load() if hello.slug == "curl")
NAME = "secure.ciso.com"
"""Which it asks for."""


@pytest.fixture
def here() -> Iterator[Path]:
    with short_directory() as directory:
        (directory / "routes").mkdir()
        yield directory


def write(file: Path, host: str, backend: trio.SocketListener, more: str = "") -> None:
    """Write a file of routes as one should: elsewhere, and then into place."""
    port = backend.socket.getsockname()[1]
    new = file.with_suffix(".new")
    new.write_text(f'[[route]]\nhosts = "{host}"\nto = "127.0.0.1:{port}"\n{more}')
    new.replace(file)


async def backend() -> trio.SocketListener:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    return listener


async def reaches(mux: Mux, backend: trio.SocketListener) -> trio.SocketStream:
    """A client that comes to a backend, and stays."""
    client = await trio.open_tcp_stream("127.0.0.1", mux.port)
    await client.send_all(HELLO)
    with trio.fail_after(60):
        accepted = await backend.accept()
        assert await read(accepted.socket, len(HELLO)) == HELLO
    await accepted.aclose()
    return client


async def is_refused(mux: Mux) -> bool:
    async with await trio.open_tcp_stream("127.0.0.1", mux.port) as client:
        await client.send_all(HELLO)
        with trio.fail_after(60):
            return await client.receive_some() == alert(112)


async def said(mux: Mux, workers: int, **fields: object) -> None:
    """Wait until each worker has said something."""
    with trio.fail_after(60):
        while len(mux.lines(event="routes-dir", **fields)) < workers:
            await trio.sleep(0.02)


@pytest.mark.parametrize("workers", [1, 2])
async def test_files_come_change_break_and_go(here: Path, workers: int) -> None:
    routes, file = here / "routes", here / "routes" / "site.toml"
    one, two = await backend(), await backend()
    async with one, two, muxes.running(
        here, f"--routes-dir={routes}", f"--workers={workers}"
    ) as mux:  # fmt: skip
        assert await is_refused(mux)
        write(file, NAME, one)
        # the first hello has all directories read; a worker that no hello came to, reads by itself
        await (await reaches(mux, one)).aclose()
        await said(mux, workers, state="changed", added=NAME)
        line = mux.lines(event="routes-dir", state="changed", added=NAME)[0]
        assert (line["routes_dir"], line["names"], line["level"]) == (str(routes), 1, "info")
        write(file, NAME, two)
        await said(mux, workers, moved=NAME)
        stays = await reaches(mux, two)
        file.write_text('[[route]]\nhosts = "secure.ci')
        await said(mux, workers, state="fault", what="site.toml", level="error")
        await (await reaches(mux, two)).aclose()
        write(routes / "another.toml", "another.example", one)
        await said(mux, workers, added="another.example", names=2)
        write(file, "else.example", two)
        await said(mux, workers, added="else.example", removed=NAME)
        file.unlink()
        await said(mux, workers, removed="else.example", names=1)
        assert await is_refused(mux)
        assert not mux.lines(state="lost")
        await stays.aclose()


async def test_a_directory_may_come_after_the_start_and_go(here: Path) -> None:
    routes = here / "later"
    async with await backend() as one, muxes.running(here, f"--routes-dir={routes}") as mux:
        lost = await mux.log_line(event="routes-dir", state="lost")
        assert (lost["routes"], lost["detail"]) == ("none yet", "No such file or directory")
        routes.mkdir()
        write(routes / "a.toml", NAME, one)
        await mux.log_line(event="routes-dir", state="changed", added=NAME, within=60)
        routes.rename(here / "gone")
        kept = await mux.from_here().log_line(event="routes-dir", state="lost", within=60)
        assert kept["routes"] == "kept"
        await (await reaches(mux, one)).aclose()
        (here / "gone").rename(routes)
        await mux.log_line(event="routes-dir", state="back", within=60)


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_config_map_is_exchanged_and_a_reload_takes_directories_along(
    here: Path, workers: int
) -> None:
    config, routes = here / "toml", here / "routes"
    one, two = await backend(), await backend()
    versions = {"v1": one, "v2": two}
    for version, where in versions.items():
        (routes / f"..{version}").mkdir()
        write(routes / f"..{version}" / "a.toml", NAME, where)
    (routes / "a.toml").symlink_to("..data/a.toml")

    def exchange(version: str) -> None:
        (routes / "..data_tmp").symlink_to(f"..{version}")
        (routes / "..data_tmp").replace(routes / "..data")

    exchange("v1")
    config.write_text('[[route]]\nhosts = "x.example"\nto = "127.0.0.1:1"\n')
    flags = [f"--config={config}", f"--workers={workers}", "--watch=off"]
    async with one, two, muxes.running(here, *flags) as mux:
        assert await is_refused(mux)
        text = config.read_text()
        config.write_text(f'{text}[[routes_dir]]\npath = "{routes}"\n')
        mux.send_signal(signal.SIGHUP)
        line = await mux.log_line(event="reloaded", within=60)
        assert line["settings"] == "routes_dir"
        await (await reaches(mux, one)).aclose()
        exchange("v2")
        await said(mux, workers, moved=NAME)
        await (await reaches(mux, two)).aclose()
        config.write_text(text)
        mux = mux.from_here()
        mux.send_signal(signal.SIGHUP)
        await mux.log_line(event="reloaded", within=60)
        assert await is_refused(replace(mux, since=0))


def test_check_and_explain_read_it(here: Path) -> None:
    routes = here / "routes"
    (routes / "10.toml").write_text(
        f'[[route]]\nhosts = ["{NAME}", "b.example"]\nto = "127.0.0.1:1"\n'
    )
    (routes / "20.toml").write_text('[[route]]\nhosts = "b.example"\nto = "127.0.0.1:2"\n')

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "snimux", *words, f"--routes-dir={routes}"]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    done = run("check", "--route", f"{NAME}=127.0.0.1:3")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert f"{NAME} -> 127.0.0.1:3" in lines
    assert "b.example -> 127.0.0.1:1" in lines
    assert f"b.example: {routes}/10.toml has it, and {routes}/20.toml serves it too" in lines
    assert lines[-1] == "ok"
    done = run("explain", "b.example")
    assert f"taken: from route 1 of {routes}/10.toml" in " ".join(done.stdout.split())
    os.mkfifo(routes / "30.toml")
    done = run("check")
    assert done.returncode == 1
    why = "is a FIFO and not a regular file"
    assert done.stderr == f"snimux: --routes-dir: {routes}: 30.toml: {why}\n"
    assert "ok" not in done.stdout.splitlines()
