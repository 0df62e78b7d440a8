"""Descriptors handed over from one process to a program that it starts, as systemd does it.

LISTEN_FDS says how many there are, from number 3 up; LISTEN_FDNAMES what each is called, with
colons between; LISTEN_PID whom they are meant for.

Knows nothing of what the descriptors are for.

Source: sd_listen_fds(3).
"""

import fcntl
import os
from collections.abc import Mapping, MutableMapping, Sequence
from typing import NoReturn

Named = tuple[str, int]
"""A descriptor with the name that it is handed over by."""

_FIRST = 3  # SD_LISTEN_FDS_START
_UNNAMED = "unknown"

# Of a program that could not be executed, as in shells. Nobody sees it: the parent is told why.
_NOT_EXECUTED = 127


class HandoverError(ValueError):
    """What was handed over is not as the protocol has it; the message names the variable."""


def receive(environment: MutableMapping[str, str], pid: int) -> list[Named]:
    """Take what was handed over to this process.

    Args:
        environment: loses the three variables, so that no child takes them for its own.
        pid: of this process.

    Returns:
        Name and descriptor of each, in order; none if nothing is meant for this process.

    Raises:
        HandoverError: a variable is not what it should be, or a descriptor is not there.

    Resource handling: the caller owns the descriptors. No child inherits them by itself.
    """
    variables = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
    for_whom, count, names = (environment.pop(variable, None) for variable in variables)
    if for_whom is None or count is None or _number("LISTEN_PID", for_whom) != pid:
        return []
    descriptors = range(_FIRST, _FIRST + _number("LISTEN_FDS", count))
    for descriptor in descriptors:
        try:
            os.set_inheritable(descriptor, False)
        except OSError as error:
            raise HandoverError(
                f"LISTEN_FDS: {count} descriptors, but number {descriptor}: {error.strerror}"
            ) from None
    named = [_UNNAMED] * len(descriptors) if names is None else names.split(":")
    if len(named) != len(descriptors) and (names or descriptors):
        raise HandoverError(f"LISTEN_FDNAMES: {len(named)} names, but LISTEN_FDS: {count}")
    return list(zip(named, descriptors, strict=False))


def _number(variable: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise HandoverError(f"{variable}: {text[:80]!r} is not a number")
    return int(text)


def start(
    command: Sequence[str],
    descriptors: Sequence[Named],
    *,
    environment: Mapping[str, str],
    new_session: bool = False,
) -> int:
    """Start a program that is handed descriptors; return its process id once it is executed.

    It inherits besides what is inheritable, and the calling thread's mask of blocked signals: a
    signal that must not be lost before the program heeds it is to be blocked here.

    Args:
        command: path of the program, and its arguments.
        descriptors: to hand over, each with a name without colons; they stay open here.
        environment: the program's, to which the protocol's variables are added.
        new_session: away from the terminal, and from the signals that are typed there.

    Raises:
        OSError: it could not be started.
    """
    handed = {
        **environment,
        "LISTEN_FDS": str(len(descriptors)),
        "LISTEN_FDNAMES": ":".join(name for name, _ in descriptors),
    }
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as errors:
        try:
            # Not by subprocess: LISTEN_PID is known in the child only.
            pid = os.fork()
            if pid == 0:
                numbers = [descriptor for _, descriptor in descriptors]
                _become(command, handed, numbers, writer, new_session)
        finally:
            os.close(writer)
        error = errors.read()  # the end comes with the execution, which closes the child's copy
    if error:
        os.waitpid(pid, 0)
        raise OSError(int(error), os.strerror(int(error)), command[0])
    return pid


def _become(
    command: Sequence[str],
    environment: Mapping[str, str],
    descriptors: Sequence[int],
    errors: int,
    new_session: bool,
) -> NoReturn:
    """In the child: execute the program, or write the error's number and end."""
    try:
        if new_session:
            os.setsid()
        # First out of the way, for one may have the number that another is to get.
        free = _FIRST + len(descriptors)
        errors = fcntl.fcntl(errors, fcntl.F_DUPFD_CLOEXEC, free)
        away = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, free) for each in descriptors]
        for number, descriptor in enumerate(away, _FIRST):
            os.dup2(descriptor, number)
        os.execve(command[0], [*command], {**environment, "LISTEN_PID": str(os.getpid())})
    except OSError as error:
        os.write(errors, str(error.errno).encode())
    finally:
        os._exit(_NOT_EXECUTED)
