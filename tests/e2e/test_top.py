"""``snimux top`` beside a snimux that serves: in a real terminal, and through a pipe."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.e2e.test_serve import client_hello
from tests.e2e.test_status import WORKERS, Watched, refused, watched
from tests.service import test_upgrade
from tests.support import muxes, terminal
from tests.support.caddy import closed_port, free_port, short_directory
from tests.support.terminal import Terminal

TOP = (sys.executable, "-m", "snimux", "top")

# As long as a terminal's own switches last: the second screen, the cursor, what a paste looks like.
LEFT = (b"\x1b[?1049l", b"\x1b[?25h", b"\x1b[?2004l")


def where(run: Watched) -> str:
    if isinstance(run.status, str):
        return f"unix/{run.status}"
    host, port = run.status
    return f"{host}:{port}"


async def top(*args: str, **environment: str) -> tuple[int, str, str]:
    """Run it with a pipe; exit status, and what it says."""
    done = await trio.run_process(
        [*TOP, *args],
        check=False,
        capture_stdout=True,
        capture_stderr=True,
        env={**os.environ, **environment},
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def rows(text: str) -> dict[tuple[str, str], list[str]]:
    """The words of each row, by the first two."""
    _, _, table = text.partition("\n\n")
    words = [line.split(maxsplit=12) for line in table.splitlines()]
    return {(each[0], each[1]): each[2:] for each in words}


@WORKERS
async def test_through_a_pipe_it_says_what_was_sent(workers: int) -> None:
    async with watched(workers=workers) as run:
        for _ in range(3):
            size = await run.exchange("b.test", 1000, 3000)
        await refused(run, client_hello("nobody.test", ("h2",)))
        await refused(run, client_hello("down.test", ("h2",)))
        stream, up = await run.opened("a.test", 5000, 70_000)
        async with stream:
            await run.settled(6, 1)
            status, text, errors = await top(where(run), "--interval", "0.1")
            host, port = stream.socket.getsockname()
            listener_name = f"tls/127.0.0.1:{run.mux.port}"
    assert (status, errors) == (0, "")
    totals = dict(line.split(maxsplit=1) for line in text.partition("\n\n")[0].splitlines()[:7])
    assert totals == {
        "snimux": totals["snimux"],
        "workers": "2 of 2 answer" if workers == 2 else "1",
        "routes": "4 in all, 4 here",
        "connections": totals["connections"],
        "accepted": "6 0.0/s",
        "up": f"{up + 3 * size} 0/s",
        "down": "79000 0/s",
    }
    assert re.fullmatch(r"1 of \d+ open, 1 here", totals["connections"])
    assert "refused      no-route 1 0.0/s" in text
    assert "refused      backend-down 1 0.0/s" in text
    found = rows(text)
    head = "CLIENT BACKEND AGE OPEN TOTAL UP DOWN NEW/S UP/S DOWN/S NOTE"
    assert found["KIND", "NAME"] == head.split()
    listener = found["listener", listener_name]
    assert listener[3:7] == ["1", "4", str(up + 3 * size), "79000"]
    route = found["route", "b.test"]
    assert route == ["-", run.backend, "-", "0", "3", str(3 * size), "9000", "0.0", "0", "0",
                     "from configuration"]  # fmt: skip
    live = found["connection", "a.test"]
    assert live[:2] == [f"{host}:{port}", run.backend]
    assert live[3:] == ["1", "1", str(up), "70000", "0.0", "0", "0", "route=a.test alpn=h2"]
    assert found["route", "down.test"][-1] == f"from configuration; not answering: {run.down[0]}"
    assert found["refused", "nobody.test"][-1] == "no-route"
    assert found["refused", "down.test"][-1].startswith(f"backend-down: {run.down[0]}: ")


async def test_the_address_may_be_a_unix_socket_or_be_in_the_file(tmp_path: Path) -> None:
    async with watched(unix=True) as run:
        file = tmp_path / "snimux.toml"
        file.write_text(f'status = "{where(run)}"\n', "utf-8")
        for args in ([where(run)], ["--status", where(run)], ["--config", str(file)]):
            status, text, _ = await top(*args, "--interval=0.1", TERM="dumb")
            assert (status, text.splitlines()[0].split()[2:4]) == (0, ["serving", "at"])


async def test_one_line_says_what_is_wrong() -> None:
    nobody = f"127.0.0.1:{closed_port()}"
    assert await top(nobody) == (
        1,
        "",
        f"snimux: --status: {nobody}: Connection refused; does a snimux run with that --status?\n",
    )
    assert await top() == (2, "", "snimux: top: of which snimux? give its --status ADDR\n")
    status, _, errors = await top("8.8.8.8:1")
    assert (status, errors.count("\n")) == (2, 1)
    assert "this machine alone" in errors
    status, _, errors = await top(nobody, "--status", nobody)
    assert (status, errors.count("\n")) == (2, 1)


async def test_who_reads_no_more_is_no_error() -> None:
    async with watched() as run:
        command = f"{' '.join(TOP)} {where(run)} --interval 0.1 | head -n 1"
        done = await trio.run_process(
            ["sh", "-c", command], capture_stdout=True, capture_stderr=True
        )
        assert done.stdout.startswith(b"snimux ")
        assert done.stderr == b""
        process = subprocess.Popen(  # noqa: ASYNC220 (which is done in no time)
            [*TOP, where(run), "--interval=0.1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        errors = await trio.to_thread.run_sync(process.stderr.read)
        process.stderr.close()
        assert (process.wait(), errors) == (1, b"")


async def left(shown: Terminal, status: int = 0) -> None:
    """It has left, and the terminal is as it was."""
    assert await shown.exit_status() == status
    await shown.until(lambda: all(x in shown.shown for x in LEFT), "the end")
    assert shown.settings == shown.before
    assert b"Traceback" not in shown.shown


@WORKERS
async def test_in_a_terminal_it_shows_what_is_sent_and_heeds_keys(workers: int) -> None:
    async with watched(workers=workers) as run:
        await refused(run, client_hello("nobody.test", ("h2",)))
        for _ in range(3):
            await run.exchange("b.test", 10, 100_000)
        stream, _ = await run.opened("a.test", 5_000_000, 70_000)
        command = [*TOP, where(run), "--interval=0.2"]
        async with stream, terminal.running(command) as shown:
            # once nothing is under way
            await shown.has(
                "1 of ", "5 accepted, 0.0/s", "down 370k, 0/s", "refused     1; no-route 1"
            )
            words = [line.strip(" +-").split() for line in shown.lines[6:11]]
            tree = {name: rest for name, *rest in words}
            assert tree["a.test"][:1] + tree["a.test"][2:] == [
                *("1", "5.0M", "70k", "0", "0", run.backend),
            ]
            assert tree["b.test"] == ["0", "1.6k", "300k", "0", "0", run.backend]
            assert "4 routes" in shown.lines[0]
            assert ("2 workers" in shown.lines[0]) == (workers == 2)
            shown.press("b")
            await shown.has("by bytes")
            shown.press("/a.te")
            await shown.has("only with 'a.te'", "127.0.0.1:" + str(stream.socket.getsockname()[1]))
            assert "second.test" not in shown.text
            shown.press("\r")
            await shown.has_not("\na.te")  # the line that it was typed into
            shown.press("?")
            await shown.has("Ctrl-C", "COLUMNS")
            shown.press("x")
            await shown.has_not("COLUMNS")
            shown.resize(40, 24)
            await shown.until(lambda: shown.lines[5].endswith(" DOWN/S"), "fewer columns")
            shown.resize(100, 30)
            await shown.has("DOWN/S", "FROM > TO")
            shown.press("p")
            await shown.has("PAUSED")
            shown.press("q")
            await left(shown)
        assert bytes(shown.shown).isascii()


@pytest.mark.parametrize("how", ["\x03", signal.SIGTERM, signal.SIGHUP])
async def test_however_it_ends_the_terminal_is_as_it_was(how: str | signal.Signals) -> None:
    nobody = f"127.0.0.1:{closed_port()}"
    async with terminal.running([*TOP, nobody], environment={"NO_COLOR": "1"}) as shown:
        await shown.has("NO ANSWER: Connection refused")
        if isinstance(how, str):
            shown.press(how)
        else:
            shown.process.send_signal(how)
        await left(shown)
        colours = re.findall(rb"\x1b\[[\d;]*\b(?:3[1-6]|4[1-6]|[34]8;5;\d+)\b[\d;]*m", shown.shown)
        assert not colours


async def test_it_goes_on_while_snimux_is_gone_and_once_it_is_back(tmp_path: Path) -> None:
    at = f"127.0.0.1:{free_port()}"
    args = (f"--status={at}", "--default=127.0.0.1:1")
    async with terminal.running([*TOP, at, "--interval=0.1"]) as shown:
        await shown.has("NO ANSWER: Connection refused (none yet; asking again)")
        for number in range(2):
            directory = tmp_path / str(number)
            directory.mkdir()
            async with muxes.running(directory, *args):
                await shown.has("serving, 1 routes", "by rate, every 0.1 s")
            await shown.has("NO ANSWER", "(the last one at ")
        shown.press("q")
        await left(shown)


@WORKERS
async def test_it_goes_on_with_a_successor(workers: int) -> None:
    at = f"127.0.0.1:{free_port()}"
    with short_directory() as here:
        async with (
            test_upgrade.running(here, f"--status={at}", workers=workers) as run,
            terminal.running([*TOP, at, "--interval=0.1"]) as shown,
        ):
            async with await run.connect() as stream:
                await test_upgrade.exchanged(stream)
                await shown.has(" 1 accepted")
                await run.upgrade()
                await shown.has(" 0 accepted", "serving", "by rate")  # it has counted nothing yet
            async with await run.connect() as stream:
                await test_upgrade.exchanged(stream)
                await shown.has("1 of ", " 1 accepted", "serving")
            shown.press("q")
            await left(shown)


async def test_it_can_be_left_for_a_while_and_come_back_to() -> None:
    nobody = f"127.0.0.1:{closed_port()}"
    job = f"{shlex.join([*TOP, nobody])}; echo AWAY; read x; fg"
    async with terminal.running(["bash", "-mc", job]) as shown:
        await shown.has("NO ANSWER: Connection refused")
        shown.press("\x1a")
        await shown.has("AWAY")
        assert all(x in shown.shown for x in LEFT)
        shown.press("\n")
        await shown.has("NO ANSWER: Connection refused")
        shown.press("q")
        await left(shown)


async def test_where_there_are_no_jobs_it_stays() -> None:
    nobody = f"127.0.0.1:{closed_port()}"
    async with terminal.running([*TOP, nobody]) as shown:
        await shown.has("NO ANSWER: Connection refused")
        shown.press("\x1a", "p")
        await shown.has("PAUSED")
        shown.press("q")
        await left(shown)


@pytest.mark.parametrize("term", ["dumb", ""])
async def test_a_dumb_terminal_gets_plain_text(term: str) -> None:
    async with watched() as run:
        command = [*TOP, where(run), "--interval=0.1"]
        async with terminal.running(command, columns=160, environment={"TERM": term}) as shown:
            assert await shown.exit_status() == 0
            await shown.has("KIND", "second.test")
            assert b"\x1b" not in shown.shown


async def test_without_textual_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "textual.py").write_text("raise ModuleNotFoundError(name='textual')", "utf-8")
    nobody = f"127.0.0.1:{closed_port()}"
    path = os.pathsep.join([str(tmp_path), os.getcwd()])  # noqa: PTH109
    async with terminal.running([*TOP, nobody], environment={"PYTHONPATH": path}) as shown:
        assert await shown.exit_status() == 1
        await shown.has("snimux: top: needs textual: ", "-m pip install textual")
    status, _, errors = await top(nobody, PYTHONPATH=path)
    assert (status, "Connection refused" in errors) == (1, True)
