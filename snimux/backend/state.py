"""Keep of an address of a backend whether it is up, and who uses it or waits for it.

Source: HAProxy (``rise``, ``fall``).
"""

from dataclasses import dataclass, field, replace

import trio

from snimux.backend.queue import Waiter


@dataclass(frozen=True, slots=True)
class Checked:
    """The result of an address's checks: ``against`` of them in a row said otherwise since."""

    is_up: bool = True
    against: int = 0

    def after(self, passed: bool, *, rise: int, fall: int) -> "Checked":
        """Return the result after one more.

        Args:
            passed: whether it passed.
            rise: so many that pass in a row make it up.
            fall: so many that fail in a row make it down.
        """
        if passed == self.is_up:
            return replace(self, against=0)
        if self.against + 1 < (rise if passed else fall):
            return replace(self, against=self.against + 1)
        return Checked(passed)


UP = Checked()
"""What is thought of an address before its first check."""


@dataclass(slots=True, eq=False)
class State:
    """An address as this process knows it."""

    connections: int = 0
    """Those that are there, and those that are being dialled."""
    silent_since: float | None = None
    """When it could first not be dialled, since when nobody could; None: it answers."""
    returns: int = 0
    """How often it has answered again: what was dialled before that says nothing any more."""
    checked: Checked = UP
    is_discovered: bool = False
    """Whether a Caddy says the address."""
    waiters: dict[Waiter, None] = field(default_factory=dict)
    """Who waits until it answers, in their order."""
    dial_timeout: float = 0.0
    """Seconds that each dial gets of the task that dials it while it is silent."""
    leisure: trio.CancelScope | None = None
    """What that task is in while nobody waits."""

    @property
    def is_up(self) -> bool:
        """Return whether connections are for it rather than for others."""
        return self.silent_since is None and self.checked.is_up
