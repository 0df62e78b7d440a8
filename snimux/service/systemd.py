"""Take what systemd hands over to a process that it starts, and tell it how that is in return.

LISTEN_FDS says how many descriptors there are, from number 3 up; LISTEN_FDNAMES what each is
called, with colons between; LISTEN_PID whom they are meant for. NOTIFY_SOCKET says where to tell
that the service is ready, and how it is; WATCHDOG_USEC that it is to be told again and again.

Knows nothing of what the descriptors are for, nor of how the service is.

Source: sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3).
"""

import math
import os
import signal
import socket
import time
import weakref
from collections.abc import MutableMapping, Sequence

Named = tuple[str, int]
"""A descriptor with the name that it is handed over by."""

_FIRST = 3  # SD_LISTEN_FDS_START
_UNNAMED = "unknown"

# Seconds. How often the manager is told how the service is, if there is no watchdog to be fed more
# often; and how much longer than the drain stopping may take.
_EVERY = 5.0
_TO_END = 5.0

# Characters: so much of a fault is in the line that people look at; the log has it whole.
_LONGEST_FAULT = 200


class HandoverError(ValueError):
    """The environment is not as the protocol has it; the message names the variable."""


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
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise HandoverError(f"{variable}: {text[:80]!r} is not a number")
    return int(text)


def how_ended(exit_code: int) -> dict[str, str | int]:
    """Return how a program ended, for people: its status or its signal.

    Args:
        exit_code: as of ``os.waitstatus_to_exitcode``: negative for a signal.
    """
    if exit_code >= 0:
        return {"status": exit_code}
    number = -exit_code
    has_name = number in set(signal.Signals)
    return {"signal": signal.Signals(number).name if has_name else number}


class Manager:
    """The service manager that started this process, told how the service is.

    Where there is none, or it wants to know nothing, all is said to nobody. An error in saying it
    never hurts: what could not be said is said the next time.
    """

    def __init__(self, address: str | None = None, *, watchdog: float | None = None) -> None:
        """Tell it at the socket's address, if any, and within so many seconds again, if any."""
        self.is_present = address is not None
        self.watchdog = watchdog
        self.every = _EVERY if watchdog is None else min(_EVERY, watchdog / 2)
        """Seconds after which to call ``serving`` again."""
        self.is_ready = False
        """Whether it knows that the service is ready."""
        self._address = address or ""
        self._status = ""
        self._fault = ""
        # Open from the start: while connections have all descriptors, it is to be fed as well.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if address else None
        if self._socket is not None:
            self._socket.setblocking(False)
            weakref.finalize(self, self._socket.close)

    def serving(self, status: str) -> None:
        """Say that the service serves, as was just seen; to be called again and again.

        Args:
            status: one line for people, said when it has changed.
        """
        status += self._fault
        said = [] if self.watchdog is None else ["WATCHDOG=1"]
        if not self.is_ready:
            said = ["READY=1", f"MAINPID={os.getpid()}"]
        if status != self._status:
            said.append(f"STATUS={status}")
        if said and self._tell(said):
            self.is_ready, self._status = True, status

    def reloading(self) -> None:
        """Say that the configuration is read again, from now until ``reloaded``."""
        if self.is_ready:  # else a READY is still to come, which would end it
            # The clock is systemd's: it tells this one from those that were asked for before.
            now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            self._tell(["RELOADING=1", f"MONOTONIC_USEC={now}"])

    def reloaded(self, status: str, *, fault: str = "") -> None:
        """Say that it has been read.

        Args:
            status: one line for people.
            fault: why nothing came of it, if so: a part of the status until something does.
        """
        self._fault = f"; not reloaded: {fault[:_LONGEST_FAULT]}" if fault else ""
        if self.is_ready:
            self._status = status + self._fault
            self._tell(["READY=1", f"STATUS={self._status}"])

    def hand_over(self, pid: int) -> bool:
        """Say that another process is the main one, and nothing more from then on.

        Returns:
            Whether that was done, or there is nobody to be told.
        """
        if self.is_present and not self._tell([f"MAINPID={pid}"]):
            return False
        if self._socket is not None:
            self._socket.close()
        self.is_present, self._socket = False, None
        return True

    @property
    def address(self) -> str:
        """The path of its socket; empty where there is none."""
        return self._address

    @property
    def variables(self) -> dict[str, str]:
        """The variables by which another process can say how it is itself."""
        if not self.is_present:
            return {}
        watchdog = {} if self.watchdog is None else {"WATCHDOG_USEC": f"{self.watchdog * 1e6:.0f}"}
        return {"NOTIFY_SOCKET": self._address, **watchdog}

    def stopping(self, status: str, *, within: float) -> None:
        """Say that the service stops.

        Args:
            status: one line for people.
            within: seconds that it may take; without end, the manager's own limit holds.
        """
        said = ["STOPPING=1", f"STATUS={status}"]
        if math.isfinite(within):
            said.append(f"EXTEND_TIMEOUT_USEC={round((within + _TO_END) * 1e6)}")
        self._tell(said)
        self.is_ready, self._status = True, status  # it is too late for READY

    def _tell(self, assignments: Sequence[str]) -> bool:
        """Send some assignments; return whether that was done."""
        if self._socket is None:
            return False
        # An @ stands for the NUL that begins the name of an abstract socket.
        address = self._address.replace("@", "\0", 1) if self._address[:1] == "@" else self._address
        try:
            self._socket.sendto("\n".join(assignments).encode(), address)
        except OSError:
            return False
        return True


def manager(environment: MutableMapping[str, str], pid: int) -> Manager:
    """Return the manager that started this process.

    Args:
        environment: loses the three variables, so that no child tells the manager anything.
        pid: of this process.

    Raises:
        HandoverError: a variable is not what it should be.
    """
    variables = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
    address, microseconds, for_whom = (environment.pop(variable, None) for variable in variables)
    watchdog = None
    if microseconds is not None and (for_whom is None or _number("WATCHDOG_PID", for_whom) == pid):
        watchdog = _number("WATCHDOG_USEC", microseconds) / 1e6 or None
    return Manager(address or None, watchdog=watchdog)
