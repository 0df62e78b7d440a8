"""The order of a run: every subject in every round, in an order that turns from round to round.

So what the machine does besides meets all alike, and who comes first is never the same.
"""

import contextlib
import signal
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType

from bench.bed import Bed, Sample
from bench.load import LoadError
from bench.running import StartError
from bench.subjects import Subject
from bench.works import Case, Group

_TAKES_AT_MOST = 90.0  # seconds, one measurement: something hangs


@dataclass(slots=True)
class Outcome:
    """What a run found."""

    results: defaultdict[str, dict[str, list[Sample]]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    """By row and subject, one sample a round."""
    problems: list[str] = field(default_factory=list)
    """Measurements that did not work, for people."""


def plan(
    groups: Sequence[Group], subjects: Sequence[Subject], rounds: int
) -> Iterator[tuple[int, Subject, Case]]:
    """Every measurement of a run, in order."""
    for number in range(rounds):
        turn = number % max(len(subjects), 1)
        turned = [*subjects[turn:], *subjects[:turn]]
        for group in groups:
            for subject in turned:
                for case in group:
                    if case.suits(subject):
                        yield number, subject, case


def run(
    bed: Bed,
    steps: Sequence[tuple[int, Subject, Case]],
    tell: Callable[[int, Subject, Case], None],
) -> Outcome:
    """Measure it all; what does not work is noted, and the rest goes on.

    Args:
        bed: where to measure.
        steps: what, from `plan`.
        tell: is called before each step.
    """
    outcome = Outcome()
    for number, subject, case in steps:
        tell(number, subject, case)
        try:
            with deadline(_TAKES_AT_MOST):
                samples = case.measure(bed, subject)
        except (
            LoadError,
            StartError,
            OSError,
            ArithmeticError,
            subprocess.SubprocessError,
        ) as error:
            outcome.problems.append(f"{subject.name}, {case.rows[0].title}: {error}")
            continue
        for sample in samples:
            outcome.results[sample.row].setdefault(subject.name, []).append(sample)
    return outcome


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise `LoadError` in what takes longer."""

    # A signal, because the loads wait in blocking calls and have no time to look at a clock.
    def strike(_number: int, _frame: FrameType | None) -> None:
        raise LoadError(f"not done within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, strike)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
