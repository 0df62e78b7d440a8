"""Real snimux processes: started, waited for, their log read as values, ended by signals.

The log goes to a file, which is read while it grows: a pipe would stop the process when full.
"""

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.support.caddy import until

Line = dict[str, Any]
"""One line of the log: its fields."""


@dataclass(frozen=True, slots=True)
class Mux:
    """One snimux process."""

    process: subprocess.Popen[bytes]
    log_file: Path
    since: int = 0
    """Bytes at the beginning of the log that are left out."""

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def stderr(self) -> str:
        """What it wrote so far on standard error."""
        with self.log_file.open("rb") as file:
            file.seek(self.since)
            return file.read().decode("utf-8")

    def from_here(self) -> "Mux":
        """The same, but for what it wrote before: clients' ports come again."""
        return replace(self, since=self.log_file.stat().st_size)

    def lines(self, **fields: object) -> list[Line]:
        """The lines written so far that have these fields."""
        whole = (text for text in self.stderr.splitlines(True) if text.endswith("}\n"))
        lines: list[Line] = [json.loads(text) for text in whole if text.startswith("{")]
        return [line for line in lines if fields.items() <= line.items()]

    async def log_line(self, *, within: float = 10, **fields: object) -> Line:
        """Wait for a line that has these fields; the first one that was or will be written."""
        found: list[Line] = []

        def is_there() -> bool:
            found[:] = self.lines(**fields)
            # it has written all that it will once it has ended
            return bool(found) or self.process.poll() is not None

        try:
            await until(is_there, f"a log line with {fields}", seconds=within)
            found = found or self.lines(**fields)
            assert found, f"ended without a log line with {fields}"
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.stderr[-4000:]}") from None
        return found[0]

    @property
    def port(self) -> int:
        """The TCP port of the listener that was opened first."""
        addresses = [
            str(line["address"]) for line in replace(self, since=0).lines(event="listening")
        ]
        return next(int(text.rpartition(":")[2]) for text in addresses if "unix/" not in text)

    @property
    def descriptors(self) -> int:
        """How many descriptors it has open. Linux."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))  # noqa: PTH208

    @property
    def cpu_seconds(self) -> float:
        """The processor time that it has used. Linux: proc(5), utime and stime."""
        fields = Path(f"/proc/{self.pid}/stat").read_text("utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def resident(self) -> int:
        """Bytes of memory that it has. Linux: proc(5), statm."""
        pages = Path(f"/proc/{self.pid}/statm").read_text("utf-8").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def send_signal(self, number: int = signal.SIGTERM) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    async def exit_status(self, *, seconds: float = 10) -> int:
        """Wait for its end."""
        await until(lambda: self.process.poll() is not None, "snimux ends", seconds=seconds)
        assert self.process.returncode is not None
        return self.process.returncode

    def end(self) -> None:
        """End it at once, and see that nothing went wrong in it that it did not expect."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        assert "Traceback" not in self.stderr, self.stderr
        assert not self.lines(ended="failed"), self.lines(ended="failed")


def start(
    log_file: Path, *args: str, listen: str | None = "127.0.0.1:0", wrapper: Sequence[str] = ()
) -> Mux:
    """Start snimux; it may take a moment until it listens.

    Args:
        log_file: where its standard error goes.
        args: its flags, besides those for listening and for the log's form.
        listen: the address to listen on; None: what the flags or the file say.
        wrapper: a command in front of it, to run it under some condition.
    """
    flags = [*(["--listen", listen] if listen else []), "--log-format", "json", *args]
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [*wrapper, sys.executable, "-m", "snimux", *flags],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    # A test that runs out of time may not get to end it.
    atexit.register(process.kill)
    return Mux(process, log_file)


@contextlib.asynccontextmanager
async def running(
    directory: Path, *args: str, listen: str | None = "127.0.0.1:0", wrapper: Sequence[str] = ()
) -> AsyncIterator[Mux]:
    """A snimux that listens; ended on leaving.

    Args:
        directory: where its log goes.
        args: its flags; see `start` for these and the others.
        listen: the address to listen on.
        wrapper: a command in front of it.
    """
    mux = start(_log_file(directory), *args, listen=listen, wrapper=wrapper)
    try:
        await mux.log_line(event="listening")
        yield mux
    except BaseException:
        # what went wrong in the test counts, not what its end finds
        mux.process.kill()
        mux.process.wait()
        raise
    mux.end()


def _log_file(directory: Path) -> Path:
    """A name that is not taken yet."""
    return directory / f"snimux-{sum(1 for _ in directory.glob('snimux-*'))}.log"
