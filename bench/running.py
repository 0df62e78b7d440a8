"""Start and end what is measured and what serves behind it, and know when it is ready.

What a process prints goes to a file in the run's directory, whose end an error shows.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import names, proc, subjects
from bench.backend import REPLY
from bench.subjects import ROOT, Subject

_STARTS_WITHIN = 60.0  # seconds; a second where there are few routes
_OBEYS_WITHIN = 1.0  # seconds; not as long as a drain may take: nobody is left to be drained


class StartError(Exception):
    """A process ended, or was not ready in time."""


@dataclass(frozen=True, slots=True)
class Running:
    """A subject that runs: where it listens, and what it was told. ``direct`` has no process."""

    subject: Subject
    ports: Mapping[str, int]
    """Where to connect, by mode: for a proxy always the same port."""
    process: subprocess.Popen[bytes] | None
    files: Mapping[str, str]

    @property
    def pids(self) -> tuple[int, ...]:
        """All its processes."""
        return proc.family(self.process.pid) if self.process else ()


@contextlib.contextmanager
def backends() -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """The servers behind, by mode; their ports are the first line that each printed."""
    with contextlib.ExitStack() as stack:
        found = {}
        for mode in names.MODES:
            process = python("bench.backend", mode)
            stack.callback(end, process)
            found[mode] = process
        yield found


def python(module: str, *args: str) -> subprocess.Popen[bytes]:
    """Start a module of the harness as a process; its output is a pipe."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *args],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )


def first_line(process: subprocess.Popen[bytes]) -> str:
    """What a process of the harness prints when it is ready.

    Raises:
        StartError: it ended without.
    """
    assert process.stdout is not None
    line = process.stdout.readline().decode().strip()
    if not line:
        raise StartError("a process of the harness did not start")
    return line


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start(
    subject: Subject,
    directory: Path,
    ports: Mapping[str, int],
    routes: Sequence[tuple[str, str]],
) -> Running:
    """Start a subject and wait until it passes a connection through.

    Args:
        subject: what to start.
        directory: a new one, for its files.
        ports: of the backends, by mode.
        routes: pairs of server name and mode.

    Raises:
        StartError: it ended, or was not ready in time.
    """
    if subject.name == subjects.DIRECT:
        return Running(subject, ports, None, {})
    directory.mkdir()
    port = free_port()
    files = subjects.configuration(subject, port, str(directory), ports, routes)
    for name, text in files.items():
        (directory / name).write_text(text, "utf-8")
    program = subjects.find_program(subject.program) or subject.program
    placed = {"@{program}": program, "@{directory}": str(directory)}
    command = [_placed(word, placed) for word in subject.command]
    # A module is looked for in the current directory, or else (PYTHONSAFEPATH) on PYTHONPATH.
    process = spawn(command, directory, {"PYTHONPATH": str(subject.tree)}, subject.tree)
    _wait_until_ready(process, port, directory)
    return Running(subject, dict.fromkeys([*names.MODES, names.SECURE], port), process, files)


def _placed(word: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        word = word.replace(name, value)
    return word


def spawn(
    command: Sequence[str],
    directory: Path,
    environment: Mapping[str, str] | None = None,
    working_directory: Path = ROOT,
) -> subprocess.Popen[bytes]:
    """Start a program whose home is the directory; what it prints goes to ``log`` there."""
    with (directory / "log").open("wb") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=working_directory,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, directory: Path) -> None:
    end_of_wait = time.monotonic() + _STARTS_WITHIN
    while not _passes(port):
        ended = process.poll() is not None
        if ended or time.monotonic() > end_of_wait:
            end(process)
            tail = (directory / "log").read_text(errors="replace").strip()[-300:]
            raise StartError(f"{'ended' if ended else 'not ready in time'}: {tail}")
        time.sleep(0.02)


def _passes(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(names.hello("curl", names.ANSWER))
            return connection.recv(64) == REPLY
    except OSError:
        return False


def end(process: subprocess.Popen[bytes] | None) -> None:
    """End a process and all that descend from it; no more than a moment is given to obey."""
    if process is None:
        return
    family = proc.family(process.pid) if process.poll() is None else ()
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_OBEYS_WITHIN)
    for pid in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    if process.stdout:
        process.stdout.close()
