"""A terminal without a window: a process in a pseudo-terminal, the keys it gets, what it shows."""

import contextlib
import fcntl
import os
import signal
import struct
import subprocess
import termios
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pyte
import trio

_READ_SIZE = 65536


@dataclass
class Terminal:
    """What a process shows, as long as it runs and after."""

    process: subprocess.Popen[bytes]
    descriptor: int
    """Of the terminal's own side."""
    screen: pyte.Screen
    before: list[object]
    """How the terminal was set before the process began."""
    shown: bytearray = field(default_factory=bytearray)
    """All that was ever written to it."""
    changed: trio.Event = field(default_factory=trio.Event)
    """Set when something is written to it, and then another one."""

    @property
    def lines(self) -> list[str]:
        """What is on the screen."""
        return [line.rstrip() for line in self.screen.display]

    @property
    def text(self) -> str:
        """The same in one."""
        return "\n".join(self.lines)

    async def until(self, is_there: Callable[[], object], what: str) -> None:
        """Wait until the screen shows something.

        Raises:
            AssertionError: it does not, in a long time.
        """
        with trio.move_on_after(20):
            while not is_there():
                await self.changed.wait()
            return
        raise AssertionError(f"{what} is not shown:\n{self.text}")

    async def has(self, *texts: str) -> None:
        """Wait until the screen shows all texts."""
        await self.until(lambda: all(x in self.text for x in texts), repr(texts))

    async def has_not(self, text: str) -> None:
        """Wait until the screen shows a text no more."""
        await self.until(lambda: text not in self.text, f"no {text!r}")

    def press(self, *keys: str) -> None:
        """Send keys."""
        os.write(self.descriptor, "".join(keys).encode())

    def resize(self, columns: int, rows: int) -> None:
        """Be as large from now on."""
        self.screen.resize(rows, columns)
        _set_size(self.descriptor, columns, rows)

    @property
    def settings(self) -> list[object]:
        """How it is set now."""
        return list(termios.tcgetattr(self.descriptor))

    async def exit_status(self) -> int:
        """Wait for the end of the process."""
        with trio.fail_after(20):
            while self.process.poll() is None:
                await trio.sleep(0.01)
        return self.process.returncode


def _set_size(descriptor: int, columns: int, rows: int) -> None:
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


@contextlib.asynccontextmanager
async def running(
    command: Sequence[str],
    *,
    columns: int = 100,
    rows: int = 30,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[Terminal]:
    """A process in a terminal; ended on leaving.

    Args:
        command: what to run.
        columns: how wide the terminal is.
        rows: how high.
        environment: variables, besides those of here.
    """
    ours, theirs = os.openpty()
    _set_size(ours, columns, rows)
    before: list[object] = list(termios.tcgetattr(ours))
    process = subprocess.Popen(  # noqa: ASYNC220 (which is done in no time)
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", **(environment or {})},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    # ``theirs`` stays open: where all have closed theirs, settings are gone on some systems.
    os.set_blocking(ours, False)
    screen = pyte.Screen(columns, rows)
    terminal = Terminal(process, ours, screen, before)
    stream = pyte.ByteStream(screen)

    async def read() -> None:
        while True:
            await trio.lowlevel.wait_readable(ours)
            with contextlib.suppress(BlockingIOError):
                data = os.read(ours, _READ_SIZE)
                terminal.shown += data
                stream.feed(data)
                terminal.changed.set()
                terminal.changed = trio.Event()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            yield terminal
            nursery.cancel_scope.cancel()
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
        os.close(ours)
        os.close(theirs)
