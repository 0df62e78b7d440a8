"""The disk is full under the log: it serves on, and says how many lines are lost once it can.

The disk is a tiny file system of its own, in a mount namespace of its own.
"""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

from faults import client, running
from faults.client import Got
from faults.found import Found, Size
from faults.load import PATIENT, Load, wait
from tests.support import muxes
from tests.support.muxes import Mux

_NAME = "disk.test"
_DISK, _FILLED = 128 * 1024, 96 * 1024  # bytes, of which the log gets the rest
_ROUNDS = 2


def missing() -> str | None:
    """Say what is missing, or None."""
    if not shutil.which("unshare"):
        return "needs unshare: apt-get install util-linux"
    if os.geteuid() != 0:
        return "needs root"
    probe = ["unshare", "--mount", "mount", "-t", "tmpfs", "probe", "/mnt"]
    done = subprocess.run(probe, capture_output=True, check=False, timeout=30)
    return f"needs mount namespaces: {done.stderr.decode()}" if done.returncode else None


async def run(here: Path, size: Size) -> list[Found]:
    """Let the disk run full under load, make room, and do it again."""
    signed = running.authority(here, _NAME)
    disk = here / "disk"
    disk.mkdir()
    fill = "".join(f'head -c {_FILLED // _ROUNDS} /dev/zero >"$0/{n}"; ' for n in range(_ROUNDS))
    mount = f'mount -t tmpfs -o size={_DISK} disk "$0"; {fill} exec "$@" 2>>"$0/log"'
    wrapper = ["unshare", "--mount", "sh", "-euc", mount, str(disk)]
    async with running.server(signed) as port:
        flags = [f"--route={_NAME}=127.0.0.1:{port}", PATIENT]
        outer = muxes.start(here / "outer.log", *flags, wrapper=wrapper)
        # the disk as the process sees it
        mux = Mux(outer.process, Path(f"/proc/{outer.pid}/root{disk}/log"))
        try:
            await wait(lambda: mux.log_file.exists() and mux.lines(event="listening"), "it runs")
            load = Load(mux.port, _NAME, client.context(signed.root))
            for number in range(_ROUNDS):
                await _fill(mux, load, size)
                (mux.log_file.parent / str(number)).unlink()
                # its line tells of those before it
                await load.one()
                await wait(lambda: len(_told(mux)) > number, "it says that lines are lost")  # noqa: B023
            with contextlib.suppress(AssertionError):
                await wait(lambda: sum(_accounts(mux)) == len(load.results), "all are told of")
            lines, told = _accounts(mux)
            whole = all(text.endswith("}\n") for text in mux.stderr.splitlines(True))
        finally:
            outer.end()
    problems = [] if whole else ["lines are torn"]
    if lines + told != len(load.results):
        problems.append(f"{lines} lines and {told} lost are not {len(load.results)}")
    return [
        Found(
            f"the disk full under the log, {_ROUNDS} times, under load",
            len(load.results),
            lost=len(load.results) - load.count()[Got.ALL],
            remark=f"{lines:,} lines written, {told:,} lost, and said to be when there was room",
            problems=tuple(problems),
        )
    ]


def _accounts(mux: Mux) -> tuple[int, int]:
    """How many connections have a line, and how many are said to have none."""
    return len(mux.lines(event="connection")), sum(_told(mux))


async def _fill(mux: Mux, load: Load, size: Size) -> None:
    """Have connections until there is no room, and then more of them."""
    async with load.coming(size.pick(4, 16)):
        room = os.statvfs(mux.log_file.parent)
        while room.f_bavail:
            await load.more(20)
            room = os.statvfs(mux.log_file.parent)
        # what is left of the last page is filled by these
        await load.more(size.pick(50, 1000))


def _told(mux: Mux) -> list[int]:
    return [int(line["lines"]) for line in mux.lines(event="lines-lost")]
