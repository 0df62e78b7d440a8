"""Start programs that are handed descriptors as systemd does: children, or programs apart.

``subprocess`` runs no Python between fork and exec, so other threads do no harm, and the event loop
waits for no more than the exec. What is left to do there, the program's first interpreter does:
``shim``, by the text that it had when this process was started.

A program apart has a keeper in between, whose child it is, and is seen by it, for a while. Without
the keeper its parent is the service manager, or process 1: systemd waits for no main process that
is not its own child, and kills at once what it is to stop.

Knows nothing of what the programs are, but that each is run by an interpreter of Python.
"""

import math
import os
import signal
import socket
import subprocess
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from typing import BinaryIO

import trio

from snimux.service.shim import SIGNALLED
from snimux.service.systemd import Named

_SHIM = resources.files("snimux.service").joinpath("shim.py").read_text("utf-8")

# Seconds. A keeper sees at once that a program was killed; one that has not by then is stopped.
_GRACE = 5.0


def start(
    command: Sequence[str],
    descriptors: Sequence[Named],
    *,
    environment: Mapping[str, str],
    blocked: Collection[signal.Signals] = (),
    new_session: bool = False,
    kept: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a program that is handed descriptors, as a child; or the keeper of one.

    It inherits the standard streams and nothing else besides.

    Args:
        command: path of an interpreter, and its arguments.
        descriptors: to hand over, each with a name without colons; they stay open here.
        environment: the program's, to which the protocol's variables are added.
        blocked: signals that must not be lost before the program handles them.
        new_session: away from the terminal, and from the signals that are typed there.
        kept: for a keeper, its end of the control socket and of the hold, and the signal that it
            ignores.

    Raises:
        OSError: it could not be started.
    """
    numbers = [number for _, number in descriptors]
    words = [",".join(map(str, each)) for each in (numbers, kept)]
    handed = {
        **environment,
        "LISTEN_FDS": str(len(descriptors)),
        "LISTEN_FDNAMES": ":".join(name for name, _ in descriptors),
    }
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        # Nothing of the working directory, and no site; but PYTHONHOME, if it needs that.
        return subprocess.Popen(
            [command[0], "-P", "-S", "-c", _SHIM, *words, *command],
            env=handed,
            pass_fds={*numbers, *kept[:2]},
            start_new_session=new_session,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@dataclass(slots=True)
class Apart:
    """A program that is no child of this process: to begin, and to be let go or waited for.

    Resource handling: has a child and descriptors until ``let_go``, or an exit code.
    """

    keeper: subprocess.Popen[bytes]
    """Of the program, whose child that is."""
    _control: trio.socket.SocketType
    _hold: BinaryIO
    """A pipe, whose end the keeper sees when this process ends."""
    pid: int = 0
    """The program's; 0 until it is known."""

    async def identify(self) -> bool:
        """Wait until the process id is known; return whether there is a program that can begin."""
        with suppress(OSError, trio.ClosedResourceError):  # closed: the keeper has ended
            self.pid = int(await self._control.recv(20) or 0)
        return self.pid > 0

    def begin(self) -> None:
        """Have the program begin. Until then it waits, and ends if this process does."""
        with suppress(OSError):
            os.write(self._control.fileno(), b"b")
        self._control.close()

    def send(self, number: signal.Signals) -> None:
        """Send the program a signal, if it is there."""
        if self.pid:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(self.pid, number)

    def exit_code(self) -> int | None:
        """Return how it has ended, as of ``os.waitstatus_to_exitcode``; None if it has not."""
        code = self.keeper.poll()
        if code is None:
            return None
        if code < 0:  # somebody killed the keeper alone, so nobody sees the program's end
            self.send(signal.SIGKILL)
        self._close()
        return SIGNALLED - code if code > SIGNALLED else code

    async def kill(self) -> None:
        """End it, and wait until it has an exit code."""
        self.send(signal.SIGKILL)
        self._control.close()  # if it has not begun, it never does
        await self._wait(_GRACE)
        self.keeper.kill()
        await self._wait()

    async def let_go(self) -> None:
        """Leave it to the service manager, or process 1, to see its end."""
        self.keeper.kill()  # ends it where it is stopped, too
        await self._wait()
        self._close()

    async def _wait(self, seconds: float = math.inf) -> None:
        """Wait for the keeper's end, but not for longer."""
        with trio.CancelScope(shield=True), trio.move_on_after(seconds):
            await trio.to_thread.run_sync(self.keeper.wait, abandon_on_cancel=True)

    def _close(self) -> None:
        self._control.close()
        self._hold.close()


def start_apart(
    command: Sequence[str],
    descriptors: Sequence[Named],
    *,
    environment: Mapping[str, str],
    blocked: Collection[signal.Signals],
    ignored: signal.Signals,
) -> Apart:
    """Start a keeper and the program that it keeps, which is to be identified and to begin.

    Args:
        command: as of ``start``.
        descriptors: as of ``start``.
        environment: as of ``start``.
        blocked: as of ``start``.
        ignored: a signal that is nothing to the keeper, nor to the program until it has a handler.

    Raises:
        OSError: it could not be started.
    """
    near, far = socket.socketpair()  # which stays blocking there
    with far:
        try:
            held, hold = os.pipe()
        except OSError:
            near.close()
            raise
        try:
            kept = (far.fileno(), held, ignored)
            keeper = start(
                command, descriptors, environment=environment, blocked=blocked, kept=kept
            )
        except OSError:
            near.close()
            os.close(hold)
            raise
        finally:
            os.close(held)
    return Apart(keeper, trio.socket.from_stdlib_socket(near), os.fdopen(hold, "wb"))
