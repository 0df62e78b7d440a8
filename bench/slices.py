"""Paired slices: the subjects take turns in short bursts, in an order that is reversed by turns.

What else the machine does changes within seconds. Two bursts, one right after the other, meet much
the same of it, so their ratio is steadier than either. A burst right after one of the same subject
costs other than one after a rest, so a ratio is of two rounds, A B and B A. The median of ratios
bears the few slices that something disturbed; `figures.confidence` has that with its interval.
"""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from bench.bed import Bed, Sample
from bench.rounds import deadline
from bench.subjects import Subject
from bench.works import Steady

BURST = 0.2
"""Seconds of a burst that are enough: some thousand connections or round trips."""

_HANGS_AFTER = 60.0  # seconds more than the bursts themselves take

T = TypeVar("T")


def ratios(mine: Sequence[Sample], theirs: Sequence[Sample]) -> list[float]:
    """Return how many times theirs mine is, of each two rounds: the geometric mean of both.

    Two rounds in which a proxy did not run at all, on a busy machine, are left out.
    """
    products = [
        [first.figure * second.figure for first, second in zip(some[::2], some[1::2], strict=True)]
        for some in (mine, theirs)
    ]
    return [math.sqrt(a / b) for a, b in zip(*products, strict=True) if a > 0 and b > 0]


def in_turns(bursts: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Call each burst once a round, A B, B A, A B and so on; returns what they return, by name."""
    results: dict[str, list[T]] = {name: [] for name in bursts}
    for number in range(rounds):
        for name in list(bursts)[:: -1 if number % 2 else 1]:
            results[name].append(bursts[name]())
    return results


def measure(
    bed: Bed, work: Steady, subjects: Sequence[Subject], rounds: int, seconds: float = BURST
) -> dict[str, list[Sample]]:
    """Measure the subjects in turns; the load of each stays open, and rests in others' turns.

    Args:
        bed: where.
        work: what is done.
        subjects: to be compared; each is started if it does not run.
        rounds: bursts of each.
        seconds: of a burst.

    Returns:
        The samples by the subject's name, one a round.

    Raises:
        LoadError: what came back is wrong, or did not come.
        StartError: a subject did not start.
        OSError: a connection was refused or reset.
    """
    at_most = _HANGS_AFTER + 2 * rounds * len(subjects) * seconds
    with deadline(at_most), contextlib.ExitStack() as stack:
        bursts = {
            each.name: partial(stack.enter_context(work.through(bed, each, seconds)), seconds)
            for each in subjects
        }
        return in_turns(bursts, rounds)
