"""What a fuzz target is: something true of all bytes, bytes to begin with, and a way to bend them.

Knows no search: both take a target as it is.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random

CORPUS = Path(__file__).parent / "corpus"


@dataclass(frozen=True, slots=True)
class Target:
    """One function that reads what others wrote."""

    name: str
    modules: tuple[str, ...]
    """What is to be reached, as paths below ``snimux/`` without their ``.py``."""
    check: Callable[[bytes], int]
    """Raises AssertionError where what is said of the function is not true of these bytes; returns
    how far they got, for a search to go further."""
    given: Callable[[], Iterable[bytes]]
    """What the tests have anyhow to begin with."""
    mutate: Callable[[bytes, Random], bytes]
    """Bent as the format allows, so that what is behind its lengths and brackets is reached."""
    max_size: int = 4096
    """How long bytes may become, so that a search stays fast."""

    @property
    def corpus(self) -> Path:
        """Where the files are that earlier searches found."""
        return CORPUS / self.name

    def kept(self) -> list[Path]:
        """The files of the corpus."""
        return sorted(path for path in self.corpus.glob("*") if path.is_file())

    def seeds(self) -> list[bytes]:
        """All that there is to begin with."""
        return [*self.given(), *(path.read_bytes() for path in self.kept())]
