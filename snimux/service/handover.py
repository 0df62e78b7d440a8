"""What a supervisor hands to a worker, and how it finds that: descriptors, each by a name.

They travel by systemd's protocol: what a worker was handed tells it that it is one. A listener's
name says what it is for, and by which address it was configured; those that come later, come with
an order. Knows nothing of what a worker does with them.
"""

import socket
from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote, unquote

from snimux.net.listeners import Listener
from snimux.routing.address import DialAddress, FdAddress, parse_dial, parse_listen
from snimux.service.control import Order
from snimux.service.reload import content
from snimux.service.systemd import Named

_WORKER, _PLACES, _CONFIG, _STATUS = "worker-", "places", "config", "status"
# The name of a socket is the protocol's, the listener's number, and where it was to listen; with
# this before it the supervisor was handed the socket itself.
_ACTIVATED = "activated-"

# The variable that has the supervisor's own sockets, which no Caddy may have strangers sent to.
_SOCKETS = "SNIMUX_SOCKETS"


@dataclass(frozen=True, slots=True)
class Handed:
    """What a worker was handed: its number, from 1 up, and descriptors, which it owns."""

    number: int
    orders: int
    places: int
    config: int | None
    sockets: tuple[Named, ...]
    """Listening, by the name of the protocol."""
    status: int | None = None
    """A connected socket on which the supervisor asks, if it does."""

    def config_text(self) -> str | None:
        """The text of the configuration file; None where there is none."""
        return None if self.config is None else content(self.config)

    def questions(self) -> socket.socket | None:
        """Where the supervisor asks, if it does."""
        return None if self.status is None else socket.socket(fileno=self.status)

    def listeners(self) -> list[Listener]:
        """The listeners, which leave UNIX sockets' files to the supervisor."""
        return [_listener(name, descriptor) for name, descriptor in self.sockets]

    def activated(self) -> list[Named]:
        """Those of the sockets that the supervisor was handed itself."""
        return [
            (name.removeprefix(_ACTIVATED).rpartition("-")[0], descriptor)
            for name, descriptor in self.sockets
            if name.startswith(_ACTIVATED)
        ]


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
    """What all workers are handed: the listeners, and the files' descriptors."""
    listening = [(_name(listener), listener.socket.fileno()) for listener in listeners]
    text = [] if config is None else [(_CONFIG, config)]
    return [*listening, (_PLACES, places), *text]


def alone(number: int, *, orders: socket.socket, status: socket.socket | None) -> list[Named]:
    """What one worker alone is handed: its number, and where it is given orders, and asked."""
    asked = [] if status is None else [(_STATUS, status.fileno())]
    return [(f"{_WORKER}{number}", orders.fileno()), *asked]


def handing(listener: Listener) -> Order:
    """The order by which a worker that is there gets a listener."""
    number = listener.socket.fileno()
    return Order("listener", number, descriptors=(number,), address=str(listener.spec))


def handed_to_worker(descriptors: Sequence[Named]) -> Handed | None:
    """What a supervisor has handed over; None if these are not from a supervisor."""
    names = (_PLACES, _CONFIG, _STATUS)
    own = {name: descriptor for name, descriptor in descriptors if name in names}
    for name, descriptor in descriptors:
        number = name.removeprefix(_WORKER)
        if number != name and number.isdecimal() and _PLACES in own:
            rest = [each for each in descriptors if each[0] not in (name, *names)]
            counts, config, status = own[_PLACES], own.get(_CONFIG), own.get(_STATUS)
            return Handed(int(number), descriptor, counts, config, tuple(rest), status)
    return None


def _name(listener: Listener) -> str:
    """What a listener is handed to workers by."""
    name = f"{listener.protocol}-{listener.socket.fileno()}"
    if listener.handed_over or listener.spec is None:
        return _ACTIVATED * listener.handed_over + name
    return f"{name}={quote(str(listener.spec), safe='/')}"  # no colon in a name


def _listener(name: str, descriptor: int) -> Listener:
    what, _, wanted = name.removeprefix(_ACTIVATED).partition("=")
    protocol, _, number = what.rpartition("-")
    address = parse_listen(unquote(wanted)) if wanted else FdAddress(descriptor)
    sock = socket.socket(fileno=descriptor)
    return Listener(sock, protocol=protocol, spec=address, number=int(number))
