"""The first thing that a program runs which ``spawn`` starts: it becomes the program.

A fresh interpreter runs the text of this file (``-c``), so it has no thread, no lock and no memory
of snimux. It puts the descriptors where the program is to find them, and says LISTEN_PID, which
nobody but the process itself knows before it is there.

With CONTROL it is a keeper instead. The program is a child of the keeper then: it says its process
id on the socket CONTROL itself, and begins only if it is answered, so there is none that nobody
knows. The keeper ends as the program does, or as soon as nobody has the other end of the pipe HOLD.

Arguments: descriptors, with commas between; ``CONTROL,HOLD,SIGNAL`` or nothing; the program's path
and its arguments. SIGNAL is ignored by the keeper, and by the program until it has a handler.

Imports nothing of snimux, as that may be of another version by now.

Source: sd_listen_fds(3).
"""

import fcntl
import os
import signal
import sys
from collections.abc import Sequence

FIRST = 3  # SD_LISTEN_FDS_START

# As shells have it: of a child that ended by a signal, more than this by the signal's number; of a
# program that could not be executed.
SIGNALLED = 128
NOT_EXECUTED = 127


def become(command: tuple[str, ...], descriptors: Sequence[int]) -> None:
    """Execute a program in this process, which has these descriptors from number 3 up then.

    Raises:
        OSError: it cannot be executed.
    """
    # First out of the way, for one may have the number that another is to get.
    free = FIRST + len(descriptors)
    away = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, free) for each in descriptors]
    for each in descriptors:
        os.set_inheritable(each, False)
    for number, each in enumerate(away, FIRST):
        os.dup2(each, number)
    os.execve(command[0], command, {**os.environ, "LISTEN_PID": str(os.getpid())})


def keep(descriptors: Sequence[int], control: int, hold: int, ignored: int) -> None:
    """Return in a child that is to be the program; do not return in this process."""
    # What is ignored here is so in the program; what is blocked is not ignored.
    signal.signal(ignored, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, _end_as_child)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [ignored, signal.SIGCHLD])
    if os.fork() == 0:
        os.close(hold)
        try:
            os.write(control, str(os.getpid()).encode())
            may_begin = os.read(control, 1)
        except OSError:
            may_begin = b""
        if not may_begin:
            os._exit(1)
        os.close(control)
        return
    # Else all that snimux closes would stay open for as long.
    for each in {control, *descriptors}:
        os.close(each)
    os.read(hold, 1)
    os._exit(0)


def _end_as_child(*_: object) -> None:
    pid, status = os.waitpid(-1, os.WNOHANG)
    if pid:
        code = os.waitstatus_to_exitcode(status)
        os._exit(code if code >= 0 else SIGNALLED - code)


def main(numbers: str, kept: str, *command: str) -> None:
    """Become a program, or its keeper."""
    descriptors = [int(number) for number in numbers.split(",") if number]
    try:
        if kept:
            control, hold, ignored = map(int, kept.split(","))
            keep(descriptors, control, hold, ignored)
        become(command, descriptors)
    except OSError as error:
        os.write(2, f"snimux: {command[0]}: {error.strerror}\n".encode())
        os._exit(NOT_EXECUTED)


if __name__ == "__main__":
    main(*sys.argv[1:])
