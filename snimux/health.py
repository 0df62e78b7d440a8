"""Whether an address is up, by the checks that it passed and failed in a row.

Pure: counts, no clock and no socket.

Source: HAProxy, Configuration Manual, ``rise`` and ``fall``.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Checked:
    """What the checks of an address say: ``against`` of them in a row said otherwise since."""

    is_up: bool = True
    against: int = 0

    def after(self, passed: bool, *, rise: int, fall: int) -> "Checked":
        """What they say after one more.

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
