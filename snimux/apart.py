"""A program that is no child of this process, whose end is seen here all the same, for a while.

A child in between has it as its own child, ends as it does, or as soon as this process lets it go
or ends. Then its parent is the service manager, or process 1: systemd waits for no main process
that is not its own child, and kills at once what it is to stop.

Knows nothing of what the program is.
"""

import errno
import os
import select
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from snimux import systemd
from snimux.systemd import Named

# Of a child that ended by a signal: more than this by the signal's number, as in shells.
_SIGNALLED = 128

_FIRST = 3  # descriptor behind the standard streams

# Seconds until the child looks again whether the program has ended.
_AGAIN = 0.1


@dataclass(frozen=True, slots=True)
class Apart:
    """A program that was started so: to be let go, or to be waited for.

    Resource handling: has a child and a descriptor until ``let_go``, ``kill``, or an exit code.
    """

    pid: int
    """The program's."""
    keeper: int
    """The child's, whose own child the program is."""
    hold: int
    """A pipe, whose end the child sees as soon as this is closed."""

    def send(self, number: signal.Signals) -> None:
        """Send the program a signal, if it is there."""
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(self.pid, number)

    def exit_code(self) -> int | None:
        """How it has ended, as of ``os.waitstatus_to_exitcode``; None if it has not."""
        pid, status = os.waitpid(self.keeper, os.WNOHANG)
        return self._ended(status) if pid else None

    def kill(self) -> int:
        """End it, and wait for that; its exit code."""
        self.send(signal.SIGKILL)
        return self._ended(os.waitpid(self.keeper, 0)[1])

    def let_go(self) -> None:
        """Leave it to the service manager, or process 1, to see its end."""
        os.close(self.hold)
        os.waitpid(self.keeper, 0)

    def _ended(self, status: int) -> int:
        if os.WIFSIGNALED(status):  # somebody killed the child alone, so nobody sees the end
            self.send(signal.SIGKILL)
        os.close(self.hold)
        code = os.waitstatus_to_exitcode(status)
        return _SIGNALLED - code if code > _SIGNALLED else code


def start(
    command: Sequence[str],
    handed: Sequence[Named],
    *,
    environment: Mapping[str, str],
    ignored: signal.Signals,
) -> Apart:
    """Start a program by a child in between; for the rest see ``systemd.start``.

    Args:
        command: path of the program, and its arguments.
        handed: descriptors to hand over.
        environment: the program's.
        ignored: a signal that is nothing to the child, nor to the program until it has a handler.

    Raises:
        OSError: it could not be started.
    """
    held, hold = os.pipe()
    try:
        reader, writer = os.pipe()
    except OSError:
        os.close(held)
        os.close(hold)
        raise
    with os.fdopen(reader, "rb") as said:
        try:
            keeper = os.fork()
            if keeper == 0:
                _keep(command, handed, environment, ignored, writer, held)
        except OSError:
            os.close(hold)
            raise
        finally:
            os.close(writer)
            os.close(held)
        pid = int(said.read() or -errno.ECHILD)
    if pid < 0:
        os.close(hold)
        os.waitpid(keeper, 0)
        raise OSError(-pid, os.strerror(-pid), command[0])
    return Apart(pid, keeper, hold)


def _keep(
    command: Sequence[str],
    handed: Sequence[Named],
    environment: Mapping[str, str],
    ignored: signal.Signals,
    writer: int,
    held: int,
) -> NoReturn:
    """In the child: start the program, say its id or why there is none, and end as it does."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)  # that of the parent's event loop
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # What is ignored here is so in the program, until it has a handler.
        signal.signal(ignored, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [ignored])  # what is blocked is not ignored
        try:
            pid = systemd.start(command, handed, environment=environment)
        except OSError as error:
            os.write(writer, str(-(error.errno or errno.ECHILD)).encode())
        else:
            os.write(writer, str(pid).encode())
            os.close(writer)  # the parent waits for its end
            code = _end_of(pid, held)
    finally:
        os._exit(code if code >= 0 else _SIGNALLED - code)


def _end_of(pid: int, held: int) -> int:
    """Wait for the end of a child, but not for longer than a pipe is held open; its exit code."""
    # Else all that the parent closes would stay open for as long.
    os.dup2(held, _FIRST)
    os.closerange(_FIRST + 1, os.sysconf("SC_OPEN_MAX"))
    ended = status = 0
    while not (ended or select.select([_FIRST], [], [], _AGAIN)[0]):
        ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status)
