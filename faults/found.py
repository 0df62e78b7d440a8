"""What a fault came to, and how much of it is to be done. Knows none of them."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Size:
    """How much is to be done."""

    quick: bool = False
    """As little as shows anything: for tests."""
    rounds: int = 3
    """How often, where something is done again and again."""
    minutes: float = 5.0
    """How long the soak takes."""

    def pick(self, quick: int, full: int) -> int:
        """One number or the other."""
        return quick if self.quick else full


@dataclass(frozen=True, slots=True)
class Found:
    """What one fault came to."""

    done: str
    """What was done, for people."""
    connections: int
    """How many there were."""
    lost: int
    """How many of them did not get all that they were to get, to the byte; without `own`."""
    own: int = 0
    """How many ended with the process that was killed, which had them open."""
    remark: str = ""
    problems: tuple[str, ...] = ()
    """What else is not as it should be."""

    @property
    def is_well(self) -> bool:
        """Whether nothing is to be mended."""
        return not self.lost and not self.problems


@dataclass(frozen=True, slots=True)
class Fault:
    """One of them."""

    name: str
    title: str
    missing: Callable[[], str | None]
    """Says what is missing to make it here."""
    run: Callable[[Path, Size], Awaitable[list[Found]]]
    """Makes it, with an empty directory for its files whose path is short."""
