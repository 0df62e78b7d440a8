"""Let observers hear what happens to connections and backends; none of them can end a connection.

An observer overrides the methods of ``Observer`` that it has a use for; of the others it hears
nothing, and they cost nothing. Source: trio's ``Instrument``.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from snimux.backend.interface import PoolObserver
from snimux.config.model import Config
from snimux.frontend.outcome import Outcome
from snimux.log import Log
from snimux.net.listeners import Listener
from snimux.routing.address import DialAddress
from snimux.routing.routes import RouteTable


class InEffect(Protocol):
    """All that is in effect, as far as connections are concerned; see ``service.generation``."""

    @property
    def config(self) -> Config:
        """The configuration."""

    @property
    def listeners(self) -> Sequence[Listener]:
        """The listeners that connections are accepted on."""

    @property
    def max_connections(self) -> int:
        """The most that there may be at a time."""

    @property
    def https_port(self) -> int:
        """The port at which clients find TLS."""

    @property
    def table(self) -> RouteTable:
        """The routes."""


class Current(Protocol):
    """Holds what is in effect; another value from one moment to the next."""

    @property
    def value(self) -> InEffect:
        """All that is in effect now."""


class Observer(PoolObserver):
    """Hears nothing; methods are called in the event loop, and are not to take long."""

    def accepted(self, outcome: Outcome) -> None:
        """Hear of a connection that begins; its outcome is filled while it goes on."""

    def ended(self, outcome: Outcome) -> None:
        """Hear of a connection that has ended, also of one that was closed without a word."""

    def in_effect(self, generation: InEffect) -> None:
        """Hear that something else is in effect from now on."""


class Events(Observer):
    """Tells each event to the observers in their order; what one of them raises is logged."""

    def __init__(self, log: Log | None = None, *observers: Observer) -> None:
        """Have these observers at first; log what they raise, if there is a log."""
        self._log = log
        self._observers: tuple[Observer, ...] = ()
        self.register(*observers)

    def register(self, *observers: Observer) -> None:
        """Have more observers: of what happens from now on."""
        self._observers += observers

        def hearers(name: str) -> tuple[Callable[..., None], ...]:
            silent = getattr(Observer, name)
            return tuple(
                getattr(x, name) for x in self._observers if getattr(type(x), name) != silent
            )

        self._accepted, self._ended = hearers("accepted"), hearers("ended")
        self._dial_failed = hearers("dial_failed")
        self._backend_changed = hearers("backend_changed")
        self._in_effect = hearers("in_effect")

    def accepted(self, outcome: Outcome) -> None:  # noqa: D102 (as of ``Observer``)
        if self._accepted:  # mostly nobody: not worth a call for each connection
            self._tell(self._accepted, outcome)

    def ended(self, outcome: Outcome) -> None:  # noqa: D102
        self._tell(self._ended, outcome)

    def dial_failed(self, address: DialAddress, is_for_client: bool) -> None:  # noqa: D102
        self._tell(self._dial_failed, address, is_for_client)

    def backend_changed(self, address: DialAddress, is_up: bool, why: str) -> None:  # noqa: D102
        self._tell(self._backend_changed, address, is_up, why)

    def in_effect(self, generation: InEffect) -> None:  # noqa: D102
        self._tell(self._in_effect, generation)

    def _tell(self, hearers: Iterable[Callable[..., None]], *event: object) -> None:
        for hear in hearers:
            try:
                hear(*event)
            except Exception as error:  # not expected; but whoever is observed must not end by that
                if self._log is not None:
                    fields = {"observer": hear.__qualname__, "detail": repr(error)}
                    self._log.write("error", "observer-failed", fields)
