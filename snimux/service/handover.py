"""Descriptors that one snimux hands to another, and the names by which they are known again.

A supervisor hands them to its workers, and a process to its successor, by systemd's protocol: what
a process was handed tells it what it is. Listeners that a worker gets later come with an order.
Knows nothing of what is done with them.

The names are a protocol with the version that is installed. A listener's has two spellings, as
each of the two readers of the first version knows only one; this version reads both.
"""

import socket
from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import quote, unquote

from snimux.net.listeners import Listener, adopted
from snimux.routing.address import DialAddress, FdAddress, parse_dial, parse_listen
from snimux.service.control import Order
from snimux.service.reload import content
from snimux.service.systemd import HandoverError, Named

_WORKER, _PLACES, _CONFIG, _STATUS = "worker-", "places", "config", "status"
_PREDECESSOR = "predecessor"
# A listener is for a worker PROTOCOL-NUMBER, or with =ADDRESS behind it, if it was configured by
# one; and with the first of these before it if the supervisor was handed it itself. It is for a
# successor LISTENER-DEVICE-INODE-PROTOCOL-ADDRESS. A name has no colons, so they are quoted.
_ACTIVATED, _LISTENER = "activated-", "listener-"

# The variable that has the supervisor's own sockets, which no Caddy may have strangers sent to.
_SOCKETS = "SNIMUX_SOCKETS"


@dataclass(frozen=True, slots=True)
class Inheritance:
    """All that a process was handed by a service manager or its predecessor; it owns all of it."""

    activated: tuple[Named, ...]
    """Sockets that the service manager had handed to the first process, by the same numbers."""
    listeners: tuple[Listener, ...] = ()
    """What the predecessor listens on, with those."""
    predecessors: tuple[int, ...] = ()
    """The sockets to those that came before; the first one waits for this process to take over."""


@dataclass(frozen=True, slots=True)
class Handed:
    """A worker's number, from 1 up, and the descriptors that it was handed, which it owns."""

    number: int
    orders: int
    places: int
    config: int | None
    sockets: tuple[Named, ...]
    """Listening, by the name of the protocol."""
    status: int | None = None
    """A connected socket on which the supervisor asks, if it does."""

    def config_text(self) -> str | None:
        """Return the text of the configuration file; None where there is none."""
        return None if self.config is None else content(self.config)

    def questions(self) -> socket.socket | None:
        """Return the socket on which the supervisor asks, if it does."""
        return None if self.status is None else socket.socket(fileno=self.status)

    def listeners(self) -> list[Listener]:
        """Return the listeners, which leave UNIX sockets' files to the supervisor.

        Raises:
            HandoverError: one is not as a supervisor hands it over.
        """
        return [_listener(name, descriptor) for name, descriptor in self.sockets]

    def activated(self) -> list[Named]:
        """Return those of the sockets that the supervisor was handed itself."""
        return [
            (name.removeprefix(_ACTIVATED).rpartition("-")[0], descriptor)
            for name, descriptor in self.sockets
            if name.startswith(_ACTIVATED)
        ]


def inheritance(named: Sequence[Named]) -> Inheritance:
    """Tell apart the descriptors that were handed over.

    Raises:
        HandoverError: a listener is not as a predecessor hands it over.
    """
    predecessors = tuple(number for name, number in named if name == _PREDECESSOR)
    if not predecessors:
        return Inheritance(tuple(named))
    own = [(name, number) for name, number in named if name.startswith(_LISTENER)]
    activated = [x for x in named if x[0] != _PREDECESSOR and x not in own]
    listeners = [adopted(number, FdAddress(number)) for _, number in activated]
    listeners += [_listener(name, number) for name, number in own]
    return Inheritance(tuple(activated), tuple(listeners), predecessors)


def to_successor(listeners: Iterable[Listener], channels: Iterable[int]) -> list[Named]:
    """Return what a successor is handed: listeners, and sockets to those that came before it."""
    named = [(_name_for_successor(each), each.socket.fileno()) for each in listeners]
    return [*named, *((_PREDECESSOR, channel) for channel in channels)]


def variable(sockets: Iterable[DialAddress]) -> dict[str, str]:
    """Return the variable by which a worker knows the supervisor's own sockets."""
    return {_SOCKETS: " ".join(quote(str(address)) for address in sockets)}


def sockets(environment: MutableMapping[str, str]) -> list[DialAddress]:
    """Return the supervisor's own sockets.

    Args:
        environment: loses the variable.
    """
    words = environment.pop(_SOCKETS, "").split()
    return [parse_dial(unquote(word)) for word in words]


def shared(listeners: Iterable[Listener], *, places: int, config: int | None) -> list[Named]:
    """Return what all workers are handed: the listeners, and the files' descriptors."""
    listening = [(_name_for_worker(each), each.socket.fileno()) for each in listeners]
    text = [] if config is None else [(_CONFIG, config)]
    return [*listening, (_PLACES, places), *text]


def alone(number: int, *, orders: socket.socket, status: socket.socket | None) -> list[Named]:
    """Return what one worker alone is handed: sockets for orders, by its number, and questions."""
    questions = [] if status is None else [(_STATUS, status.fileno())]
    return [(f"{_WORKER}{number}", orders.fileno()), *questions]


def handing(listener: Listener) -> Order:
    """Return the order by which a worker that is alive gets a listener."""
    number = listener.socket.fileno()
    return Order("listener", number, descriptors=(number,), address=str(listener.spec))


def handed_to_worker(descriptors: Sequence[Named]) -> Handed | None:
    """Return what a supervisor has handed over; None if these are not from a supervisor."""
    names = (_PLACES, _CONFIG, _STATUS)
    own = {name: descriptor for name, descriptor in descriptors if name in names}
    for name, descriptor in descriptors:
        number = name.removeprefix(_WORKER)
        if number != name and number.isdecimal() and _PLACES in own:
            rest = [each for each in descriptors if each[0] not in (name, *names)]
            counts, config, status = own[_PLACES], own.get(_CONFIG), own.get(_STATUS)
            return Handed(int(number), descriptor, counts, config, tuple(rest), status)
    return None


def _name_for_successor(listener: Listener) -> str:
    device, inode = listener.inode or (0, 0)
    address = quote(str(listener.spec or listener), safe="")
    return f"{_LISTENER}{device}-{inode}-{listener.protocol}-{address}"


def _name_for_worker(listener: Listener) -> str:
    name = f"{listener.protocol}-{listener.socket.fileno()}"
    if listener.handed_over or listener.spec is None:
        return _ACTIVATED * listener.handed_over + name
    return f"{name}={quote(str(listener.spec), safe='/')}"


def _listener(name: str, descriptor: int) -> Listener:
    """Return the listener that has a name, in either spelling."""
    device = inode = number = "0"
    try:
        if name.startswith(_LISTENER):
            _, device, inode, protocol, address = name.split("-", 4)
        else:
            words, _, address = name.removeprefix(_ACTIVATED).partition("=")
            protocol, _, number = words.rpartition("-")
        file = (int(device), int(inode))
        listener = adopted(
            descriptor,
            parse_listen(unquote(address)) if address else FdAddress(descriptor),
            protocol=protocol,
            inode=file if any(file) else None,
        )
        return replace(listener, number=int(number))
    except (ValueError, OSError) as error:
        raise HandoverError(f"LISTEN_FDNAMES: {name[:80]!r}: {error}") from None
